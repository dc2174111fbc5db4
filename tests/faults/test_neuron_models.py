"""Fault models of neurons and synapses: saturation, flips in a quantised view, time constants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.errors import FaultError
from onnxfi.faults.models import Set
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.words import WORDS, Word


def test_saturation_goes_to_a_percentile_of_the_tensor() -> None:
    numbers = np.arange(101, dtype=np.float64) / 8 - 3
    assert parse_fault("saturated").for_tensor(numbers) == Set(9.5)
    assert parse_fault("saturated:percentile=90").for_tensor(numbers) == Set(8.25)
    assert parse_fault("saturated:percentile=90,side=negative").for_tensor(numbers) == Set(-1.75)
    assert parse_fault("saturated").for_tensor(np.array([np.nan, np.inf, 0.5])) == Set(0.5)
    assert parse_fault("saturated").for_tensor(np.full(3, np.nan)) == Set(1.0)  # what neurons compute: a spike
    assert parse_fault("saturated").for_tensor(np.array([-3, 9], np.int8)) == Set(9)
    odd = np.array([2**62 + 1, 2**62 + 3, -(2**53) - 1], np.int64)
    assert parse_fault("saturated").for_tensor(odd) == Set(2**62 + 3)
    assert parse_fault("saturated:side=negative").for_tensor(odd) == Set(-(2**53) - 1)
    assert parse_fault("saturated:percentile=75").for_tensor(odd) == Set(2**62 + 2)
    assert parse_fault("saturated").for_tensor(np.array([1, 2**64 - 1], np.uint64)) == Set(2**64 - 1)
    assert parse_fault("saturated").for_tensor(np.array([False, True])) == Set(1)


@pytest.mark.parametrize("word", [w for w in WORDS.values() if w.bits <= 16], ids=lambda w: w.name)
def test_saturation_takes_the_largest_number_of_every_format(word: Word) -> None:
    numbers = word.values(np.arange(1 << word.bits, dtype=np.uint64))
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide = numbers.astype(np.float64)
    ends = [f(wide[np.isfinite(wide)]).item() for f in (np.max, np.min)]
    high, low = ends if word.is_float else map(int, ends)
    assert parse_fault("saturated").for_tensor(numbers) == Set(high)
    assert parse_fault("saturated:side=negative").for_tensor(numbers) == Set(low)


@given(st.integers(2, 16), st.data())
def test_a_flip_in_a_quantised_view_moves_by_a_power_of_two_steps(bits: int, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, bits - 1))
    numbers = np.array(data.draw(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=20)))
    model = parse_fault(f"flip-quantised:bits={bits},bit={bit}").for_tensor(numbers)
    largest = np.abs(numbers).max()
    assert model.scale == (largest / ((1 << (bits - 1)) - 1) or 1.0)  # type: ignore[attr-defined]
    stored = np.rint(numbers / model.scale)  # type: ignore[attr-defined]
    moved = np.rint((model.rule(numbers)) / model.scale) - stored  # type: ignore[attr-defined]
    assert (np.abs(moved) == 1 << bit).all()
    sign = -1 if bit == bits - 1 else 1  # the highest bit of two's complement counts negative
    up = ((stored.astype(np.int64) >> bit) & 1) == 0
    assert (np.sign(moved) == np.where(up, sign, -sign)).all()


@pytest.mark.parametrize(
    "text",
    [
        "saturated:percentile=101", "saturated:side=left", "flip-quantised:bits=1", "flip-quantised:bits=17",
        "flip-quantised:bits=8,bit=8", "flip-quantised:scale=-1", "dead:value=1",
    ],
)  # fmt: skip
def test_neuron_faults_that_cannot_be(text: str) -> None:
    with pytest.raises(FaultError, match=text.partition(":")[0]):
        parse_fault(text)


@given(st.floats(0.01, 100), st.floats(0.05, 20))
def test_a_time_constant_is_multiplied(tau: float, factor: float) -> None:
    decay = np.exp(-1 / np.array([tau]))
    found = parse_fault(f"time-constant:factor={factor}").rule(decay)
    if 0 < decay[0] < 1 and 0 < found[0] < 1:
        np.testing.assert_allclose(-1 / np.log(found), tau * factor, rtol=1e-6 + 1e-13 * tau * factor)
    np.testing.assert_allclose(parse_fault("time-constant:factor=1").rule(decay), decay, rtol=1e-15)


def test_what_is_no_decay_stays_as_it_is() -> None:
    others = np.array([0.0, -0.0, 1.0, 1.5, -0.5, np.inf, np.nan])
    np.testing.assert_array_equal(parse_fault("time-constant").rule(others), others)
    large = np.array([2**62 + 1, -3], np.int64)
    assert parse_fault("time-constant").rule(large).tolist() == large.tolist()
    for text in ("time-constant:factor=0", "time-constant:factor=-1", "time-constant:factor=inf"):
        with pytest.raises(FaultError, match="give a number above 0"):
            parse_fault(text)


def test_time_constants_drift_by_factors_of_their_own() -> None:
    model = parse_fault("random-time-constant:low=0.5,high=2")
    word = WORDS["float32"]
    drawn = [model.draw_parameters(raw, word) for raw in (0, 1 << 62, (1 << 64) - 1)]
    factors = [one.factor for one in drawn]
    assert 0.5 <= factors[0] < 0.51 < factors[1] < 1.99 < factors[2] <= 2 and drawn[0].name == "time-constant"
    decays = np.array([0.9, 1.0, 0.0, -0.5], np.float32)
    np.testing.assert_allclose(drawn[1].rule(decays), [0.9 ** (1 / factors[1]), 1, 0, -0.5], rtol=1e-6)
    for text in ("low=0", "low=2", "high=inf"):
        with pytest.raises(FaultError, match="give numbers above 0, low first"):
            parse_fault(f"random-time-constant:{text}")
