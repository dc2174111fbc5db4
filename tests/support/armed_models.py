"""Models in text form, their activations, and a run of each armed and baked."""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import parser

from onnxfi.graph.dataflow.activation_targets import Activation, activations
from onnxfi.graph.model.loading import load
from onnxfi.graph.passes.fault_inputs import columns
from onnxfi.graph.passes.instrument import ActivationFault, Armed, bake
from onnxfi.runtime.engine.onnx_runtime import OrtEngine


def parsed(text: str, opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}]> {text}')


OFF = OrtEngine(provider="cpu", optimization="off")


Arrays = dict[str, NDArray[Any]]


def named(proto: onnx.ModelProto, name: str) -> Activation:
    return next(a for a in activations(load(proto)) if a.target.id == name)


def run(proto: onnx.ModelProto | bytes, feeds: Arrays) -> Arrays:
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    return OFF.prepare(data).run(feeds)


def armed_and_baked(
    proto: onnx.ModelProto, armed: Armed, faults: list[ActivationFault], feeds: Arrays, batch: int | None = None
) -> Arrays:
    """The outputs under these faults, which must be the same armed and baked; and disarmed those of the plain model."""
    onnx.checker.check_model(armed.proto)
    golden, disarmed = run(proto, feeds), run(armed.proto, feeds)
    assert all(golden[n].tobytes() == disarmed[n].tobytes() for n in golden)
    fed = columns(armed, faults, batch=batch)
    found = run(armed.proto, feeds | fed)
    baked = bake(proto, faults)
    onnx.checker.check_model(baked)
    again = run(baked, feeds)
    assert all(found[n].tobytes() == again[n].tobytes() for n in found)
    return found
