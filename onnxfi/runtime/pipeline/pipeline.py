"""The pipeline as a value: its stages, what feeds what, and the answer. Described in docs/reference/pipeline.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType
from typing import NamedTuple

from onnxfi.errors import SpecError, closest
from onnxfi.extensions import names_function
from onnxfi.runtime.engine.ports import ORT_TYPES, Array, Port

#: Source of a stage's inputs beside the other stages.
DATA = "data"
#: Host code in place of a model: arrays of one sample by name, and arrays by name.
StageFunction = Callable[..., Mapping[str, Array]]
_STAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_PORT = re.compile(r"\s*(\w+)\s*\[([^\[\]]*)\]\s*")
_MOST_STAGES = 100
_TYPES = tuple(name for name, _ in ORT_TYPES.values())


class Source(NamedTuple):
    """An array that a stage reads: an output of another stage, or an array of the data."""

    stage: str
    output: str

    def __str__(self) -> str:
        return f"{self.stage}.{self.output}"


Number = int | float | bool


@dataclass(frozen=True)
class PipelineLoop:
    """A loop over an axis of the inputs in `over`, in which `carry` feeds outputs back into inputs.

    Parameters
    ----------
    axis : int
        The axis of these inputs, and of the outputs that are not carried.
    over : sequence of str
        The inputs that hold a part for each step.
    carry : mapping of str to str
        Inputs, and the outputs that feed them at the next step.

    Examples
    --------
    >>> loop = PipelineLoop(1, "input", {"state": "stateN"})
    >>> Stage("vad", model="vad.onnx", inputs={"input": "data.chunks", "state": 0}, loop=loop).loop.over
    ('input',)
    """

    axis: int
    over: Sequence[str]
    carry: Mapping[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "over", (self.over,) if isinstance(self.over, str) else tuple(self.over))
        object.__setattr__(self, "carry", MappingProxyType(dict(self.carry)))
        if not self.over:
            raise SpecError("a loop names the inputs that hold a part for each step; add over: [INPUT]")
        if both := set(self.over) & set(self.carry):
            raise SpecError(f"input {min(both)!r} is both in over and in carry of a loop; name it in one of them")


@dataclass(frozen=True)
class Stage:
    """A stage of a pipeline: a model, or host code.

    Parameters
    ----------
    name : str
        Its name.
    model : str, optional
        The ONNX file.
    function : str or callable, optional
        Host code, as ``module:function`` or itself.
    inputs : mapping of str to (str or number)
        The source of each input: ``data.NAME``, ``STAGE.OUTPUT``, or a number for all of it.
    batch : int, optional
        The number of rows that run together at most.
    loop : PipelineLoop, optional
        The loop in which a model runs.

    Examples
    --------
    >>> Stage("net", model="net.onnx", inputs={"x": "data.x"}).sources
    (Source(stage='data', output='x'),)
    """

    name: str
    model: str | None = None
    function: str | StageFunction | None = None
    inputs: Mapping[str, str | Number] = field(default_factory=dict)
    batch: int | None = None
    loop: PipelineLoop | None = None

    def __post_init__(self) -> None:
        name = self.name
        if not _STAGE_NAME.fullmatch(name) or name == DATA:
            raise SpecError(
                f"{name[:60]!r} is not a name of a stage; take letters, digits, _ and -, and not {DATA!r}",
                f"{name}.name",
            )
        object.__setattr__(self, "inputs", MappingProxyType(dict(self.inputs)))
        if (self.model is None) == (self.function is None):
            given = "neither" if self.model is None else "both"
            raise SpecError(f"stage {name!r} has {given} of model and function; give one of them", name)
        if isinstance(self.function, str) and not names_function(self.function):
            raise SpecError(f"function {self.function[:60]!r} is not of the form module:function", f"{name}.function")
        if not self.inputs:
            raise SpecError(f"stage {name!r} has no inputs; name the source of each, as x: data.x", name)
        if self.batch is not None and self.batch < 1:
            raise SpecError(f"batch {self.batch} of stage {name!r} is out of range; give 1 or more", f"{name}.batch")
        if self.loop is not None:
            self._check_loop(self.loop)
        for key, value in self.inputs.items():
            self._source(key, value)

    def _check_loop(self, loop: PipelineLoop) -> None:
        if self.model is None:
            raise SpecError(f"stage {self.name!r} has a loop and no model; loop in the function", f"{self.name}.loop")
        for key in (*loop.over, *loop.carry):
            if key not in self.inputs:
                known = closest(key, self.inputs)
                raise SpecError(
                    f"loop of stage {self.name!r}: {key!r} is none of its inputs{known}", f"{self.name}.loop"
                )

    def _source(self, key: str, value: str | Number) -> Source | None:
        if not isinstance(value, str):
            return None
        stage, dot, output = value.partition(".")
        if not (dot and stage and output):
            raise SpecError(
                f"input {key!r} of stage {self.name!r}: {value[:60]!r} is no source; give data.NAME, STAGE.OUTPUT or a "
                f"number",
                f"{self.name}.inputs.{key}",
            )
        return Source(stage, output)

    @cached_property
    def reads(self) -> Mapping[str, Source]:
        """The sources of the inputs that are no numbers."""
        found = {key: self._source(key, value) for key, value in self.inputs.items()}
        return {key: source for key, source in found.items() if source is not None}

    @cached_property
    def numbers(self) -> Mapping[str, Number]:
        """The inputs that hold one number."""
        return {key: value for key, value in self.inputs.items() if not isinstance(value, str)}

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of its inputs."""
        return tuple(dict.fromkeys(self.reads.values()))


@dataclass(frozen=True)
class Pipeline:
    """Several models, and host code between them, that give one answer for each sample.

    Parameters
    ----------
    stages : sequence of Stage
        The stages, in any order.
    answer : str or sequence of str
        The answer: ``STAGE`` or ``STAGE.OUTPUT``; by default the last stage.
    data : mapping of str to str
        The type and shape of arrays of the data that no model reads, as ``uint8 [N,H,W,3]``.
    faults : sequence of str
        The stages that faults may be injected into; by default every model.
    folder : str
        The folder of the models and modules.

    Raises
    ------
    SpecError
        For stages that feed each other in a circle, names that nothing has, or a stage that feeds nothing.

    Examples
    --------
    >>> first = Stage("first", model="models/fashion_cnn.onnx", inputs={"image": "data.image"})
    >>> pipeline = Pipeline([first, Stage("top", function="own:top", inputs={"scores": "first.scores"})])
    >>> [stage.name for stage in pipeline.order], pipeline.answer, pipeline.faults
    (['first', 'top'], ('top',), ('first',))
    """

    stages: Sequence[Stage]
    answer: Sequence[str] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    faults: Sequence[str] = ()
    folder: str = "."

    def __post_init__(self) -> None:
        for name in ("answer", "faults"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "data", MappingProxyType(dict(self.data)))
        if not self.stages:
            raise SpecError("a pipeline has stages; add one with a name, a model and its inputs", "stages")
        if len(self.stages) > _MOST_STAGES:
            raise SpecError(f"{len(self.stages):,} stages; a pipeline has at most {_MOST_STAGES}", "stages")
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise SpecError(f"{names.count(name)} stages are named {name!r}; name each otherwise", f"{name}.name")
        if not self.answer:
            object.__setattr__(self, "answer", (self.stages[-1].name,))
        self._check_sources()
        if not self.faults:
            object.__setattr__(self, "faults", tuple(s.name for s in self.stages if s.model is not None))
        for name in self.faults:
            if self._known(name, "faults").model is None:
                raise SpecError(f"stage {name!r} is host code; faults go into stages with a model", "faults")
        self._check_order()
        for name, text in self.data.items():
            parse_port(name, text)

    def _known(self, name: str, where: str) -> Stage:
        if name not in self.by_name:
            raise SpecError(f"there is no stage {name[:60]!r}{closest(name[:60], self.by_name)}", where)
        return self.by_name[name]

    def _check_sources(self) -> None:
        for stage in self.stages:
            for key, source in stage.reads.items():
                if source.stage != DATA:
                    self._known(source.stage, f"{stage.name}.inputs.{key}")
        for text in self.answer:
            self._known(text.partition(".")[0], "answer")

    def _check_order(self) -> None:
        """Refuse stages that feed each other in a circle, and those that feed nothing."""
        try:
            assert self.order
        except CycleError as error:
            circle = " → ".join(error.args[1])
            raise SpecError(f"stages feed each other in a circle: {circle}; a state that is fed back is a loop of one "
                            f"stage", error.args[1][0]) from None  # fmt: skip
        needed = {text.partition(".")[0] for text in self.answer}
        for stage in reversed(self.order):
            if stage.name in needed:
                needed |= {source.stage for source in stage.sources}
            else:
                raise SpecError(f"stage {stage.name!r} feeds no stage and is not in the answer; leave it out, or name "
                                f"it there", stage.name)  # fmt: skip

    @cached_property
    def by_name(self) -> Mapping[str, Stage]:
        """The stages by name."""
        return {stage.name: stage for stage in self.stages}

    @cached_property
    def order(self) -> tuple[Stage, ...]:
        """The stages in the order in which they run: each after all that feed it."""
        before = {stage.name: [s.stage for s in stage.sources if s.stage != DATA] for stage in self.stages}
        return tuple(self.by_name[name] for name in TopologicalSorter(before).static_order())

    def behind(self, name: str) -> tuple[Stage, ...]:
        """Return the stages that an output of this stage reaches, in order."""
        reached = {name}
        for stage in self.order:
            if any(source.stage in reached for source in stage.sources):
                reached.add(stage.name)
        return tuple(stage for stage in self.order if stage.name in reached - {name})

    def front(self, name: str | None = None) -> tuple[Stage, ...]:
        """Return the stages that run without faults where this stage may be faulty, in order; without a name all."""
        if name is None:
            return self.order
        reached = {name, *(stage.name for stage in self.behind(name))}
        return tuple(stage for stage in self.order if stage.name not in reached)

    def faulty_stage(self, name: str | None) -> Stage:
        """Return the stage that faults are injected into; SpecError if it may not have any, or none is named.

        >>> Pipeline([Stage("net", model="net.onnx", inputs={"x": "data.x"})]).faulty_stage("ney")
        Traceback (most recent call last):
        onnxfi.errors.SpecError: there is no stage 'ney'; closest: 'net'
        """
        if name is None:
            if len(self.faults) == 1:
                return self.by_name[self.faults[0]]
            listed = ", ".join(self.faults)
            raise SpecError(f"faults go into one stage of a pipeline; name it with --stage: {listed}", "stage")
        stage = self._known(name, "stage")
        if name not in self.faults:
            listed = ", ".join(self.faults)
            raise SpecError(f"no faults go into stage {name!r} of this pipeline; they may go into {listed}", "stage")
        return stage

    def ports(self) -> Iterator[Port]:
        """Return the arrays of the data whose type and shape the pipeline says."""
        return (parse_port(name, text) for name, text in self.data.items())


def parse_port(name: str, text: str) -> Port:
    """Return an array as a pipeline declares it.

    >>> parse_port("page", "uint8 [N, 32, W, 3]")
    Port(name='page', dtype='uint8', shape=('N', 32, 'W', 3))
    """
    wrong = SpecError(f"data {name!r}: {str(text)[:60]!r} is no type and shape; write them as uint8 [N,H,W,3]", "data")
    match = _PORT.fullmatch(text) if isinstance(text, str) else None
    dims = [dim.strip() for dim in match[2].split(",")] if match and match[2].strip() else []
    if match is None or len(dims) > 16 or not all(re.fullmatch(r"\w{1,60}", dim) for dim in dims):
        raise wrong
    if match[1] not in _TYPES:
        raise SpecError(f"data {name!r}: no type {match[1][:60]!r}{closest(match[1][:60], _TYPES)}", "data")
    return Port(name, match[1], tuple(int(d) if d.isdecimal() and len(d) < 18 else d for d in dims))
