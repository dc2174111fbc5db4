"""Large weights that the runtime reads where they lie: the same answers, and what stays a copy."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxfi.errors import ModelError
from onnxfi.graph.model.byte_source import ByteSource, StoredArray
from onnxfi.runtime.engine import external_files
from onnxfi.runtime.engine.external_files import part_in_files
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

TEXT = """<ir_version: 10, opset_import: ["": 21]> m (int64[N] i) => (float[N,8] y) {
    r = Gather(table, i) h = MatMul(r, w) y = Mul(h, v) }"""
ARRAYS = {"table": (16, 8), "w": (8, 8), "v": (8,)}


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, dict[str, StoredArray]]:
    """A part of a model and its weights, which lie in two files behind each other."""
    monkeypatch.setattr(external_files, "LEAST_BYTES", 1)
    made, rng, stored = onnx.parser.parse_model(TEXT), np.random.default_rng(0), {}
    (tmp_path / "deep").mkdir()
    for name, shape in ARRAYS.items():
        array, file = rng.standard_normal(shape).astype("<f4"), tmp_path / ("deep/b.bin" if name == "w" else "a.bin")
        start = file.stat().st_size if file.exists() else 0
        with file.open("ab") as stream:
            stream.write(array.tobytes())
        stored[name] = StoredArray(ByteSource.file(file), start, np.dtype("<f4"), shape)
        tensor = onnx.TensorProto(name=name, data_type=1, dims=shape, data_location=1)  # type: ignore[arg-type]
        for key, value in (("location", "given"), ("offset", "0"), ("length", str(array.nbytes))):
            tensor.external_data.add(key=key, value=value)
        made.graph.initializer.append(tensor)
    return made.SerializeToString(), {name: StoredArray(ByteSource.file(one.source.path), one.start, one.dtype, one.shape)
                                      for name, one in stored.items() if one.source.path}  # fmt: skip


def answer(model: bytes, stored: dict[str, StoredArray | np.ndarray]) -> np.ndarray:
    return OrtEngine(provider="cpu").prepare_part(model, stored).run({"i": np.array([3, -1])})["y"]


@pytest.mark.skipif(sys.byteorder != "little", reason="files are little-endian")
def test_weights_in_files_give_the_answer_of_copies(part: tuple[bytes, dict[str, StoredArray]]) -> None:
    model, stored = part
    arrays = {name: one.read() for name, one in stored.items()}
    expected = (arrays["table"][[3, -1]] @ arrays["w"]) * arrays["v"]
    np.testing.assert_allclose(answer(model, {**stored}), expected, rtol=1e-5)
    assert answer(model, {**stored}).tobytes() == answer(model, {**arrays}).tobytes()
    faulty = {**stored, "w": arrays["w"] * 2}  # given beside the files
    np.testing.assert_allclose(answer(model, faulty), 2 * expected, rtol=1e-5)
    found = part_in_files(model, faulty)
    assert found is not None and [*found.rest] == ["w"]


def test_small_and_unaligned_weights_are_copied(
    part: tuple[bytes, dict[str, StoredArray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stored = part
    odd = {name: StoredArray(one.source, one.start + 1, one.dtype, (4,)) for name, one in stored.items()}
    assert part_in_files(model, odd) is None
    assert part_in_files(model, {name: one.read() for name, one in stored.items()}) is None
    monkeypatch.undo()
    assert part_in_files(model, stored) is None


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_weights_behind_a_link_give_the_same(part: tuple[bytes, dict[str, StoredArray]], tmp_path: Path) -> None:
    model, stored = part
    expected = answer(model, {**stored})
    (tmp_path / "links").mkdir()
    for name, one in stored.items():
        assert one.source.path is not None
        link = tmp_path / "links" / f"{name}.bin"
        link.symlink_to(one.source.path)
        stored[name] = StoredArray(ByteSource.file(link), one.start, one.dtype, one.shape)
    assert answer(model, {**stored}).tobytes() == expected.tobytes()


def test_a_file_that_has_changed_is_refused(part: tuple[bytes, dict[str, StoredArray]], tmp_path: Path) -> None:
    model, stored = part
    (tmp_path / "a.bin").write_bytes(bytes(1 << 12))
    with pytest.raises(ModelError, match="changed while it was being read"):
        part_in_files(model, stored)
