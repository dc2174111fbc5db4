"""Deviation: numpy's numbers, and bits that decide where numbers do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from score_pairs import INF, LABELLED, METRICS, NAN, Pair, measure, outputs

from onnxfi.errors import DataError
from onnxfi.tasks.answers import differing

laws = settings(max_examples=40)  # drawn once for all metrics: to draw costs more than to measure


@laws
@given(pair=outputs())
def test_no_metric_moves_while_no_bit_does(pair: Pair) -> None:
    golden, faulty, labels = pair
    changed = METRICS["changed"](golden, faulty)
    for name in METRICS.keys() - {"nonfinite", *LABELLED}:
        assert changed > 0 or METRICS[name](golden, faulty, labels) == METRICS[name].unchanged, name
    assert METRICS["changed_samples"](golden, faulty) >= changed


@laws
@given(pair=outputs(finite=True))
def test_deviations_agree_with_numpy(pair: Pair) -> None:
    golden, faulty = (one.astype(np.float64) for one in pair[:2])
    golden, faulty = np.clip(golden, -1e100, 1e100), np.clip(faulty, -1e100, 1e100)
    assert METRICS["max_abs"](golden, faulty) == np.abs(golden - faulty).max()
    norm = np.linalg.norm(golden)
    assume(min(norm, np.linalg.norm(faulty)) > 1e-100)
    assert METRICS["rel_l2"](golden, faulty) == pytest.approx(np.linalg.norm(golden - faulty) / norm, rel=1e-6)
    cosine = np.sum(golden / norm * (faulty / np.linalg.norm(faulty)))
    assert METRICS["cosine"](golden, faulty) == pytest.approx(cosine, abs=1e-6)


def test_shares_are_over_samples_or_elements() -> None:
    golden = np.zeros((4, 2, 3), np.float32)
    faulty = golden.copy()
    faulty[0, 0, 0], faulty[0, 1, 2], faulty[3, 0, 0] = NAN, INF, -0.0
    assert METRICS["nonfinite"](golden, faulty) == 1 / 4
    assert METRICS["changed"](golden, faulty) == 3 / 24
    assert METRICS["changed_samples"](golden, faulty) == 2 / 4


@pytest.mark.parametrize(
    ("golden", "faulty", "max_abs", "rel_l2", "cosine"),
    [
        ([3, 4], [3, 4], 0.0, 0.0, 1.0),
        ([3, 4], [0, 0], 4.0, 1.0, 0.0),
        ([3, 4], [-3, -4], 8.0, 2.0, -1.0),
        ([3, 4], [4, -3], 7.0, 2**0.5, 0.0),
        ([0, 0], [-0.0, 0], 0.0, 0.0, 1.0),
        ([0, 0], [1, 0], 1.0, INF, 0.0),
        ([3, NAN], [3, NAN], 0.0, 0.0, 1.0),
        ([3, INF], [3, INF], 0.0, 0.0, 1.0),
        ([3, INF], [6, INF], 3.0, 1.0, 0.0),
        ([3, 4], [3, NAN], INF, INF, 0.0),
        ([3, NAN], [3, 4], INF, INF, 0.0),
        ([3, INF], [3, -INF], INF, INF, 0.0),
    ],
)
def test_deviations(golden: list[float], faulty: list[float], max_abs: float, rel_l2: float, cosine: float) -> None:
    assert measure("max_abs", golden, faulty) == max_abs
    assert measure("rel_l2", golden, faulty) == pytest.approx(rel_l2)
    assert measure("cosine", golden, faulty) == pytest.approx(cosine)


def test_large_numbers_do_not_overflow() -> None:
    golden = np.array([1e300, 1e300])
    assert METRICS["rel_l2"](golden, golden * 2) == pytest.approx(1.0)
    assert METRICS["cosine"](golden * 1e8, golden * [1e8, 1.5e8]) == pytest.approx(5 / 26**0.5)


def test_text_can_change_but_has_no_distance() -> None:
    golden, faulty = np.array(["a", "b"], object), np.array(["a", "c"], object)
    assert METRICS["changed"](golden, faulty) == 0.5
    assert METRICS["nonfinite"](golden, faulty) == 0.0
    with pytest.raises(DataError, match="takes numbers, and the output is text"):
        METRICS["max_abs"](golden, faulty)


def test_bits_decide_what_differs() -> None:
    quiet = np.array([0x7FC00000, 0x7FC00001, 0], np.uint32).view(np.float32)
    other = np.array([0x7FC00000, 0x7FC00002, 0x80000000], np.uint32).view(np.float32)
    assert differing(quiet, other).tolist() == [False, True, True]
    assert differing(np.array([1 + 2j, 3j]), np.array([1 + 2j, 4j])).tolist() == [False, True]
