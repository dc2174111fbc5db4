"""Alarms of detectors in the graph: an output that counts, for each sample, the detectors that found a fault.

The output `onnxfi.alarm` is [N] float32; one number where nothing has samples. A campaign takes a sample with an alarm
for detected (DUE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.graph.model.graph_index import GraphIndex
from onnxfi.graph.passes.graph_edit import FreeNames
from onnxfi.graph.passes.node_builder import NodeBuilder, opset_of
from onnxfi.graph.protection.loop_and_branch_bodies import carry_out

if TYPE_CHECKING:
    import onnx

#: The output of alarms, which outputs of a model have no other meaning for.
ALARM = "onnxfi.alarm"
_FLOAT = 1


@dataclass(frozen=True)
class Flag:
    """Verdict of a detector: the name of its numbers, whether each sample has one, and the path of its graph."""

    name: str
    samples: bool
    path: str = ""


def by_sample(g: NodeBuilder, flags: str, *, samples: bool) -> str:
    """Append the largest of these numbers for each sample ([N]), or of all ([1])."""
    shape = [0, -1] if samples else [1, -1]
    flat = g.add("Reshape", flags, g.constant(shape))
    return g.reduce("ReduceMax", flat, 1)


def add_alarm(proto: onnx.ModelProto, flags: list[Flag]) -> None:
    """Append the output of alarms, the sum of what all detectors say; where there is one already, add to it."""
    from onnx import helper

    shape = [None if any(flag.samples for flag in flags) else 1]
    terms = [flag.name for flag in flags if not flag.path]
    for path in dict.fromkeys(flag.path for flag in flags if flag.path):
        g = NodeBuilder(opset_of(proto), FreeNames(proto).new("onnxfi.alarms.inside") + ".")
        inner = _added(g, [flag.name for flag in flags if flag.path == path])
        GraphIndex.of(proto).by_path[path].graph.node.extend(g.nodes)
        terms.append(carry_out(proto, path, inner, np.zeros(1, np.float32), "ReduceSum"))
    names = FreeNames(proto)
    g = NodeBuilder(opset_of(proto), names.new("onnxfi.alarms") + ".")
    for output in [output for output in proto.graph.output if output.name == ALARM]:
        maker = next(node for node in proto.graph.node if ALARM in node.output)
        maker.output[0] = names.new("onnxfi.alarm.before")
        terms.append(maker.output[0])
        shape = shape if shape == [None] else [d.dim_value or None for d in output.type.tensor_type.shape.dim]
        proto.graph.output.remove(output)
    g.add("Identity", _added(g, terms), name=ALARM)
    proto.graph.node.extend(g.nodes)
    proto.graph.output.append(helper.make_tensor_value_info(ALARM, _FLOAT, shape))


def _added(g: NodeBuilder, terms: Sequence[str]) -> str:
    """Append the sum of some numbers."""
    return reduce(lambda total, term: g.add("Add", total, term), terms)


def alarm_flags(alarm: NDArray[Any], samples: int) -> NDArray[np.bool_]:
    """Return the samples with an alarm ([N]); an alarm of all counts for each, and so does NaN.

    >>> alarm_flags(np.array([0, 2, np.nan], np.float32), 3).tolist()
    [False, True, True]
    >>> alarm_flags(np.array([1], np.float32), 2).tolist()
    [True, True]
    """
    raised = ~(np.asarray(alarm).reshape(-1) <= 0)
    return np.asarray(raised) if len(raised) == samples else np.full(samples, bool(raised.any()))
