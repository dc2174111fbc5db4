"""Faults of image sensors, for the inputs of a network: stuck pixels and lines, salt and pepper, flips in integers.

They act on numbers as the network is fed: `low` and `high` are what black and white became by preprocessing. `layout`
says where the pixels of a sample lie: `chw` (channels first, or none) or `hwc` (channels last).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.faults.fault_model import FaultModel, Spread
from onnxfi.faults.hardware.patterns import AxisRule, affected_elements
from onnxfi.faults.models import Set
from onnxfi.faults.sampling import Numbers, uniform
from onnxfi.faults.sites import Sites, Target
from onnxfi.faults.words import Word

_LAYOUTS = {"chw": (-2, -1), "hwc": (-3, -2)}
_KNOWN_LAYOUTS = "chw (channels first) or hwc (last)"


@dataclass(frozen=True)
class _SensorFault(FaultModel):
    """Fault in all numbers of a region of the image, which become `value`."""

    value: float = 0.0
    layout: str = "chw"
    multi_element = True

    def __post_init__(self) -> None:
        """Check the parameters."""
        self.require_known("layout", _LAYOUTS, _KNOWN_LAYOUTS)
        self.require(math.isfinite(self.value), "value", "a finite number")

    @property
    def element_model(self) -> FaultModel:
        """Effect on one number."""
        return Set(self.value)

    def applies_to(self, shape: tuple[int, ...]) -> bool:
        """Return True for a sample with rows and columns."""
        return len(shape) >= -min(_LAYOUTS[self.layout])

    def _region(self, shape: tuple[int, ...], index: int, fixed: tuple[int, ...]) -> NDArray[np.int64]:
        """Return the elements that share the site's coordinates on these axes."""
        rules = [AxisRule("all")] * len(shape)
        for axis in fixed:
            rules[axis] = AxisRule("same")
        return affected_elements(rules, shape, index)


@dataclass(frozen=True)
class StuckPixel(_SensorFault):
    """Pixel that always reads `value`, in all channels.

    Stands for a dead or hot pixel; with persistence permanent it is the same one in every image.
    """

    name = "stuck-pixel"
    examples = ("stuck-pixel:value=1.0",)

    def elements(self, shape: tuple[int, ...], index: int) -> NDArray[np.int64]:
        """Return the numbers of the pixel."""
        return self._region(shape, index, _LAYOUTS[self.layout])


@dataclass(frozen=True)
class StuckLine(_SensorFault):
    """Line of pixels that always reads `value`: the row, or with `axis=column` the column, of the site.

    Stands for a defective row driver, column amplifier or converter of a sensor.
    """

    axis: str = "row"
    name = "stuck-line"
    examples = ("stuck-line:value=1.0,axis=column",)

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        self.require_known("axis", ("row", "column"), "row or column")

    def elements(self, shape: tuple[int, ...], index: int) -> NDArray[np.int64]:
        """Return the numbers of the line."""
        return self._region(shape, index, (_LAYOUTS[self.layout][self.axis == "column"],))


@dataclass(frozen=True)
class SaltPepper(FaultModel):
    """Pixel that becomes white (`high`) with probability `salt`, else black (`low`), in all channels.

    Stands for impulse noise: errors of a converter or of the transmission. The rate of the draw is that of the noise.
    Every faulty pixel draws its own value, written as `set`.
    """

    low: float = 0.0
    high: float = 1.0
    salt: float = 0.5
    layout: str = "chw"
    name = "salt-pepper"
    composite = True
    examples = ("salt-pepper:low=-1,high=1",)

    def __post_init__(self) -> None:
        """Check the parameters."""
        self.require_known("layout", _LAYOUTS, _KNOWN_LAYOUTS)
        self.require(_spans(self.low, self.high), "low,high", "finite numbers, low below high")
        self.require(0 <= self.salt <= 1, "salt", "a share from 0 to 1")

    @property
    def element_model(self) -> FaultModel:
        """Effect on one number of a white pixel."""
        return Set(self.high)

    def applies_to(self, shape: tuple[int, ...]) -> bool:
        """Return True for a sample with rows and columns."""
        return len(shape) >= -min(_LAYOUTS[self.layout])

    def spread(self, targets: tuple[Target, ...], sites: Sites, raw: Numbers) -> Spread:
        """Return the numbers of each pixel, white or black."""
        pixel, white = StuckPixel(layout=self.layout), (uniform(raw) < self.salt).tolist()
        colours = Set(self.low), Set(self.high)
        rows, index, models = list[int](), list[int](), list[FaultModel]()
        for row, (ordinal, at) in enumerate(zip(sites.target.tolist(), sites.index.tolist(), strict=True)):
            reached = pixel.elements(targets[ordinal].axes, at).tolist()
            rows += [row] * len(reached)
            index += reached
            models += [colours[white[row]]] * len(reached)
        return sites.moved(rows, index, [-1] * len(rows)), tuple(models)


@dataclass(frozen=True)
class PixelFlip(FaultModel):
    """Bit flip in the integer of `bits` bits that the sensor delivered, before preprocessing made it a real number.

    Stands for an SEU in the frame buffer or on the link. 0 and the largest integer are `low` and `high` for the
    network; a number between is rounded to its integer, which flips, and becomes a number again. Each word draws its
    own `bit` (0 is the lowest) if none is given.
    """

    bits: int = 8
    bit: int = -1
    low: float = 0.0
    high: float = 1.0
    name = "pixel-flip"
    examples = ("pixel-flip:bits=10,low=-1",)

    def __post_init__(self) -> None:
        """Check the parameters."""
        self.require(_spans(self.low, self.high), "low,high", "finite numbers, low below high")
        self.require(1 <= self.bits <= 16, "bits", "1 to 16")
        self.require(-1 <= self.bit < self.bits, "bit", f"0 to {self.bits - 1}")
        object.__setattr__(self, "is_random", self.bit < 0)

    def draw_parameters(self, raw: int, word: Word) -> FaultModel:
        """Return the flip of one bit."""
        return self if self.bit >= 0 else replace(self, bit=raw % self.bits)

    def rule(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the numbers of the integers with the flipped bit."""
        largest, span = (1 << self.bits) - 1, float(self.high) - float(self.low)
        numbers = (np.nan_to_num(values.astype(np.float64), nan=float(self.low)) - float(self.low)) / span * largest
        integers = np.clip(np.rint(numbers), 0, largest).astype(np.int64) ^ (1 << max(self.bit, 0))
        return np.asarray(float(self.low) + integers / largest * span)


def _spans(low: float, high: float) -> bool:
    return math.isfinite(low) and math.isfinite(high) and low < high and math.isfinite(high - low)
