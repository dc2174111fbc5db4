"""The campaign: all that fixes an answer, as a frozen value made of values. Flags and YAML name its fields alike."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxfi.campaign.spec.designs import (
    DESIGNS,
    LENGTH,
    PLACE,
    UNWRITTEN,
    AdaptiveFaults,
    BerSweep,
    Design,
    Exhaustive,
    FaultDraw,
    Replay,
    TemperatureSweep,
    VoltageSweep,
    chosen_design,
    design_of,
    draws_of,
)  # fmt: skip
from onnxfi.campaign.spec.flat_fields import (
    CheckedFields,
    build,
    field_values,
    flat,
    flat_fields,
    given_fields,
    named,
    plain_fields,
    refuse_unknown,
    share_field,
    types_of,
)  # fmt: skip
from onnxfi.campaign.spec.settings import DataSettings, EngineSettings, Layers, MemorySettings, NeuronSettings, Scoring
from onnxfi.errors import SpecError, closest
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.scope import FaultScope
from onnxfi.faults.trials import check_condition
from onnxfi.protection.memory_codes import parse_code_assignment
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.tasks.registry import driven, known_metric, metric_names, task_identity


@dataclass(frozen=True, init=False)
class Campaign(CheckedFields):
    """A campaign: its model, its trials (`design`), data, scoring and engine.

    It is made of flat fields, which have the names of the flags: `onnxfi.Campaign("m.onnx", ber=1e-6, threads=2)`.
    Lists become tuples, and a single value the tuple of it. A value in it can be given as a whole, too
    (`engine=EngineSettings(threads=2)`), so that `dataclasses.replace` takes both.

    Parameters
    ----------
    model : str or path
        The ONNX file.
    data : str or path, optional
        Labelled data; synthetic inputs without.
    **fields
        Every other field of docs/reference/spec.md. Exactly one of `ber`, `per_sample`, `single`, `adaptive`,
        `exhaustive`, `faults` and `mix` says which trials there are.

    Raises
    ------
    SpecError
        For an unknown name, a wrong type, a value out of range, or a field that has no effect with the others.

    Examples
    --------
    >>> campaign = Campaign("m.onnx", ber=[1e-6, 1e-5], repeat=3, include="conv")
    >>> campaign.design.rates, campaign.draws[0].selector.include
    ((1e-06, 1e-05), ('conv',))
    """

    model: str = field(metadata=PLACE)
    design: Design
    data: DataSettings = field(default_factory=DataSettings)
    scoring: Scoring = field(default_factory=Scoring)
    engine: EngineSettings = field(default_factory=EngineSettings)
    neurons: NeuronSettings = field(default_factory=NeuronSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    #: Of every interval, and of the margin that a sample is sized for.
    confidence: float = share_field(0.99, "0.99", **LENGTH)
    #: Units that reports call layers.
    layers: Layers = "modules"
    allow_links: bool = field(default=False, metadata=PLACE)
    #: The stage of a pipeline that faults are injected into.
    stage: str | None = None
    #: Permission to run code that a pipeline names; no file can give it.
    allow_code: bool = field(default=False, compare=False, metadata=UNWRITTEN)

    def __init__(self, model: str | Path, data: str | Path | None = None, **fields: Any) -> None:
        if isinstance(model, bytes) or any(hasattr(model, name) for name in ("SerializeToString", "targets")):
            raise SpecError(
                "a campaign names the file of its model, which is opened again; give the path, or onnxfi.run(model, …)",
                "model",
            )
        given = plain_fields({"model": model, "data": data, **fields})
        values = {n: v for n, v in given.items() if n in types_of(Campaign) and isinstance(v, CheckedFields)}
        own = {name: value for name, value in given.items() if name not in values}
        for value in values.values():
            own = given_fields(value) | own
        refuse_unknown(own, Campaign)
        object.__setattr__(self, "design", build(design_of(own), own))
        for name, value in field_values(Campaign, own).items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.design, VoltageSweep | TemperatureSweep):
            for draw in self.draws:
                named("fault", lambda text: check_condition(parse_fault(text), self.design.key), draw.fault)
        if self.tabled:
            self._check_table()
        code = self.memory.memory_code
        at_rates = isinstance(self.design, BerSweep | Replay)
        if code is not None and not at_rates and not parse_code_assignment(code).leaves_single_faults:
            raise SpecError(
                f"memory_code {code} says something of sweeps over bit error rates alone, not with {self.design.key}: "
                f"one fault is always corrected or detected; leave it out, or name what it covers, as {code}@conv1",
                "memory_code",
            )
        if self.adaptive is not None:
            rate, scoring = self.adaptive.rate, self.scoring
            metric = named("rate", lambda given: known_metric(given, scoring.task, scoring.metric), rate)
            if metric is None:
                raise SpecError(f"rate {rate!r} is unknown{closest(rate, metric_names())}", "rate")
            if metric.bounds != (0, 1):
                raise SpecError(f"rate {rate!r} is no share; adaptive measures a metric between 0 and 1", "rate")

    def __repr__(self) -> str:
        fields = {name: value for name, value in given_fields(self).items() if name != "model"}
        return f"Campaign({', '.join([repr(self.model), *(f'{name}={value!r}' for name, value in fields.items())])})"

    @property
    def tabled(self) -> bool:
        """True if the results are an outcome table instead of a store: every flip, judged by classes."""
        return self.scoring.outcomes == "class" and isinstance(self.design, Exhaustive)

    def _check_table(self) -> None:
        [draw] = self.draws
        if draw.fault != "flip" or draw.scope.includes_activations:
            raise SpecError("an outcome table is of flips of single bits in weights; leave outcomes out", "outcomes")
        if draw.selector.elements:
            raise SpecError("an outcome table is of whole tensors; leave elements out", "elements")

    @property
    def draws(self) -> tuple[FaultDraw, ...]:
        """The draws of faults: of a mix those of its parts, of a replay none."""
        return draws_of(self.design)

    @property
    def scopes(self) -> tuple[FaultScope, ...]:
        """The scopes of the draws: weights or activations, and their persistence."""
        return tuple(draw.scope for draw in self.draws)

    def open_engine(self) -> Engine:
        """Return the engine that runs the model as the task asks: once, or in its loop."""
        return driven(self.scoring.task, self.engine.open())

    @property
    def adaptive(self) -> AdaptiveFaults | None:
        """The design, where it is adaptive."""
        return self.design if isinstance(self.design, AdaptiveFaults) else None

    def with_fields(self, **given: Any) -> Campaign:
        """Return the campaign with other values of flat fields; a given value replaces those that it excludes.

        >>> Campaign("m.onnx", single=True, margin=0.01, per="layer").with_fields(ber=1e-6).design.key
        'ber'
        """
        refuse_unknown(given, Campaign)
        given = plain_fields(given)
        known, fitting = flat_fields(Campaign), flat_fields(chosen_design(given) or type(self.design))
        gone = {name for one in DESIGNS for name in flat_fields(one)} - fitting.keys()
        gone |= {known[name].metadata.get("replaces", "") for name in given}
        return Campaign(**{name: value for name, value in given_fields(self).items() if name not in gone} | given)

    def marked(self, mark: str) -> dict[str, Any]:
        """Return the flat fields whose declaration bears a mark: those of length, or of a place."""
        known = flat_fields(Campaign)
        return {name: value for name, value in flat(self).items() if known[name].metadata.get(mark)}

    def identity(self) -> dict[str, Any]:
        """Return the fields that fix the result of each trial, apart from the digests of model, data and list."""
        left = {*self.marked("length"), *self.marked("place")}
        left |= {f.name for f in dataclasses.fields(self.memory)} if self.memory.memory_code is None else set()
        kept = {name: value for name, value in flat(self).items() if name not in left}
        if "mix" in kept:
            kept["mix"] = [flat(part) for part in kept["mix"]]
        for row in (kept, *kept.get("mix", ())):
            if "fault" in row:
                row["fault"] = str(parse_fault(row["fault"]))  # with the digest of a pattern's file
        if self.stage is None:
            del kept["stage"]
        if kept.get("outcomes") == "bits":
            del kept["outcomes"]
        if not kept.get("added", True):
            del kept["added"]
        return {**kept, "task": task_identity(self.scoring.task), "design": self.design.key}
