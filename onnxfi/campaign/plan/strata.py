"""Strata: the rates of a sweep, or the layers and bits that a sample of single faults is sized for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.sites_by_sign import SignBits, by_sign
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import AdaptiveFaults, FaultMix, SingleFaults, Sweep
from onnxfi.errors import SpecError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.space import FaultSpace, Target, check_disjoint
from onnxfi.faults.words import Word
from onnxfi.statistics.sample_size import allocate, data_aware_p

#: Tensors or channels that are ranked at most.
MOST_PARTS = 1000
#: Elements of a tensor that a data-aware plan looks at.
_LOOKED_AT = 1 << 16


@dataclass(frozen=True)
class PlannedStratum:
    """A stratum of the plan: what it is called, the sites it draws from, how many trials it has.

    `layer` and `bit` say what it is made of (None: all); `ber` is the rate of a sweep.
    """

    label: str
    space: FaultSpace
    trials: int
    layer: str | None = None
    bit: int | None = None
    ber: float | None = None

    @property
    def population(self) -> int:
        """Sites that it draws from."""
        return self.space.size

    def row(self) -> dict[str, Any]:
        """Return the stratum as the header of a fault list has it."""
        return {"label": self.label, "layer": self.layer, "bit": self.bit, "ber": self.ber}


def plan_strata(campaign: Campaign, fault_targets: FaultTargets) -> tuple[PlannedStratum, ...]:
    """Return the strata of a campaign; SelectorError if a selection leaves no site."""
    design = campaign.design
    events = [parse_fault(draw.fault) for draw in campaign.draws]
    spaces = [
        fault_targets.space(draw.selector, draw.scope, event)
        for draw, event in zip(campaign.draws, events, strict=True)
    ]
    space, event = spaces[0], events[0]
    if event.spans_targets and (
        (isinstance(design, AdaptiveFaults) and (design.method != "simple" or design.rank != "none"))
        or (isinstance(design, SingleFaults) and design.per != "network")
    ):
        key = "per" if isinstance(design, SingleFaults) else "adaptive"
        raise SpecError(f"a fault of {event} lies in several layers, so there are no strata of layers or bits", key)
    match design:
        case FaultMix():  # no population of its own: that of the first part stands for it
            check_disjoint({t.id: t for space in spaces for t in space.targets}.values())
            return (PlannedStratum("mix", space, design.repeat),)
        case AdaptiveFaults(rank="bit") if event.unit != "bit":
            raise SpecError(f"rank bit goes by bits, but {event} changes whole words; rank layer or tensor", "rank")
        case AdaptiveFaults(rank="tensor" | "channel" as rank):
            return tuple(_signed(_ranked_fields(space, rank), fault_targets))
        case AdaptiveFaults(rank="layer" | "bit"):
            return tuple(_signed(_fields(space), fault_targets))
        case AdaptiveFaults():
            return (PlannedStratum("all", space, 0),) if design.method == "simple" else tuple(_fields(space))
        case Sweep():
            return tuple(PlannedStratum(f"{rate:g}", space, design.repeat, ber=rate) for rate in design.rates)
        case SingleFaults(margin=float(margin)):
            return _sized_strata(design, margin, campaign.confidence, fault_targets, space, event)
        case SingleFaults(trials=int(trials)):
            return (PlannedStratum("all", space, min(trials, space.size)),)
    return (PlannedStratum("all", space, space.size),)


def _sized_strata(
    design: SingleFaults,
    margin: float,
    confidence: float,
    fault_targets: FaultTargets,
    space: FaultSpace,
    event: FaultModel,
) -> tuple[PlannedStratum, ...]:
    """Return the strata in each of which a margin holds, each with the trials that this takes."""
    spots = _spots(design, space, event)
    p: float | list[float] = 0.5
    if design.per == "data-aware":
        by_bit = _expected_rates(fault_targets, space, event)
        p = [by_bit[bit or 0] for _, _, _, bit in spots]
    sizes = [part.size for _, part, _, _ in spots]
    trials = allocate(sizes, margin, confidence, per=design.per, p=p)
    return tuple(
        PlannedStratum(label, part, n, layer, bit) for (label, part, layer, bit), n in zip(spots, trials, strict=True)
    )


def _ranked_fields(space: FaultSpace, rank: str) -> Iterator[PlannedStratum]:
    """Strata of a ranking of tensors, or of output channels: in each of them each field of bits.

    SpecError for channels of selected elements, and for more parts than can be distinguished.
    """
    if rank == "channel" and space.elements:
        raise SpecError("elements has no effect with rank channel, which goes by them itself; leave it out", "elements")
    parts = 0
    for target, places, n in zip(space.targets, space.bit_positions, space.element_counts, strict=True):
        count = target.axes[0] if rank == "channel" and len(target.axes) > 1 else 1
        parts += count
        if parts > MOST_PARTS:
            raise SpecError(
                f"{parts:,} parts and more cannot be ranked; select fewer with include, or rank layers or tensors",
                "rank",
            )
        for k in range(count):
            one = FaultSpace((target,), space.unit, (places,), space.elements, (n,))
            if count > 1:
                one = replace(one, elements=f"{k}", element_counts=(n // count,))
            yield from _fields(one, f"{target.id}[{k}]" if count > 1 else target.id)


def _signed(strata: Iterable[PlannedStratum], fault_targets: FaultTargets) -> Iterator[PlannedStratum]:
    """Divide the strata of a ranking that hold catastrophic flips by the sign of the weight.

    Nearly all flips of the highest exponent bit are; those of other bits are much alike, whichever sign the weight has,
    and more strata have to be learned one by one.
    """
    known: dict[tuple[str, str], SignBits] = {}
    for stratum in strata:
        space = stratum.space
        if not all(_grows(target, places) for target, places in zip(space.targets, space.bit_positions, strict=True)):
            yield stratum
            continue
        for k, target in enumerate(space.targets):
            if (target.id, space.elements) not in known:
                known[target.id, space.elements] = SignBits.read(space, k, fault_targets.model.words)
        signs = tuple(known[target.id, space.elements] for target in space.targets)
        for sign, part in by_sign(space, signs):
            yield replace(stratum, label=stratum.label + sign, space=part)


def _grows(target: Target, places: tuple[int, ...]) -> bool:
    """Return True if these places are the highest exponent bit of a stored float that has a sign."""
    word = target.word
    return word.signed and word.is_float and not target.is_activation and places == (word.field("exponent")[-1],)


def _fields(space: FaultSpace, name: str = "") -> Iterator[PlannedStratum]:
    """Strata of an adaptive campaign: in each layer (or in this part) each field of bits of each number format."""
    alone = not name and len({target.word for target in space.targets}) == 1
    for layer in (name,) if name else space.layers():
        whole = zip(space.targets, space.bit_positions, space.element_counts, strict=True)
        here = [row for row in whole if name or row[0].layer == layer]
        for word in dict.fromkeys(target.word for target, _, _ in here):
            for bits in bit_fields(word) if space.unit == "bit" else [(-1,)]:
                rows = [
                    (target, kept, n)
                    for target, places, n in here
                    if target.word == word and (kept := tuple(bit for bit in places if bit in bits))
                ]
                if not rows:
                    continue
                said = "words" if bits == (-1,) else f"{bits[0]}" if len(bits) == 1 else f"{bits[0]}-{bits[-1]}"
                field = said if alone else f"{word.name} {said}"
                bit = bits[0] if len(bits) == 1 and bits != (-1,) else None
                targets, places, chosen = zip(*rows, strict=True)
                part = replace(space, targets=targets, bit_positions=places, element_counts=chosen)
                yield PlannedStratum(f"{layer} {field}", part, 0, layer, bit)


def bit_field_label(label: str, layer: str | None) -> str:
    """Return the bits and the format of an adaptive stratum, which strata of other layers share.

    >>> bit_field_label("conv1 16-19", "conv1")
    '16-19'
    """
    return stratum_kind(label, layer).rstrip("+-")


def stratum_kind(label: str, layer: str | None) -> str:
    """Return the bits, the format and the sign of an adaptive stratum.

    >>> stratum_kind("conv1 float16 14-", "conv1"), bit_field_label("conv1 float16 14-", "conv1")
    ('float16 14-', 'float16 14')
    """
    return label.removeprefix(f"{layer} ")


def bit_fields(word: Word) -> list[tuple[int, ...]]:
    """Return the bits of a word in fields of similar effect: up to 16 bits each alone; of longer words the lowest.

    Of a longer float the sign, each exponent bit and the three highest of the mantissa are alone, the next four
    together, and the rest; of a longer integer the 16 highest are alone, and the rest together.

    >>> from onnxfi.faults.words import WORDS
    >>> [f"{bits[0]}-{bits[-1]}" for bits in bit_fields(WORDS["float32"])][:4]
    ['0-15', '16-19', '20-20', '21-21']
    """
    if word.bits <= 16:
        return [(bit,) for bit in range(word.bits)]
    mantissa = word.field("mantissa")
    top = len(mantissa) - 3
    low = [range(top - 4), range(top - 4, top)] if mantissa else [range(word.bits - 16)]
    return [*map(tuple, low), *((bit,) for bit in range(low[-1].stop, word.bits))]


def _spots(
    design: SingleFaults, space: FaultSpace, event: FaultModel
) -> list[tuple[str, FaultSpace, str | None, int | None]]:
    """Return the strata that a margin holds for: name, sites, layer and bit."""
    if design.per == "network":
        return [("all", space, None, None)]
    layers = [(layer, space.subspace(layer)) for layer in space.layers()]
    if design.per == "layer":
        return [(layer, part, layer, None) for layer, part in layers]
    if event.unit != "bit":
        raise SpecError(f"per {design.per!r} goes by bits, but {event} changes whole words; use per layer", "per")
    return [
        (f"{layer} bit {bit}", part.subspace(layer, bit), layer, bit)
        for layer, part in layers
        for bit in sorted({bit for places in part.bit_positions for bit in places})
    ]


def _expected_rates(fault_targets: FaultTargets, space: FaultSpace, event: FaultModel) -> dict[int, float]:
    """Estimate the visibility of a fault at each bit position from the change of the stored numbers.

    Mean |faulty − golden| by position over the selected weights; of a large tensor evenly spread elements are read.
    """
    moved: dict[int, list[NDArray[np.float64]]] = {}
    for target, places in zip(space.targets, space.bit_positions, strict=True):
        index = np.unique(np.linspace(0, target.size - 1, min(target.size, _LOOKED_AT)).astype(np.int64))
        words = fault_targets.model.words(target, index)
        old = target.word.values(words).astype(np.float64)
        for bit in places:
            with np.errstate(all="ignore"):
                faulty = event.element_model.apply(target.word, words, np.full(len(words), bit, np.int16))
                moved.setdefault(bit, []).append(np.abs(target.word.values(faulty).astype(np.float64) - old))
    bits = sorted(moved)
    with np.errstate(all="ignore"):
        rates = data_aware_p([float(np.concatenate(moved[bit]).mean()) for bit in bits])
    return dict(zip(bits, rates.tolist(), strict=True))
