"""Evaluation: the answers of a model on data, alone or against those of its fault-free version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnxfi.errors import DataError, EngineError
from onnxfi.faults.trials import json_value
from onnxfi.graph.dataflow.lookup_tables import lookup_tables
from onnxfi.graph.model.loading import Model, ModelLike, load, stored_form
from onnxfi.graph.passes.scored_outputs import listed_classes, spike_count_output, with_map_scores, with_spike_counts
from onnxfi.graph.write.faulty_copy import OnProgress
from onnxfi.runtime.data.decoder_inputs import check_rows
from onnxfi.runtime.data.dry_run import dry_run
from onnxfi.runtime.data.open_data import Data
from onnxfi.runtime.data.sample_outputs import (
    KeptInputs,
    Outputs,
    Reduce,
    class_axes,
    run_outputs,
    sample_axes,
    stacked,
)
from onnxfi.runtime.engine.device_errors import out_of_memory
from onnxfi.runtime.engine.ports import Array, Port
from onnxfi.runtime.engine.protocols import Engine, Session
from onnxfi.runtime.engine.registry import engine_of
from onnxfi.runtime.generation.generation_engine import GenerationSession
from onnxfi.runtime.pipeline.open_pipeline import OpenPipeline
from onnxfi.runtime.pipeline.pipeline_answers import PipelineAnswers
from onnxfi.tasks.class_scores import by_place, named_output
from onnxfi.tasks.outcomes import GoldenRun
from onnxfi.tasks.registry import (
    AUTO,
    CLASSIFICATION,
    choose_task,
    driven,
    find_task,
    guessed,
    open_samples,
    outputs_read,
    remark,
)
from onnxfi.tasks.task import ModelOutputs, Task


@dataclass(frozen=True)
class Evaluation:
    """The answers of a model on data: metrics by name, and the conditions under which they were taken.

    `run` are the outputs that count, batch by batch, and `outputs` their names, none where all count; `golden` is the
    golden run with its task.
    """

    metrics: dict[str, float]
    run: tuple[Outputs, ...] = field(repr=False)
    golden: GoldenRun = field(repr=False)
    outputs: tuple[str, ...]
    samples: int
    data: str
    provider: str
    note: str
    synthetic: bool = False
    #: The part of a batch's outputs that the task keeps.
    reduce: Reduce | None = field(default=None, repr=False, compare=False)
    #: A remark on how the scored output is read.
    reading: str = ""

    @property
    def scores(self) -> Array:
        """The numbers of the outputs that count ([N, …])."""
        return stacked(self.run)

    @property
    def output(self) -> str | None:
        """The name of the scored output, of several their names; None if all count."""
        return ", ".join(self.outputs) or None

    @property
    def task(self) -> Task:
        """The task."""
        return self.golden.task

    def summary(self) -> dict[str, Any]:
        """Return the metrics as strict JSON takes them."""
        return {name: json_value(value) for name, value in self.metrics.items()}

    def conditions(self) -> str:
        """Return the conditions in one line."""
        scored = f"output {self.output!r}" if self.output else "all outputs"
        made_up = "; synthetic inputs say nothing about accuracy" if self.synthetic else ""
        read = f"; {self.reading}" if self.reading else ""
        return f"{self.data}; {scored}; {self.note}{made_up}{read}"


def evaluate(
    model: ModelLike,
    data: Any,
    *,
    golden: Evaluation | None = None,
    engine: Engine | None = None,
    batch: int = 32,
    output: str | None = None,
    time_axis: int | None = None,
    task: str = AUTO,
    metric: Sequence[str] = (),
    progress: OnProgress | None = None,
) -> Evaluation:
    """Run a model over data, alone or against the evaluation of its fault-free version.

    `onnxfi.evaluate` describes the arguments; here they are values: an engine, data that may be open, the names of the
    scored `output`, `task` and `metric`, and the `time_axis` along which spikes are counted.

    Examples
    --------
    >>> golden = evaluate("models/fashion_cnn.onnx", "models/fashion_test.npz")
    >>> golden.metrics["top1"]
    0.9115
    >>> evaluate("models/fashion_cnn.onnx", "models/fashion_test.npz", golden=golden).metrics["sdc1"]
    0.0
    """
    if time_axis is not None:
        spikes = with_spike_counts(load(model, allow_links=True), output, time_axis)
        model, output = spikes.stored_form, spike_count_output(spikes.proto)
    kind = "auto" if time_axis is None else "counts"
    engine, model = driven(task, engine or engine_of()), stored_form(model)
    dry_run(engine, model, data if isinstance(data, Data) else None)
    session = engine.prepare(model)
    if any("map(" in kind for kind in session.non_tensors.values()):
        scored, maps = with_map_scores(load(model, allow_links=True))
        if maps:
            model, output = scored.stored_form, maps.get(output or "", output)
            session = engine.prepare(model)
    data = data if isinstance(data, Data) else open_samples(task, data, session.inputs)
    if any(port.dtype in ("int64", "int32") for port in session.inputs):
        check_rows(data, lookup_tables(load(model, allow_links=True).index.main))
    data = by_places(data, lambda: load(model, allow_links=True), session.outputs, output, task)
    _check_samples(golden, data)
    names = golden.outputs if golden else scored_names(session, output, data, kind, task=task)
    reduce = golden.reduce if golden else reduction(data, session.outputs, output, task)
    axes = sample_axes(session, data, model)
    try:
        size = data.layout.fixed or batch
        run = run_outputs(session, data, size, names, progress=progress, axes=axes, reduce=reduce)
    except EngineError as error:
        alone = isinstance(session, GenerationSession)  # which runs one sample at a time
        raise (does_not_run(error, data, 1 if alone else batch) if golden is None else error) from None
    name = ", ".join(names) or None
    truth, read = _meaning(golden, run, name, data, (task, kind, metric), data.layout.fixed or batch)
    return Evaluation(
        _metrics(truth, run if golden else None), run, truth, names, data.samples, data.description, session.provider,
        session.note, data.synthetic, reduce, read or _passed_over(session, name),
    )  # fmt: skip


def _meaning(
    golden: Evaluation | None,
    run: Sequence[Outputs],
    name: str | None,
    data: Data,
    asked: tuple[str, str, Sequence[str]],
    batch: int,
) -> tuple[GoldenRun, str]:
    """Return the golden run, which is `run` itself without an earlier one, and a remark on how the outputs are read.

    `asked` are the task, the kind of scores and further metrics.
    """
    task, kind, metric = asked
    truth = None if golden is None else golden.golden
    if truth is None:
        meaning = choose_task(task, run, name, data, kind, metric)
        inputs = KeptInputs.read(data, batch, meaning.inputs) if meaning.inputs else None
        truth = GoldenRun.of(run, data.labels, meaning, kind, 0.0, ("nonfinite",), inputs)
    sure = golden is None or data.labels is not None  # no class metric, or labels that say what the scores are
    return truth, remark(task, truth.task, truth.run, name, data.samples, kind, labelled=sure)


def by_places(data: Data, model: Callable[[], Model], ports: Sequence[Port], name: str | None, task: str) -> Data:
    """Return data whose labels count the scores, where they are of classes that the model lists; see `by_place`."""
    labelled = any(port.dtype in ("int64", "string") for port in ports)  # as classifiers that list their classes are
    if data.labels is None or not labelled or task not in (AUTO, CLASSIFICATION):
        return data
    return by_place(data, listed_classes(model().proto), ports, name)


def _check_samples(golden: Evaluation | None, data: Data) -> None:
    if golden is not None and golden.samples != data.samples:
        raise DataError(f"golden was taken on {golden.samples:,} samples, the data has {data.samples:,}; take the same")


def does_not_run(error: EngineError, data: Data, size: int) -> EngineError:
    """Return the error of a fault-free model on batches of `size`, with what may help."""
    if out_of_memory(error):
        smaller = ", or take a smaller --batch" if data.layout.fixed is None and size > 1 else ""
        return type(error)(f"{error}; the model needs more memory than there is: free some{smaller}")
    helps = "; these are synthetic inputs, give real ones with --data" if data.synthetic else ""
    if data.layout.fixed is None and min(size, data.samples) > 1:
        helps += "; a model that takes one sample at a time runs with --batch 1"
    return type(error)(f"{error}{helps}")


def _passed_over(session: Session, name: str | None) -> str:
    """Return a remark on the outputs that do not count since they are no tensors."""
    listed = ", ".join(f"{other!r} ({dtype})" for other, dtype in session.non_tensors.items())
    return f"passed over, since they are no tensors: {listed}" if listed and name is None else ""


def scored_names(
    session: Session, name: str | None, data: Data, kind: str = "auto", *, task: str = AUTO, whole: bool = False
) -> tuple[str, ...]:
    """Return the outputs of a session that count, none where all do; DataError if the task or labels cannot fit.

    With `whole`, outputs of maps are not passed over.
    """
    chosen = find_task(guessed(data.labels, scored_columns(session.outputs, name)) if task == AUTO else task)
    if chosen.reads is not None:
        return outputs_read(chosen, ModelOutputs(session.outputs, name, data, kind, session.non_tensors, whole))
    return () if name is None else (named_output(session.outputs, name, session.non_tensors),)


def reduction(data: Data, ports: Sequence[Port], name: str | None, task: str) -> Reduce | None:
    """Return what a task keeps of the outputs of a batch of this data; None if it keeps them whole."""
    chosen = find_task(guessed(data.labels, scored_columns(ports, name)) if task == AUTO else task)
    found: Reduce | None = None if chosen.keeps is None else chosen.keeps(data)
    return found


def scored_answers(
    answers: PipelineAnswers, name: str | None, kind: str = "auto", *, task: str = AUTO
) -> PipelineAnswers:
    """Return the answers of a pipeline with the outputs that count; see `scored_names`."""
    labels = answers.data.labels
    chosen = find_task(guessed(labels, scored_columns(answers.ports, name)) if task == AUTO else task)
    if chosen.reads is not None:
        declared = ModelOutputs(answers.ports, name, answers.data, kind, {}, True)
        return replace(answers, names=outputs_read(chosen, declared))
    return answers if name is None else replace(answers, names=(named_output(answers.ports, name, {}),))


def evaluate_pipeline(
    opened: OpenPipeline,
    data: Data,
    *,
    golden: Evaluation | None = None,
    output: str | None = None,
    task: str = AUTO,
    metric: Sequence[str] = (),
    progress: OnProgress | None = None,
) -> Evaluation:
    """Run a pipeline over data, alone or against the evaluation of its fault-free version; see `evaluate`.

    Parameters
    ----------
    opened : OpenPipeline
        The pipeline, from `open_pipeline`.
    data : Data
        The samples and their labels, from its `open_data`.
    golden : Evaluation, optional
        The fault-free evaluation to compare with.
    output : str, optional
        The scored output of its answer.
    task : str
        The task, as ``--task`` takes it.
    metric : sequence of str
        Further metrics as ``module:name``, or the names of installed ones.
    progress : callable, optional
        Called with the number of samples done and of all.

    Returns
    -------
    Evaluation
        The metrics with their conditions, and the answers of all samples.

    Raises
    ------
    DataError
        If a stage fails, or labels, answers and task do not fit.

    Examples
    --------
    >>> from onnxfi.runtime.pipeline.open_pipeline import open_pipeline
    >>> from onnxfi.runtime.pipeline.pipeline import Pipeline, Stage
    >>> net = Stage("net", model="models/fashion_cnn.onnx", inputs={"image": "data.image"})
    >>> opened = open_pipeline(Pipeline([net]))
    >>> evaluate_pipeline(opened, opened.open_data("models/fashion_test.npz", limit=200)).metrics["top1"]
    0.915
    """
    _check_samples(golden, data)
    answers = PipelineAnswers(opened, data, tuple(opened.front(data, progress=progress)))
    answers = scored_answers(answers, output, task=task) if golden is None else replace(answers, names=golden.outputs)
    truth, read = _meaning(golden, answers.run, answers.output, data, (task, "auto", metric), 1)
    return Evaluation(
        _metrics(truth, answers.run if golden else None), answers.run, truth, answers.names, data.samples,
        data.description, opened.provider, opened.note, data.synthetic, None, read,
    )  # fmt: skip


def scored_columns(outputs: Sequence[Port], name: str | None) -> int | None:
    """Return the numbers per sample of the output that is scored, as it is declared; None if they are not known."""
    floats = [port for port in outputs if "float" in port.dtype and name in (None, port.name)]
    shape = class_axes(floats[0].shape or ()) if len(floats) == 1 else ()
    columns = 1 if len(shape) == 1 else shape[1] if len(shape) == 2 else None
    return columns if isinstance(columns, int) else None


def _metrics(golden: GoldenRun, faulty: Sequence[Outputs] | None) -> dict[str, float]:
    """Return the metrics that are shown without a campaign; of a golden run those that say something about it."""
    task = golden.task
    wanted = [m for m in golden.measured if m.name in task.evaluated]
    pair = golden.pair(golden.run if faulty is None else faulty)
    order = {name: k for k, name in enumerate(task.evaluated)}
    wanted.sort(key=lambda m: order[m.name])
    return {m.name: m.measure(pair) for m in wanted if faulty is not None or m.golden}
