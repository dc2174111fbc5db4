"""Differences: every injected fault is found again, as the list that makes one model of the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxfi.analysis import model_diff
from onnxfi.analysis.model_diff import diff
from onnxfi.errors import InputError
from onnxfi.faults.faultlist import FaultList
from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.weights import inject, replay, sample

MODELS = Path(__file__).parents[2] / "models"
CNN = MODELS / "fashion_cnn.onnx"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion_cnn", "fashion_cnn_fp16", "fashion_cnn_int8_qdq", "fashion_gru"])
@given(seed=st.integers(0, 1000), count=st.integers(1, 40))
def test_what_was_injected_is_found_and_repaired(name: str, seed: int, count: int) -> None:
    golden = load(MODELS / f"{name}.onnx")
    drawn = sample(golden, count=count, seed=seed)
    damaged = inject(golden, drawn)
    found = diff(golden, damaged.data or b"")
    assert sorted(found.sites()) == sorted(str(fault.site) for fault in drawn.faults)
    assert found.bits == count and found.structure and not found.only_first
    assert inject(golden, found.faults()).faulty_digest == damaged.faulty_digest
    assert found.repaired().faulty_digest == golden.digest


def test_numbers_are_those_of_numpy() -> None:
    golden, other = onnx.load(CNN), onnx.load(CNN)
    tensor = next(one for one in other.graph.initializer if one.name == "fc2.weight")
    before = numpy_helper.to_array(tensor)
    after = before.copy()
    after[3, :5] *= 1.5
    tensor.CopyFrom(numpy_helper.from_array(after, tensor.name))
    (one,) = diff(golden, other).tensors
    changed = before.view(np.uint32) ^ after.view(np.uint32)
    assert one.words == 5 and one.bits == int(np.bitwise_count(changed).sum())
    assert one.by_bit == tuple(int((changed >> bit & 1).sum()) for bit in range(32))
    assert one.largest == pytest.approx(float(np.abs(after - before).max()))
    assert one.relative == pytest.approx(float(np.linalg.norm(after - before) / np.linalg.norm(before)))


def test_a_number_that_is_not_finite_is_infinitely_far() -> None:
    golden = load(CNN)
    damaged = inject(golden, sample(golden, sites=["fc1.weight[5]"], fault="set:value=nan")).data or b""
    (one,) = diff(golden, damaged).tensors
    assert (
        one.largest == one.relative == np.inf
        and diff(golden, damaged).document()["tensors"][0]["largest"] == "Infinity"
    )
    for value in ("nan", "inf"):  # in both, and another number differs: there is no distance to put it in relation to
        held = load(inject(golden, sample(golden, sites=["fc1.weight[5]"], fault=f"set:value={value}")).data or b"")
        (one,) = diff(held, inject(held, sample(held, sites=["fc1.weight[9]:30"])).data or b"").tensors
        assert one.words == 1 and one.largest < np.inf and one.relative == np.inf


def test_the_list_is_replayed(here: Path) -> None:
    golden = load(CNN)
    damaged = inject(golden, sample(golden, ber=1e-6), "damaged.onnx")
    inject(golden, diff(golden, "damaged.onnx").faults(), save_faults="list.jsonl")
    again = inject(golden, replay(golden, FaultList.open("list.jsonl")))
    assert again.faulty_digest == damaged.faulty_digest


def test_two_builds_are_compared_by_tensors_and_operators() -> None:
    found = diff(CNN, MODELS / "fashion_cnn_int8_qdq.onnx")
    assert not found.same and not found.structure and found.operators["Relu"] == (3, 0)
    assert "fc1.weight" in found.only_first and "fc1.weight_quantized" in found.only_second
    with pytest.raises(InputError, match=r"the models have other tensors .*, so their difference is no list of faults"):
        found.faults()


def test_formats_are_compared_by_their_numbers() -> None:
    found = diff(CNN, MODELS / "fashion_cnn_fp16.onnx")
    assert not found.same and not found.structure and found.operators["Cast"] == (0, 2)
    assert not found.only_first and not found.only_second
    (one,) = (one for one in found.formats if one.target.id == "fc1.weight")
    ours, theirs = (
        numpy_helper.to_array(next(t for t in onnx.load(path).graph.initializer if t.name == "fc1.weight"))
        for path in (CNN, MODELS / "fashion_cnn_fp16.onnx")
    )
    gap = ours.astype(np.float64) - theirs.astype(np.float64)
    assert one.other == "float16" and one.words == np.count_nonzero(gap)
    assert one.largest == pytest.approx(float(np.abs(gap).max()))
    assert one.relative == pytest.approx(float(np.linalg.norm(gap) / np.linalg.norm(ours.astype(np.float64))))
    assert found.document()["formats"][0]["dtypes"] == ["float32", "float16"]
    with pytest.raises(InputError, match=r"is float32 in one model and float16 in the other"):
        found.faults()


def test_what_is_no_damage_is_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no stored number differs"):
        diff(CNN, CNN).faults()
    monkeypatch.setattr(model_diff, "MOST_FAULTS", 3)
    golden = load(CNN)
    found = diff(golden, inject(golden, sample(golden, count=9)).data or b"")
    assert found.bits == 9 and sum(len(one.index) for one in found.tensors) <= 9
    with pytest.raises(InputError, match="differ in 9 bits; a list of faults takes 3"):
        found.repaired()
