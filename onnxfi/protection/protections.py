"""The protections that `--with` takes, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from onnxfi.errors import InputError
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.protection.detection import RepeatLayers, find_layers
from onnxfi.graph.protection.placement import find_places
from onnxfi.graph.protection.range_restriction import FilterNonFinite, Restricted, RestrictRanges
from onnxfi.protection.calibration import calibrate
from onnxfi.protection.parameters import parse
from onnxfi.protection.protection import Protection, Setting


@dataclass(frozen=True)
class Range(Protection):
    """Activations held to their range on calibration data, in the graph.

    `percentile` 100 is the largest number, below it the rest counts as outside; `per` is `tensor` or `channel`;
    `extend` carries the bounds through pooling, concatenation and reshaping.
    """

    percentile: float = 100.0
    per: str = "tensor"
    extend: bool = True
    action: ClassVar[Literal["clip", "zero", "average"]]

    def passes(self, setting: Setting) -> ModelPass[Any]:
        """Measure the ranges, and return the pass."""
        return RestrictRanges(_measured(self, setting, self.percentile, self.per, extend=self.extend), self.action)


class RangeClip(Range):
    """A number outside is held at the bound. A NaN passes; add `nan-filter`."""

    name = "range:clip"
    action = "clip"


class RangeZero(Range):
    """A number outside, and a NaN, becomes 0."""

    name = "range:zero"
    action = "zero"


class RangeAverage(Range):
    """A number outside, and a NaN, becomes the mean of the calibration data."""

    name = "range:average"
    action = "average"


@dataclass(frozen=True)
class NanFilter(Protection):
    """NaN and infinities become the number of the range that is nearest to 0; finite numbers stay as they are."""

    per: str = "tensor"
    extend: bool = True
    name = "nan-filter"

    def passes(self, setting: Setting) -> ModelPass[Any]:
        """Measure the ranges, and return the pass."""
        return FilterNonFinite(_measured(self, setting, 100.0, self.per, extend=self.extend))


def _measured(
    one: Protection, setting: Setting, percentile: float, per: str, *, extend: bool
) -> tuple[Restricted, ...]:
    """Return the activations with their bounds on the calibration data."""
    data = setting.calibration(one.name)
    places = find_places(setting.model, setting.selector, extend=extend)
    notes = list(places.notes())
    if not places.measured:
        nothing = (
            f"{one.name} finds no activation function in the main graph whose range it could restrict; "
            f"name activations with --include"
        )
        raise InputError(notes[0] if notes else nothing)
    setting.notes.extend(note for note in notes if note not in setting.notes)
    return setting.once(
        (percentile, per, extend),
        lambda: calibrate(
            setting.model, places, data, setting.engine, percentile=percentile, per=per, batch=setting.batch
        ),
    )


@dataclass(frozen=True)
class Duplicate(Protection):
    """Layers are computed twice; where the two results differ in a sample, it has an alarm."""

    name = "duplicate"

    def passes(self, setting: Setting) -> ModelPass[Any]:
        """Return the pass for the chosen layers."""
        return RepeatLayers(find_layers(setting.model, setting.selector), 2)


@dataclass(frozen=True)
class Triplicate(Protection):
    """Layers are computed thrice, and the result that two agree on is taken."""

    name = "triplicate"

    def passes(self, setting: Setting) -> ModelPass[Any]:
        """Return the pass for the chosen layers."""
        return RepeatLayers(find_layers(setting.model, setting.selector), 3)


_OWN: tuple[type[Protection], ...] = (RangeClip, RangeZero, RangeAverage, NanFilter, Duplicate, Triplicate)


def protections() -> Mapping[str, type[Protection]]:
    """Return every protection of a graph by its name.

    Examples
    --------
    >>> sorted(protections())[:2]
    ['nan-filter', 'range:average']
    """
    return MappingProxyType({one.name: one for one in _OWN})


def parse_protection(text: str) -> Protection:
    """Return the protection that `NAME[:key=value,…]` describes.

    Examples
    --------
    >>> str(parse_protection("range:clip:percentile=99.9,extend=yes"))
    'range:clip:percentile=99.9'
    """
    return parse(text, protections(), "protection")
