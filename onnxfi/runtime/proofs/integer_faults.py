"""Faults in the weights or the bias of a quantised operator: the classes, exactly.

The sums of quantised networks are whole numbers, and each becomes an output by one product in float32, so nothing
is left to bound. Nothing is claimed unless all golden outputs come out so, bit for bit, for every sample; nor, where
the kernels of a processor saturate (integer_kernels.py), of sums in which two products could.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import UnprovableError
from onnxfi.graph.partition.subgraph import PartitionGraph
from onnxfi.runtime.proofs.bounds import Floats
from onnxfi.runtime.proofs.golden_values import Golden
from onnxfi.runtime.proofs.integer_kernels import largest_weights
from onnxfi.runtime.proofs.operators import Convolution
from onnxfi.runtime.proofs.propagation import UNKNOWN, Classes
from onnxfi.runtime.proofs.quantised_layers import QuantisedLayer, layers_of, wrapped

#: Whole numbers below are exact in float32.
_EXACT = float(1 << 24)
#: Pairs of a fault and a sample, or of a sample and an output, that are computed at once.
_PAIRS = 1 << 16


@dataclass(frozen=True)
class IntegerProofs:
    """The proofs for faults in one stored tensor of a quantised operator.

    Attributes
    ----------
    layers : tuple of QuantisedLayer
        The operator and all behind it.
    inputs : float64 array [samples, channels, …]
        Its golden inputs, less their zero point.
    sums : tuple of float64 array [samples, outputs, …]
        The golden sums of it, and of the one behind it.
    outputs : float32 array [samples, outputs, …]
        Its golden outputs.
    top : int array [samples]
        The golden classes.
    bias : bool
        Whether the tensor is the bias.
    largest : float64 array [outputs], optional
        How large a faulty weight of each output may be with its sums exact, −1: not even with the stored ones. None:
        without limit.
    """

    layers: tuple[QuantisedLayer, ...]
    inputs: Floats = field(repr=False)
    sums: tuple[Floats, ...] = field(repr=False)
    outputs: NDArray[np.float32] = field(repr=False)
    top: Classes = field(repr=False)
    bias: bool
    largest: Floats | None = field(default=None, repr=False)
    _tables: dict[int, Classes] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def cost_bytes(self) -> int:
        """Return about the bytes that it takes."""
        return self.inputs.nbytes + self.outputs.nbytes + sum(one.nbytes for one in self.sums)

    def channel_of(self, elements: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the output channel that each element (flat, row-major) belongs to."""
        return elements if self.bias else self.layers[0].product.channel_of(elements)

    def classes(self, elements: NDArray[np.int64], before: NDArray[Any], after: NDArray[Any]) -> Classes:
        """Return the class of each fault and sample ([faults, samples]), −1 where it is not certain.

        Parameters
        ----------
        elements : int array [faults]
            The element of each fault; all belong to one output channel.
        before, after : int8, uint8 or int32 array [faults]
            The stored and the faulty number.
        """
        exact = self._exact(elements, after)
        if not exact.all():
            found = np.full((len(elements), len(self.top)), UNKNOWN, np.int16)
            if exact.any():
                found[exact] = self.classes(elements[exact], before[exact], after[exact])
            return found
        change = after.astype(np.float64) - before.astype(np.float64)
        channel = int(self.channel_of(elements[:1])[0])
        sums = self.sums[0][:, channel : channel + 1]
        found = np.empty((len(elements), len(self.top)), np.int16)
        if sums[0].size == 1:
            self._by_table(elements, change, channel, found)
            return found
        golden, own = self.outputs[:, channel : channel + 1], np.array([channel])
        largest, short = np.abs(sums).max(), sums.astype(np.float32)
        for row, element in enumerate(elements.tolist()):
            if not row or element != elements[row - 1]:
                given = self._input(element)
                most, given_short = np.abs(given).max(), given.astype(np.float32)
            if largest + abs(change[row]) * most < _EXACT:
                faulty = given_short * np.float32(change[row])
                faulty += short
            else:
                faulty = wrapped(sums + given * change[row])
            output = self.layers[0].quantised(faulty, own)
            live = np.flatnonzero((output != golden).reshape(len(output), -1).any(1))
            found[row] = self.top
            if len(live):
                found[row, live] = self._behind(output[live], live, channel)
        return found

    @property
    def cheap(self) -> bool:
        """Return whether a proof costs less than a run: always."""
        return True

    def several(self, elements: NDArray[np.int64], before: NDArray[Any], after: NDArray[Any]) -> Classes:
        """Return the class of each sample under several faults together ([samples]), −1 where it is not certain.

        Parameters
        ----------
        elements : int array [faults]
            The elements, each once.
        before, after : int8, uint8 or int32 array [faults]
            The stored and the faulty number of each.
        """
        behind = any(isinstance(layer.product, Convolution) for layer in self.layers[1:])
        # Two faulty weights may make a pair of products that is larger than each makes with a stored one.
        pairs = self.largest is not None and not self.bias and len(elements) > 1
        if behind or pairs or not self._exact(elements, after).all():
            return np.full(len(self.top), UNKNOWN, np.int16)
        change = after.astype(np.float64) - before.astype(np.float64)
        own, place = np.unique(self.channel_of(elements), return_inverse=True)
        sums = self.sums[0][:, own]
        for n, element in enumerate(elements.tolist()):
            sums[:, place[n]] += change[n] * self._input(element)[:, 0]
        values = self.outputs.copy()
        values[:, own] = self.layers[0].quantised(wrapped(sums), own)
        for layer in self.layers[1:]:
            values = layer.quantised(wrapped(layer.sums(values.reshape(len(values), -1))), slice(None))
        return np.asarray(values.reshape(len(values), -1).argmax(1), np.int16)

    def _exact(self, elements: NDArray[np.int64], after: NDArray[Any]) -> NDArray[np.bool_]:
        """Return whether the kernels add up the sums of each fault exactly ([faults])."""
        if self.largest is None:
            return np.ones(len(elements), np.bool_)
        size = 0.0 if self.bias else np.abs(after.astype(np.float64))
        return np.asarray(size <= self.largest[self.channel_of(elements)])

    def _input(self, element: int) -> Floats:
        """Return what an element is multiplied with ([samples, 1, …])."""
        if self.bias:
            return np.ones_like(self.sums[0][:, :1])
        return self.layers[0].product.factor_of(element, self.inputs)

    def _by_table(self, elements: NDArray[np.int64], change: Floats, channel: int, found: Classes) -> None:
        """Look up the classes of faults that change one number of each sample, of 256 that it can be."""
        first, samples = self.layers[0], len(self.top)
        if channel not in self._tables:
            self._tables.clear()
            self._tables[channel] = self._table(channel)
        table, sums, own = self._tables[channel], self.sums[0][:, channel].reshape(samples), np.array([channel])
        rows = np.arange(samples) * table.shape[1] - first.given.lowest
        distinct, which = np.unique(elements, return_inverse=True)
        inputs = np.stack([self._input(element).reshape(samples) for element in distinct.tolist()])
        for at in range(0, len(found), step := max(1, _PAIRS // samples)):
            part = slice(at, at + step)
            faulty = wrapped(sums + change[part, None] * inputs[which[part]])
            output = first.quantised(faulty[..., None], own)[..., 0]
            found[part] = table.ravel()[rows + output.astype(np.int64)]

    def _table(self, channel: int) -> Classes:
        """Return the class of each sample for every output of a channel ([samples, 256])."""
        given, samples = self.layers[0].given, np.arange(len(self.top))
        shape = (-1, *self.outputs[0, :1].shape)
        values = np.arange(given.lowest, given.highest + 1, dtype=np.float32)
        table = np.empty((len(samples), len(values)), np.int16)
        for at in range(0, len(samples), step := max(1, _PAIRS // len(values))):
            some = samples[at : at + step]
            every = np.tile(values, len(some)).reshape(shape)
            table[some] = self._behind(every, np.repeat(some, len(values)), channel).reshape(len(some), -1)
        return table

    def _behind(self, output: NDArray[np.float32], samples: NDArray[np.int64], channel: int) -> Classes:
        """Return the classes of some samples with other outputs of one channel ([samples, 1, …])."""
        if len(self.layers) == 1:
            scores = self.outputs[samples].reshape(len(samples), -1).copy()
            scores[:, channel] = output.reshape(len(samples))
            return np.asarray(scores.argmax(1), np.int16)
        second = self.layers[1]
        if isinstance(second.product, Convolution):  # to compute it here takes longer than a run
            return np.full(len(samples), UNKNOWN, np.int16)
        away = (output - self.outputs[samples, channel : channel + 1]).reshape(len(samples), -1)
        channels = channel * away.shape[1] + np.arange(away.shape[1])
        sums = self.sums[1][samples] + second.product(away.astype(np.float64), channels)
        values = second.quantised(wrapped(sums), slice(None))
        for layer in self.layers[2:]:
            values = layer.quantised(wrapped(layer.sums(values)), slice(None))
        return np.asarray(values.argmax(1), np.int16)


def needed_integers(net: PartitionGraph, tensor: str, scored: str) -> tuple[str, ...]:
    """Return the activations that proofs for a stored tensor rest on, and the scores.

    Raises
    ------
    UnprovableError
        If the network is no chain of quantised operators, or the tensor is no weight or bias of one.
    """
    return (*(layer.name for layer in _from(net, tensor, scored)[0]), scored)


def _from(net: PartitionGraph, tensor: str, scored: str) -> tuple[tuple[QuantisedLayer, ...], int]:
    layers, _ = layers_of(net, scored)
    for number, layer in enumerate(layers):
        if tensor in (layer.weight, layer.bias):
            return layers[number:], number
    raise UnprovableError(f"{tensor!r} is no weight of a quantised operator")


def open_integer_proofs(
    net: PartitionGraph, tensor: str, golden: Golden, scored: str, top: Classes, *,
    exact: Callable[[QuantisedLayer], bool],
) -> IntegerProofs:  # fmt: skip
    """Return the proofs for faults in a stored tensor; `exact` says whether the runtime adds up a layer exactly.

    Raises
    ------
    UnprovableError
        If there is no rule for what it reaches, a sum behind it may saturate, or an output of the golden run is not
        what the rules make of it.
    """
    layers, _ = _from(net, tensor, scored)
    limited = [None if exact(layer) else largest_weights(layer) for layer in layers]
    behind = any(one is not None and (one < 0).any() for one in limited[1:])
    if behind or (limited[0] is not None and (limited[0] < 0).all()):
        raise UnprovableError("products of 8-bit numbers may saturate in the kernels of this processor")
    scale = layers_of(net, scored)[1]
    kept, outputs = list[Floats](), list[NDArray[np.float32]]()
    for number, layer in enumerate(layers):
        values = golden[layer.name]
        sums = wrapped(layer.sums(values))
        made = layer.quantised(sums, slice(None))
        if number + 1 < len(layers):
            known = golden[layers[number + 1].name]
        else:
            known = golden[scored].reshape(made.shape)
            made = (made - np.float32(scale.zero)) * scale.scale
        if made.size != known.size or not np.array_equal(made.reshape(known.shape), known):
            raise UnprovableError(f"the runtime rounds {layer.output!r} in another way")
        kept.append(sums)
        outputs.append(made)
    first = layers[0]
    quantised = outputs[0] if len(layers) > 1 else first.quantised(kept[0], slice(None))
    inputs = golden[first.name].astype(np.float64) - first.taken.zero
    return IntegerProofs(layers, inputs, tuple(kept[:2]), quantised, top, tensor == first.bias, limited[0])
