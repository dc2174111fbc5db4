"""Quantised networks as a chain of layers whose sums are whole numbers, from the scores back.

A layer is a convolution or a matrix product of integers with its requantisation, in the QDQ form (float operators
between QuantizeLinear and DequantizeLinear, which a runtime turns into integer kernels) or as QLinearConv and QGemm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import UnprovableError
from onnxfi.graph.partition.subgraph import PartitionGraph, TensorLocation, array_at
from onnxfi.runtime.proofs.bounds import Floats
from onnxfi.runtime.proofs.operators import Convolution, MaxPool, Product, convolution, matrix, window

if TYPE_CHECKING:
    import onnx

#: Operators between two layers that keep the numbers, or the largest of some.
_BETWEEN = frozenset(("MaxPool", "Reshape", "Flatten"))
_FLOAT = frozenset(("Conv", "Gemm"))
_ROWS, _PAIR = 2, 2


@dataclass(frozen=True)
class Quantisation:
    """The number that a whole number q stands for: (q - zero) · scale."""

    scale: np.float32
    zero: int
    lowest: int
    highest: int


@dataclass(frozen=True)
class QuantisedLayer:
    """One linear operator on whole numbers, its requantisation, and what lies before the next one.

    Attributes
    ----------
    name, output : str
        The quantised input and output.
    weight, bias : str
        The stored tensors ("": no bias).
    product : Convolution or Matrix
        The sum of products.
    addend : float64 array [outputs]
        The bias, in whole numbers.
    factor : float32 array [outputs]
        The factor by which sums become outputs.
    taken, given : Quantisation
        The quantisation of the input and of the output.
    pools : tuple of MaxPool
        The poolings of the output; after them it is laid out as the next layer takes it.
    operator : str
        The operator as the model has it.
    dtype : str
        The format of the stored weight.
    """

    name: str
    output: str
    weight: str
    bias: str
    product: Product = field(repr=False)
    addend: Floats = field(repr=False)
    factor: NDArray[np.float32] = field(repr=False)
    taken: Quantisation
    given: Quantisation
    pools: tuple[MaxPool, ...] = ()
    operator: str = "QLinearConv"
    dtype: str = "int8"

    def sums(self, values: NDArray[Any]) -> Floats:
        """Return the sums for quantised inputs [samples, channels, …]."""
        whole = self.product(values.astype(np.float64) - self.taken.zero)
        return whole + self.addend.reshape(-1, *(1,) * (whole.ndim - _ROWS))

    def quantised(self, sums: NDArray[Any], channels: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Return the pooled outputs of sums […, channels, …] in some channels, as a runtime rounds them.

        A sum is held in 32 bits, becomes a float32, is multiplied with the factor, rounded to even and clipped. As the
        factor is positive, the largest of some outputs is the output of the largest sum.
        """
        rank = 2 if isinstance(self.product, Convolution) else 0
        for pool in self.pools:
            sums = pool.pooled(sums)
        factor = self.factor[channels].reshape(-1, *(1,) * rank)
        found = sums.astype(np.float32)  # rounded once: these are whole numbers of 32 bits
        found *= factor
        np.clip(found, self.given.lowest - self.given.zero, self.given.highest - self.given.zero, out=found)
        np.rint(found, out=found)
        found += np.float32(self.given.zero)
        return found


def wrapped(sums: Floats) -> Floats:
    """Return whole numbers as 32 bits hold them.

    >>> wrapped(np.array([2.0**31, -1.0])).tolist()
    [-2147483648.0, -1.0]
    """
    over = (sums >= 2.0**31) | (sums < -(2.0**31))
    return np.where(over, np.mod(sums + 2.0**31, 2.0**32) - 2.0**31, sums) if over.any() else sums


def layers_of(net: PartitionGraph, scored: str) -> tuple[tuple[QuantisedLayer, ...], Quantisation]:
    """Return the layers of a quantised network in order, and the quantisation of its scores.

    Raises
    ------
    UnprovableError
        If the network is not such a chain.
    """
    walk = _Walk(net)
    last = walk.made(scored, "DequantizeLinear")
    found, name, scores = list[QuantisedLayer](), last.input[0], walk.quantisation(last.input[1:])
    while True:
        layer = walk.layer(name)
        if layer is None:
            break
        found.append(layer)
        name = layer.name
    if not found:
        raise UnprovableError(f"no quantised operator gives {scored!r}")
    return tuple(reversed(found)), scores


@dataclass(frozen=True)
class _Walk:
    net: PartitionGraph

    def maker(self, name: str) -> onnx.NodeProto | None:
        number = self.net.makers.get(name)
        return None if number is None else self.net.proto.graph.node[number]

    def made(self, name: str, kind: str) -> onnx.NodeProto:
        node = self.maker(name)
        if node is None or node.op_type != kind:
            raise UnprovableError(f"{name!r} is not made by {kind}")
        return node

    def stored(self, name: str) -> NDArray[Any]:
        if name not in self.net.stored:
            raise UnprovableError(f"{name!r} is computed")
        return array_at(self.net, TensorLocation(name))

    def only(self, name: str) -> None:
        """Raise UnprovableError if more than one operator reads a tensor."""
        if len(self.net.users.get(name, ())) != 1 or name in self.net.outputs:
            raise UnprovableError(f"several operators read {name!r}, or none")

    def quantisation(self, names: Sequence[str]) -> Quantisation:
        if len(names) != _PAIR:
            raise UnprovableError("a quantisation without a zero point")
        scale, zero = (self.stored(name) for name in names)
        if scale.size != 1 or zero.dtype not in (np.int8, np.uint8) or scale.dtype != np.float32:
            raise UnprovableError("activations are quantised otherwise than to 8 bits, as a whole")
        range_ = np.iinfo(zero.dtype)
        return Quantisation(np.float32(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]), range_.min, range_.max)

    def layer(self, name: str) -> QuantisedLayer | None:
        """Return the layer whose quantised output, after poolings, a name is; None at the input of the network."""
        pools: list[MaxPool] = []
        while True:
            self.only(name)
            node = self.maker(name)
            if node is None:
                return None
            if node.op_type in _BETWEEN:
                self._between(node, pools)
                name = node.input[0]
            elif node.op_type == "QLinearConv":
                return self._integer(node, pools, bias=8)
            elif node.op_type == "QGemm":
                return self._integer(node, pools, bias=6)
            elif node.op_type == "QuantizeLinear":
                inner, between = node.input[0], list[MaxPool]()
                given = self.quantisation(node.input[1:])
                while (before := self.maker(inner)) is not None and before.op_type in _BETWEEN:
                    self.only(inner)
                    self._between(before, between)
                    inner = before.input[0]
                if before is not None and before.op_type in _FLOAT and not between:
                    self.only(inner)
                    return self._float(before, name, given, pools)
                if before is None or before.op_type != "DequantizeLinear":
                    return None
                if self.quantisation(before.input[1:]) != given:
                    raise UnprovableError(f"{name!r} is quantised again")
                self.only(inner)
                pools[:0] = between
                name = before.input[0]
            else:
                raise UnprovableError(f"no rule for {node.op_type}")

    @staticmethod
    def _between(node: onnx.NodeProto, pools: list[MaxPool]) -> None:
        if node.op_type == "MaxPool":
            if len(node.output) != 1:
                raise UnprovableError("no rule for this MaxPool")
            pools.insert(0, window(node))

    def _float(self, node: onnx.NodeProto, output: str, given: Quantisation, pools: list[MaxPool]) -> QuantisedLayer:
        """Return the layer of a float operator between dequantised tensors."""
        inputs = [self.made(name, "DequantizeLinear") for name in node.input]
        for name in node.input:
            self.only(name)
        taken, weight = self.quantisation(inputs[0].input[1:]), inputs[1].input
        bias = inputs[2].input[0] if len(inputs) > _ROWS else ""
        zero = weight[2] if len(weight) > _ROWS else ""
        return self._layer(
            node, (inputs[0].input[0], output), (weight[0], weight[1], zero, bias), (taken, given), pools
        )

    def _integer(self, node: onnx.NodeProto, pools: list[MaxPool], bias: int) -> QuantisedLayer:
        """Return the layer of an integer operator."""
        names = [*node.input, ""]
        given = names[6:8] if node.op_type == "QLinearConv" else names[7:9]
        taken = self.quantisation(names[1:3])
        of = names[3], names[4], names[5], names[bias]
        return self._layer(node, (names[0], node.output[0]), of, (taken, self.quantisation(given)), pools)

    def _layer(
        self, node: onnx.NodeProto, ends: tuple[str, str], of: tuple[str, str, str, str],
        how: tuple[Quantisation, Quantisation], pools: list[MaxPool],
    ) -> QuantisedLayer:  # fmt: skip
        name, scales, zero, bias = of
        for one in filter(None, (name, bias)):
            self.only(one)
        weights, scale = self.stored(name), self.stored(scales).reshape(-1)
        if weights.dtype not in (np.int8, np.uint8) or (zero and self.stored(zero).any()):
            raise UnprovableError(f"{name!r} is not symmetric")
        addend = self.stored(bias) if bias else np.zeros(1)
        if (bias and addend.dtype != np.int32) or scale.dtype != np.float32:
            raise UnprovableError(f"{bias!r} is not quantised to 32 bits")
        of_kind = convolution if node.op_type in ("Conv", "QLinearConv") else matrix
        product = of_kind(node, weights.astype(np.float64))
        taken, given = how
        factor = np.broadcast_to(taken.scale * scale / given.scale, len(product.weights)).astype(np.float32)
        if not (np.isfinite(factor) & (factor > 0)).all() or addend.size not in (1, len(factor)):
            raise UnprovableError("no rule for this requantisation")
        whole = np.broadcast_to(addend.astype(np.float64).reshape(-1), len(factor))
        return QuantisedLayer(
            *ends, name, bias, product, whole, factor, taken, given, tuple(pools), node.op_type, weights.dtype.name
        )
