"""The canary: a fault that any runtime must see, and what it could meet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxfi.faults.models import FaultModel, Set
from onnxfi.faults.space import Sites, Target
from onnxfi.faults.trials import Faults
from onnxfi.faults.words import Mask, Word

#: Elements of a tensor that the canary sets, at most.
_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class _Canary(FaultModel):
    """All exponent bits set (integers: all bits)."""

    name = "canary"

    def mask(self, word: Word, bit: int) -> Mask:
        bits = sum(1 << b for b in word.field("exponent")) or word.full
        return Mask(word.full & ~bits, bits)


def set_exponents(target: Target) -> Faults:
    """All exponent bits set in the first elements of a target.

    >>> from onnxfi.graph.model import load
    >>> len(set_exponents(load("models/fashion_cnn.onnx").targets[0]))
    144
    """
    n = min(target.size, _ELEMENTS)
    sites = Sites(np.zeros(n, np.int64), np.arange(n, dtype=np.int64), np.full(n, -1, np.int16))
    # What a neuron puts out is NaN, which is what it computes, whatever else its exponent bits are.
    return Faults((target,), sites, (Set(1.0) if target.role == "spike" else _Canary(),))


def has_loop(nodes: Iterable[Any]) -> bool:
    """Whether there is a loop among these nodes, or in their bodies."""
    return any(
        node.op_type == "Loop" or any(has_loop(graph.node) for a in node.attribute for graph in (a.g, *a.graphs))
        for node in nodes
    )
