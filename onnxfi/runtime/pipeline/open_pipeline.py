"""An open pipeline: its stages, and what they give for each sample without faults."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from onnxfi.errors import DataError, EngineError, InputError, ModelError, ProviderError, closest
from onnxfi.graph.model.loading import Model, load, parse
from onnxfi.graph.passes.loop_over_axis import loop_over_axis
from onnxfi.graph.protection.alarms import ALARM
from onnxfi.graph.write.faulty_copy import OnProgress
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.dry_run import dry_run
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import Array, Port, same_bytes, shape_text
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.runtime.engine.registry import engine_of
from onnxfi.runtime.pipeline.open_stages import (
    FunctionStage,
    ModelStage,
    OpenStage,
    code_digest,
    frozen,
    open_function,
)
from onnxfi.runtime.pipeline.pipeline import DATA, Pipeline, Source, Stage

#: Golden outputs of stages that are kept, in bytes.
_MOST_BYTES = 1 << 30
Values = Mapping[Source, Array]


@dataclass(frozen=True)
class OpenPipeline:
    """A pipeline with its stages open.

    Parameters
    ----------
    pipeline : Pipeline
        The pipeline.
    stages : mapping of str to OpenStage
        The open stages by name.
    data_ports : tuple of Port
        The arrays of the data that it reads.
    """

    pipeline: Pipeline
    stages: Mapping[str, OpenStage] = field(repr=False)
    data_ports: tuple[Port, ...]

    @cached_property
    def answer(self) -> tuple[Source, ...]:
        """The outputs that are the answer; those of a function, where all count, are known once it has run (none)."""
        found = []
        for text in self.pipeline.answer:
            stage, dot, output = text.partition(".")
            opened = self.stages[stage]
            if dot:
                found.append(Source(stage, output))
            elif isinstance(opened, ModelStage):
                found += [Source(stage, name) for name in opened.outputs]
        return tuple(dict.fromkeys(found))

    @cached_property
    def whole(self) -> tuple[str, ...]:
        """The functions of which every output is in the answer."""
        names = (text for text in self.pipeline.answer if "." not in text)
        return tuple(name for name in names if isinstance(self.stages[name], FunctionStage))

    @cached_property
    def read(self) -> frozenset[Source]:
        """The arrays that a stage reads, or that are in the answer."""
        return frozenset((*self.answer, *(s for stage in self.pipeline.stages for s in stage.sources)))

    def counts(self, source: Source) -> bool:
        """Return true if an output is read or in the answer."""
        return source in self.read or source.stage in self.whole

    @property
    def models(self) -> dict[str, Model]:
        """The models of the stages, by the name of the stage."""
        return {name: one.model for name, one in self.stages.items() if isinstance(one, ModelStage)}

    @property
    def files(self) -> list[Path]:
        """The files of the models, and of the functions whose module lies in the pipeline's or the current folder."""
        folder, found = Path(self.pipeline.folder), list[Path]()
        for stage in self.pipeline.stages:
            if stage.model is not None:
                sources = [source.path for source in self.models[stage.name].sources if source.path is not None]
                found += sources or [folder / stage.model]  # a loop around a model is in memory
            elif isinstance(stage.function, str):
                module = f"{stage.function.partition(':')[0]}.py"
                found += [path for path in (folder / module, Path(module)) if path.is_file()][:1]
        return list(dict.fromkeys(found))

    @property
    def provider(self) -> str:
        """The execution providers of the models."""
        return ", ".join(dict.fromkeys(s.session.provider for s in self.stages.values() if isinstance(s, ModelStage)))

    @property
    def note(self) -> str:
        """The providers with any remark, and the number of stages."""
        notes = dict.fromkeys(s.session.note for s in self.stages.values() if isinstance(s, ModelStage))
        return "; ".join([f"a pipeline of {len(self.stages)} stages", *notes])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the wiring, of the models and of the files of the functions."""
        rows = []
        for stage in self.pipeline.order:
            opened = self.stages[stage.name]
            own = opened.model.digest if isinstance(opened, ModelStage) else _function_identity(stage, opened)
            loop = stage.loop and [stage.loop.axis, list(stage.loop.over), sorted(stage.loop.carry.items())]
            rows.append([stage.name, own, sorted(stage.inputs.items()), stage.batch, loop])
        whole = [sorted(rows, key=lambda row: str(row[0])), list(self.pipeline.answer)]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def run(self, stages: Iterable[Stage], known: Values) -> dict[Source, Array]:
        """Run some stages in their order on one sample, from what is known of it; return what counts of it all."""
        found = dict(known)
        for stage in stages:
            found |= self.outputs(stage, found)
        return found

    def outputs(self, stage: Stage, known: Values) -> dict[Source, Array]:
        """Run one stage on one sample; return its outputs that count. DataError if one is missing."""
        made = self.stages[stage.name].run({key: known[source] for key, source in stage.reads.items()})
        for source in self.read:
            if source.stage == stage.name and source.output not in made:
                raise DataError(f"stage {stage.name!r} has no output {source.output!r}{closest(source.output, made)}")
        every = {Source(stage.name, name): array for name, array in made.items()}
        return {source: array for source, array in every.items() if self.counts(source)}

    def front(self, data: Data, name: str | None = None, progress: OnProgress | None = None) -> list[Values]:
        """Run the stages that faults in stage `name` do not reach (None: all) on each sample; return what counts.

        Raises
        ------
        DataError
            If a stage gives other bits when it runs again, or the outputs take too much memory.
        """
        stages, found, total = self.pipeline.front(name), list[Values](), 0
        for batch in data.batches(1):
            fed = {Source(DATA, key): frozen(np.atleast_1d(array)) for key, array in batch.feeds.items()}
            with without_faults(batch.start):
                values = self.run(stages, fed)
            total += sum(array.nbytes for source, array in values.items() if source.stage != DATA)
            if total > _MOST_BYTES:
                raise DataError(
                    f"the stages of a pipeline give {total // (batch.start + 1):,} bytes per sample, too much to keep "
                    f"for {data.samples:,} of them; take fewer with --samples"
                )
            found.append(values)
            if progress is not None:
                progress(batch.start + 1, data.samples)
        if found:
            self.check_steady(stages, {s: a for s, a in found[0].items() if s.stage == DATA}, found[0])
        return found

    def check_steady(self, stages: Sequence[Stage], fed: Values, known: Values) -> None:
        """Run some stages once more on a sample; DataError if one gives other bits."""
        again = dict(fed)
        for stage in stages:
            again |= self.outputs(stage, again)
        for source, array in again.items():
            if source in known and not same_bytes(array, known[source]):
                raise DataError(
                    f"stage {source.stage!r} gives other bits when it runs again, so no effect of a fault could be "
                    f"distinguished from chance: it draws random numbers or keeps a state; make it a function of "
                    f"its inputs"
                )

    def open_data(self, spec: str | Path | Mapping[str, Array] | None, **how: object) -> Data:
        """Open the data of the pipeline; see `onnxfi.runtime.data.open_data.open_data`."""
        return open_data(spec, self.data_ports, **how)  # type: ignore[arg-type]


@contextmanager
def without_faults(sample: int) -> Iterator[None]:
    """Tell of a stage that fails on a sample without a fault; DataError."""
    try:
        yield
    except ProviderError:
        raise
    except EngineError as error:
        raise DataError(f"{error} (sample {sample}, without a fault)") from error


def _function_identity(stage: Stage, opened: OpenStage) -> str:
    assert isinstance(opened, FunctionStage)
    name = stage.function if isinstance(stage.function, str) else opened.function.__qualname__
    return f"{name} {code_digest(opened.function)}"


def open_pipeline(
    pipeline: Pipeline,
    engine: Engine | None = None,
    *,
    instead: Mapping[str, Model] | None = None,
    allow_code: bool = False,
    allow_links: bool = False,
) -> OpenPipeline:
    """Open the stages of a pipeline, and check that they fit together.

    Parameters
    ----------
    pipeline : Pipeline
        The pipeline.
    engine : Engine, optional
        The engine of its models; ONNX Runtime by default.
    instead : mapping of str to Model, optional
        Models that take the places of the pipeline's own, by stage.
    allow_code : bool
        Whether functions named in the pipeline are imported and called.
    allow_links : bool
        Whether links to external data are followed.

    Returns
    -------
    OpenPipeline
        The pipeline with its stages open.

    Raises
    ------
    InputError
        If it has functions that are not allowed, or a model or function is missing or does not fit.

    Examples
    --------
    >>> net = Stage("net", model="models/fashion_cnn.onnx", inputs={"image": "data.image"})
    >>> open_pipeline(Pipeline([net])).data_ports
    (Port(name='image', dtype='float32', shape=('N', 1, 28, 28)),)
    """
    engine = engine or engine_of()
    stages: dict[str, OpenStage] = {}
    for stage in pipeline.order:
        if stage.function is not None:
            if not allow_code and isinstance(stage.function, str):
                raise InputError(
                    f"stage {stage.name!r} has code run that the pipeline names ({stage.function[:80]!r}); if you "
                    f"trust it, add --allow-code (in Python allow_code=True)"
                )
            stages[stage.name] = open_function(stage, pipeline.folder)
        else:
            model = (instead or {}).get(stage.name) or load_stage(pipeline, stage, allow_links=allow_links)
            stages[stage.name] = _open_model(pipeline, stage, model, engine)
    opened = OpenPipeline(pipeline, stages, _data_ports(pipeline, stages))
    _check_links(opened)
    return opened


def load_stage(pipeline: Pipeline, stage: Stage, *, allow_links: bool = False) -> Model:
    """Return the model of a stage, of one with a loop that of the whole loop; an error names the stage."""
    assert stage.model is not None
    try:
        model = load(Path(pipeline.folder, stage.model), allow_links=allow_links)
        if stage.loop is None:
            return model
        if model.external:
            raise ModelError(f"{model.name} has external data, so no loop is put around it; write it as one file first")
        return load(loop_over_axis(parse(model), stage.loop.axis, stage.loop.over, stage.loop.carry))
    except ModelError as error:
        raise ModelError(f"stage {stage.name!r}: {error}") from None


def _open_model(pipeline: Pipeline, stage: Stage, model: Model, engine: Engine) -> ModelStage:
    dry_run(engine, model.stored_form)
    session = engine.prepare(model.stored_form)
    inputs = [port.name for port in session.inputs if not port.dtype.startswith("optional")]
    for name in stage.inputs:
        if name not in inputs:
            raise InputError(f"stage {stage.name!r}: the model has no input {name!r}{closest(name, inputs)}")
    for port in session.inputs:
        if port.name in inputs and port.name not in stage.inputs:
            raise InputError(f"stage {stage.name!r}: input {port} has no source; name it in inputs")
    known = [port.name for port in session.outputs]
    wanted = [s.output for other in pipeline.stages for s in other.sources if s.stage == stage.name]
    for text in pipeline.answer:
        name, dot, output = text.partition(".")
        if name == stage.name:
            wanted += [output] if dot else [one for one in known if one != ALARM]
    for output in wanted:
        if output in session.non_tensors:
            raise InputError(f"output {output!r} of stage {stage.name!r} is a {session.non_tensors[output]}, no tensor")
        if output not in known:
            raise InputError(f"stage {stage.name!r} has no output {output!r}{closest(output, known)}")
    return ModelStage(stage, session, model, tuple(dict.fromkeys(wanted)))


def _data_ports(pipeline: Pipeline, stages: Mapping[str, OpenStage]) -> tuple[Port, ...]:
    """Return the arrays of the data: as the pipeline declares them, else as the first model that reads them does."""
    found = {port.name: port for port in pipeline.ports()}
    read = dict[str, str]()
    for stage in pipeline.order:
        opened = stages[stage.name]
        for key, source in stage.reads.items():
            if source.stage != DATA:
                continue
            read.setdefault(source.output, stage.name)
            if isinstance(opened, ModelStage) and source.output not in found:
                port = opened.ports[key]
                dims = port.shape and ("N", *port.shape[1:]) if key in opened.axes else port.shape
                found[source.output] = Port(source.output, port.dtype, dims)
    for name, reader in read.items():
        if name not in found:
            raise InputError(
                f"no model reads data {name!r} of stage {reader!r}, so its type is not known; declare it: "
                f"data: {{{name}: 'uint8 [N,H,W,3]'}}"
            )
    for name in found:
        if name not in read:
            raise InputError(f"data {name!r} is declared, and no stage reads it{closest(name, read)}")
    return tuple(found[name] for name in read)


def _check_links(opened: OpenPipeline) -> None:
    """Refuse an output of a model, or declared data, that cannot fit the input of a model that reads it.

    Of outputs types alone are held against each other, since exporters declare shapes that are not so.
    """
    data = {port.name: port for port in opened.data_ports}
    for stage in opened.pipeline.order:
        here = opened.stages[stage.name]
        if not isinstance(here, ModelStage):
            continue
        for key, source in stage.reads.items():
            port, before = here.ports[key], opened.stages.get(source.stage)
            if isinstance(before, ModelStage):
                given = next(p for p in before.session.outputs if p.name == source.output)
                good = given.dtype == port.dtype
            elif source.stage == DATA:
                given = data[source.output]
                good = given.dtype == port.dtype and _may_be(given, port, here.axes.get(key))
            else:
                continue
            if not good:
                declared = f"{given.dtype} {shape_text(given.shape)}"
                raise InputError(f"stage {stage.name!r}: {source} is {declared}, and input {port} takes no such array")


def _may_be(given: Port, port: Port, axis: int | None) -> bool:
    """Return true if an array of a declared shape may fit an input, whose rows lie along this axis."""
    if given.shape is None or port.shape is None:
        return True
    pairs = enumerate(zip(given.shape, port.shape, strict=False))
    return len(given.shape) == len(port.shape) and (
        bool(axis)
        or all(k == axis or not isinstance(a, int) or not isinstance(b, int) or a == b for k, (a, b) in pairs)
    )
