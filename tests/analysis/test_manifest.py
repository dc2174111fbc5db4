"""Manifests: hashes recomputed with hashlib, every single flip found, hostile files refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxfi.analysis import manifest as module
from onnxfi.analysis.manifest import Manifest, manifest, structure_digest, verify
from onnxfi.errors import InputError, SelectorError
from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.weights import inject, sample

CNN = Path(__file__).parents[2] / "models" / "fashion_cnn.onnx"
WEIGHTS = np.arange(600, dtype=np.float32).reshape(20, 30)


def made(weights: Any = WEIGHTS, *, typed: bool = False, op: str = "Relu") -> onnx.ModelProto:
    """A model of one matrix, stored raw or in its typed field."""
    tensor = numpy_helper.from_array(weights, "w")
    if typed:
        tensor = helper.make_tensor("w", tensor.data_type, weights.shape, weights.ravel().tolist())
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("x", 20), ("y", 30)))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node(op, ["h"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [tensor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_hashes_are_those_of_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = manifest(made()).tensors
    assert one.chunks == (hashlib.sha256(WEIGHTS.tobytes()).hexdigest(),) and one.root == one.chunks[0]
    monkeypatch.setattr(module, "CHUNK_BYTES", 1000)
    (cut,) = manifest(made()).tensors
    data = WEIGHTS.tobytes()
    expected = [hashlib.sha256(data[k : k + 1000]) for k in range(0, 2400, 1000)]
    assert cut.chunks == tuple(one.hexdigest() for one in expected)
    assert cut.root == hashlib.sha256(b"".join(one.digest() for one in expected)).hexdigest()


@pytest.mark.parametrize("dtype", ["float32", "int8", "int64", "float16", "uint8"])
def test_the_same_numbers_stored_otherwise_are_whole(dtype: str) -> None:
    weights = (WEIGHTS % 100).astype(dtype)
    raw, typed = made(weights), made(weights, typed=True)
    assert manifest(raw).tensors == manifest(typed).tensors
    found = verify(typed, manifest(raw))
    assert found.whole and not found.same_bytes


def test_packed_words_are_hashed_as_a_file_packs_them() -> None:
    packed = helper.make_tensor("w", TensorProto.INT4, (3, 3), bytes([0x21, 0x43, 0x65, 0x87, 0x09]), raw=True)
    typed = helper.make_tensor("w", TensorProto.INT4, (3, 3), [1, 2, 3, 4, 5, 6, 7, -8, -7])
    graphs = [helper.make_graph([helper.make_node("Cast", ["w"], ["y"], to=1)], "g", [],
              [helper.make_tensor_value_info("y", 1, [3, 3])], [tensor]) for tensor in (packed, typed)]  # fmt: skip
    models = [helper.make_model(g, opset_imports=[helper.make_opsetid("", 21)], ir_version=10) for g in graphs]
    (one,), (other,) = (manifest(model).tensors for model in models)
    assert one.chunks == (hashlib.sha256(bytes([0x21, 0x43, 0x65, 0x87, 0x09])).hexdigest(),) == other.chunks


@given(st.integers(0, 599), st.integers(0, 31))
def test_every_flip_is_found_and_located(element: int, bit: int) -> None:
    original = load(made())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", 100)
        known = manifest(original)
        found = verify(inject(original, sample(original, sites=[f"w[{element}]:{bit}"])).data or b"", known)
    ((start, end),) = found.changed["w"]
    assert not found.whole and found.structure and start <= 4 * element < end and end - start == 100


def test_a_part_is_verified_by_itself_and_a_large_tensor_in_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxfi.analysis.manifest.CHUNK_BYTES", 64)
    monkeypatch.setattr("onnxfi.analysis.manifest.CHUNKS_TOGETHER", 3)  # 3 chunks of 64 bytes: 48 numbers
    known = manifest(CNN)
    damaged = inject(load(CNN), sample(load(CNN), sites=["fc1.weight[1000]:30"])).data
    assert dict(verify(damaged, known, workers=3).changed) == {"fc1.weight": ((3968, 4032),)}
    one = verify(damaged, known, selector=Selector(include=("conv",)))
    assert one.whole and one.tensors == 4 and one.same_bytes is None
    assert not verify(damaged, known, selector=Selector(include=("=fc1.weight",))).whole
    with pytest.raises(SelectorError, match="matches nothing"):
        verify(damaged, known, selector=Selector(include=("conv9",)))


def test_the_structure_has_its_own_hash() -> None:
    known = manifest(made())
    other = verify(made(op="Sigmoid"), known)
    assert not other.whole and not other.structure and not other.changed
    assert structure_digest(load(made())) == structure_digest(load(made(WEIGHTS * 2)))


def test_external_data_is_hashed_too(tmp_path: Path) -> None:
    onnx.save_model(made(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    known = manifest(tmp_path / "m.onnx")
    assert known.tensors == manifest(made()).tensors
    data = bytearray((tmp_path / "m.data").read_bytes())
    data[17] ^= 4
    (tmp_path / "m.data").write_bytes(data)
    assert list(verify(tmp_path / "m.onnx", known).changed) == ["w"]


def test_a_manifest_is_written_and_read(here: Path) -> None:
    known = manifest(CNN)
    assert Manifest.read(known.write("m.json")) == known
    assert verify(CNN, "m.json").document()["whole"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held | {"format": "other"}, "is no manifest"),
        (lambda held: held | {"version": 9}, "has version 9; this onnxfi reads version 1"),
        (lambda held: held | {"digest": "zz"}, "is damaged .'zz' is no SHA-256"),
        (lambda held: held | {"tensors": [{}]}, "is damaged"),
        (lambda held: held | {"tensors": 3}, "is damaged"),
        (lambda held: held | {"tensors": [held["tensors"][0] | {"size_bytes": -1}]}, "a size is no whole number"),
        (lambda held: held | {"tensors": [held["tensors"][0] | {"size_bytes": 1 << 40}]}, "do not agree"),
        (lambda held: held | {"tensors": [held["tensors"][0] | {"chunks": ["0" * 64] * 2}]}, "do not agree"),
        (lambda held: [held], "is no manifest"),
    ],
)
def test_a_manifest_from_a_stranger_is_checked(here: Path, change: Any, message: str) -> None:
    Path("m.json").write_text(json.dumps(change(manifest(CNN).document())), encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        Manifest.read("m.json")
    assert "\n" not in str(error.value)


def test_files_that_are_no_manifest_are_refused(here: Path) -> None:
    for content in (b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"format": 1'):
        Path("m.json").write_bytes(content)
        with pytest.raises(InputError, match="is no manifest"):
            Manifest.read("m.json")
    if Path("/dev/zero").exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "MOST_BYTES", 1000)
            with pytest.raises(InputError, match="has more than 1,000 bytes"):
                Manifest.read("/dev/zero")
    with pytest.raises(InputError, match=r"cannot read 'none\.json'"):
        Manifest.read("none.json")


def test_a_manifest_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"is of another model .*: none of its 9 tensors is in"):
        verify(made(), manifest(CNN))


def test_tensors_that_came_and_went_are_named() -> None:
    model = onnx.load(CNN)
    known = manifest(model)
    del model.graph.initializer[0]
    found = verify(model, known)
    assert len(found.missing) == 1 and not found.whole
