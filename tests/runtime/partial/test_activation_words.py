"""Faults in the words of an activation: what a loop over samples and faults gives, and the array that is given stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.errors import SelectorError
from onnxfi.faults.models import Flip
from onnxfi.faults.sites import LAST_STEP, Sites, Target
from onnxfi.faults.trials import Faults
from onnxfi.faults.words import WORDS
from onnxfi.graph.dataflow.batch_layout import SampleAxis
from onnxfi.runtime.partial.activation_words import InjectedWords, inject_words

SAMPLES, START = 4, 10
#: Shapes of one batch of four samples, the axis that holds them, and how many elements each has.
LAYOUTS = [((4, 6), SampleAxis(0), 6), ((3, 4, 2), SampleAxis(1), 6), ((8, 3), SampleAxis(0, inner=2), 6),
           ((8, 3), SampleAxis(0, outer=2), 6), ((5,), None, 5)]  # fmt: skip
TARGET = Target("a", WORDS["float32"], (6,), kind="activation")


def flips(*rows: tuple[int, int, int]) -> Faults:
    """Flips of (sample, element, bit); sample −1 is all of them."""
    sample, index, bit = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    times = np.stack([sample, np.zeros(len(rows), np.int64), np.full(len(rows), LAST_STEP)], axis=1)
    return Faults((TARGET,), Sites(np.zeros(len(rows), np.int64), index, bit.astype(np.int16), times), (Flip(),))


def slowly(array: np.ndarray, axis: SampleAxis | None, rows: list[tuple[int, int, int]]) -> np.ndarray:
    """Flip one bit after the other, in a view of each sample."""
    faulty = array.copy()
    samples = faulty[None].copy() if axis is None else np.ascontiguousarray(axis.first(faulty))
    words = samples.reshape(len(samples), -1).view(np.uint32)
    for sample, element, bit in rows:
        for k in range(len(words)):
            if sample in (-1, START + k):
                words[k, element] ^= np.uint32(1 << bit)
    return samples[0] if axis is None else np.ascontiguousarray(axis.back(samples))


@given(
    layout=st.sampled_from(LAYOUTS[:4]),
    rows=st.lists(st.tuples(st.integers(8, 15), st.integers(0, 5), st.integers(0, 31)), min_size=1, max_size=6),
    all_samples=st.booleans(),
)
def test_what_a_loop_over_faults_gives(
    layout: tuple[tuple[int, ...], SampleAxis, int], rows: list[tuple[int, int, int]], all_samples: bool
) -> None:
    shape, axis, _ = layout
    rows = [(-1 if all_samples else sample, *rest) for sample, *rest in rows]  # type: ignore[misc]
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    before = array.copy()
    found = inject_words(array, TARGET, axis, flips(*rows), start=START, size=SAMPLES)
    assert found.tobytes() == slowly(array, axis, rows).tobytes() and found.shape == shape
    assert (array == before).all(), "the given array stays"


def test_faults_of_other_batches_change_nothing_here() -> None:
    array = np.ones((4, 6), np.float32)
    assert inject_words(array, TARGET, SampleAxis(0), flips((9, 0, 30), (14, 0, 30)), start=10, size=4) is array


def test_an_activation_without_samples_is_faulty_for_all() -> None:
    array = np.ones(5, np.float32)
    found = inject_words(array, TARGET, None, flips((-1, 4, 31)), start=0, size=4)
    assert found.tolist() == [1, 1, 1, 1, -1] and (array == 1).all()


def test_words_before_and_after_are_kept_of_the_first_sample_that_is_faulty() -> None:
    kept, array = InjectedWords(), np.arange(24, dtype=np.float32).reshape(4, 6)
    for start in (0, 4, 8):  # a fault in all samples, and two bits of one word of sample 9
        inject_words(
            array, TARGET, SampleAxis(0), flips((-1, 2, 31), (9, 5, 31), (9, 5, 0)), start=start, size=4, kept=kept
        )
    assert [(row["sample"], row["index"], row["before_value"], row["after_value"]) for row in kept.rows()] == [
        (0, 2, 2.0, -2.0), (9, 5, 11.0, np.uint32(np.float32(-11).view(np.uint32) ^ 1).view(np.float32)),
    ]  # fmt: skip
    assert (kept.rows()[0]["before"], kept.rows()[0]["after"]) == ("0x40000000", "0xc0000000")
    kept = InjectedWords()
    inject_words(np.ones(5, np.float32), TARGET, None, flips((-1, 4, 30)), start=0, size=4, kept=kept)
    assert [{**row} for row in kept.rows()] == [{
        "target": "a", "index": 4, "before": "0x3f800000", "after": "0x7f800000", "before_value": 1.0,
        "after_value": "Infinity",
    }]  # fmt: skip


def test_few_words_of_many_are_kept() -> None:
    kept = InjectedWords(most=3)
    many = flips(*((-1, k, 3) for k in reversed(range(6))))
    inject_words(np.ones((4, 6), np.float32), TARGET, SampleAxis(0), many, start=0, size=4, kept=kept)
    assert [row["index"] for row in kept.rows()] == [0, 1, 2]


def test_places_that_are_not_there_are_named() -> None:
    array = np.ones((4, 6), np.float32)
    with pytest.raises(SelectorError, match=r"a\[6\] does not exist: a sample has 6 elements in this batch"):
        inject_words(array, TARGET, SampleAxis(0), flips((-1, 6, 0)), start=0, size=4)
    with pytest.raises(
        SelectorError, match="'a' has 4 rows for 3 samples, so no sample of it can be named; use --pers"
    ):
        inject_words(array, TARGET, SampleAxis(0), flips((1, 0, 0)), start=0, size=3)
    with pytest.raises(SelectorError, match=r"'a' has the shape \(4, 6\) here, not 3 rows per sample"):
        inject_words(array, TARGET, SampleAxis(0, inner=3), flips((1, 0, 0)), start=0, size=4)
