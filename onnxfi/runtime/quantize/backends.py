"""The quantisers: ONNX Runtime's, and bfloat16 storage. Each reads a file and writes a file."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from heapq import heappop, heappush
from itertools import islice
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxfi.errors import InputError, ModelError
from onnxfi.graph.model.graph_index import all_graphs, captured_names
from onnxfi.graph.passes.node_builder import opset_of
from onnxfi.runtime.data.open_data import Data
from onnxfi.runtime.engine.installed_runtime import onnxruntime
from onnxfi.runtime.engine.ports import Array, one_line
from onnxfi.runtime.quantize.recipe import QuantisationRecipe
from onnxfi.runtime.quantize.shared_weights import drop_twins

_FLOAT, _BFLOAT16 = 1, 16
#: The opset from which all inputs of Resize but the first are optional.
_OPTIONAL_RESIZE = 13
#: Calibration batches: small, since ranges of every activation are kept.
_BATCH = 32


class _Quiet(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.lines.append(one_line(record.getMessage()))


@contextlib.contextmanager
def captured() -> Iterator[list[str]]:
    """Suppress the output and log of quantisers, and yield their warnings; logging is restored."""
    onnxruntime().set_default_logger_severity(4)
    quiet, root = _Quiet(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [quiet]
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            yield quiet.lines
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def load_library(mode: str) -> None:
    """Load what the quantiser of a mode needs, once for all copies of this process in which it runs."""
    own = {
        "weight-only": "onnxruntime.quantization.matmul_nbits_quantizer",
        "fp16": "onnxruntime.transformers.float16",
    }
    onnxruntime()  # refuses with a remedy where it is absent
    importlib.import_module(own.get(mode, "onnxruntime.quantization.shape_inference"))


class _Reader:
    """Calibration data as ONNX Runtime reads it: one batch after the other, then None."""

    def __init__(self, data: Data, samples: int) -> None:
        size = data.layout.fixed or min(_BATCH, samples)
        self._batches = (dict(batch.feeds) for batch in islice(data.batches(size), max(1, -(-samples // size))))

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        raise NotImplementedError


def preprocess(source: Path, out: Path, *, external: bool) -> list[str]:
    """ONNX Runtime's own pre-processing: fold constants, fuse normalisations, infer shapes; what it could not do."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ways: tuple[dict[str, bool], ...] = (
        {},
        {"skip_symbolic_shape": True},
        {"skip_optimization": True, "skip_symbolic_shape": True},
    )
    kept: dict[str, Any] = {"save_as_external_data": True} if external else {}
    reason, folder = "", source.parent.resolve()
    for way in ways:
        try:
            # Its symbolic shape inference leaves temporary files in the current folder where it fails.
            with contextlib.chdir(folder):
                quant_pre_process(folder / source.name, folder / out.name, **way, **kept)
        except Exception as error:
            reason = reason or one_line(error, limit=120) or type(error).__name__
            continue
        left = ", ".join(name.removeprefix("skip_").replace("_", " ") for name in way)
        return [f"pre-processing without {left}: {reason}"] if way else []
    raise ModelError(f"ONNX Runtime's pre-processing refuses the model: {reason}")


def static(
    source: Path, out: Path, recipe: QuantisationRecipe, data: Data, exclude: Sequence[str], *, external: bool
) -> None:
    """Integers for weights and activations, with ranges found by running the data."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    kinds = {name: getattr(QuantType, _type(name)) for name in (recipe.weights, recipe.activations)}
    ways = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
    quantize_static(
        source, out, _Reader(data, recipe.calibration_samples),
        quant_format=QuantFormat.QDQ if recipe.format == "qdq" else QuantFormat.QOperator,
        per_channel=recipe.per_channel, weight_type=kinds[recipe.weights], activation_type=kinds[recipe.activations],
        nodes_to_exclude=list(exclude), calibrate_method=getattr(CalibrationMethod, ways[recipe.calibration]),
        use_external_data_format=external,
    )  # fmt: skip


def _type(name: str) -> str:
    """`QInt8` for int8, `QUInt4` for uint4."""
    return "Q" + name.replace("uint", "UInt").replace("int", "Int")


def dynamic(source: Path, out: Path, recipe: QuantisationRecipe, exclude: Sequence[str], *, external: bool) -> None:
    """Integers for weights; activations are quantised when the model runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source, out, per_channel=recipe.per_channel, weight_type=getattr(QuantType, _type(recipe.weights)),
        nodes_to_exclude=list(exclude), use_external_data_format=external,
        extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip


def weight_only(model: onnx.ModelProto, recipe: QuantisationRecipe, exclude: Sequence[str]) -> onnx.ModelProto:
    """Blocks of integers for the weights of matrix products; all else stays float."""
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        tensor = next((a.t for a in node.attribute if a.HasField("t")), None)
        if tensor is not None:  # MatMulNBitsQuantizer looks for weights among initializers only
            model.graph.initializer.add().CopyFrom(tensor)
            model.graph.initializer[-1].name = node.output[0]
            model.graph.node.remove(node)
    wrapped = ONNXModel(model)
    wrapped.replace_gemm_with_matmul()
    quantizer = MatMulNBitsQuantizer(
        wrapped.model, bits=int(recipe.weights.removeprefix("u").removeprefix("int")), block_size=recipe.block,
        is_symmetric=not recipe.weights.startswith("u"), nodes_to_exclude=list(exclude),
        quant_format=QuantFormat.QDQ if recipe.format == "qdq" else QuantFormat.QOperator,
    )  # fmt: skip
    quantizer.process()
    made: onnx.ModelProto = quantizer.model.model
    drop_twins(made.graph)
    return made


def half(model: onnx.ModelProto, exclude: Sequence[str]) -> onnx.ModelProto:
    """Return the model in float16, except its inputs and outputs. Weights beyond the range are held at its ends."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    opset = opset_of(model)
    _drop_empty_scales(model.graph, optional=opset >= _OPTIONAL_RESIZE)
    made: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True, node_block_list=list(exclude))
    for graph in all_graphs(made.graph):
        _drop_second_casts(graph)
    _sort(made.graph)
    return made


def _drop_second_casts(graph: onnx.GraphProto) -> None:
    """Leave out Casts that the converter wrote once for each reader of one tensor, all under one name."""
    known: dict[str, onnx.NodeProto] = {}
    for k, node in reversed([*enumerate(graph.node)]):
        if node.op_type == "Cast" and known.setdefault(node.output[0], node) is not node:
            del graph.node[k]


def _sort(graph: onnx.GraphProto) -> None:
    """Put nodes after those that they read, in their order otherwise: the converter appends its Casts at the end."""
    makers = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    reads = {k: [*node.input, *captured_names(node)] for k, node in enumerate(graph.node)}
    sorter = TopologicalSorter({k: {makers[name] for name in names if name in makers} for k, names in reads.items()})
    sorter.prepare()
    ready, order = list[int](), list[int]()
    while sorter.is_active():
        for k in sorter.get_ready():
            heappush(ready, k)
        order.append(heappop(ready))
        sorter.done(order[-1])
    nodes = [graph.node[k] for k in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _drop_empty_scales(graph: onnx.GraphProto, *, optional: bool) -> None:
    """Leave out the empty inputs of Resize: after the converter's Cast they no longer count as absent.

    Before opset 13 its region is not `optional`; it stays, and is not looked at.
    """
    empty = {tensor.name for tensor in graph.initializer if 0 in tensor.dims}
    empty |= {node.output[0] for node in graph.node if any(a.HasField("t") and 0 in a.t.dims for a in node.attribute)}
    for node in graph.node:
        if node.op_type == "Resize":
            for k, name in enumerate(node.input):
                if name in empty and (optional or k > 1):
                    node.input[k] = ""


def brain(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Store these float32 tensors as bfloat16, each after a Cast to float32; computation stays float32.

    Values beyond the largest bfloat16 are held at it.
    """
    opset = opset_of(model)
    if opset < 13:
        raise InputError(f"bf16 needs opset 13, the model has {opset}; --opset 13 raises it")
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name in names:
            casts.append(_stored_narrow(tensor))
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in names:
            tensor = next(a.t for a in node.attribute if a.HasField("t"))
            tensor.name = node.output[0]
            casts.append(_stored_narrow(tensor))
            node.output[0] = tensor.name
    kept = [value for value in model.graph.input if value.name not in names]
    nodes = [*model.graph.node]
    del model.graph.node[:], model.graph.input[:]
    made = [helper.make_node("Cast", [f"{name}_bf16"], [name], name=f"{name}_cast", to=_FLOAT) for name in casts]
    constants = [node for node in nodes if node.op_type == "Constant"]
    model.graph.node.extend([*constants, *made, *(node for node in nodes if node.op_type != "Constant")])
    model.graph.input.extend(kept)
    return model


def _stored_narrow(tensor: onnx.TensorProto) -> str:
    """Rewrite a float32 tensor as bfloat16 under a new name; returns the old one."""
    name, values = tensor.name, numpy_helper.to_array(tensor).astype(np.float32)
    top = np.float32(ml_dtypes.finfo(ml_dtypes.bfloat16).max)  # type: ignore[no-untyped-call]
    finite = np.isfinite(values)
    narrow = np.where(finite, np.clip(values, -top, top), values).astype(ml_dtypes.bfloat16)
    dims = list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type, tensor.raw_data = f"{name}_bf16", _BFLOAT16, narrow.tobytes()
    tensor.dims.extend(dims)
    return name
