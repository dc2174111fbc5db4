"""The rule of each operator: from bounds of its faulty input to those of its output.

A linear operator takes the deviation of its input from the golden one, so that what no fault reaches costs nothing, and
adds a bound on the rounding of the faulty sum. Others are monotone, element by element or in a window, and computed
exactly by a runtime: they map both bounds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from onnxfi.errors import UnprovableError
from onnxfi.runtime.proofs.bounds import LARGEST, Floats, ValueBounds, absolute, gamma

#: Values of a scored softmax differ by more than its rounding where their logits differ by this.
SOFTMAX_MARGIN = 1e-3
_IMAGE, _ROWS = 4, 2


#: The rule of one operator: from the bounds of its input to those of its output.
Rule = Callable[[ValueBounds], ValueBounds]


@dataclass(frozen=True)
class Linear:
    """A linear operator with constant weights, on golden inputs.

    Attributes
    ----------
    golden : float64 array [samples, channels, …]
        The golden input.
    exact, sums : float64 array [samples, outputs, …]
        The golden output without any rounding, and its sum of magnitudes Σ|x||w| + |b|.
    product : Product
        The sum of products of inputs and weights.
    """

    golden: Floats = field(repr=False)
    exact: Floats = field(repr=False)
    sums: Floats = field(repr=False)
    product: Product = field(repr=False)
    #: The samples that are asked for, in their order; None: all.
    samples: NDArray[np.int64] | None = field(default=None, repr=False)

    def __call__(self, faulty: ValueBounds) -> ValueBounds:
        """Return the bounds of the output."""
        before = self._of(self.golden, faulty.channels)
        live = faulty.live
        row = live.reshape(*live.shape, *(1,) * (before.ndim - 1))
        low = np.where(row, faulty.low - before, 0.0)
        high = np.where(row, faulty.high - before, 0.0)
        here = (low != 0) | (high != 0)  # also a NaN
        live = here.reshape(*live.shape, -1).any(-1)
        middle = (low + high) / 2
        half = (high - low) / 2
        g = gamma(self.product.terms)
        centre = self.product(middle, faulty.channels)
        reach = self.product.magnitudes(half + g * (np.abs(middle) + half), faulty.channels)
        reach += g * self._of(self.sums) + absolute(self.product.terms)
        reach *= 1 + 1e-9  # the rounding of these numbers themselves, in float64
        centre += self._of(self.exact)
        return _within(centre, reach, g, live)

    def entry(self, low: Floats, high: Floats, magnitude: Floats, channels: NDArray[np.int64]) -> ValueBounds:
        """Return the bounds of output channels to whose exact sums something from `low` to `high` is added.

        These and `magnitude`, which is added to the sums of magnitudes, are [faults, samples, channels, …].
        """
        g = gamma(self.product.terms)
        exact, sums = self._of(self.exact, channels), self._of(self.sums, channels)
        live = (magnitude != 0).reshape(*magnitude.shape[:2], -1).any(-1)
        reach = (g * (sums + magnitude) + absolute(self.product.terms)) * (1 + 1e-9)
        reach = np.where(reach < g * LARGEST, reach, np.nan)  # a sum may overflow on the way
        return ValueBounds(exact + low - reach, exact + high + reach, live, channels)

    def of_samples(self, samples: NDArray[np.int64] | slice) -> Linear:
        """Return the rule for some samples, in this order; for a range of them without copying anything."""
        if isinstance(samples, slice):
            return replace(self, golden=self.golden[samples], exact=self.exact[samples], sums=self.sums[samples])
        return replace(self, samples=samples)

    def _of(self, golden: Floats, channels: NDArray[np.int64] | None = None) -> Floats:
        if channels is None:
            return golden if self.samples is None else golden[self.samples]
        if self.samples is None:
            return golden[:, channels]
        return np.asarray(golden[self.samples[:, None], channels])


def _within(centre: Floats, reach: Floats, g: float, live: NDArray[np.bool_]) -> ValueBounds:
    """Return centre ± reach; NaN where a sum may overflow on the way.

    `reach` is at least g times the sum S of magnitudes. In every order partial sums lie between the sum of the negative
    terms and that of the positive ones, which are (S ± the whole sum) / 2 in magnitude.
    """
    reach = np.where(reach / g + np.abs(centre) + reach < 2 * LARGEST, reach, np.nan)
    return ValueBounds(centre - reach, centre + reach, live)


@dataclass(frozen=True)
class Product(ABC):
    """The sums of products of a linear operator, without its bias: weights [outputs, inputs, …]."""

    weights: Floats = field(repr=False)

    @property
    def terms(self) -> int:
        """Return the number of products in a sum."""
        return int(math.prod(self.weights.shape[1:]))

    def __call__(self, values: Floats, channels: NDArray[np.int64] | None = None) -> Floats:
        """Return the sums for inputs […, samples, channels, …], of which only some channels are not zero."""
        return self._sums(self.weights if channels is None else self.weights[:, channels], values)

    def magnitudes(self, values: Floats, channels: NDArray[np.int64] | None = None) -> Floats:
        """Return the sums with the magnitudes of the weights."""
        return self._sums(np.abs(self.weights if channels is None else self.weights[:, channels]), values)

    @abstractmethod
    def _sums(self, weights: Floats, values: Floats) -> Floats:
        """Return the sums with these weights."""

    def channel_of(self, elements: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the output channel that each element of the stored tensor (flat, row-major) belongs to."""
        return np.asarray(elements // self.terms)

    @abstractmethod
    def factor_of(self, element: int, golden: Floats) -> Floats:
        """Return what an element of the stored tensor is multiplied with [samples, 1, …]."""


@dataclass(frozen=True)
class Matrix(Product):
    """The products of a Gemm or MatMul, whose weights may be stored as [inputs, outputs]."""

    transposed: bool = False

    def _sums(self, weights: Floats, values: Floats) -> Floats:
        if weights.shape[1] == 1:  # one channel: an outer product
            return np.asarray(values * weights[:, 0])
        rows = values.reshape(-1, values.shape[-1])
        return np.asarray(rows @ weights.T).reshape(*values.shape[:-1], len(weights))

    def channel_of(self, elements: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the output that each element of the stored tensor (flat, row-major) belongs to."""
        return np.asarray(elements % len(self.weights)) if self.transposed else super().channel_of(elements)

    def factor_of(self, element: int, golden: Floats) -> Floats:
        """Return the input that an element of the stored tensor is multiplied with [samples, 1]."""
        channel = element // len(self.weights) if self.transposed else element % self.terms
        return golden[:, channel : channel + 1]


@dataclass(frozen=True)
class Convolution(Product):
    """The products of a two-dimensional convolution in one group: weights [outputs, inputs, height, width]."""

    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    def _sums(self, weights: Floats, values: Floats) -> Floats:
        images = values.reshape(-1, *values.shape[-3:])
        windows = self._windows(images)  # [images, channels, h, w, kernel h, kernel w]
        n, _, h, w = windows.shape[:4]
        columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, -1)
        found = (columns @ weights.reshape(len(weights), -1).T).reshape(n, h, w, len(weights))
        return np.ascontiguousarray(found.transpose(0, 3, 1, 2)).reshape(*values.shape[:-3], len(weights), h, w)

    def _windows(self, images: Floats) -> Floats:
        top, left, bottom, right = self.pads
        padded = np.pad(images, ((0, 0), (0, 0), (top, bottom), (left, right)))
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.weights.shape[2:], strict=True)]
        found = sliding_window_view(padded, reach, axis=(2, 3))
        (sy, sx), (dy, dx) = self.strides, self.dilations
        return np.asarray(found[:, :, ::sy, ::sx, ::dy, ::dx])

    def factor_of(self, element: int, golden: Floats) -> Floats:
        """Return what an element of the stored tensor is multiplied with [samples, 1, h, w]."""
        _, channel, y, x = np.unravel_index(element, self.weights.shape)
        return self._windows(golden[:, channel : channel + 1])[..., y, x]


@dataclass(frozen=True)
class MaxPool:
    """The largest value of each window of an image."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]

    def __call__(self, faulty: ValueBounds) -> ValueBounds:
        """Return the bounds of the output."""
        return faulty.mapped(self.pooled)

    def pooled(self, values: Floats) -> Floats:
        """Return the largest value of each window of images […, height, width]."""
        (h, w), (sy, sx), (top, left, bottom, right) = self.kernel, self.strides, self.pads
        if any(self.pads):
            edges = [(0, 0)] * (values.ndim - 2) + [(top, bottom), (left, right)]
            values = np.pad(values, edges, constant_values=-np.inf)
        rows = (values.shape[-2] - h) // sy + 1
        columns = (values.shape[-1] - w) // sx + 1
        found: Floats | None = None
        for y in range(h):
            for x in range(w):
                one = values[..., y : y + sy * (rows - 1) + 1 : sy, x : x + sx * (columns - 1) + 1 : sx]
                found = one.copy() if found is None else np.maximum(found, one, out=found)
        assert found is not None
        return found


@dataclass(frozen=True)
class Clip:
    """Values cut to a range; that of Relu is from 0."""

    low: float = 0.0
    high: float = np.inf

    def __call__(self, faulty: ValueBounds) -> ValueBounds:
        """Return the bounds of the output."""
        return faulty.mapped(lambda values: np.clip(values, self.low, self.high))


@dataclass(frozen=True)
class Flatten:
    """An image laid out as one row of numbers, of this shape ([samples, numbers])."""

    after: tuple[int, ...]

    def __call__(self, faulty: ValueBounds) -> ValueBounds:
        """Return the bounds of the output."""
        low, high = (one.reshape(*one.shape[:2], -1) for one in (faulty.low, faulty.high))
        channels, size = faulty.channels, int(np.prod(faulty.low.shape[3:], dtype=np.int64))
        if channels is not None:
            channels = (channels[:, None] * size + np.arange(size)).ravel()
        if len(self.after) != _ROWS or (channels is None and low.shape[-1] != self.after[1]):
            raise UnprovableError("no rule for this Reshape")
        return ValueBounds(low, high, faulty.live, channels)


@dataclass(frozen=True)
class Average:
    """The mean of each channel of an image, or of each window of it, as one more float32 sum."""

    pool: MaxPool | None

    def __call__(self, faulty: ValueBounds) -> ValueBounds:
        """Return the bounds of the output."""
        low, terms = self._mean(faulty.low)
        high, _ = self._mean(faulty.high)
        size, _ = self._mean(np.maximum(np.abs(faulty.low), np.abs(faulty.high)))
        g = gamma(terms)
        reach = (g * size + absolute(terms)) * (1 + 1e-9)
        reach = np.where(size * terms < LARGEST, reach, np.nan)
        return ValueBounds(low - reach, high + reach, faulty.live, faulty.channels)

    def _mean(self, values: Floats) -> tuple[Floats, int]:
        if self.pool is None:
            return values.mean((-2, -1), keepdims=True), values.shape[-1] * values.shape[-2]
        (h, w), (sy, sx) = self.pool.kernel, self.pool.strides
        windows = sliding_window_view(values, (h, w), axis=(-2, -1))[..., ::sy, ::sx, :, :]
        return np.asarray(windows.mean((-2, -1))), h * w


@dataclass(frozen=True)
class Sum:
    """An addition of another tensor, golden [samples, channels, …] or a number for all."""

    other: Floats = field(repr=False)
    #: A runtime may start the sum of the operator before with it; then it is rounded as often as the terms of that.
    terms: int = 1
    #: True of a stored tensor [channels, …], which is the same for all samples.
    stored: bool = False

    def of_samples(self, samples: NDArray[np.int64] | slice) -> Sum:
        """Return the rule for some samples."""
        return self if self.stored else replace(self, other=self.other[samples])

    def __call__(self, faulty: ValueBounds) -> ValueBounds:
        """Return the bounds of the output."""
        other, rank = self.other, faulty.low.ndim - 1
        if self.stored:
            other = other.reshape(*(1,) * (rank - other.ndim), *other.shape)
        if other.ndim != rank or other.shape[2:] not in (faulty.low.shape[3:], (1,) * (rank - 2)):
            raise UnprovableError("no rule for this Add")
        if faulty.channels is not None and other.shape[1] > 1:
            other = other[:, faulty.channels]
        if other.shape[1] not in (1, faulty.low.shape[2]) or other.shape[0] not in (1, faulty.low.shape[1]):
            raise UnprovableError("no rule for this Add")
        g = gamma(self.terms)
        low, high = faulty.low + other, faulty.high + other
        size = np.maximum(np.abs(faulty.low), np.abs(faulty.high)) + np.abs(other)
        reach = np.where(size < LARGEST, (g * size + absolute(self.terms)) * (1 + 1e-9), np.nan)
        return ValueBounds(low - reach, high + reach, faulty.live, faulty.channels)


@dataclass(frozen=True)
class Normalization:
    """A batch normalisation with stored moments: a factor and an addend for each channel.

    A runtime may merge it into the convolution before it, so its roundings count as those of its largest terms.
    """

    factor: Floats = field(repr=False)
    addend: Floats = field(repr=False)
    #: The sum of the magnitudes of what the addend is made of.
    magnitude: Floats = field(repr=False)
    terms: int = 1

    def __call__(self, faulty: ValueBounds) -> ValueBounds:
        """Return the bounds of the output."""
        factor, addend, magnitude = (self._of(one, faulty) for one in (self.factor, self.addend, self.magnitude))
        one, other = faulty.low * factor, faulty.high * factor
        g = gamma(self.terms)
        reach = g * (np.maximum(np.abs(one), np.abs(other)) + magnitude) + absolute(self.terms)
        reach = np.where(reach < g * LARGEST, reach * (1 + 1e-9), np.nan)
        return ValueBounds(
            np.minimum(one, other) + addend - reach, np.maximum(one, other) + addend + reach,
            faulty.live, faulty.channels,
        )  # fmt: skip

    @staticmethod
    def _of(values: Floats, faulty: ValueBounds) -> Floats:
        values = values if faulty.channels is None else values[faulty.channels]
        return values.reshape(-1, *(1,) * (faulty.low.ndim - 3))


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def window(node: Any) -> MaxPool:
    """Return the windows of a pooling of images; UnprovableError if they are not of this kind."""
    given = attributes(node)
    kernel = tuple(given["kernel_shape"])
    dilations = tuple(given.get("dilations", (1, 1)))
    plain = given.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID") and not given.get("ceil_mode", 0)
    if len(kernel) != _IMAGE - 2 or not plain or any(d != 1 for d in dilations):
        raise UnprovableError(f"no rule for this {node.op_type}")
    return MaxPool((kernel[0], kernel[1]), _two(given.get("strides")), _four(given.get("pads")))


def convolution(node: Any, weights: Floats) -> Convolution:
    """Return the products of a Conv node; UnprovableError if they are not of this kind."""
    given: Mapping[str, Any] = attributes(node)
    if (
        weights.ndim != _IMAGE
        or given.get("group", 1) != 1
        or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    ):
        raise UnprovableError(f"no rule for this {node.op_type}")
    return Convolution(weights, _two(given.get("strides")), _four(given.get("pads")), _two(given.get("dilations")))


def matrix(node: Any, weights: Floats) -> Matrix:
    """Return the products of a Gemm or MatMul; UnprovableError if they are not of this kind."""
    given = attributes(node)
    if given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1 or given.get("transA", 0) or weights.ndim != _ROWS:
        raise UnprovableError(f"no rule for this {node.op_type}")
    transposed = not given.get("transB", 0)
    return Matrix(np.ascontiguousarray(weights.T if transposed else weights), transposed)


def _two(values: Any) -> tuple[int, int]:
    return (1, 1) if not values else (int(values[0]), int(values[1]))


def _four(values: Any) -> tuple[int, int, int, int]:
    return (0, 0, 0, 0) if not values else (int(values[0]), int(values[1]), int(values[2]), int(values[3]))
