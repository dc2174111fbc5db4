"""Proof by an independent reader: exactly the listed bits change, nothing else differs, and undo restores the bytes.

The models are the shipped ones, the fetched ones and all of the `onnx` wheel. What is expected is computed from the
fault list on disk by the definitions of docs/fault-list.md, not by onnxfi.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import reader
from reader import Stored

from onnxfi.faults.faultlist import FaultList
from onnxfi.faults.space import Selector
from onnxfi.graph.model import Model, load
from onnxfi.graph.targets import DATA_TYPES
from onnxfi.runtime.injector import inject, sample, undo

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "models").glob("*.onnx"))
FETCHED = (
    "ddddocr", "ddddocr_det", "ddddocr_int8", "magika", "minilm_int8", "rapidocr_cls", "rapidocr_det", "rapidocr_rec",
    "silero_vad", "slanet_plus", "smart_turn_int8",
)  # fmt: skip
WHEEL = Path(onnx.__file__).parent / "backend/test/data"
#: Each with the number that says how much is struck.
FLIPS, RATE, STUCK, ZERO, RANDOM = "flips", "rate", "stuck", "zero", "random"
ALL = (FLIPS, RATE, STUCK, ZERO, RANDOM)


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


def equalised(golden: bytes, faulty: bytes, folder: Path | None, struck: set[str]) -> tuple[bytes, bytes]:
    """Both models serialised anew, without the numbers of the struck tensors and the names of data files."""
    out = []
    for data in (golden, faulty):
        proto = reader.parse(data)
        for found in reader.stored(proto, folder):
            for name in found.fields if found.id in struck else ():
                found.message.ClearField(name)
        for tensor in reader.tensors(proto):
            for entry in tensor.external_data:
                entry.value = "" if entry.key == "location" else entry.value
        out.append(proto.SerializeToString(deterministic=True))
    return out[0], out[1]


@cache
def golden_of(path: Path) -> dict[str, Stored]:
    return reader.read(path)


def prove(path: Path, kind: str, folder: Path, *, n: int = 20, everything: bool = True) -> int:
    """Strike a model in one way and check it from outside; returns how many bits changed."""
    model, golden = load(path), golden_of(path)
    selector = Selector(include=tuple(f"={t.id}" for t in model.targets) if everything else ())
    population = selector.space(model.targets).size
    out, listed = folder / "faulty.onnx", folder / "faults.jsonl"
    if kind == RATE:
        drawn = sample(model, ber=min(1.0, 4 * n / population), selector=selector, seed=7)
        assert 0 < drawn.drawn < 20 * n
    else:
        fault = {FLIPS: "flip", STUCK: "stuck-at-1", ZERO: "zero", RANDOM: "random-word"}[kind]
        n = min(n, selector.space(model.targets).size if fault in ("flip", "stuck-at-1") else words_of(model, selector))
        drawn = sample(model, count=n, fault=fault, selector=selector, seed=7)
        assert drawn.drawn == n
    done = inject(model, drawn, out, save_faults=listed)
    faulty = reader.read(out)
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
    assert sorted(p.name for p in folder.iterdir()) == ["faults.jsonl", "faulty.onnx", "restored.onnx"]
    return changed


def words_of(model: Model, selector: Selector) -> int:
    return sum(t.size for t in model.targets if selector.keeps(t))


def agrees(data: Path | bytes) -> Model:
    """The two readers see the same ids in the same order, the same formats, shapes and words."""
    model = load(data)
    seen = reader.stored(reader.parse(data), data.parent if isinstance(data, Path) else None)
    assert [s.id for s in seen] == [t.id for t in model.targets]
    for here, target in zip(seen, model.targets, strict=True):
        assert (DATA_TYPES[here.data_type], here.dims) == (target.word, target.shape)
        assert np.array_equal(model.words(target, np.arange(target.size)), here.words), target.id
    return model


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_models(path: Path, kind: str, tmp_path: Path) -> None:
    assert prove(path, kind, tmp_path) > 0


@pytest.mark.fetched
@pytest.mark.parametrize("name", FETCHED)
def test_fetched_models(name: str, tmp_path: Path) -> None:
    path = fetched(name)
    agrees(path)
    for kind in ALL:
        folder = tmp_path / kind
        folder.mkdir()
        assert prove(path, kind, folder, everything=kind != RATE) > 0
