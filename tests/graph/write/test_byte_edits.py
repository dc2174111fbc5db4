"""Proof by an independent reader: exactly the listed bits change, nothing else differs, and undo restores the bytes.

The models are the shipped ones, the fetched ones and all of the `onnx` wheel. What is expected is computed from the
fault list on disk by the definitions of docs/reference/fault-list.md, not by onnxfi.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import protobuf_reader
import pytest
from onnx import TensorProto
from protobuf_reader import Stored

from onnxfi.errors import SelectorError
from onnxfi.faults.faultlist import FaultList
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.model.stored_tensors import DATA_TYPES
from onnxfi.runtime.inject.weights import Sample, inject, replay, sample, undo

ROOT = Path(__file__).parents[3]
#: But for the one whose weights are 4-bit words in tensors of bytes (MatMulNBits), which this reader takes as bytes:
#: tests/graph/model/test_tensor_roles.py reads those by their definition.
SHIPPED = sorted(path for path in (ROOT / "models").glob("*.onnx") if path.stem != "char_gpt_int4")
FETCHED = (
    "ddddocr", "ddddocr_det", "ddddocr_int8", "magika", "minilm_int8", "rapidocr_cls", "rapidocr_det", "rapidocr_rec",
    "silero_vad", "slanet_plus", "smart_turn_int8",
)  # fmt: skip
WHEEL = Path(onnx.__file__).parent / "backend/test/data"
FLIPS, RATE, STUCK, ZERO, RANDOM = "flips", "rate", "stuck", "zero", "random"
ALL = (FLIPS, RATE, STUCK, ZERO, RANDOM)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files need not reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def fetched(name: str) -> Path:
    path = ROOT / f"fetched/{name}.onnx"
    if not path.exists():
        pytest.skip(f"no {path.relative_to(ROOT)}; python scripts/fetch_models.py brings it")
    return path


def popcount(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.bitwise_count(a ^ b).sum())


def file_bits(a: bytes, b: bytes) -> int:
    """Bits that differ between two files of one length."""
    return popcount(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8))


def expected(golden: dict[str, Stored], listed: Path) -> tuple[dict[str, np.ndarray], int]:
    """The words that a fault list leaves, by its own lines alone, and how many faults it holds."""
    header, *rows = (json.loads(line) for line in listed.read_text().splitlines())
    words = {row["target"]: golden[row["target"]].words.copy() for row in rows}
    for row in rows:
        here, at = words[row["target"]], row["index"]
        name, _, value = row["fault"].partition(":word=")
        before, bits = int(here[at]), sum(1 << bit for bit in row["bits"] or ())
        after = {
            "flip": before ^ bits,
            "stuck-at-1": before | bits,
            "zero": 0,
            "set-word": int(value or "0", 16),
        }[name]
        assert (int(row["before"], 16), int(row["after"], 16)) == (before, after), row
        assert row["changed"] is (before != after)
        here[at] = after
    assert header["version"] == 1
    return words, len(rows)


def equalised(
    golden: bytes, faulty: bytes, folder: Path | None, injected: set[str], other: Path | None = None
) -> tuple[bytes, bytes]:
    """Both models serialised again, without the numbers of the faulty tensors and the names of data files."""
    out = []
    for data, place in ((golden, folder), (faulty, other)):
        proto = protobuf_reader.parse(data)
        for found in protobuf_reader.stored(proto, place):
            for name in found.fields if found.id in injected else ():
                found.message.ClearField(name)
        for tensor in protobuf_reader.tensors(proto):
            for entry in tensor.external_data:
                entry.value = "" if entry.key == "location" else entry.value
        out.append(proto.SerializeToString(deterministic=True))
    return out[0], out[1]


def drawn_from(model: Model, kind: str, selector: Selector) -> Sample:
    """A known number of faults of one kind."""
    fault = {STUCK: "stuck-at-1", ZERO: "zero", RANDOM: "random-word"}.get(kind, "flip")
    population = selector.space(model.targets, parse_fault(fault)).size
    if kind == RATE:
        drawn = sample(model, ber=min(1.0, 80 / population), selector=selector, seed=7)
        assert 0 < drawn.drawn < 400
        return drawn
    count = min(20, population)
    drawn = sample(model, count=count, fault=fault, selector=selector, seed=7)
    assert drawn.drawn == count
    return drawn


def prove(path: Path, kind: str, folder: Path, selector: Selector | None = None) -> set[str]:
    """Inject into a model in one way and check it from outside; return the tensors in which bits changed."""
    model, golden = load(path), protobuf_reader.read(path)
    drawn = drawn_from(model, kind, selector or everything(model))
    out, listed = folder / "faulty.onnx", folder / "faults.jsonl"
    done = inject(model, drawn, out, save_faults=listed)
    faulty = protobuf_reader.read(out)
    words, rows = expected(golden, listed)
    assert rows == drawn.drawn
    assert faulty.keys() == golden.keys()
    for id_, before in golden.items():
        assert np.array_equal(faulty[id_].words, words.get(id_, before.words)), id_
    changed = sum(popcount(golden[id_].words, after) for id_, after in words.items())
    if kind in (FLIPS, RATE):
        assert changed == rows
    a, b = path.read_bytes(), out.read_bytes()
    left, right = equalised(a, b, None, set(words))
    assert left == right
    if not done.resized:
        assert len(a) == len(b)
        assert file_bits(a, b) == changed
    undo(load(out), FaultList.open(listed), folder / "restored.onnx")
    assert (folder / "restored.onnx").read_bytes() == a
    left_over = {p.name for p in folder.iterdir()} - {path.name}
    assert left_over == {"faults.jsonl", "faulty.onnx", "restored.onnx"}
    return {id_ for id_, after in words.items() if popcount(golden[id_].words, after)}


def everything(model: Model) -> Selector:
    """Every target, shapes and indices too."""
    return Selector(include=tuple(f"={t.id}" for t in model.targets))


def agrees(data: Path | bytes) -> Model:
    """The two readers see the same ids in the same order, the same formats, shapes and words."""
    model = load(data)
    seen = protobuf_reader.stored(protobuf_reader.parse(data), data.parent if isinstance(data, Path) else None)
    assert [s.id for s in seen] == [t.id for t in model.targets]
    for here, target in zip(seen, model.targets, strict=True):
        assert (DATA_TYPES[here.data_type], here.dims) == (target.word, target.shape)
        assert np.array_equal(model.words(target, np.arange(target.size)), here.words), target.id
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_models(path: Path, kind: str, tmp_path: Path) -> None:
    agrees(path)
    assert prove(path, kind, tmp_path)


@pytest.mark.slow
@pytest.mark.fetched
@pytest.mark.parametrize("kind", [FLIPS, RATE])
@pytest.mark.parametrize("name", FETCHED)
def test_fetched_models(name: str, kind: str, tmp_path: Path) -> None:
    assert prove(fetched(name), kind, tmp_path, Selector() if kind == RATE else None)


@pytest.mark.slow
@pytest.mark.fetched
@pytest.mark.parametrize("name", FETCHED)
def test_both_readers_agree_on_every_word_of_fetched_models(name: str) -> None:
    agrees(fetched(name))


def prove_all(models: Iterator[tuple[str, bytes]], folder: Path) -> tuple[int, int]:
    """Prove one kind of fault on each of many small models, the kinds in turn; returns how many have words that can be
    faulty, and in how many tensors bits changed."""
    injected = changed = 0
    path = folder / "model.onnx"
    for name, data in models:
        path.write_bytes(data)
        if not any(target.size for target in agrees(path).targets):
            with pytest.raises(SelectorError, match=r"no tensor|no site"):
                sample(load(path), count=1)
            continue
        for left in folder.iterdir():
            if left != path:
                left.unlink()
        kind = ALL[injected % len(ALL)]
        injected += 1
        try:
            changed += len(prove(path, kind, folder))
        except Exception as error:
            error.add_note(f"{name}, {kind}")
            raise
    return injected, changed


@pytest.mark.slow
def test_the_model_files_of_the_onnx_wheel(tmp_path: Path) -> None:
    files = sorted(WHEEL.rglob("*.onnx"))
    injected, changed = prove_all(((str(file), file.read_bytes()) for file in files), tmp_path)
    assert len(files) >= 140
    assert injected >= 60
    assert changed > injected


@pytest.mark.slow
def test_the_node_models_of_the_onnx_wheel(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases overflow on purpose while they are built
        from onnx.backend.test.case.node import collect_testcases

        cases = [case for case in collect_testcases(None) if case.model is not None]
    injected, changed = prove_all(((case.name, case.model.SerializeToString()) for case in cases), tmp_path)
    assert len(cases) >= 1500
    assert injected >= 300
    assert changed > injected


@pytest.mark.fetched
def test_silero_vad_keeps_its_weights_in_branches(tmp_path: Path) -> None:
    path = fetched("silero_vad")
    golden = protobuf_reader.read(path)
    weights = [s for s in golden.values() if s.data_type == 1 and len(s.words) > 100]
    assert weights
    assert all("then_branch::" in s.id or "else_branch::" in s.id for s in weights)
    injected = prove(path, RATE, tmp_path, Selector(dtype=("float32",)))
    assert len({id_.rpartition("::")[0] for id_ in injected if id_.count("::") >= 1}) >= 2


@pytest.mark.fetched
def test_slanet_plus_holds_its_decoder_in_a_loop(tmp_path: Path) -> None:
    path = fetched("slanet_plus")
    inside = tuple(f"={id_}" for id_, s in protobuf_reader.read(path).items() if ".body::" in id_ and len(s.words))
    assert len(inside) > 20
    injected = prove(path, FLIPS, tmp_path, Selector(include=inside))
    assert injected
    assert all(".body::" in id_ for id_ in injected)


@pytest.mark.slow
@pytest.mark.fetched
@pytest.mark.parametrize("name", ["smart_turn_int8", "ddddocr_int8"])
def test_quantised_models(name: str, tmp_path: Path) -> None:
    path = fetched(name)
    golden = protobuf_reader.read(path)
    injected = prove(path, STUCK, tmp_path, Selector(dtype=("int8", "uint8")))
    assert injected
    assert {golden[id_].data_type for id_ in injected} <= {2, 3}


@pytest.mark.slow
@pytest.mark.fetched
def test_duplicate_opset_imports_are_said_and_kept(tmp_path: Path) -> None:
    # A second import of the default domain, appended to the bytes of a real model (field 8: domain "", version 17).
    path = tmp_path / "twice.onnx"
    path.write_bytes(fetched("rapidocr_cls").read_bytes() + bytes.fromhex("42040a001011"))
    model = load(path)
    assert [note for note in model.notes if "imported 2 times" in note]
    for kind in ALL:
        folder = tmp_path / kind
        folder.mkdir()
        assert prove(path, kind, folder)
        imports = protobuf_reader.parse(folder / "faulty.onnx").opset_import
        assert [(o.domain, o.version) for o in imports][-1] == ("", 17)
        assert sum(o.domain == "" for o in imports) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RATE, RANDOM])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_models_in_external_data(path: Path, kind: str, tmp_path: Path) -> None:
    for folder in ("in", "out", "back"):
        (tmp_path / folder).mkdir()
    held, data = tmp_path / "in/m.onnx", tmp_path / "in/m.onnx.data"
    onnx.save_model(onnx.load(path), held, save_as_external_data=True, location=data.name, size_threshold=64)
    model, golden = load(held), protobuf_reader.read(held)
    assert golden.keys() == protobuf_reader.read(path).keys()
    assert model.external
    drawn = drawn_from(model, kind, everything(model))
    out, listed = tmp_path / "out/faulty.onnx", tmp_path / "out/faults.jsonl"
    inject(model, drawn, out, save_faults=listed)
    words, _ = expected(golden, listed)
    faulty = protobuf_reader.read(out)
    for id_, before in golden.items():
        assert np.array_equal(faulty[id_].words, words.get(id_, before.words)), id_
    changed = sum(popcount(golden[id_].words, after) for id_, after in words.items())
    left, right = equalised(held.read_bytes(), out.read_bytes(), held.parent, set(words), out.parent)
    assert left == right
    inside = {id_ for id_ in words if golden[id_].message.data_location != TensorProto.EXTERNAL}
    outside = sum(popcount(golden[id_].words, after) for id_, after in words.items() if id_ not in inside)
    assert 0 < outside == file_bits(data.read_bytes(), (tmp_path / "out/faulty.onnx.data").read_bytes()) <= changed
    undo(load(out), FaultList.open(listed), tmp_path / "back/m.onnx")
    for name in ("m.onnx", "m.onnx.data"):  # under its old name even the model's bytes are the same again
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def test_a_trial_above_a_thousand_faults_is_replayed_and_undone_from_its_recipe(tmp_path: Path) -> None:
    path = ROOT / "models/fashion_cnn.onnx"
    golden = protobuf_reader.read(path)
    model = load(path)
    for fault in ("flip", "random-word"):
        drawn = sample(model, count=1500, fault=fault, seed=3)
        done = inject(model, drawn, tmp_path / "faulty.onnx", save_faults=tmp_path / "faults.jsonl")
        assert (tmp_path / "faults.jsonl").read_text().count("\n") == 2
        faulty = protobuf_reader.read(tmp_path / "faulty.onnx")
        words = sum(int((faulty[id_].words != s.words).sum()) for id_, s in golden.items())
        assert words == len({(f.target, f.index) for f in drawn.faults if f.changed})
        if fault == "flip":
            assert sum(popcount(faulty[id_].words, s.words) for id_, s in golden.items()) == 1500
        again = inject(model, replay(model, FaultList.open(tmp_path / "faults.jsonl")))
        assert again.faulty_digest == done.faulty_digest
        undo(load(tmp_path / "faulty.onnx"), FaultList.open(tmp_path / "faults.jsonl"), tmp_path / "restored.onnx")
        assert (tmp_path / "restored.onnx").read_bytes() == path.read_bytes()
