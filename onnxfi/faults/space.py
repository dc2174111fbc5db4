"""Targets, selectors and the finite, ordered space of sites that a selector leaves.

A `Target` is a tensor that faults can be injected into; a `Selector` a frozen filter over targets, elements and bits; a
`FaultSpace` what is left: `len(space)` is the population N and `space[i]` a `Site`. It is never listed in memory.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from onnxfi.errors import SelectorError, closest
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.models import Flip
from onnxfi.faults.quantization import ROLES
from onnxfi.faults.regular_expressions import Expression
from onnxfi.faults.sampling import Numbers
from onnxfi.faults.sites import (
    ACTIVATION_KINDS,
    LAST_STEP,
    Consumer,
    Index,
    Site,
    Sites,
    Target,
    all_times,
    fault_time,
    parse_site,
)
from onnxfi.faults.token_positions import chosen_counts, chosen_elements
from onnxfi.faults.words import WORDS, parse_bits, select_bits

__all__ = [
    "ACTIVATION_KINDS",
    "LAST_STEP",
    "Consumer",
    "FaultSpace",
    "Index",
    "NamePattern",
    "Selector",
    "Site",
    "Sites",
    "Target",
    "all_times",
    "check_disjoint",
    "fault_time",
    "parse_site",
]  # fmt: skip


class NamePattern:
    """Pattern of names: a substring, `=exact`, a glob with `*?[`, or `re:` and a regular expression.

    Time that a regular expression takes counts over all names that one pattern is asked for.

    Examples
    --------
    >>> NamePattern("conv").matches(["layer1.conv"]), NamePattern("=conv").matches(["layer1.conv"])
    (True, False)
    >>> NamePattern("*.conv").matches(["layer1.conv"]), NamePattern("re:conv[0-9]").matches(["layer1.conv"])
    (True, False)
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._expression = Expression(text[3:]) if text.startswith("re:") else None

    def matches(self, names: Sequence[str]) -> bool:
        """Return True if it matches one of the names."""
        if self._expression is not None:
            return self._expression.fits(names)
        if self.text.startswith("="):
            return self.text[1:] in names
        if any(c in self.text for c in "*?["):
            return any(fnmatch.fnmatchcase(name, self.text) for name in names)
        return any(self.text in name for name in names)


def refuse_without_sites(kept: Sequence[Target], model: FaultModel, bits: str, elements: str = "") -> None:
    """Raise SelectorError, saying why selected targets have no site; return if there are none."""
    if kept and model.operators:
        ops = ", ".join(op.lstrip("=") for op in model.operators[:3])
        raise SelectorError(
            f"{model.name}: no layer fits among the {len(kept)} selected tensors, as its faults are in outputs of "
            f"{ops}, …; give --target activations, and leave --include and --op out"
        )
    for t in FaultSpace.over(kept, model, bits=bits).targets if elements else ():
        raise SelectorError(
            f"--elements {elements!r} leaves no element of {t.id!r}, whose shape is {list(t.axes or (1,))}; "
            f"give indices within it"
        )
    if kept:
        raise SelectorError(
            f"{len(kept)} tensors are selected, but none has a site: {model} with bits {bits or 'all'} does not fit "
            f"{', '.join(sorted({t.dtype for t in kept}))}, or they are empty"
        )


@dataclass(frozen=True)
class Selector:
    """Filter over targets, elements and bits.

    A target is selected if it matches one of each option that is given, and no `exclude`. A pattern is a substring,
    `=exact`, a glob, or `re:` and a regular expression.

    Parameters
    ----------
    include, exclude : tuple of str
        Patterns of names: id, node and layer of the target.
    op : tuple of str
        Patterns of the operators that use the target.
    dtype : tuple of str
        Number formats.
    bits : str
        Positions, ranges and fields, as `30`, `0-22` or `exponent`; all by default.
    elements : str
        Index of the elements by axis in the syntax of numpy, as `0:8,:,1,1`; all by default.
    role : tuple of str
        Roles of the tensor: `weight`, `bias`, `scale`, …

    Examples
    --------
    >>> weights = [Target("conv.weight", WORDS["float32"], (4, 2)), Target("conv.bias", WORDS["float32"], (4,))]
    >>> len(Selector(include=("weight",), bits="exponent").space(weights))
    64
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    op: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()
    bits: str = ""
    elements: str = ""
    role: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Take a list, or a single pattern, as the tuple of it."""
        for name in ("include", "exclude", "op", "dtype", "role"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    @classmethod
    def given(cls, selector: Selector | None, fields: Mapping[str, Any]) -> Selector:
        """Return the selector of a call, given as one or by its fields; SelectorError for both, or another field.

        >>> Selector.given(None, {"include": "conv1"}).include
        ('conv1',)
        """
        for name in fields:
            if name not in cls.__dataclass_fields__:
                raise SelectorError(f"unknown argument {name[:60]!r}{closest(name[:60], cls.__dataclass_fields__)}")
        if selector is not None and fields:
            raise SelectorError(f"the selector has its {next(iter(fields))} already; give the one or the other")
        return selector or cls(**fields)

    def of_model(self, model: FaultModel) -> Selector:
        """Return the selector with the operators of a fault model, if it names neither targets nor operators."""
        return self if self.include or self.op or not model.operators else replace(self, op=model.operators)

    def selects(self, target: Target) -> bool:
        """Return True for a selected target; shapes, indices and unused ones only if `include` names them exactly."""
        if (target.structural or target.unused) and not any("=" + name in self.include for name in target.ids):
            return False
        return self._fits(target)

    @cached_property
    def _patterns(self) -> Mapping[str, NamePattern]:
        return {text: NamePattern(text) for text in (*self.include, *self.exclude, *self.op)}

    def _match(self, texts: Iterable[str], names: Sequence[str]) -> bool:
        return any(self._patterns[text].matches(names) for text in texts)

    def _fits(self, target: Target) -> bool:
        """Return True for a target that the filters match, whether it is left out by default or not."""
        return (
            (not self.include or self._match(self.include, target.names))
            and (not self.op or self._match(self.op, target.ops))
            and (not self.dtype or target.dtype in self.dtype)
            and (not self.role or not {target.role, *target.roles}.isdisjoint(self.role))
            and not self._match(self.exclude, target.names)
        )

    def space(self, targets: Sequence[Target], model: FaultModel | None = None) -> FaultSpace:
        """Return the selected sites, for faults of this model (default: flips).

        Raises SelectorError if nothing is left (the message names the closest), or if selected targets share bytes.
        """
        asked, model = model, model or Flip()
        if "" in (*self.include, *self.exclude, *self.op):
            raise SelectorError("an empty selector matches everything; leave it out, or give a pattern")
        for dtype in self.dtype:
            if dtype not in WORDS:
                raise SelectorError(f"unknown number format {dtype!r}{closest(dtype, WORDS)}")
        for role in self.role:
            if role not in ROLES:
                raise SelectorError(f"unknown role {role!r}{closest(role, ROLES)}")
        chosen = [t for t in targets if self.selects(t)]
        check_disjoint(chosen)
        kept = [t for t in chosen if t.role != "spike" or asked is None or model.element_model.overwrites]
        if chosen and not kept:
            raise SelectorError(
                f"{chosen[0].id!r} holds forced outputs of neurons (NaN: the computed one), so {model} "
                f"has no meaning there; use dead, saturated or set, or inject into the spikes themselves with "
                f"--target activations"
            )
        space = FaultSpace.over(kept, model, bits=self.bits, elements=self.elements)
        if space.size == 0:
            self._explain(targets, kept, model)
        return space

    def _explain(self, targets: Sequence[Target], kept: Sequence[Target], model: FaultModel) -> None:
        if not targets:
            raise SelectorError("the model has no tensor that faults can be injected into: no weights, no constants")
        refuse_without_sites(kept, model, self.bits, self.elements)
        names = [name for t in targets for name in t.names]
        for option, patterns, known in (
            ("--include", self.include, names),
            ("--op", self.op, [op for t in targets for op in t.ops]),
            ("--dtype", self.dtype, [t.dtype for t in targets]),
            ("--role", self.role, [role for t in targets for role in (t.role, *t.roles) if role]),
        ):
            for pattern in patterns:
                if pattern not in known if option in ("--dtype", "--role") else not self._match([pattern], known):
                    hint = closest(pattern.lstrip("="), known)
                    raise SelectorError(f"{option} {pattern!r} matches nothing in this model{hint}")
        unused = [t for t in targets if t.unused and self._fits(t)]
        if unused and not any(t.structural and self._fits(t) for t in targets):
            more = f" and {len(unused) - 1:,} more" if len(unused) > 1 else ""
            raise SelectorError(
                f"every selected target is unused: no output of the model depends on {unused[0].id!r}{more}, so no "
                f"fault there can be seen; select others (--include '={unused[0].id}' selects it nevertheless)"
            )
        raise SelectorError(
            "no tensor matches all selectors together, though each matches some "
            "(onnxfi inspect lists the targets; shapes and indices are left out unless --include '=NAME' names them)"
        )


@dataclass(frozen=True)
class FaultSpace:
    """Finite, ordered sites of a selection: targets in file order, then elements, then bits.

    `len(space)` may exceed what fits in memory; use `size` where it may exceed 2⁶³.

    Attributes
    ----------
    targets : tuple of Target
        The targets that have sites.
    unit : {"bit", "word"}
        What a site is.
    bit_positions : tuple of tuple of int
        The bit positions in each target; ``(-1,)`` for whole words.
    elements : str
        The index of the elements, as in `Selector`.
    element_counts : tuple of int
        Number of elements in each target.

    Examples
    --------
    >>> space = FaultSpace.over([Target("w", WORDS["float32"], (2, 3)), Target("b", WORDS["float16"], ())], Flip())
    >>> len(space), str(space[33]), str(space[-1])
    (208, 'w[1]:1', 'b[0]:15')
    """

    targets: tuple[Target, ...]
    unit: str
    bit_positions: tuple[tuple[int, ...], ...]
    elements: str = ""
    element_counts: tuple[int, ...] = field(default=(), repr=False)

    @classmethod
    def over(cls, targets: Sequence[Target], model: FaultModel, *, bits: str = "", elements: str = "") -> FaultSpace:
        """Return the sites of `model` over these targets.

        Targets without a site are left out: those of no element, and those whose format has neither the fields nor,
        each as a whole, the positions and ranges of `bits`.
        """
        parts = parse_bits(bits) if bits else ()
        widest = max((t.word for t in targets), key=lambda word: word.bits, default=None)
        if widest is not None:
            select_bits(parts, widest)  # a position that no format has is a mistake
        rows: list[tuple[Target, tuple[int, ...], int]] = []
        for target in targets:
            if model.unit == "word":
                places: tuple[int, ...] = (-1,)
            else:
                top = target.word.bits - model.width()
                held = [p for p in parts if isinstance(p, str) or p[1] < target.word.bits]
                allowed = select_bits(held, target.word) if parts else range(target.word.bits)
                places = tuple(b for b in allowed if b <= top)
            chosen = _chosen(elements, target) if places and model.fits(target) else 0
            if chosen:
                rows.append((target, places, chosen))
        if model.unit == "word" and bits:
            raise SelectorError(f"--bits has no effect on {model}, which changes whole words; leave it out")
        columns = tuple(zip(*rows, strict=True)) or ((), (), ())
        return cls(columns[0], model.unit, columns[1], elements, columns[2])

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Sites in each target."""
        rows = zip(self.targets, self.element_counts, self.bit_positions, strict=True)
        return tuple(self._elements_over_time(t, n) * len(p) for t, n, p in rows)

    def _elements_over_time(self, target: Target, chosen: int) -> int:
        """Return the number of chosen elements of a target, at all times together."""
        if target.positions is None:
            return target.times * chosen
        return int(chosen_counts(target.positions, _axes(self.elements, target)).sum())

    @cached_property
    def size(self) -> int:
        """Number of sites, the population N."""
        return sum(self.sizes)

    @property
    def bits(self) -> int:
        """Number of bits in the words of the selected elements."""
        rows = zip(self.targets, self.element_counts, strict=True)
        return sum(self._elements_over_time(t, n) * t.word.bits for t, n in rows)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> Site:
        """Return the site of this number; counts from the end where negative."""
        place = number + self.size if number < 0 else number
        if not 0 <= place < self.size:
            raise IndexError(f"site {number} of a space of {self.size}")
        sites = self.locate(np.array([place], np.uint64))
        bit = int(sites.bit[0])
        target = self.targets[int(sites.target[0])].id
        return Site(target, int(sites.index[0]), None if bit < 0 else bit, **sites.sample_and_step(0))

    def layers(self) -> tuple[str, ...]:
        """Return the layers of the targets, in file order."""
        return tuple(dict.fromkeys(t.layer for t in self.targets))

    def subspace(self, layer: str | None = None, bit: int | None = None) -> FaultSpace:
        """Return the sites in one layer, at one bit position, or both; empty if there are none.

        >>> space = FaultSpace.over([Target("w", WORDS["float32"], (2, 3), layer="conv")], Flip())
        >>> len(space.subspace("conv", 31)), len(space.subspace("fc"))
        (6, 0)
        """
        rows = [
            (target, places if bit is None else (bit,), chosen)
            for target, places, chosen in zip(self.targets, self.bit_positions, self.element_counts, strict=True)
            if layer in (None, target.layer) and (bit is None or bit in places)
        ]
        columns = tuple(zip(*rows, strict=True)) or ((), (), ())
        return FaultSpace(columns[0], self.unit, columns[1], self.elements, columns[2])

    def __contains__(self, site: object) -> bool:
        """Return True if a site is one of these; its sample and step do not count."""
        for target, places in zip(self.targets, self.bit_positions, strict=True):
            if isinstance(site, Site) and site.target == target.id:
                if (-1 if site.bit is None else site.bit) not in places or not 0 <= site.index < target.size:
                    return False
                at = np.unravel_index(site.index, target.axes or (1,))
                return all(int(i) in axis for i, axis in zip(at, _axes(self.elements, target), strict=True))
        return False

    def locate(self, numbers: Numbers) -> Sites:
        """Return the sites of many numbers at once (`uint64`, [n], each below `size`)."""
        ends = np.cumsum(np.array(self.sizes, np.uint64), dtype=np.uint64)
        target = np.searchsorted(ends, numbers, side="right").astype(np.int64)
        index = np.zeros(len(numbers), np.int64)
        bit = np.zeros(len(numbers), np.int16)
        times = all_times(len(numbers)) if any(t.is_activation for t in self.targets) else None
        for ordinal in np.unique(target).tolist():
            here = target == ordinal
            places = np.array(self.bit_positions[ordinal], np.int16)
            inside = numbers[here] - (ends[ordinal] - np.uint64(self.sizes[ordinal]))
            element, place = np.divmod(inside, np.uint64(len(places)))
            bit[here] = places[place.astype(np.int64)]
            if times is not None and self.targets[ordinal].positions is not None:
                index[here], times[here] = _in_time(self.elements, self.targets[ordinal], element.astype(np.int64))
                continue
            if times is not None and self.targets[ordinal].times > 1:
                time, element = np.divmod(element, np.uint64(self.element_counts[ordinal]))
                times[here] = _times(self.targets[ordinal], time.astype(np.int64))
            index[here] = self.elements_of(ordinal, element.astype(np.int64))
        return Sites(target, index, bit, times)

    def elements_of(self, ordinal: int, numbers: Index) -> Index:
        """Return the flat index in its tensor of numbered elements of a target."""
        return _spread(self.elements, self.targets[ordinal], numbers)


def check_disjoint(targets: Iterable[Target]) -> None:
    """Raise SelectorError if two of these targets share bytes: they would count twice, and hold two faults."""
    shared = sorted((target.span, target.id) for target in targets if target.span)
    for (one, name), (other, second) in pairwise(shared):
        if one[0] == other[0] and other[1] < one[2]:
            raise SelectorError(
                f"{name!r} and {second!r} share some of their bytes, which would be counted twice; "
                f"leave one of them out, as with --exclude '={second}'"
            )


def _in_time(elements: str, target: Target, number: Index) -> tuple[Index, Index]:
    """Return the flat index and the time of each numbered element of a target whose elements come and go."""
    assert target.positions is not None
    axes = _axes(elements, target)
    ends = np.cumsum(chosen_counts(target.positions, axes))
    time = np.searchsorted(ends, number, side="right")
    inside = number - np.concatenate([[0], ends[:-1]])[time]
    return chosen_elements(target.positions, axes, target.axes or (1,), inside, time), _times(target, time)


def _times(target: Target, time: Index) -> Index:
    """Return the sample, first and last step of each numbered time of an activation ([n, 3])."""
    sample, step = np.divmod(time, max(1, target.steps))
    every = np.full_like(time, LAST_STEP)
    columns = (
        sample if target.samples else np.full_like(time, -1),
        step,
        step if target.steps and not target.onwards else every,
    )
    return np.stack(columns, axis=1)


def _axes(elements: str, target: Target) -> list[range]:
    """Return an element selection as one range per axis; numpy's rules for slices and numbers."""
    axes = target.axes or (1,)
    parts = [p.strip() for p in elements.split(",")]
    if len(parts) > len(axes):
        raise SelectorError(
            f"--elements {elements!r} has {len(parts)} axes, {target.id!r} has {len(axes)}; "
            f"narrow the targets with --include"
        )
    ranges = []
    for part, n in zip(parts, axes, strict=False):
        numbers = part.split(":")
        try:
            ends = [int(x) if x.strip() else None for x in numbers]
            if len(ends) == 1 and ends[0] is not None:
                at = range(n)[ends[0]]
                ranges.append(range(at, at + 1))
            else:
                ranges.append(range(n)[slice(*ends)])
        except (ValueError, TypeError):
            raise SelectorError(
                f"--elements {elements!r}: {part!r} is not a slice of Python, such as 0:8 or ::2"
            ) from None
        except IndexError:
            raise SelectorError(f"--elements {elements!r}: {part} is beyond {target.id!r}, axis length {n}") from None
    return ranges + [range(n) for n in axes[len(parts) :]]


def _chosen(elements: str, target: Target) -> int:
    return math.prod(len(r) for r in _axes(elements, target)) if elements else target.size


def _spread(elements: str, target: Target, chosen: Index) -> Index:
    """Return the flat indices in the tensor of elements numbered within the selection."""
    if not elements:
        return chosen
    flat, stride, rest = np.zeros_like(chosen), 1, chosen
    for axis, n in zip(reversed(_axes(elements, target)), reversed(target.axes or (1,)), strict=True):
        rest, place = np.divmod(rest, len(axis))
        flat += (axis.start + place * axis.step) * stride
        stride *= n
    return flat
