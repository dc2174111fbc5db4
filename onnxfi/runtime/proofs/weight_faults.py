"""Faults in the weights or the bias of one linear operator: the classes that are certain, for many faults at once.

The small changes of one weight, which are most of its bits, are proved together: where the class is certain for
everything between the largest of them and none, it is certain for each. What is left is tried fault by fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import UnprovableError
from onnxfi.graph.partition.subgraph import PartitionGraph
from onnxfi.runtime.proofs.bounds import Floats
from onnxfi.runtime.proofs.golden_values import LINEAR, Golden
from onnxfi.runtime.proofs.operators import Convolution, Linear
from onnxfi.runtime.proofs.propagation import UNKNOWN, Classes, Path, path_from, with_samples

#: Numbers of a block of faults: the working arrays of a few of them stay in a processor's caches.
_BLOCK = 1 << 15
_BIAS = 2
#: Samples of a block at least: below, calls cost more than what they compute.
_FEWEST = 16
#: Changes, as shares of the weight, that are proved together: to no more than about its own size, or, where a bound
#: costs as much as a run, of the lower half of the mantissa and of the rest of it.
_LARGEST_TOGETHER, _HALF, _FINE = 2.0, 0.5, 2.0**-8
#: Binary logarithms between which the range of a sample lies, and the steps of its bisection (0.04 at the end).
_LEAST, _MOST, _STEPS = -24.0, 126.0, 12

#: A float64 addition rounds by less than this share of γ of the fewest terms.
_SUMMED = 1e-9


@dataclass(frozen=True)
class WeightProofs:
    """The proofs for faults in one stored tensor of a linear operator.

    Attributes
    ----------
    path : Path
        From the operator to the scores.
    bias : bool
        Whether the tensor is the bias.
    """

    path: Path
    bias: bool
    _ranges: dict[int, tuple[Floats, Floats]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def cheap(self) -> bool:
        """Return whether a proof costs less than a run: not where a convolution lies behind the operator."""
        return not any(isinstance(r, Linear) and isinstance(r.product, Convolution) for r in self.path.rules)

    @property
    def cost_bytes(self) -> int:
        """Return about the bytes that it takes."""
        linear = [rule for rule in (self.path.first, *self.path.rules) if isinstance(rule, Linear)]
        arrays = [one for rule in linear for one in (rule.golden, rule.exact, rule.sums, rule.product.weights)]
        return sum(one.nbytes for one in arrays)

    def channel_of(self, elements: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the output channel that each element (flat, row-major) belongs to."""
        return elements if self.bias else self.path.first.product.channel_of(elements)

    def _input(self, element: int) -> Floats:
        """Return what an element is multiplied with ([samples, 1, …])."""
        first = self.path.first
        return np.ones_like(first.exact[:, :1]) if self.bias else first.product.factor_of(element, first.golden)

    def classes(self, elements: NDArray[np.int64], before: NDArray[np.float32], after: NDArray[np.float32]) -> Classes:
        """Return the class of each fault and sample ([faults, samples]), −1 where it is not certain.

        Parameters
        ----------
        elements : int array [faults]
            The element of each fault; all belong to one output channel.
        before, after : float32 array [faults]
            The stored and the faulty value.
        """
        samples = len(self.path.top)
        found = np.full((len(elements), samples), UNKNOWN, np.int16)
        finite = np.flatnonzero(np.isfinite(after) & np.isfinite(before))
        if not len(finite):
            return found
        distinct, which = np.unique(elements[finite], return_inverse=True)
        inputs = np.stack([self._input(element) for element in distinct.tolist()])
        old = before[finite].astype(np.float64)
        faults = _Faults(which, old, after[finite].astype(np.float64) - old, self.channel_of(elements[:1]))
        some = max(_FEWEST, _BLOCK // max(1, inputs[0, 0].size))
        with np.errstate(all="ignore"):
            if inputs[0, 0].size == 1:
                found[finite] = self._by_range(faults, inputs)
                return self._asked(found)
            for first in range(0, samples, some):
                part = slice(first, first + some)
                mine = WeightProofs(with_samples(self.path, part), self.bias)
                found[finite, part] = mine._proved(faults, inputs[:, part])
        return self._asked(found)

    def several(self, elements: NDArray[np.int64], before: NDArray[np.float32], after: NDArray[np.float32]) -> Classes:
        """Return the class of each sample under several faults together ([samples]), −1 where it is not certain.

        What they add to the sums of a channel, and to the magnitudes there, adds up. Nothing is claimed where a
        convolution lies behind the operator.

        Parameters
        ----------
        elements : int array [faults]
            The elements, each once.
        before, after : float32 array [faults]
            The stored and the faulty value of each.
        """
        samples, shape = len(self.path.top), self.path.first.exact.shape[2:]
        found = np.full(samples, UNKNOWN, np.int16)
        if not self.cheap or not (np.isfinite(after) & np.isfinite(before)).all():
            return found
        old, channels = before.astype(np.float64), self.channel_of(elements)
        change = after.astype(np.float64) - old
        own, place = np.unique(channels, return_inverse=True)
        with np.errstate(all="ignore"):
            added, magnitude = np.zeros((2, 1, samples, len(own), *shape))
            for n, element in enumerate(elements.tolist()):
                x = self._input(element)[:, 0]
                added[0, :, place[n]] += change[n] * x
                magnitude[0, :, place[n]] += (2 * abs(old[n]) + abs(change[n])) * np.abs(x)
            magnitude *= 1 + len(elements) * _SUMMED  # the rounding of `added` itself
            for first in range(0, samples, some := max(1, _BLOCK // magnitude[0, 0].size)):
                part = slice(first, first + some)
                path, mine = with_samples(self.path, part), (added[:, part], magnitude[:, part])
                found[part] = path.classes(path.first.entry(mine[0], mine[0], mine[1], own))[0]
        found[self.path.top == UNKNOWN] = UNKNOWN
        return found

    def _asked(self, found: Classes) -> Classes:
        """Return classes without those of samples that have no golden class: they are not finite to begin with."""
        found[:, self.path.top == UNKNOWN] = UNKNOWN
        return found

    def _by_range(self, faults: _Faults, inputs: Floats) -> Classes:
        """Prove faults that add one number to one golden sum: those within a range of the golden class, then pairs.

        The range of each sample is found by bisection; where the class is certain for all of it, it is for each number.
        """
        channel = int(faults.channels[0])
        if channel not in self._ranges:
            self._ranges[channel] = self._range(faults.channels, 1.0), self._range(faults.channels, -1.0)
        up, down = self._ranges[channel]
        inputs = inputs.reshape(*inputs.shape[:2])
        found = np.full((len(faults.which), inputs.shape[1]), UNKNOWN, np.int16)
        for first in range(0, len(found), step := max(1, 2 * _BLOCK // inputs.shape[1])):
            part = slice(first, first + step)
            added = faults.change[part, None] * inputs[faults.which[part]]
            found[part] = np.where((added <= up) & (added >= -down), self.path.top, UNKNOWN)
        fault, sample = np.nonzero(found == UNKNOWN)
        self._pairs(
            fault, sample, faults, inputs.reshape(*inputs.shape, *(1,) * (self.path.first.exact.ndim - 1)), found
        )
        return found

    def _range(self, channels: NDArray[np.int64], sign: float) -> Floats:
        """Return how much may be added to the sums of a channel with the golden class certain ([samples])."""
        low, high = np.full(len(self.path.top), _LEAST), np.full(len(self.path.top), _MOST)
        shape = (1, len(low), *(1,) * (self.path.first.exact.ndim - 1))
        for _ in range(_STEPS):
            middle = (low + high) / 2
            size = np.exp2(middle).reshape(shape)
            ends = sign * size
            bounds = self.path.first.entry(np.minimum(ends, 0), np.maximum(ends, 0), size, channels)
            proved = self.path.classes(bounds)[0] == self.path.top
            low, high = np.where(proved, middle, low), np.where(proved, high, middle)
        return np.where(low > _LEAST, np.exp2(low), 0.0)

    def _proved(self, faults: _Faults, inputs: Floats) -> Classes:
        """Prove faults whose change meets several numbers of each sample."""
        found = np.full((len(faults.which), inputs.shape[1]), UNKNOWN, np.int16)
        share = np.abs(faults.change) / np.abs(faults.old)  # a NaN where nothing changes
        small = share <= _LARGEST_TOGETHER
        if self.cheap:
            groups = [small & (np.sign(faults.change) == sign) for sign in (-1.0, 1.0)]
        else:  # a bound costs as much as a run: few of them, for the changes that the fewest samples notice
            groups = [share <= _FINE, (share > _FINE) & (share <= _HALF)]
        for rows in map(np.flatnonzero, groups):
            if len(rows):
                self._together(rows, faults, inputs, found)
        if self.cheap:
            self._each(np.flatnonzero(~small), faults, inputs, found)
        found[faults.change == 0] = self.path.top
        return found

    def _together(self, rows: NDArray[np.int64], faults: _Faults, inputs: Floats, found: Classes) -> None:
        """Prove some changes of each element together, from the lowest to the highest; then what is left by pairs."""
        which, old, change = faults.which, faults.old, faults.change
        mine, at = np.unique(which[rows], return_inverse=True)
        lowest, highest, size = np.zeros((3, len(mine)))
        np.minimum.at(lowest, at, change[rows])
        np.maximum.at(highest, at, change[rows])
        np.maximum.at(size, at, np.abs(old[rows]))
        for first in range(0, len(mine), step := self._step(inputs)):
            part = slice(first, first + step)
            x = inputs[mine[part]]
            ends = _column(lowest[part], x) * x, _column(highest[part], x) * x
            low, high = np.minimum(*ends), np.maximum(*ends)
            largest = np.maximum(highest[part], -lowest[part])
            magnitude = _column(2 * size[part] + largest, x) * np.abs(x)
            proved = self.path.classes(self.path.first.entry(low, high, magnitude, faults.channels))
            here = (at >= first) & (at < first + step)
            found[rows[here]] = proved[at[here] - first]
        if self.cheap:
            fault, sample = np.nonzero(found[rows] == UNKNOWN)
            self._pairs(rows[fault], sample, faults, inputs, found)

    def _each(self, rows: NDArray[np.int64], faults: _Faults, inputs: Floats, found: Classes) -> None:
        """Prove each fault on all samples."""
        for first in range(0, len(rows), step := self._step(inputs)):
            part = rows[first : first + step]
            x = inputs[faults.which[part]]
            added = _column(faults.change[part], x) * x
            magnitude = _column(faults.size[part], x) * np.abs(x)
            found[part] = self.path.classes(self.path.first.entry(added, added, magnitude, faults.channels))

    def _pairs(
        self, fault: NDArray[np.int64], sample: NDArray[np.int64], faults: _Faults, inputs: Floats, found: Classes
    ) -> None:
        """Prove single pairs of a fault and a sample."""
        step = max(1, _BLOCK // inputs[0, 0].size)
        for first in range(0, len(fault), step):
            f, s = fault[first : first + step], sample[first : first + step]
            path = with_samples(self.path, s)
            x = inputs[faults.which[f], s]
            added = (_column(faults.change[f], x) * x)[None]
            magnitude = (_column(faults.size[f], x) * np.abs(x))[None]
            found[f, s] = path.classes(path.first.entry(added, added, magnitude, faults.channels))[0]

    def _step(self, inputs: Floats) -> int:
        """Return the number of faults in a block."""
        return int(max(1, _BLOCK // max(1, inputs[0].size)))


@dataclass(frozen=True)
class _Faults:
    """Finite changes of elements of one output channel ([1]): the element of each by its place among the inputs."""

    which: NDArray[np.int64]
    old: Floats
    change: Floats
    channels: NDArray[np.int64]

    @property
    def size(self) -> Floats:
        """No less than the magnitude of the faulty weight and of the stored one together."""
        return np.asarray(2 * np.abs(self.old) + np.abs(self.change))


def _column(values: Floats, like: Floats) -> Floats:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def open_proofs(net: PartitionGraph, tensor: str, golden: Golden, scored: str, top: Classes) -> WeightProofs:
    """Return the proofs for faults in a stored tensor; UnprovableError if there is no rule for what it reaches."""
    users = net.users.get(tensor, ())
    if len(users) != 1 or tensor in net.outputs:
        raise UnprovableError(f"several operators read {tensor!r}")
    node = net.proto.graph.node[users[0]]
    places = [k for k, name in enumerate(node.input) if name == tensor]
    if node.op_type not in LINEAR or len(places) != 1 or places[0] == 0:
        raise UnprovableError(f"{tensor!r} is no weight of a linear operator")
    path = path_from(net, users[0], golden, scored, top)
    return WeightProofs(path, places[0] == _BIAS)
