"""Evaluation, quantisation and protection of a model, with fields named as the flags of these commands.

The functions of the package behind them take values: opened data, an engine, a selector. Here each is made of the
fields that are given, which have the names of the flags.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from onnxfi.errors import InputError, SpecError, closest

if TYPE_CHECKING:
    from onnxfi.campaign.spec.settings import DataSettings, Scoring
    from onnxfi.faults.space import Selector
    from onnxfi.graph.model.loading import ModelLike
    from onnxfi.graph.write.faulty_copy import OnProgress
    from onnxfi.protection.protect import Protected
    from onnxfi.protection.protection import Protection
    from onnxfi.protection.protection_plan import ProtectionPlan
    from onnxfi.runtime.data.open_data import Data
    from onnxfi.runtime.engine.protocols import Engine
    from onnxfi.runtime.quantize.quantize import Quantised
    from onnxfi.runtime.quantize.recipe import QuantisationRecipe
    from onnxfi.tasks.evaluation import Evaluation

#: Fields of the values below that a campaign alone has, or that are arguments here.
_ELSEWHERE = {"route", "data", "scores", "tolerance", "due"}
#: Arguments with which the data of a pipeline is opened, and their fields.
_PIPELINE_DATA = {"preprocess": "preprocess", "limit": "samples", "labels": "labels"}


@dataclass(frozen=True)
class _Settings:
    """The values that the fields of a call make: how data is read, the engine, and what else the verb takes."""

    given: frozenset[str]
    reading: DataSettings
    engine: Engine
    runs_as_given: bool
    more: Any = None

    @classmethod
    def of(cls, engine: Engine | str | None, fields: Mapping[str, Any], more: type[Scoring] | None = None) -> Self:
        """Return the values of these fields; SpecError for one that is unknown, or that an open engine has."""
        from onnxfi.campaign.spec.flat_fields import build, flat_fields, plain_fields
        from onnxfi.campaign.spec.settings import DataSettings, EngineSettings

        kinds = (DataSettings, EngineSettings, *([] if more is None else [more]))
        known = {name for kind in kinds for name in flat_fields(kind)} - _ELSEWHERE
        for name in fields:
            if name not in known:
                raise SpecError(f"unknown field {name[:60]!r}{closest(name[:60], known)}", name)
        values = plain_fields({**({"engine": engine} if isinstance(engine, str) else {}), **fields})
        own = flat_fields(EngineSettings).keys() & fields.keys()
        opened = build(EngineSettings, values).open() if engine is None or isinstance(engine, str) else engine
        if own and opened is engine:
            raise SpecError(f"the engine has its {min(own)} already; give it there, or the engine's name", min(own))
        made = None if more is None else build(more, values)
        return cls(frozenset(fields), build(DataSettings, values), opened, bool(own) or engine is not None, made)

    def data_of(self, model: ModelLike, data: Any, task: str = "auto") -> Data:
        """Return data as it is where it is open already, else opened for a model."""
        from onnxfi.graph.model.loading import stored_form
        from onnxfi.runtime.data.open_data import Data
        from onnxfi.tasks.registry import open_data_of_model

        if isinstance(data, Data):
            self.refuse(("samples", "labels", "preprocess", "dim", "batch_axis"), "of data that is open already")
            return data
        how = {name: getattr(self.reading, name) for name in ("preprocess", "batch_axis", "labels", "dim")}
        spec = None if isinstance(data, str) and data == "synthetic" else data
        return open_data_of_model(stored_form(model), spec, self.engine, task, limit=self.reading.samples, **how)

    def refuse(self, names: Iterable[str], reason: str) -> None:
        """Refuse fields that would have no effect."""
        for name in sorted(self.given.intersection(names)):
            raise SpecError(f"{name} has no effect {reason}; leave it out", name)


def evaluate(
    model: ModelLike,
    data: Any = None,
    *,
    golden: Evaluation | None = None,
    engine: Engine | str | None = None,
    progress: OnProgress | None = None,
    allow_code: bool = False,
    allow_links: bool = False,
    **fields: Any,
) -> Evaluation:
    """Run a model or a pipeline over data, alone or against the evaluation of its fault-free version.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The ONNX model, or the file of a pipeline.
    data : Data, or all that `open_data` takes
        The samples and their labels: a path, arrays, a dataset, or None for synthetic inputs.
    golden : Evaluation, optional
        The fault-free evaluation to compare with.
    engine : Engine or str, optional
        The engine that runs the model, or its name; ONNX Runtime by default.
    progress : callable, optional
        Called with the number of samples done and of all.
    allow_code : bool
        Let a pipeline name code that is run.
    allow_links : bool
        Follow symbolic and hard links to external data.
    **fields
        What the flags of ``onnxfi eval`` set: ``samples``, ``labels``, ``preprocess``, ``dim``, ``batch``,
        ``batch_axis``, ``output``, ``task``, ``metric``, ``time_axis``, ``provider``, ``threads``, ….

    Returns
    -------
    Evaluation
        The metrics with their conditions, and the scored output of all samples.

    Raises
    ------
    InputError
        If labels, outputs and task do not fit, a field is unknown, or the runtime refuses the model.

    Notes
    -----
    Class scores ([N, C] with C of 2 or more) with labels give top-1 and top-5, and SDC-1 against a golden evaluation;
    any other output gives its deviation from the golden one. A model with a fixed batch size runs in such batches.

    Examples
    --------
    >>> golden = evaluate("models/fashion_cnn.onnx", "models/fashion_test.npz")
    >>> golden.metrics["top1"]
    0.9115
    >>> evaluate("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=200, provider="cpu").metrics["top1"]
    0.915
    """
    from onnxfi.campaign.spec.pipeline_file import load_pipeline, names_pipeline
    from onnxfi.campaign.spec.settings import Scoring
    from onnxfi.graph.model.loading import load
    from onnxfi.runtime.pipeline.open_pipeline import open_pipeline
    from onnxfi.tasks.evaluation import evaluate as evaluate_model
    from onnxfi.tasks.evaluation import evaluate_pipeline

    settings = _Settings.of(engine, fields, Scoring)
    scoring: Scoring = settings.more
    how: dict[str, Any] = {name: getattr(scoring, name) for name in ("output", "task", "metric")}
    how |= {"golden": golden, "progress": progress}
    if isinstance(model, str | Path) and names_pipeline(model):
        settings.refuse(("dim", "batch", "batch_axis", "time_axis"), "of a pipeline, which says how its stages run")
        opened = open_pipeline(load_pipeline(model), settings.engine, allow_code=allow_code, allow_links=allow_links)
        reading = {name: getattr(settings.reading, field) for name, field in _PIPELINE_DATA.items()}
        found = opened.open_data(data, **reading)
        return evaluate_pipeline(opened, found, **how)
    if isinstance(model, str | Path):
        load(model, allow_links=allow_links)
    samples = settings.data_of(model, data, scoring.task)
    batch, engine = settings.reading.batch, settings.engine
    return evaluate_model(model, samples, engine=engine, batch=batch, time_axis=scoring.time_axis, **how)


def quantize(
    model: ModelLike,
    recipe: QuantisationRecipe | str,
    out: str | Path,
    *,
    data: Any = None,
    engine: Engine | str | None = None,
    allow_links: bool = False,
    **fields: Any,
) -> Quantised:
    """Quantise a float32 model and write it to `out`; inputs and outputs keep their names and types.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The float32 model.
    recipe : QuantisationRecipe or str
        The mode and its settings; of a mode as text the settings are among the fields.
    out : str or Path
        The file to write.
    data : Data, or all that `open_data` takes, optional
        Data that a static recipe is calibrated on.
    engine : Engine or str, optional
        The engine whose inputs the data is opened for.
    allow_links : bool
        Follow symbolic and hard links to external data.
    **fields
        Settings of the recipe (``per_channel``, ``calibration_samples``, …), and of the data: ``samples``, ``labels``,
        ``preprocess``, ….

    Returns
    -------
    Quantised
        The file, and how far weights and outputs are from those of the float model.

    Raises
    ------
    InputError
        If recipe, model and data do not go together. Nothing is written.
    EngineError
        If ONNX Runtime refuses the quantised model. Nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = quantize("models/fashion_cnn.onnx", "weight-only", folder + "/cnn.onnx", weights="int8", block=64)
    >>> done.size_after_bytes < 0.5 * done.size_before_bytes
    True
    """
    from onnxfi.graph.model.loading import load
    from onnxfi.runtime.quantize.quantize import quantize as quantize_model
    from onnxfi.runtime.quantize.recipe import QuantisationRecipe

    if isinstance(recipe, str):
        known = {field.name for field in dataclasses.fields(QuantisationRecipe)} - {"mode"}
        recipe = QuantisationRecipe(recipe, **{name: fields.pop(name) for name in known & fields.keys()})
    if not isinstance(recipe, QuantisationRecipe):
        raise InputError(f"a recipe is a QuantisationRecipe or its text, as 'static', not a {type(recipe).__name__}")
    settings = _Settings.of(engine, fields)
    if data is None:
        settings.refuse(fields, "without data")
    opened = load(model, allow_links=allow_links)
    return quantize_model(opened, recipe, out, data=None if data is None else settings.data_of(opened, data))


def protect(
    model: ModelLike,
    protections: str | Protection | Sequence[str | Protection],
    out: str | Path,
    *,
    stage: str | None = None,
    selector: Selector | None = None,
    data: Any = None,
    engine: Engine | str | None = None,
    opset: int | None = None,
    plan: ProtectionPlan | str | Path | None = None,
    allow_code: bool = False,
    allow_links: bool = False,
    **fields: Any,
) -> Protected:
    """Write a model, or that of a stage of a pipeline, with protections in its graph, in plain ONNX operators.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The unprotected model, or the file of a pipeline.
    protections : str, Protection, or a sequence of them
        What ``--with`` takes: ``NAME[:key=value,…]``.
    out : str or Path
        The file to write.
    stage : str, optional
        The stage of a pipeline whose model is protected, calibrated on what the stages in front of it give.
    selector : Selector, optional
        The activations, layers or weights to protect (`include`, `exclude`, `op`); each protection has its default.
    data : Data, or all that `open_data` takes, optional
        Calibration data, which must not be what the model is scored on.
    engine : Engine or str, optional
        The engine that runs the model, or its name; ONNX Runtime on the CPU by default.
    opset : int, optional
        Raise the model's opset first.
    plan : ProtectionPlan, str or Path, optional
        What is protected instead of `protections`, which are empty then, and `selector`; or the plan's file.
    allow_code : bool
        Let a pipeline name code that is run.
    allow_links : bool
        Follow symbolic and hard links to external data.
    **fields
        What further flags of ``onnxfi protect`` set: ``include``, ``exclude`` and ``op`` in place of a selector,
        ``samples``, ``preprocess``, ``batch``, ``provider``, ….

    Returns
    -------
    Protected
        What was written, and how fault-free outputs compare with the original's.

    Raises
    ------
    InputError
        If a protection is unknown, given twice, or finds nothing to protect, or the model is protected already;
        nothing is written then.

    Examples
    --------
    >>> import tempfile
    >>> data = "models/fashion_test.npz"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = protect("models/fashion_cnn.onnx", "range:clip", folder + "/p.onnx", data=data, samples=100)
    >>> done.fault_free.changed, done.tensors["range:clip"][:2]
    (0, ('relu', 'relu_1'))
    """
    from onnxfi.campaign.plan.open_model import reopen
    from onnxfi.campaign.spec.pipeline_file import load_pipeline, names_pipeline
    from onnxfi.faults.space import Selector
    from onnxfi.graph.model.loading import load
    from onnxfi.protection.protect import protect as protect_model
    from onnxfi.protection.protection_plan import load_protection_plan
    from onnxfi.runtime.pipeline.later_stages import stage_data

    selection: dict[str, Any] = {name: fields.pop(name) for name in ("include", "exclude", "op") if name in fields}
    settings = _Settings.of(engine, fields)
    if data is None:
        settings.refuse(("samples", "labels", "preprocess", "dim", "batch_axis"), "without data")
    runner, batch = settings.engine if settings.runs_as_given else None, settings.reading.batch
    planned = load_protection_plan(plan) if isinstance(plan, str | Path) else plan
    source = str(model) if isinstance(model, str | Path) else None
    piped = source is not None and names_pipeline(source)
    if piped or stage is not None:
        opened = reopen(source or "a model in memory", {"allow_links": allow_links, "stage": stage})
    else:
        opened = load(model, allow_links=allow_links)
    if piped and source is not None:
        if data is not None:
            settings.refuse(("dim", "batch", "batch_axis"), "of a pipeline, which says how its stages run")
        reading = {name: getattr(settings.reading, field) for name, field in _PIPELINE_DATA.items()}
        allowed = {"allow_code": allow_code, "allow_links": allow_links}
        samples = stage_data(
            load_pipeline(source), stage, settings.engine, data, batch=batch, reading=reading, **allowed
        )
    else:
        samples = None if data is None else settings.data_of(opened, data)
    return protect_model(
        opened, protections, out, selector=Selector.given(selector, selection), data=samples, engine=runner,
        batch=batch, opset=opset, plan=planned,
    )  # fmt: skip
