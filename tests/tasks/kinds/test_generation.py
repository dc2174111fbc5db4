"""Generated tokens compared: worked out by hand, and against other definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.errors import InputError
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.tasks.kinds.generation import common_length, generation, repeats
from onnxfi.tasks.outcomes import GoldenRun, judge

LENGTH = 20


def outputs(*texts: list[int], score: float = 1.0) -> tuple[Outputs, ...]:
    rows = np.full((len(texts), LENGTH), -1)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = text
    scores = np.full(rows.shape, score, np.float32)
    return (Outputs(np.arange(len(texts)), {"tokens": rows, "score": scores}),)


def metrics(golden: list[int], faulty: list[int], **options: int) -> dict[str, float]:
    run = GoldenRun.of(outputs(golden), None, generation(**options), "auto", 0.0, ("nonfinite",))
    return judge(run, outputs(faulty)).metrics


def test_metrics_are_those_worked_out_by_hand() -> None:
    found = metrics([1, 2, 3, 4], [1, 9, 3, 4])
    assert (found["changed"], found["divergence"], found["first_divergence"]) == (1.0, 0.25, 1.0)
    assert found["rouge_l"] == 0.75 and found["first_token_changed"] == 0.0
    found = metrics([1, 2, 3, 4], [2, 3, 4])
    assert (found["divergence"], found["first_divergence"], found["rouge_l"]) == (1.0, 0.0, pytest.approx(6 / 7))
    same = metrics([1, 2], [1, 2])
    assert (same["changed"], same["divergence"], same["first_divergence"], same["rouge_l"]) == (0.0, 0.0, 2.0, 1.0)


def test_a_collapse_is_a_repeated_ngram_or_no_end() -> None:
    plain, stuck = list(range(1, 21)), [5, 6, 7] + [8, 9] * 8
    assert metrics(plain, stuck)["collapse"] == 1.0
    assert metrics(stuck, [*stuck[:3], *[9, 8] * 8])["collapse"] == 0.0, "the golden text repeats itself too"
    assert metrics([1, 2, 0], plain[1:], end=0)["collapse"] == 1.0
    assert metrics([1, 2, 0], [1, 3, 0], end=0)["collapse"] == 0.0


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_the_longest_common_subsequence_is_that_of_brute_force(one: list[int], other: list[int]) -> None:
    def longest(a: list[int], b: list[int]) -> int:
        if not a or not b:
            return 0
        return 1 + longest(a[1:], b[1:]) if a[0] == b[0] else max(longest(a[1:], b), longest(a, b[1:]))

    assert common_length(one, other) == longest(one, other)


@given(st.integers(1, 8), st.lists(st.integers(0, 9), max_size=9))
def test_every_short_period_is_a_repetition(period: int, begun: list[int]) -> None:
    assert repeats((*begun, *tuple(range(period)) * 24))


def test_scores_that_are_not_finite_are_due() -> None:
    run = GoldenRun.of(outputs([1, 2]), None, generation(), "auto", 0.0, ("nonfinite",))
    assert judge(run, outputs([1, 2], score=float("nan"))).outcome == "due"
    undetected = GoldenRun.of(outputs([1, 2]), None, generation(), "auto", 0.0, ())
    assert judge(undetected, outputs([1, 2], score=float("nan"))).outcome == "masked"


@pytest.mark.parametrize(
    ("options", "words"),
    [({"tokens": 0}, "tokens 0 is out of range"), ({"temperature": 0.5}, "need a seed"), ({"seed": 3}, "temperature=T"),
     ({"temperature": -1}, "temperature -1.0 is out of range"), ({"end": -2}, "end -2 is out of range"), ({"prefix": 1.5}, "prefix must be a whole number")],
)  # fmt: skip
def test_options_that_say_nothing_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        generation(**options)  # type: ignore[arg-type]


def test_options_that_are_texts_count_as_numbers() -> None:
    made = generation(tokens="4", end="2", prefix="3")  # type: ignore[arg-type]
    assert repr(made.drive) == repr(generation(tokens=4, end=2, prefix=3).drive)
