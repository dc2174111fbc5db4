"""Lending: what a runtime is given beside a model, which is in memory once when the session is open."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxfi.graph.model.byte_source import ByteSource, StoredArray
from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.subgraph import partition_graph
from onnxfi.graph.partition.subgraph_model import extract_model
from onnxfi.runtime.engine import onnx_runtime
from onnxfi.runtime.engine.external_initializers import ExternalInitializers
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux frees private pages for good")
WORDS = {"f4": (64, 1024), "f2": (3, 99999), "i1": (70001,), "?": (70000,), "f8": (0, 4)}


def test_external_initializers_equal_those_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = {word: rng.integers(0, 2, shape).astype(word) for word, shape in WORDS.items()}
    (tmp_path / "odd.bin").write_bytes(b"odd" + b"".join(array.tobytes() for array in given.values()))
    source, start = ByteSource.file(tmp_path / "odd.bin"), 3
    stored: dict[str, np.ndarray | StoredArray] = {}
    for word, array in given.items():
        stored[word], start = StoredArray(source, start, array.dtype, array.shape), start + array.nbytes
    mixed = stored | {"f2": given["f2"], "few": np.arange(12).reshape(3, 4).T}
    for some in (stored, mixed, {"i1": given["i1"][:9]}, {}):
        for name, array in zip(some, ExternalInitializers(some).arrays, strict=True):
            known = given.get(name, mixed["few"]) if len(some) > 1 else some[name]
            assert array.dtype == known.dtype and np.array_equal(array, known) and array.flags.c_contiguous
            assert array.ctypes.data % array.itemsize == 0


CHAIN = """<ir_version: 10, opset_import: ["": 21]> m (float[N,256] x) => (float[N,256] y) {
    h = MatMul(x, packed) i = Mul(h, plain) j = Gather(table, at) k = Add(i, j) l = Gemm(k, square, row)
    c = Reshape(l, image) d = Conv(c, kernel) e = Transpose<perm = [0, 1, 3, 2]>(d) f = Reshape(e, flat)
    y = Einsum<equation = "nk,km->nm">(f, packed) }"""
SHAPES = {
    "packed": (256, 256), "plain": (1, 256), "table": (99, 256), "square": (256, 256), "row": (256,), "kernel": (64, 64, 3, 3),
}  # fmt: skip


@linux
@pytest.mark.parametrize("optimization", ["all", "off"])
@pytest.mark.parametrize("beside", [False, True], ids=["in the file", "beside it"])
def test_a_session_needs_no_temporary_tensor_once_it_is_open(
    tmp_path: Path, beside: bool, optimization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CHAIN.replace("d = Conv(c, kernel)", "d = Conv<pads = [1, 1, 1, 1]>(c, kernel)")
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(1)
    held = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    held |= {"at": np.array([7]), "image": np.array([-1, 64, 2, 2]), "flat": np.array([-1, 256])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in held.items())
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=beside, location="m.data", size_threshold=999)
    net = partition_graph(load(tmp_path / "m.onnx"))
    assert {*net.weights} == {"packed", "table", "square", "kernel"} and net.proto.ByteSize() < 8000
    part = extract_model(net, range(len(model.graph.node)), {"x": (1, ["N", 256])}, ["y"])
    engine, x = OrtEngine("cpu", optimization=optimization), rng.standard_normal((5, 256)).astype(np.float32)
    made: list[ExternalInitializers] = []
    monkeypatch.setattr(
        onnx_runtime, "ExternalInitializers", lambda stored: made.append(ExternalInitializers(stored)) or made[0]
    )
    session = engine.prepare_part(part.data, part.stored)
    [given] = made
    assert len(given.arrays) == 4 and not any(array.any() for array in given.arrays), "its pages do not exist any more"
    whole = engine.prepare(tmp_path / "m.onnx")
    for _ in range(2):
        assert session.run({"x": x})["y"].tobytes() == whole.run({"x": x})["y"].tobytes()
