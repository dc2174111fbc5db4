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

from onnxfi.errors import FaultError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.models import Set
from onnxfi.faults.sampling import uniform
from onnxfi.faults.sites import Sites, Target
from onnxfi.faults.words import Mask, Word

_LAYOUTS = {"chw": (-2, -1), "hwc": (-3, -2)}


@dataclass(frozen=True)
class _SensorFault(FaultModel):
    """Fault in all numbers of a region of the image, which become `value`."""

    value: float = 0.0
    layout: str = "chw"
    multi_element = True

    def __post_init__(self) -> None:
        """Check the parameters."""
        _check_layout(self.name, self.layout)
        if not math.isfinite(self.value):
            raise FaultError(f"fault {self.name!r}: value={self.value} is out of range; give a finite number")

    @property
    def element_model(self) -> FaultModel:
        """Effect on one number."""
        return Set(self.value)

    def mask(self, word: Word, bit: int) -> Mask:
        """Return the mask of one number."""
        return Set(self.value).mask(word, bit)

    def applies_to(self, shape: tuple[int, ...]) -> bool:
        """Return True for a sample with rows and columns."""
        return len(shape) >= -min(_LAYOUTS[self.layout])

    def _region(self, shape: tuple[int, ...], index: int, fixed: tuple[int, ...]) -> NDArray[np.int64]:
        """Return the elements that share the site's coordinates on these axes."""
        site = np.unravel_index(index, shape)
        axes = {axis % len(shape) for axis in fixed}
        affected = [np.array([site[k]]) if k in axes else np.arange(n) for k, n in enumerate(shape)]
        return np.asarray(np.ravel_multi_index(np.ix_(*affected), shape), np.int64).ravel()


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
        if self.axis not in ("row", "column"):
            raise FaultError(f"fault 'stuck-line': axis={self.axis!r} is unknown; give row or column")

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
        _check_layout(self.name, self.layout)
        _check_range(self.name, self.low, self.high)
        if not 0 <= self.salt <= 1:
            raise FaultError(f"fault 'salt-pepper': salt={self.salt} is out of range; give a share from 0 to 1")

    @property
    def element_model(self) -> FaultModel:
        """Effect on one number of a white pixel."""
        return Set(self.high)

    def mask(self, word: Word, bit: int) -> Mask:
        """Return the mask of a number of a white pixel."""
        return self.element_model.mask(word, bit) or Mask(word.full, 0)

    def applies_to(self, shape: tuple[int, ...]) -> bool:
        """Return True for a sample with rows and columns."""
        return len(shape) >= -min(_LAYOUTS[self.layout])

    def spread(
        self, targets: tuple[Target, ...], sites: Sites, raw: NDArray[np.uint64]
    ) -> tuple[Sites, tuple[FaultModel, ...]]:
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
        _check_range(self.name, self.low, self.high)
        if not 1 <= self.bits <= 16:
            raise FaultError(f"fault 'pixel-flip': bits={self.bits} is out of range; give 1 to 16")
        if not -1 <= self.bit < self.bits:
            raise FaultError(f"fault 'pixel-flip': bit={self.bit} is out of range; give 0 to {self.bits - 1}")
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


def _check_layout(name: str, layout: str) -> None:
    if layout not in _LAYOUTS:
        raise FaultError(f"fault {name!r}: layout={layout!r} is unknown; give chw (channels first) or hwc (last)")


def _check_range(name: str, low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high and math.isfinite(high - low)):
        raise FaultError(f"fault {name!r}: low={low},high={high} is out of range; give finite numbers, low below high")
