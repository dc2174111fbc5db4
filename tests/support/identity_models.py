"""One Identity of any number format, and its output as words."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from onnxfi.faults.words import Word, Words
from onnxfi.graph.dataflow.activation_targets import Activation, activations
from onnxfi.graph.model.loading import load
from onnxfi.graph.passes.node_builder import NUMBER

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def identity(word: Word, opset: int, axes: list[Any]) -> onnx.ModelProto:
    """y = Identity(x) of a format and shape."""
    x, y = (helper.make_tensor_value_info(n, NUMBER[word.name], axes) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    ir = 8 if opset < 19 else 9 if opset < 21 else 10 if opset < 25 else 13
    return helper.make_model(graph, ir_version=ir, opset_imports=[helper.make_opsetid("", opset)])


def target(proto: onnx.ModelProto, name: str = "y") -> Activation:
    """The activation of this name."""
    return next(a for a in activations(load(proto)) if a.target.id == name)


def run_words(proto: onnx.ModelProto, feeds: dict[str, NDArray[Any]], word: Word, level: Any = LEVELS[1]) -> Words:
    """Run in ONNX Runtime; the words of the output, flat. Formats that numpy lacks are passed as words."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in feeds.items():
        if name == "x" and array.dtype.type.__module__ != "numpy":
            value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(f"u{array.itemsize}"), NUMBER[word.name])
        else:  # bind_cpu_input does not know initializers that can be fed
            value = ort.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    found = binding.get_outputs()[0]
    raw = ctypes.string_at(found.data_ptr(), int(np.prod(found.shape())) * word.storage // 8)
    return np.frombuffer(raw, word.carrier).astype(np.uint64)
