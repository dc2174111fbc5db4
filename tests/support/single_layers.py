"""Models of one layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def linear(weight: np.ndarray, *, op: str = "MatMul", opset: int = 18, name: str = "fc") -> onnx.ModelProto:
    """One layer from `x` to `y`."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], name=name)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", weight.shape[1]])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(path: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, path)
    return path
