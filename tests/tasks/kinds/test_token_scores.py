"""Scores of tokens against the whole logits: log-probabilities, divergences, what is not finite, what does not fit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.errors import DataError
from onnxfi.graph.dataflow.batch_layout import BatchLayout
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.tasks.kinds.token_scores import KEPT, NAME, OWN, TARGET, TOP, TokenScores, divergences, highest


def logits_of(seed: int, n: int = 3, length: int = 5, vocabulary: int = 200, scale: float = 4.0) -> Any:
    return (scale * np.random.default_rng(seed).standard_normal((n, length, vocabulary))).astype(np.float32)


def shares(logits: Any) -> Any:
    """Softmax by its definition, in extended precision."""
    weights = np.exp(logits.astype(np.longdouble) - logits.max(axis=-1, keepdims=True).astype(np.longdouble))
    return weights / weights.sum(axis=-1, keepdims=True)


def kept(reduction: TokenScores, logits: Any, samples: Any = None) -> Any:
    samples = np.arange(len(logits)) if samples is None else samples
    return reduction(Outputs(np.asarray(samples), {"logits": logits})).arrays[NAME]


def divergence(golden: Any, faulty: Any) -> Any:
    p, q = shares(golden), shares(faulty)
    return (p * np.log(p / q)).sum(axis=-1).astype(np.float64)


@pytest.mark.parametrize("vocabulary", [7, 128])
def test_a_small_vocabulary_is_kept_whole(vocabulary: int) -> None:
    golden, faulty = logits_of(1, vocabulary=vocabulary), logits_of(2, vocabulary=vocabulary)
    targets = np.random.default_rng(3).integers(0, vocabulary, (3, 5))
    reduction = TokenScores(targets)
    one, two = kept(reduction, golden), kept(reduction, faulty)
    assert one.shape == (3, 5, 3 + vocabulary)
    assert (one[..., TARGET] == targets).all() and (one[..., TOP] == golden.argmax(-1)).all()
    own = np.log(np.take_along_axis(shares(golden), targets[..., None], -1))[..., 0]
    np.testing.assert_allclose(one[..., OWN], own.astype(np.float64), rtol=1e-6)
    found = divergences(one[..., KEPT:].reshape(15, -1), two[..., KEPT:].reshape(15, -1))
    np.testing.assert_allclose(found, divergence(golden, faulty).ravel(), rtol=1e-5)
    assert (divergences(one[..., KEPT:].reshape(15, -1), one[..., KEPT:].reshape(15, -1)) == 0).all()


@given(st.integers(0, 1 << 30), st.sampled_from([0.5, 2.0, 6.0]))
def test_the_divergence_of_a_large_vocabulary_is_a_lower_bound(seed: int, scale: float) -> None:
    golden, other = logits_of(seed, 1, 4, 300, scale), logits_of(seed + 1, 1, 4, 300, scale)
    faulty = golden + np.float32(0.2) * other
    reduction = TokenScores(np.zeros((1, 4), np.int64), most=64)
    one, two = kept(reduction, golden), kept(reduction, faulty)
    found, whole = divergences(one[0, :, KEPT:], two[0, :, KEPT:]), divergence(golden, faulty)[0]
    assert (found <= whole + 1e-5).all() and (found > 0).all()
    left = 1 - np.exp(one[0, :, KEPT:].astype(np.float64)).sum(-1)
    assert (whole - found <= left * 3).all(), "what is missing is a part of the tokens that were left out"


def test_the_first_run_settles_which_tokens_are_kept() -> None:
    golden, faulty = logits_of(4), logits_of(5)
    reduction = TokenScores(np.zeros((3, 5), np.int64), most=16)
    one, two = kept(reduction, golden), kept(reduction, faulty)
    ids = np.sort(np.argsort(-golden, axis=-1)[..., :16], axis=-1)
    np.testing.assert_allclose(
        two[..., KEPT:], np.log(np.take_along_axis(shares(faulty), ids, -1)).astype(float), rtol=1e-5
    )
    assert (kept(reduction, golden[1:2], [1]) == one[1:2]).all(), "a sample alone has its own tokens"
    reduction.forget()
    assert (kept(reduction, faulty)[..., KEPT:] != two[..., KEPT:]).any()


def test_ties_keep_the_first_tokens() -> None:
    values = np.array([[1.0, 2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert highest(values, 2).tolist() == [[1, 2], [0, 1]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_what_is_not_finite_is_seen_where_it_is_scored(value: float, dtype: Any) -> None:
    logits = logits_of(6, vocabulary=9).astype(dtype)
    targets = np.array([[1, 2, -1, 3, 4]] * 3)
    reduction = TokenScores(targets)
    golden = kept(reduction, logits)
    assert np.isfinite(golden).all()
    for place, seen in ((1, True), (2, False)):
        faulty = logits.copy()
        faulty[0, place, 5] = value
        found = kept(reduction, faulty)
        assert np.isnan(found[0, place]).any() == seen
        assert (found[0, place, TOP] == -1) and np.isfinite(found[1:]).all()
    assert (golden[:, 2, TOP] == -1).all() and not golden[:, 2, OWN:].any(), "not scored"


def test_tokens_that_are_never_right_may_be_minus_infinity() -> None:
    logits = logits_of(7, vocabulary=6)
    logits[..., 5] = -np.inf
    reduction = TokenScores(np.zeros((3, 5), np.int64))
    one = kept(reduction, logits)
    assert np.isfinite(one).all()
    rows = one[..., KEPT:].reshape(15, -1)
    assert not divergences(rows, rows).any()
    logits[0, 0, 4] = -np.inf
    assert np.isnan(kept(reduction, logits)[0, 0]).any()


def test_logits_of_another_shape_agree_nowhere() -> None:
    logits = logits_of(8, vocabulary=6)
    reduction = TokenScores(np.ones((3, 5), np.int64))
    golden = kept(reduction, logits)
    found = kept(reduction, logits[:, :4])
    assert found.shape == golden.shape and (found[..., TOP] == -1).all() and np.isfinite(found).all()


def data_of(labels: Any = None, **arrays: Any) -> Data:
    place = BatchLayout(0, tuple((name, 0) for name in arrays), None)
    return Data.of_arrays(arrays, labels, place, "")


def test_the_tokens_that_follow_are_those_of_the_input_or_of_labels() -> None:
    ids = np.array([[3, 1, 2, 9]])
    assert TokenScores.of_data(data_of(input_ids=ids)).targets.tolist() == [[1, 2, 9, -1]]
    mask = np.array([[1, 1, 1, 0]])
    assert TokenScores.of_data(data_of(input_ids=ids, attention_mask=mask)).targets.tolist() == [[1, 2, -1, -1]]
    labels = np.array([[7, -100, 2, 0]])
    assert TokenScores.of_data(data_of(labels, input_ids=ids)).targets.tolist() == [[-1, 2, 0, -1]]
    assert TokenScores.of_data(data_of(tokens=ids)).targets.tolist() == [[1, 2, 9, -1]]


def test_tokens_that_are_not_known_are_refused() -> None:
    ids = np.array([[3, 1, 2, 9]])
    with pytest.raises(DataError, match="'a', 'b'; give labels"):
        TokenScores.of_data(data_of(a=ids, b=ids))
    with pytest.raises(DataError, match=r"none; give labels \[N,T\]"):
        TokenScores.of_data(data_of(image=np.zeros((1, 3), np.float32)))
    reduction = TokenScores.of_data(data_of(input_ids=ids))
    with pytest.raises(DataError, match="a token is 9, and the model scores 5, counted from 0"):
        kept(reduction, logits_of(1, 1, 4, 5))
    with pytest.raises(DataError, match=r"logits \[N,T,vocabulary\]"):
        kept(reduction, np.zeros((1, 4), np.float32))
    with pytest.raises(DataError, match="logits have 3 positions, and the labels 4"):
        kept(reduction, logits_of(1, 1, 3, 12))
