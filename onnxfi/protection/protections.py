"""The protections that `--with` takes, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np

from onnxfi.errors import InputError
from onnxfi.faults.text_form import parse_text_form
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.protection.checksum import CheckLayers, checkable, unchecked
from onnxfi.graph.protection.placement import find_places
from onnxfi.graph.protection.range_restriction import FilterNonFinite, Restricted, RestrictRanges
from onnxfi.graph.protection.reach import check_names, left_outside
from onnxfi.graph.protection.redundant_layers import COMPUTING, Layer, RepeatLayers, find_layers
from onnxfi.graph.protection.weight_clipping import ClipWeights, find_weights, left_unclipped
from onnxfi.protection.calibration import calibrate, with_followers
from onnxfi.protection.protection import Protection, Setting
from onnxfi.protection.tuning import Tuning, tuned


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
class RangeTuned(Protection):
    """Upper bounds searched for the largest mean accuracy under faults; what leaves them becomes 0.

    `low` and `high` are the ends of the rates in weights, by decades, `trials` the draws at each; `drop` is the
    accuracy without faults that a bound may cost; `action` is `zero` or `clip`.
    """

    low: float = 1e-6
    high: float = 1e-4
    trials: int = 4
    drop: float = 0.005
    action: str = "zero"
    extend: bool = True
    name = "range:tuned"

    def passes(self, setting: Setting) -> ModelPass[Any]:
        """Measure the ranges, search the bounds, and return the pass."""
        if not 0 < self.low <= self.high <= 0.1 or not 1 <= self.trials <= 100 or self.action not in ("zero", "clip"):
            raise InputError(
                f"{self}: low and high are rates from above 0 to 0.1, trials 1 to 100, action zero or clip"
            )
        action: Literal["zero", "clip"] = "zero" if self.action == "zero" else "clip"
        decades = max(1, round(math.log10(self.high / self.low)))
        rates = tuple(float(rate) for rate in np.geomspace(self.low, self.high, decades + 1))
        measured = _measured(self, setting, 100.0, "tensor", extend=False)
        how = Tuning(rates, self.trials, self.drop, action)
        main = tuple(one for one in measured if not one.path)
        if not main:
            raise InputError("range:tuned finds no activation in the main graph; take range:clip or range:zero")
        found = tuned(setting.model, main, setting.calibration(self.name), setting.engine, how)
        bounds = ", ".join(f"{one.name} {one.bounds.high[0]:.4g}" for one in found)
        setting.notes.append(f"tuned upper bounds: {bounds}")
        found += tuple(one for one in measured if one.path)
        if self.extend:
            found = with_followers(found, find_places(setting.model, setting.selector).followers)
        return RestrictRanges(found, action)


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
            f"{one.name} finds no activation function of the model whose range it could restrict; "
            f"name activations with --include"
        )
        raise InputError(notes[0] if notes else nothing)
    setting.add_notes(notes)
    found = setting.once(
        (percentile, per, extend),
        lambda: calibrate(
            setting.model, places, data, setting.engine, percentile=percentile, per=per, batch=setting.batch
        ),
    )
    inside = [a.path + a.name for a in places.measured if a.path]
    idle = sorted(set(inside) - {one.id for one in found})
    if idle:
        more = f"and {len(idle) - 1:,} more stay" if len(idle) > 1 else "stays"
        setting.add_notes([f"{idle[0]!r} {more} without protection: no sample of the calibration data runs its body"])
    if not found:
        raise InputError(f"{setting.notes[-1]}; give data that does")
    if set(inside) - set(idle) and (percentile < 100 or per != "tensor"):
        setting.add_notes([f"{len(inside) - len(idle):,} activations in bodies have the range of their whole tensors"])
    return found


def _layers(setting: Setting) -> tuple[Layer, ...]:
    """Return the layers to compute again or to check, and say which stay outside."""
    setting.add_notes(left_outside(setting.model, COMPUTING, setting.selector))
    return find_layers(setting.model, setting.selector)


@dataclass(frozen=True)
class Duplicate(Protection):
    """Layers are computed twice; where the two results differ in a sample, it has an alarm."""

    name = "duplicate"
    rank = 0
    times: ClassVar[Literal[2, 3]] = 2

    def passes(self, setting: Setting) -> ModelPass[Any]:
        """Return the pass for the chosen layers."""
        return RepeatLayers(_layers(setting), self.times)


class Triplicate(Duplicate):
    """Layers are computed thrice, and the result that two agree on is taken."""

    name = "triplicate"
    times = 3


@dataclass(frozen=True)
class Checksum(Protection):
    """The sum of a layer's results is computed again from summed weights; a difference beyond rounding is an alarm."""

    name = "checksum"
    rank = 0

    def passes(self, setting: Setting) -> ModelPass[Any]:
        """Return the pass for the chosen layers; without a choice for all that have a checksum."""
        model, selector = setting.model, setting.selector
        layers = _layers(setting)
        if not (selector.include or selector.op):
            able = {layer.id for layer in checkable(model)}
            layers = tuple(layer for layer in layers if layer.id in able)
            if not layers:
                raise InputError(
                    "checksum finds no Conv, MatMul or Gemm with stored float weights; take duplicate, which needs none"
                )
            setting.notes.extend(f"without a checksum: {one}" for one in unchecked(model, layers))
        return CheckLayers(layers, None if model.path is None else model.path.parent)


@dataclass(frozen=True)
class WeightClipping(Protection):
    """Weights and biases are held to their own range when the runtime loads them, which costs no time afterwards."""

    name = "clip-weights"
    rank = 2

    def passes(self, setting: Setting) -> ModelPass[Any]:
        """Return the pass for the chosen weights."""
        targets = {t.id: t for t in setting.model.targets}
        found = find_weights(setting.model)
        for field in ("include", "op"):
            inside = [targets[w.id] for w in found]
            check_names(setting.model, getattr(setting.selector, field), field, inside, "weight")
        weights = tuple(w for w in found if setting.selector.selects(targets[w.id]))
        if not weights:
            raise InputError("clip-weights finds no float weight of the model that is selected")
        setting.add_notes(left_unclipped(setting.model, setting.selector))
        return ClipWeights(weights)


_OWN: tuple[type[Protection], ...] = (
    RangeClip, RangeZero, RangeAverage, RangeTuned, NanFilter, Duplicate, Triplicate, Checksum, WeightClipping,
)  # fmt: skip


def protections() -> Mapping[str, type[Protection]]:
    """Return every protection of a graph by its name.

    Examples
    --------
    >>> sorted(protections())[:2]
    ['checksum', 'clip-weights']
    """
    return MappingProxyType({one.name: one for one in _OWN})


def parse_protection(text: str) -> Protection:
    """Return the protection that `NAME[:key=value,…]` describes.

    Examples
    --------
    >>> str(parse_protection("range:clip:percentile=99.9,extend=yes"))
    'range:clip:percentile=99.9'
    """
    return parse_text_form(text, protections(), "protection")
