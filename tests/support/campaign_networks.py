"""Random small networks with everything in them that makes it hard to run a part alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tiny_campaigns import chance

from onnxfi.faults.registry import parse_fault
from onnxfi.faults.space import Sites, Target
from onnxfi.faults.trials import Faults

CHANNELS, SIDE, CLASSES = 16, 4, 5
STEPS = ("conv", "relu", "skip", "norm", "branch", "loop", "scan", "quantised", "shared", "constant", "depthwise")


@dataclass
class Net:
    """A network under construction: image-like values of shape [N, 16, 4, 4]."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    values: list[str] = field(default_factory=lambda: ["x"])
    seed: int = 1

    def number(self, *shape: int, scale: float = 0.25) -> NDArray[np.float32]:
        self.seed += 1
        return chance(*shape, seed=self.seed) * np.float32(scale)

    def tensor(self, array: NDArray[np.generic], kind: str = "w") -> str:
        name = f"{kind}{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, inputs: Sequence[str], **attributes: object) -> str:
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"n{len(self.nodes)}", **attributes))
        return out

    def body(self, name: str, inputs: Sequence[str], scan: bool = False) -> onnx.GraphProto:
        """A body that multiplies by a stored tensor and adds a captured one."""
        weight = numpy_helper.from_array(self.number(CHANNELS, 1, 1, scale=0.5), f"{name}.inner")
        source = inputs[-1] if inputs else self.values[-1]
        nodes = [
            helper.make_node("Mul", [source, weight.name], [f"{name}.m"]),
            helper.make_node("Add", [f"{name}.m", self.values[0]], [f"{name}.out"]),
        ]
        ends = [
            helper.make_tensor_value_info(n, t, s) for n, t, s in zip(inputs, (7, 9, 1), ([], [], None), strict=False)
        ]
        outputs = [helper.make_tensor_value_info(f"{name}.out", 1, None)]
        if inputs:
            nodes.append(helper.make_node("Identity", [inputs[1]], [f"{name}.go"]))
            outputs.insert(0, helper.make_tensor_value_info(f"{name}.go", 9, []))
        return helper.make_graph(nodes, name, ends, outputs, [weight])

    def step(self, kind: str, at: int, other: int) -> None:
        x, y = self.values[at % len(self.values)], self.values[other % len(self.values)]
        self.values.append(getattr(self, kind)(x, y))

    def conv(self, x: str, _: str) -> str:
        weight, bias = self.tensor(self.number(CHANNELS, CHANNELS, 3, 3)), self.tensor(self.number(CHANNELS))
        return self.node("Conv", [x, weight, bias], pads=[1, 1, 1, 1])

    def depthwise(self, x: str, _: str) -> str:
        return self.node("Conv", [x, self.tensor(self.number(CHANNELS, 1, 1, 1))], group=CHANNELS)

    def relu(self, x: str, _: str) -> str:
        return self.node("Relu", [x])

    def skip(self, x: str, y: str) -> str:
        return self.node("Add", [x, y])

    def norm(self, x: str, _: str) -> str:
        columns = [self.number(CHANNELS), self.number(CHANNELS), self.number(CHANNELS), abs(self.number(CHANNELS)) + 1]
        return self.node("BatchNormalization", [x, *(self.tensor(c.astype(np.float32)) for c in columns)])

    def shared(self, x: str, y: str) -> str:
        weight = self.tensor(self.number(CHANNELS, CHANNELS, 1, 1))
        return self.node("Add", [self.node("Conv", [x, weight]), self.node("Conv", [y, weight])])

    def constant(self, x: str, _: str) -> str:
        held = self.node("Constant", [], value=numpy_helper.from_array(self.number(1, CHANNELS, 1, 1), "c"))
        return self.node("Mul", [x, self.node("Abs", [held])])

    def branch(self, x: str, y: str) -> str:
        total = self.node("ReduceSum", [x], keepdims=0)
        above = self.node("Greater", [total, self.tensor(np.float32(0))])
        self.values.append(y)
        one, other = (self.body(f"b{len(self.nodes)}{tail}", ()) for tail in "te")
        return self.node("If", [above], then_branch=one, else_branch=other)

    def loop(self, x: str, _: str) -> str:
        name = f"l{len(self.nodes)}"
        body = self.body(name, [f"{name}.i", f"{name}.c", f"{name}.x"])
        return self.node("Loop", [self.tensor(np.int64(2)), self.tensor(np.bool_(True)), x], body=body)

    def scan(self, x: str, _: str) -> str:
        weight = numpy_helper.from_array(self.number(CHANNELS, SIDE, SIDE, scale=0.5), "inner")
        name = f"s{len(self.nodes)}"
        ends = [helper.make_tensor_value_info(f"{name}.{n}", 1, [CHANNELS, SIDE, SIDE]) for n in ("in", "out")]
        body = helper.make_graph(
            [helper.make_node("Mul", [f"{name}.in", weight.name], [f"{name}.out"])], name, ends[:1], ends[1:], [weight]
        )
        return self.node("Scan", [x], body=body, num_scan_inputs=1)

    def quantised(self, x: str, _: str) -> str:
        scale, zero = self.tensor(np.float32(0.05)), self.tensor(np.uint8(128))
        held = self.node("DequantizeLinear", [self.node("QuantizeLinear", [x, scale, zero]), scale, zero])
        words = (chance(CHANNELS, CHANNELS, 1, 1, seed=self.seed) * 60).astype(np.int8)
        weight = self.node(
            "DequantizeLinear", [self.tensor(words), self.tensor(np.float32(0.01)), self.tensor(np.int8(0))]
        )
        out = self.node("Conv", [held, weight])
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [out, scale, zero]), scale, zero])

    def model(self, outputs: Sequence[int]) -> onnx.ModelProto:
        """The network with a classifier behind its last value, and further outputs."""
        pooled = self.node("Flatten", [self.node("GlobalAveragePool", [self.values[-1]])])
        weight, bias = self.tensor(self.number(CHANNELS, CLASSES)), self.tensor(self.number(CLASSES))
        scores = self.node("Gemm", [pooled, weight, bias])
        made = {node.output[0] for node in self.nodes}
        more = dict.fromkeys(v for at in outputs if (v := self.values[at % len(self.values)]) in made)
        ends = [helper.make_tensor_value_info(scores, 1, ["N", CLASSES])]
        ends += [helper.make_tensor_value_info(v, 1, ["N", CHANNELS, SIDE, SIDE]) for v in more]
        fed = [helper.make_tensor_value_info("x", 1, ["N", CHANNELS, SIDE, SIDE])]
        graph = helper.make_graph(self.nodes, "net", fed, ends, self.stored)
        return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


@st.composite
def nets(draw: st.DrawFn) -> onnx.ModelProto:
    """Networks of up to eight steps on any of the values before, with up to two further outputs."""
    net = Net(seed=draw(st.integers(1, 50)))
    row = st.tuples(st.sampled_from(STEPS), st.integers(0, 8), st.integers(0, 8))
    for kind, at, other in draw(st.lists(row, min_size=1, max_size=8)):
        net.step(kind, at, other)
    return net.model(draw(st.lists(st.integers(0, 8), max_size=2)))


def flips(targets: Sequence[Target], picks: Sequence[tuple[int, int]]) -> Faults:
    """A flip in each of these targets: any element, any bit."""
    rows = [(k, i % t.size, b % t.word.bits) for k, (t, (i, b)) in enumerate(zip(targets, picks, strict=True))]
    columns = [np.array(c, d) for c, d in zip(zip(*rows, strict=True), (np.int64, np.int64, np.int16), strict=True)]
    return Faults(tuple(targets), Sites(*columns), (parse_fault("flip"),))


def two_convolutions() -> onnx.ModelProto:
    """Two convolutions, each with a Relu."""
    net = Net()
    for kind in ("conv", "relu", "conv", "relu"):
        net.step(kind, len(net.values) - 1, 1)
    return net.model([])
