"""The tasks and metrics that are known: built in, from entry points, and a user's own as `module:name`.

An entry point of the group `onnxfi.tasks` or `onnxfi.metrics`, like `module:name`, leads to a `Task` or a `Metric`, or
to a function of keyword arguments that returns one.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnxfi.errors import DataError, InputError, closest
from onnxfi.extensions import imported, load_extension, names_function
from onnxfi.numbers import number
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.dry_run import dry_run
from onnxfi.runtime.data.labels import Labels, are_classes, is_binary
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.data.sample_outputs import Outputs, as_run, stacked
from onnxfi.runtime.engine.ports import Array, Port, one_line, shape_text, type_name
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.tasks.class_scores import classifies, reading
from onnxfi.tasks.task import Metric, ModelOutputs, Task

_KINDS = "onnxfi.tasks.kinds"
#: The name that leaves the choice of the task to the shape and the name of the scored output.
AUTO = "auto"
#: The tasks that `AUTO` chooses between where the data has no labels.
CLASSIFICATION, DEVIATION = "classification", "deviation"
#: Built-in tasks by name, each a `Task` or a function of options that makes one, in a module of `onnxfi/tasks/kinds/`.
BUILT_IN: Mapping[str, str] = MappingProxyType({
    CLASSIFICATION: "classification:CLASSIFICATION",
    "binary": "multi_label:binary",
    "multi-label": "multi_label:multi_label",
    "regression": "regression:regression",
    "signal": "regression:signal",
    "embedding": "embedding:embedding",
    "sequence": "sequence:sequence",
    "language-model": "language_model:language_model",
    DEVIATION: "deviation:DEVIATION",
    "segmentation": "segmentation:segmentation",
    "detection": "detection:detection",
    "generation": "generation:generation",
})  # fmt: skip


def _built_in(name: str) -> Any:
    """Return a built-in task, or the function that makes it; its module is loaded when it is asked for."""
    return imported(f"{_KINDS}.{BUILT_IN[name]}")


@cache
def _installed(group: str) -> Mapping[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def task_names() -> tuple[str, ...]:
    """Return the names that ``--task`` takes."""
    return (AUTO, *BUILT_IN, *_installed("onnxfi.tasks"))


def task_identity(spec: str) -> str:
    """Return a task with its options in order, and the digest of each file that they name.

    >>> task_identity("regression:unit=K,tolerance=0.50"), task_identity("deviation")
    ('regression:tolerance=0.5,unit=K', 'deviation')
    """
    head, _, text = spec.partition(":")
    if is_own(spec) or not text:
        return spec
    found = sorted(_options(spec, text).items())
    return f"{head}:" + ",".join(f"{key}={value}{_file_digest(value)}" for key, value in found)


def _file_digest(value: object) -> str:
    file = Path(str(value))
    return f"#{hashlib.sha256(file.read_bytes()).hexdigest()}" if isinstance(value, str) and file.is_file() else ""


def is_own(spec: str) -> bool:
    """Return true for a task as ``module:name``, with or without options, which is imported.

    >>> is_own("own_task:thermometer:limit=0.5"), is_own("deviation"), is_own("thermometer:limit=0.5")
    (True, False, False)
    """
    head, *rest = spec.split(":")
    return head not in task_names() and names_function(":".join([head, *rest[:1]]))


def runs_code(spec: str) -> bool:
    """Return true for a task that imports a module: one of a user's own, or one with an option that names a function.

    >>> runs_code("detection:decode=own:boxes"), runs_code("detection:format=yolo"), runs_code("own:task")
    (True, False, True)
    """
    options = [part.partition("=")[2] for part in spec.partition(":")[2].split(",")]
    return is_own(spec) or any(map(names_function, options))


def known_tasks(*specs: str) -> Iterator[Task]:
    """Yield the built-in and installed tasks, and those of `specs`."""
    every = dict.fromkeys((*BUILT_IN, *_installed("onnxfi.tasks"), *specs))
    yield from (find_task(spec) for spec in every if spec != AUTO)


def find_task(spec: str, metrics: Sequence[str] = ()) -> Task:
    """Return the task of ``NAME[:key=value,…]`` or ``module:name[:key=value,…]``, with other metrics added.

    Raises
    ------
    InputError
        For an unknown name, a module that cannot be imported, or options that the task does not take.

    Examples
    --------
    >>> find_task("deviation").headline
    'sdc_samples'
    """
    head, _, tail = spec.partition(":")
    if is_own(spec):
        name, _, text = tail.partition(":")
        found = _own(f"{head}:{name}", Task, _options(spec, text))
    elif head in BUILT_IN or head in _installed("onnxfi.tasks"):
        options = _options(spec, tail)
        made = _built_in(head) if head in BUILT_IN else load_extension(_installed("onnxfi.tasks")[head], InputError)
        found = _made(made, Task, spec, options)
    else:
        raise InputError(f"no task {head[:60]!r}{closest(head[:60], task_names())}, or give module:name")
    own = [find_metric(one) for one in metrics]
    forms = tuple(with_metrics(form, own) for form in found.alternatives)
    return replace(with_metrics(found, own), alternatives=forms) if own else found


def driven(spec: str, engine: Engine) -> Engine:
    """Return the engine that runs a model as a task asks: in its loop, or once.

    >>> from onnxfi.runtime.engine.registry import engine_of
    >>> driven("classification", engine_of()).name, driven("generation:tokens=8", engine_of()).name
    ('onnxruntime', 'generation')
    """
    task = None if spec == AUTO else find_task(spec)
    return engine if task is None or task.drive is None else task.drive(engine)


def open_samples(task: str, spec: Any, inputs: Sequence[Port], **how: Any) -> Data:
    """Open data as a task reads it; see `onnxfi.runtime.data.open_data.open_data`.

    >>> from onnxfi.runtime.engine.ports import Port
    >>> open_samples("auto", None, [Port("x", "float32", ("N", 3))], limit=2).samples
    2
    """
    found = None if task == AUTO else find_task(task).samples
    return (found or open_data)(spec, inputs, **how)


def open_data_of_model(model: str | Path | bytes, spec: Any, engine: Engine, task: str = AUTO, **how: Any) -> Data:
    """Open data for the inputs of a model, as an engine and a task see them; see `open_samples`.

    >>> from onnxfi.runtime.engine.registry import engine_of
    >>> open_data_of_model("models/fashion_cnn.onnx", "models/fashion_test.npz", engine_of(), limit=5).samples
    5
    """
    engine = driven(task, engine)
    dry_run(engine, model)
    return open_samples(task, spec, engine.prepare(model).inputs, **how)


def find_metric(spec: str) -> Metric:
    """Return a user's own metric: ``module:name``, or the name of an entry point of `onnxfi.metrics`."""
    if names_function(spec):
        found: Metric = _own(spec, Metric, {})
        return found
    installed = _installed("onnxfi.metrics")
    if spec not in installed:
        raise InputError(f"no metric {spec[:60]!r}{closest(spec[:60], installed)}, or give module:name")
    made: Metric = _made(load_extension(installed[spec], InputError), Metric, spec, {})
    return made


def with_metrics(task: Task, metrics: Sequence[Metric]) -> Task:
    """Return a task that also has these metrics, in every report and beside its columns."""
    names = tuple(m.name for m in metrics)
    for k, name in enumerate(names):
        if name in task.by_name or name in names[:k]:
            raise InputError(f"the task {task.name} has a metric {name!r} already; give this one another name")
    return replace(
        task, metrics=(*task.metrics, *metrics), reported=(*task.reported, *names),
        evaluated=(*task.evaluated, *names), columns=(*task.columns, *((name,) for name in names)),
        page_columns=(*task.page_columns, *names),
    )  # fmt: skip


def guessed(labels: Labels | None, columns: int | None) -> str:
    """Return the name of the task that labels ask for where none is named, classification without labels.

    `columns` is the number of scores that a sample has, None if that is not known.

    Raises
    ------
    DataError
        For labels of which several tasks could be meant, or that need options.

    Examples
    --------
    >>> import numpy as np
    >>> guessed(np.array([2, 0]), 3), guessed(np.array([1, 0]), 1), guessed(np.array([[1, 1], [0, 1]]), 2)
    ('classification', 'binary', 'multi-label')
    >>> guessed(np.array([0.5, 1.5]), 1)
    'regression'
    """
    if labels is None:
        return CLASSIFICATION
    number = labels.dtype.kind not in "OUT"
    if number and columns == 1 and labels[:1].size == 1:
        return "binary" if is_binary(labels) else "regression"
    if are_classes(labels):
        return CLASSIFICATION
    if labels.ndim == 2 and labels.shape[1] > 1 and is_binary(labels):
        return "multi-label"
    if number and labels.ndim == 2 and columns in (None, labels.shape[1]):
        return "regression"
    if labels.ndim < 3:
        return CLASSIFICATION  # which says why they are no classes
    if labels.dtype.kind in "iub":
        return "segmentation"
    if labels.ndim == 3 and labels.shape[2] in (5, 6) and number and columns != labels[:1].size:
        return "detection"
    kind, given = type_name(labels), shape_text(labels.shape)
    raise DataError(f"labels are {kind} {given}, which several tasks take; name one with --task")


def choose_task(
    spec: str,
    run: Array | Sequence[Outputs],
    output: str | None,
    data: Data,
    kind: str = "auto",
    metrics: Sequence[str] = (),
) -> Task:
    """Return the task of a golden run: that of `spec`, or for ``auto`` classification where it is certain.

    `output` is the one output that was found to hold scores; None if all count.

    Raises
    ------
    DataError
        If the outputs do not fit the task of `spec`, or the labels of the data ask for classes and there are none.
    """
    batches = as_run(run)
    scores = stacked(batches)
    columns = scores[0].size if scores.ndim and scores.dtype.kind not in "iubOUST" else None
    named = guessed(data.labels, columns) if spec == AUTO else spec
    task = find_task(named, metrics)
    form = next((one for one in task.alternatives if one.misfit and not one.misfit(batches, data, kind)), None)
    if form is not None and (spec != AUTO or data.labels is not None):
        return form
    if spec == AUTO and named == CLASSIFICATION:
        return task if classifies(scores, output, data, kind) else find_task(DEVIATION, metrics)
    if task.misfit is not None and (why := task.misfit(batches, data, kind)):
        unlabelled = replace(data, labels=None)
        said = f"{named}, as the labels look," if spec == AUTO else spec
        if data.labels is not None and not task.misfit(batches, unlabelled, kind):
            raise DataError(f"task {said} does not fit: {why}; name labels of this task with --labels")
        fitting = ", ".join(_fitting(batches, unlabelled, kind))
        raise DataError(f"task {said} does not fit: {why}; tasks that fit: {fitting}, or name another --output")
    if task.name == CLASSIFICATION:
        classifies(scores, output, data, kind)
    return task


def _fitting(run: Sequence[Outputs], unlabelled: Data, kind: str) -> Iterator[str]:
    """Yield the names of the built-in tasks that outputs fit, labels apart."""
    for task in map(find_task, BUILT_IN):
        with contextlib.suppress(InputError):  # of a library that is not installed
            if task.misfit is None or not task.misfit(run, unlabelled, kind):
                yield task.name


def outputs_read(task: Task, declared: ModelOutputs) -> tuple[str, ...]:
    """Return the outputs that a task reads; DataError names the tasks that fit where no output does."""
    assert task.reads is not None
    try:
        return task.reads(declared)
    except DataError as error:
        unlabelled = replace(declared.data, labels=None)
        alone = [replace(declared, ports=(port,), data=unlabelled) for port in declared.ports]
        if declared.asked is not None or any(_reads(task, one) for one in alone):
            raise
        fitting = ", ".join(name for name in BUILT_IN if any(_reads(find_task(name), one) for one in alone))
        raise DataError(f"{error}; tasks that fit: {fitting}") from None


def _reads(task: Task, declared: ModelOutputs) -> bool:
    """Return true for a task that certainly reads some of these outputs as they are declared."""
    with contextlib.suppress(InputError):
        return task.misfit is None if task.reads is None else bool(task.reads(declared))
    return False


def known_metric(name: str, task: str = AUTO, metrics: Sequence[str] = ()) -> Metric | None:
    """Return the metric of a name in any known task, in that of the specification `task`, or among `metrics`."""
    for known in known_tasks():
        if name in known.by_name:
            return known.metric(name)
    if is_own(task) and name in (own := find_task(task)).by_name:
        return own.metric(name)
    return next((m for m in map(find_metric, metrics) if m.name == name), None)


def metric_names() -> list[str]:
    """Return the names of the metrics of all known tasks."""
    return list(dict.fromkeys(name for task in known_tasks() for name in task.by_name))


def expected_task(spec: str, output: str | None, labels: Labels | None, columns: int | None) -> Task:
    """Return the task of a specification before the golden run: for ``auto`` by the labels and the scored output.

    `columns` are the numbers per sample that it declares, None if they are not known.
    """
    if spec != AUTO:
        return find_task(spec)
    named = guessed(labels, columns)
    return find_task(DEVIATION if output is None and named == CLASSIFICATION else named)


def remark(
    spec: str,
    task: Task,
    run: Sequence[Outputs],
    output: str | None,
    samples: int,
    kind: str = "auto",
    *,
    labelled: bool,
) -> str:
    """Return how the scored output is read, where that was guessed or is doubtful; empty if it is certain."""
    if spec != AUTO and task.remark is None:
        return ""
    scores = stacked(run)
    if spec == AUTO and task.name not in (CLASSIFICATION, DEVIATION):
        more = task.remark(scores, output, samples, kind, labelled=labelled) if task.remark else ""
        return f"task {task.name}, as the labels look; --task names another" + (more and f"; {more}")
    if spec == AUTO and task.name == CLASSIFICATION and task.remark is None:
        return ""  # class indices, which no labels would read otherwise
    if spec == AUTO:
        return reading(scores, output, samples, kind, labelled=labelled)
    assert task.remark is not None
    return task.remark(scores, output, samples, kind, labelled=True)


def missing(name: str, task: Task, *, labelled: bool) -> str:
    """Return what a campaign lacks for a metric; empty if it lacks nothing.

    >>> missing("critical", find_task("classification"), labelled=False)
    'the data has no labels; name labelled data with --data, or take the rate sdc1'
    """
    metric = task.by_name.get(name)
    if metric is not None:
        if metric.needs_labels and not labelled:
            return f"the data has no labels; name labelled data with --data, or take the rate {task.headline}"
        return ""
    owner = next((one for one in known_tasks() if name in one.by_name), None)
    why = owner.absent if owner is not None else ""
    return f"{why or f'the task {task.name} has no such metric'}, or take the rate sdc or {task.headline}"


def _own(spec: str, kind: type, options: Mapping[str, Any]) -> Any:
    """Return what `module:name` leads to."""
    return _made(imported(spec, what=kind.__name__.lower()), kind, spec, options)


def _made(found: Any, kind: type, spec: str, options: Mapping[str, Any]) -> Any:
    """Return a value of a kind as it is, or as a function makes it of options."""
    what = kind.__name__.lower()
    if callable(found) and not isinstance(found, kind):
        _check_options(found, options, spec)
        try:
            found = found(**options)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{what} {spec!r} failed: {type(error).__name__}: {one_line(error)}") from error
    elif options:
        raise InputError(f"{what} {spec!r} takes no options; leave out {', '.join(options)}")
    if not isinstance(found, kind):
        raise InputError(
            f"{spec!r} is a {type(found).__name__}; give a {kind.__name__}, or a function that returns one"
        )
    return found


def _check_options(function: Callable[..., Any], options: Mapping[str, Any], spec: str) -> None:
    known = list(inspect.signature(function).parameters)
    for name in options:
        if name not in known:
            raise InputError(f"{spec!r}: no option {name!r}{closest(name, known)}")


def _options(spec: str, text: str) -> dict[str, Any]:
    """Return the options of ``key=value,…``; numbers are numbers."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not (equals and key and value):
            raise InputError(f"task {spec!r}: options are key=value, separated by commas; given {part!r}")
        if key in found:
            raise InputError(f"task {spec!r}: {key} is given twice")
        found[key] = _number(value)
    return found


def _number(text: str) -> Any:
    for kind in (int, number):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
