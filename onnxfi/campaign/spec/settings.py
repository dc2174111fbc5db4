"""Settings of a campaign beside its design: data, scoring, engine, and the neurons of a spiking network."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from onnxfi.campaign.spec.designs import MOST, PLACE
from onnxfi.campaign.spec.flat_fields import CheckedFields, bounded, check_word, named, within
from onnxfi.errors import SpecError, closest
from onnxfi.protection.memory_codes import parse_code_assignment
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.runtime.engine.registry import DEFAULT, engine_class, engine_of, setting_names
from onnxfi.tasks.kinds.classification import KINDS
from onnxfi.tasks.registry import AUTO, is_own, task_names

DueCause = Literal["error", "timeout", "crash", "memory", "nonfinite"]
#: Units that count as layers: the modules of the source framework, or every tensor.
Layers = Literal["modules", "tensors"]
_Route = Literal["auto", "late-start", "early-stop", "full"]
#: The outcome of a sample: any changed bit of the outputs, or the class alone.
OutcomeKind = Literal["bits", "class"]
DUE: tuple[DueCause, ...] = get_args(DueCause)
_MOST_AXES = 64


@dataclass(frozen=True)
class DataSettings(CheckedFields):
    """Labelled data (None: synthetic inputs), how images become inputs, and how samples are taken and batched.

    `labels` is a file of labels, or the name of the array that holds them; `dim` has the sizes of open dimensions of
    synthetic inputs, each as ``NAME=SIZE``.
    """

    data: str | None = dataclasses.field(default=None, metadata=PLACE)
    labels: str | None = dataclasses.field(default=None, metadata=PLACE)
    preprocess: str | None = dataclasses.field(default=None, metadata=PLACE)
    samples: int | None = within(None, 1, MOST)
    batch: int = within(32, 1, MOST)
    batch_axis: int = within(0, 0, _MOST_AXES - 1)
    dim: tuple[str, ...] = dataclasses.field(default=(), metadata=PLACE)  # the digest of the data says it

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data == "synthetic":  # as the command line says it
            object.__setattr__(self, "data", None)


@dataclass(frozen=True)
class Scoring(CheckedFields):
    """The judgement of answers.

    `output` is the output that is scored, as `task` says, with further `metric`s. A sample is masked where its output
    is the golden one within `tolerance` (absolute); `due` names what counts as DUE. `time_axis` counts spikes over that
    axis of the output, and scores the counts.
    """

    output: str | None = None
    task: str = AUTO
    metric: tuple[str, ...] = ()
    scores: str = "auto"
    tolerance: float = bounded(0.0, lambda t: 0 <= t < math.inf, "0 or more")
    due: tuple[DueCause, ...] = DUE
    time_axis: int | None = within(None, 0, _MOST_AXES - 1)
    outcomes: OutcomeKind = "bits"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outcomes == "class" and (self.tolerance or self.metric):
            name = "tolerance" if self.tolerance else "metric"
            raise SpecError(f"{name} has no effect with outcomes class, which knows classes and no scores", name)
        if not is_own(self.task) and (head := self.task.partition(":")[0]) not in task_names():
            raise SpecError(f"task {head!r} is unknown{closest(head, task_names())}, or give module:name", "task")
        check_word("scores", self.scores, KINDS)

    @property
    def kind(self) -> str:
        """The kind of the scores: of spikes over time their counts, unless another is named."""
        return "counts" if self.time_axis is not None and self.scores == "auto" else self.scores


def _pairs(options: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((key, value) for key, _, value in (text.partition("=") for text in options))


@dataclass(frozen=True)
class EngineSettings(CheckedFields):
    """The engine that runs every trial, its settings, and the routes that trials may take.

    Each field is a setting of the engine by the same name, unless its `setting` says another name, or none; where it
    does not have its default, the engine must have it.
    """

    engine: str = dataclasses.field(default=DEFAULT, metadata={"setting": ""})
    provider: str = "auto"
    provider_option: tuple[str, ...] = dataclasses.field(
        default=(), metadata={"setting": "provider_options", "convert": _pairs}
    )
    threads: int = within(1, 1, 1024)
    optimization: str = "all"
    route: _Route = dataclasses.field(default="auto", metadata={"setting": ""})
    custom_ops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        foreign = named("engine", self.foreign, self.engine)
        for text in self.provider_option:
            if text.find("=") < 1:
                raise SpecError(f"provider_option must be of the form KEY=VALUE, got {text!r}", "provider_option")
        given = dict[str, Any]()
        for name, setting, value in self._settings():
            if name in foreign:
                raise SpecError(f"{name} is not a setting of the engine {self.engine!r}; leave it out", name)
            given[setting] = value
            named(name, lambda settings: engine_of(self.engine, **settings), given)
        if self.route not in ("auto", "full") and not self.open().in_segments:
            cuts = engine_class(self.engine).cuts
            what = f"provider {self.provider!r}" if cuts else f"the engine {self.engine!r}"
            raise SpecError(f"{what} runs whole models only; leave route out", "route")

    @classmethod
    def foreign(cls, engine: str) -> tuple[str, ...]:
        """Return the fields that are settings, and none that this engine has (InputError for an unknown engine)."""
        known = setting_names(engine_class(engine))
        settings = {f.name: f.metadata.get("setting", f.name) for f in dataclasses.fields(cls)}
        return tuple(name for name, setting in settings.items() if setting and setting not in known)

    def _settings(self) -> list[tuple[str, str, Any]]:
        """Return the settings that differ from the default: the field, the engine's name of it, and its value."""
        rows = [(f, f.metadata.get("setting", f.name), getattr(self, f.name)) for f in dataclasses.fields(self)]
        return [
            (f.name, setting, f.metadata.get("convert", lambda kept: kept)(value))
            for f, setting, value in rows
            if setting and value != f.default
        ]

    def open(self) -> Engine:
        """Return the engine, the same in whatever process."""
        return engine_of(self.engine, **{setting: value for _, setting, value in self._settings()})

    def with_provider(self, name: str) -> EngineSettings:
        """Return the settings with the provider that `auto` chose, so that every session gets the same one."""
        takes = "provider" in setting_names(engine_class(self.engine))
        return dataclasses.replace(self, provider=name) if takes and self.provider.lower() == "auto" else self


@dataclass(frozen=True)
class MemorySettings(CheckedFields):
    """The codes of the memory that holds the weights, and the share of a trial's time after which it is scrubbed."""

    memory_code: str | None = None
    scrub_interval: float = bounded(1.0, lambda s: 1e-6 <= s <= 1, "a share of the time, from 1e-6 to 1 (never)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory_code is not None:
            object.__setattr__(self, "memory_code", str(named("memory_code", parse_code_assignment, self.memory_code)))
        elif self.scrub_interval != 1:
            raise SpecError("scrub_interval says nothing without memory_code; leave it out", "scrub_interval")


@dataclass(frozen=True)
class NeuronSettings(CheckedFields):
    """Neurons of a spiking network: `expose` gives each its own parameters, `neurons` is a file of those undetected."""

    expose: bool = False
    neurons: str | None = dataclasses.field(default=None, metadata=PLACE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neurons is not None and not self.expose:
            raise SpecError("neurons requires expose; leave it out, or add expose", "neurons")
