"""Build spiking networks as ONNX: leaky integrate-and-fire layers, unrolled over time or in the body of a Scan.

A step of a layer, as in snntorch's Leaky: reset = membrane > threshold; membrane = leak * membrane + current - reset *
threshold (or, resetting to zero, leak * (1 - reset) * membrane + current); spike = membrane > threshold. The image is
the current of every step, so the first synapses are computed once. The scores are the spikes of the last layer,
counted over time.

Numpy and onnx are all that is needed; scripts/train_spiking.py trains a network and builds it in both forms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 10


@dataclass(frozen=True)
class Lif:
    """One layer: synapses (a convolution where the weight has rank 4, else a matrix [out, in]) and its neurons.

    `shape` is that of the neurons of one sample.
    """

    synapses: str
    neurons: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    shape: tuple[int, ...]
    stride: int = 1
    pad: int = 0
    leak: float = 0.9
    threshold: float = 1.0
    reset: str = "subtract"


class _Graph:
    """Nodes under construction; a node's name says its layer, as exporters write it."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []

    def add(self, scope: str, op: str, *inputs: str, result: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [result], f"/{scope}/{result}", **attributes))
        return result


def _synapses(g: _Graph, layer: Lif, value: str, result: str) -> str:
    names = (f"{layer.synapses}.weight", f"{layer.synapses}.bias")
    if layer.weight.ndim == 4:
        how = {"strides": [layer.stride] * 2, "pads": [layer.pad] * 4}
        return g.add(layer.synapses, "Conv", value, *names, result=result, **how)
    flat = g.add(layer.synapses, "Flatten", value, result=f"{result}_flat", axis=1)
    return g.add(layer.synapses, "Gemm", flat, *names, result=result, transB=1)


def _step(g: _Graph, layer: Lif, before: str, current: str, tail: str) -> tuple[str, str]:
    """One step of the neurons: the names of the new membrane potential and of the spikes."""
    n, threshold, leak = layer.neurons, f"{layer.neurons}.threshold", f"{layer.neurons}.leak"

    def add(op: str, *inputs: str, result: str, **attributes: object) -> str:
        return g.add(n, op, *inputs, result=f"{n}_{result}{tail}", **attributes)

    def fires(value: str, result: str) -> str:
        above = add("Greater", value, threshold, result=f"{result}_above")
        return add("Cast", above, result=result, to=TensorProto.FLOAT)

    reset = fires(before, "reset")
    if layer.reset == "zero":
        kept = add("Mul", add("Sub", "one", reset, result="rest"), before, result="kept")
        membrane = add("Add", add("Mul", leak, kept, result="leaked"), current, result="membrane")
    else:
        charged = add("Add", add("Mul", leak, before, result="leaked"), current, result="charged")
        membrane = add("Sub", charged, add("Mul", reset, threshold, result="amount"), result="membrane")
    return membrane, fires(membrane, "spike")


def _zero_states(g: _Graph, layers: Sequence[Lif], image: str) -> list[str]:
    """A membrane potential of zero for every neuron of every sample."""
    g.add("time", "Shape", image, result="batch", start=0, end=1)
    zero = numpy_helper.from_array(np.zeros(1, np.float32))
    out = []
    for layer in layers:
        shape = g.add("time", "Concat", "batch", f"{layer.neurons}.neurons", result=f"{layer.neurons}_shape", axis=0)
        out.append(g.add("time", "ConstantOfShape", shape, result=f"{layer.neurons}_start", value=zero))
    return out


def _stored(layers: Sequence[Lif]) -> list[TensorProto]:
    rows: dict[str, NDArray[np.generic]] = {}
    for layer in layers:
        rows[f"{layer.synapses}.weight"], rows[f"{layer.synapses}.bias"] = layer.weight, layer.bias
        rows[f"{layer.neurons}.leak"] = np.array(layer.leak, np.float32)
        rows[f"{layer.neurons}.threshold"] = np.array(layer.threshold, np.float32)
        rows[f"{layer.neurons}.neurons"] = np.array(layer.shape, np.int64)
    if any(layer.reset == "zero" for layer in layers):
        rows["one"] = np.array(1, np.float32)
    return [numpy_helper.from_array(value, name) for name, value in rows.items()]


def _model(g: _Graph, layers: Sequence[Lif], shape: Sequence[int], extra: Sequence[TensorProto]) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *shape])
    counts = helper.make_tensor_value_info("counts", TensorProto.FLOAT, ["N", *layers[-1].shape])
    graph = helper.make_graph(g.nodes, "spiking", [image], [counts], [*_stored(layers), *extra])
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets, producer_name="onnxfi")
    onnx.checker.check_model(model, full_check=True)
    return model


def unrolled(layers: Sequence[Lif], steps: int, image: Sequence[int]) -> onnx.ModelProto:
    """A copy of every step. `image` is the shape of one sample."""
    g = _Graph()
    states = _zero_states(g, layers, "image")
    first = _synapses(g, layers[0], "image", "current")
    spikes: list[str] = []
    for t in range(steps):
        value = first
        for k, layer in enumerate(layers):
            current = value if k == 0 else _synapses(g, layer, value, f"{layer.synapses}_{t}")
            states[k], value = _step(g, layer, states[k], current, f"_{t}")
        spikes.append(value)
    g.add("time", "Sum", *spikes, result="counts")
    return _model(g, layers, image, [])


def scanned(layers: Sequence[Lif], steps: int, image: Sequence[int]) -> onnx.ModelProto:
    """One step in the body of a Scan, whose states are the membrane potentials."""
    g, body = _Graph(), _Graph()
    states = _zero_states(g, layers, "image")
    first = _synapses(g, layers[0], "image", "current")
    value, after = first, []
    for k, layer in enumerate(layers):
        current = value if k == 0 else _synapses(body, layer, value, f"{layer.synapses}_now")
        membrane, value = _step(body, layer, f"{layer.neurons}_before", current, "")
        after.append(membrane)

    def port(name: str, shape: Sequence[int] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None if shape is None else ["N", *shape])

    inner = helper.make_graph(
        body.nodes,
        "step",
        [*(port(f"{x.neurons}_before", x.shape) for x in layers), helper.make_tensor_value_info("tick", 1, [])],
        [*(port(n, x.shape) for n, x in zip(after, layers, strict=True)), port(value, layers[-1].shape)],
    )
    ends = [f"{layer.neurons}_end" for layer in layers]
    g.nodes.append(
        helper.make_node("Scan", [*states, "ticks"], [*ends, "spikes"], "steps", body=inner, num_scan_inputs=1)
    )
    g.add("time", "ReduceSum", "spikes", "axis", result="counts", keepdims=0)
    extra = [("ticks", np.zeros(steps, np.float32)), ("axis", np.zeros(1, np.int64))]
    return _model(g, layers, image, [numpy_helper.from_array(value, name) for name, value in extra])
