"""Sampling designs: which trials a campaign has, each a value with the fields that say something of it alone.

The key of a design is the flat field that chooses it. Fields marked as `LENGTH` say how many trials there are, and
those marked as `PLACE` where a file lies: neither is part of a campaign's identity, as a longer one extends a shorter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

from onnxfi.campaign.spec.flat_fields import CheckedFields, bounded, flat_fields, named, share_field, typed, within
from onnxfi.errors import SpecError
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.sampling import check_rate
from onnxfi.faults.scope import FaultScope
from onnxfi.faults.space import Selector
from onnxfi.faults.trials import check_condition
from onnxfi.statistics.adaptive import Method
from onnxfi.statistics.sample_size import Per
from onnxfi.tasks.kinds.classification import CLASSIFICATION

LENGTH = MappingProxyType({"length": True})
PLACE = MappingProxyType({"place": True})
#: A field that a caller gives, and no file: neither a spec nor a store holds it.
UNWRITTEN = MappingProxyType({"place": True, "unwritten": True})
#: Trials and samples, whatever a file says: a store holds a row for each.
MOST = 10**12
#: Of single faults, where neither it nor their number is given.
_MARGIN = 0.01
#: Parts of a network that an adaptive campaign ranks by their rates.
RankedParts = Literal["none", "layer", "tensor", "channel", "bit"]
#: Of an adaptive campaign whose margin is relative: below it no rate is measured, or one of 0 would never be done.
_FINEST_MARGIN = 1e-4


@dataclass(frozen=True)
class FaultDraw(CheckedFields):
    """A draw of faults: the fault model as text, the selection of sites, and their scope.

    >>> FaultDraw("stuck-at-1", Selector(include=("conv1",))).scope.persistence
    'transient'
    """

    fault: str = "flip"
    selector: Selector = field(default_factory=Selector)
    scope: FaultScope = field(default_factory=FaultScope)

    def __post_init__(self) -> None:
        super().__post_init__()
        scope = self.scope
        if not scope.includes_activations and (scope.persistence != "transient" or scope.all):
            name = "all" if scope.all else "persistence"
            raise SpecError(
                f"{name} has no effect on weights, whose faults are permanent; give target activations or inputs", name
            )
        if scope.includes_activations and self.selector.role:
            raise SpecError("role is a matter of weights; leave it out for activations", "role")
        named("fault", parse_fault, self.fault)


@dataclass(frozen=True)
class FaultMixPart(CheckedFields):
    """One draw of a mixed trial, at a rate (`ber`) or in a number (`count`)."""

    draw: FaultDraw = field(default_factory=FaultDraw)
    ber: float | None = None
    count: int | None = bounded(None, lambda n: 0 <= n < 1 << 63, "a whole number from 0")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.ber is None) == (self.count is None):
            raise SpecError("each part of mix takes ber or count: at which rate, or how many")
        if self.ber is not None:
            named("ber", check_rate, self.ber)


def _seed() -> Any:
    return bounded(0, lambda seed: 0 <= seed < 1 << 64, "a whole number from 0 to 2**64 - 1")


def _repeat() -> Any:
    return within(10, 1, MOST, **LENGTH)


class Sweep(CheckedFields):
    """A design with `repeat` trials at each of several rates, voltages or temperatures, which the field `key` has."""

    key: ClassVar[str]
    repeat: int
    draw: FaultDraw
    seed: int

    @property
    def rates(self) -> tuple[float, ...]:
        """The rates, voltages or temperatures, those that were added to them last."""
        added: tuple[float, ...] = getattr(self, "added", ())
        return tuple(rate for rate in getattr(self, self.key) if rate not in added) + added


@dataclass(frozen=True)
class BerSweep(Sweep):
    """A sweep: `repeat` trials at each of several bit error rates (`ber`).

    `added` are those of them that its store got after others, in that order: their trials have numbers of their own, so
    that those of the others stay what they are. `run` sets it where it extends a store.
    """

    key: ClassVar[str] = "ber"
    sampler: ClassVar[str] = "ber"

    ber: tuple[float, ...]
    repeat: int = _repeat()
    draw: FaultDraw = field(default_factory=FaultDraw)
    seed: int = _seed()
    added: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rates("ber", self.ber)
        _check_added(self.added, self.ber)


@dataclass(frozen=True)
class PerSampleSweep(Sweep):
    """A sweep over activations: with each of several probabilities (`per_sample`) one fault in each sample."""

    key: ClassVar[str] = "per_sample"
    sampler: ClassVar[str] = "per-sample"

    per_sample: tuple[float, ...]
    repeat: int = _repeat()
    draw: FaultDraw = field(default_factory=FaultDraw)
    seed: int = _seed()
    added: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rates("per_sample", self.per_sample)
        _check_added(self.added, self.per_sample)
        if "weights" in self.draw.scope.target or self.draw.scope.persistence != "transient":
            raise SpecError(
                "per_sample draws faults in activations of one sample each; give target activations or inputs, "
                "and leave persistence out", "per_sample",
            )  # fmt: skip


@dataclass(frozen=True)
class VoltageSweep(Sweep):
    """A sweep over a fault map: `repeat` memories, each at every `voltage`."""

    key: ClassVar[str] = "voltage"
    sampler: ClassVar[str] = "voltage"

    voltage: tuple[float, ...]
    repeat: int = _repeat()
    draw: FaultDraw = field(default_factory=FaultDraw)
    seed: int = _seed()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_conditions(self.key, self.voltage, self.draw)


@dataclass(frozen=True)
class TemperatureSweep(Sweep):
    """A sweep over a fault map: `repeat` memories, each at every `temperature`."""

    key: ClassVar[str] = "temperature"
    sampler: ClassVar[str] = "temperature"

    temperature: tuple[float, ...]
    repeat: int = _repeat()
    draw: FaultDraw = field(default_factory=FaultDraw)
    seed: int = _seed()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_conditions(self.key, self.temperature, self.draw)


@dataclass(frozen=True)
class SingleFaults(CheckedFields):
    """One fault per trial: `trials` of them, or as many as `margin` asks for, in the whole network or `per` stratum."""

    key: ClassVar[str] = "single"
    sampler: ClassVar[str] = "count"

    trials: int | None = within(None, 1, MOST, replaces="margin", **LENGTH)
    margin: float | None = share_field(None, "0.01", replaces="trials", **LENGTH)
    per: Per = "network"
    draw: FaultDraw = field(default_factory=FaultDraw)
    seed: int = _seed()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trials is not None and self.margin is not None:
            raise SpecError("single takes trials or margin: how many, or how narrow the interval shall be", "margin")
        if self.trials is None and self.margin is None:
            object.__setattr__(self, "margin", _MARGIN)
        if self.trials is not None and self.per != "network":
            raise SpecError(f"per {self.per!r} sizes each stratum by a margin; give margin instead of trials", "per")
        if self.draw.scope.includes_activations and self.per == "data-aware":
            raise SpecError("per 'data-aware' looks at stored numbers; use layer-bit for activations", "per")


@dataclass(frozen=True)
class AdaptiveFaults(CheckedFields):
    """One fault per trial, drawn in rounds where it says most of `rate`, until the interval is narrow enough.

    Half its width is then `margin` or less, or `relative_margin` times the rate where that is more. With `rank` the
    draws go where they tell the order of layers, tensors, channels or bits by that rate, until the first `top` are
    settled; two whose rates differ by at most `margin` count as tied.
    """

    key: ClassVar[str] = "adaptive"
    sampler: ClassVar[str] = "count"

    rate: str = CLASSIFICATION.headline
    margin: float | None = share_field(None, "0.01", **LENGTH)
    relative_margin: float | None = share_field(None, "0.1", replaces="margin", **LENGTH)
    method: Method = "guaranteed"
    rank: RankedParts = "none"
    top: int = within(5, 1, MOST, **LENGTH)
    draw: FaultDraw = field(default_factory=FaultDraw)
    seed: int = _seed()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank != "none" and (self.method == "simple" or self.relative_margin is not None):
            name = "relative_margin" if self.relative_margin is not None else "method"
            how = "guaranteed or asymptotic intervals and a margin"
            raise SpecError(f"{name} has no effect with rank, which takes {how}", name)
        if self.rate == "any":  # as the command line says it
            object.__setattr__(self, "rate", f"any_{CLASSIFICATION.headline}")
        if self.margin is None:
            object.__setattr__(self, "margin", _MARGIN if self.relative_margin is None else _FINEST_MARGIN)


@dataclass(frozen=True)
class Exhaustive(CheckedFields):
    """One fault per trial, every site once."""

    key: ClassVar[str] = "exhaustive"
    sampler: ClassVar[str] = "exhaustive"

    draw: FaultDraw = field(default_factory=FaultDraw)
    seed: int = _seed()


@dataclass(frozen=True)
class Replay(CheckedFields):
    """The trials of a fault list."""

    key: ClassVar[str] = "faults"

    faults: str = field(metadata=PLACE)


@dataclass(frozen=True)
class FaultMix(CheckedFields):
    """Several draws together in each of `repeat` trials."""

    key: ClassVar[str] = "mix"
    sampler: ClassVar[str] = "sites"

    mix: tuple[FaultMixPart, ...]
    repeat: int = _repeat()
    seed: int = _seed()


Design = (
    BerSweep
    | PerSampleSweep
    | VoltageSweep
    | TemperatureSweep
    | SingleFaults
    | AdaptiveFaults
    | Exhaustive
    | Replay
    | FaultMix
)
DESIGNS: tuple[type[Design], ...] = get_args(Design)


def draws_of(design: Design) -> tuple[FaultDraw, ...]:
    """Return the draws of a design; a replay draws nothing."""
    match design:
        case FaultMix():
            return tuple(part.draw for part in design.mix)
        case Replay():
            return ()
    return (design.draw,)


def chosen_design(given: Mapping[str, Any]) -> type[Design] | None:
    """Return the design that flat fields choose by its key, None if they choose none; SpecError for two."""
    chosen = [one for one in DESIGNS if given.get(one.key)]
    if not chosen and given.get("rank") not in (None, "none"):  # which says enough
        chosen = [AdaptiveFaults]
    if AdaptiveFaults in chosen and SingleFaults in chosen:  # which single faults there are
        chosen.remove(SingleFaults)
    if len(chosen) > 1:
        raise _not_one(" and ".join(one.key for one in chosen), chosen[1].key)
    return chosen[0] if chosen else None


def design_of(given: Mapping[str, Any]) -> type[Design]:
    """Return the design of flat fields; SpecError for none, two, or a field that has no effect with it."""
    known = flat_fields(Design)
    stated = {name: value for name, value in given.items() if name in known and value is not None}
    for name, value in stated.items():
        if known[name].kind is bool:
            typed(value, bool, name)
    chosen = chosen_design(given)
    if chosen is None:
        raise _not_one("none")
    for name, value in stated.items():
        fits = name in flat_fields(chosen) or (chosen is AdaptiveFaults and name == SingleFaults.key)
        if not fits and value is not False and value != ():
            only = ", ".join(one.key for one in DESIGNS if name in flat_fields(one))
            hint = _INSTEAD.get(chosen, "") if name in flat_fields(FaultDraw) else ""
            raise SpecError(f"{name} has no effect with {chosen.key}, only with {only}; leave it out{hint}", name)
    return chosen


_INSTEAD = MappingProxyType({FaultMix: "; its parts say it", Replay: "; its list says it"})


def _not_one(given: str, name: str = "") -> SpecError:
    keys = ", ".join(one.key for one in DESIGNS)
    return SpecError(f"exactly one of {keys} says which trials there are; given: {given}", name)


def _check_added(added: tuple[float, ...], rates: tuple[float, ...]) -> None:
    if len(set(added)) < len(added) or not set(added) <= set(rates) or (added and len(added) == len(rates)):
        raise SpecError(
            "added names rates of the sweep that its store got later, each once, and not all of them", "added"
        )


def _check_conditions(name: str, given: tuple[float, ...], draw: FaultDraw) -> None:
    named("fault", lambda text: check_condition(parse_fault(text), name), draw.fault)
    if len(set(given)) < len(given):
        raise SpecError(f"{name} {', '.join(f'{one:g}' for one in given)} has one twice; give each once", name)


def _check_rates(name: str, rates: tuple[float, ...]) -> None:
    for rate in rates:
        named(name, check_rate, rate)
    if list(rates) != sorted(set(rates)):
        text = ", ".join(f"{rate:g}" for rate in rates)
        raise SpecError(f"{name} {text} is out of order; give rising rates, each once", name)
