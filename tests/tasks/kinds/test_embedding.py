"""Embeddings: neighbours against scikit-learn's, the rule against its truth table, what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from onnxfi.errors import DataError, InputError
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.tasks.kinds.embedding import embedding
from onnxfi.tasks.outcomes import GoldenRun, failed, judge
from onnxfi.tasks.registry import choose_task, find_task

NAN = np.nan


def golden_of(vectors: Any, labels: Any = None, task: str = "embedding") -> GoldenRun:
    run = (Outputs(np.arange(len(vectors)), {"y": np.array(vectors, np.float32)}),)
    return GoldenRun.of(run, None if labels is None else np.array(labels), find_task(task), "auto", 0.0, ("nonfinite",))


@pytest.mark.parametrize(
    ("task", "faulty", "outcome"),
    [
        ("embedding", [2.0, 0.0], "masked"),
        ("embedding", [1.0, 0.3], "masked"),
        ("embedding", [1.0, 2.0], "sdc"),
        ("embedding", [-1.0, 0.0], "sdc"),
        ("embedding:cosine=-1", [1.0, 0.3], "masked"),
        ("embedding:cosine=-1", [0.2, 1.0], "sdc"),
        ("embedding:cosine=0.99", [1.0, 0.3], "sdc"),
        ("embedding", [0.0, 0.0], "sdc"),
        ("embedding", [NAN, 0.0], "due"),
        ("embedding", [np.inf, 0.0], "due"),
    ],
)
def test_a_sample_is_wrong_with_another_neighbour_or_far_away(task: str, faulty: Any, outcome: str) -> None:
    """The neighbour of (1, 0) is (2, 1), not (0, 1)."""
    golden = golden_of([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0]], task=task)
    other = golden.run[0].arrays["y"].copy()
    other[0] = faulty
    assert judge(golden, other).outcome == outcome


def test_neighbours_and_recall_are_scikit_learns_on_a_hundred_random_cases() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        n, k = int(random.integers(4, 30)), int(random.integers(1, 4))
        labels = random.integers(0, 4, n)
        vectors = random.normal(size=(n, 5)).astype(np.float32)
        faulty = np.where(random.random((n, 1)) < 0.4, random.normal(size=(n, 5)), vectors).astype(np.float32)
        found = judge(golden_of(vectors, labels, task=f"embedding:k={k}"), faulty).metrics
        search = NearestNeighbors(n_neighbors=min(k + 1, n), metric="cosine", algorithm="brute").fit(vectors)

        def near(rows: Any, search: NearestNeighbors = search, k: int = k) -> list[list[int]]:
            return [[j for j in row if j != i][:k] for i, row in enumerate(search.kneighbors(rows)[1].tolist())]

        golden, other = near(vectors), near(faulty)
        assert found["neighbour_changed"] == np.mean([a[0] != b[0] for a, b in zip(golden, other, strict=True)])
        lone = np.array([np.sum(labels == label) < 2 for label in labels])
        if not lone.all():
            right = [label in labels[row] for label, row in zip(labels, other, strict=True)]
            assert found["recall"] == pytest.approx(np.mean(np.array(right)[~lone]))
        cosines = np.sum(vectors * faulty, axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(faulty, axis=1)
        assert found["mean_cosine"] == pytest.approx(cosines.mean(), abs=1e-6)


def test_a_trial_of_one_sample_asks_the_gallery_of_all() -> None:
    golden = golden_of([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [0.1, 1.0]], [0, 0, 1, 1])
    (outputs,) = golden.run
    alone = golden.of_sample(2, outputs.take(np.array([2])))
    near = judge(alone, [Outputs(np.array([2]), {"y": np.array([[0.0, 2.0]], np.float32)})])
    assert (near.outcome, near.metrics["neighbour_changed"]) == ("masked", 0.0)
    far = judge(alone, [Outputs(np.array([2]), {"y": np.array([[1.0, 0.1]], np.float32)})])
    assert (far.outcome, far.metrics["neighbour_changed"]) == ("sdc", 1.0)
    assert "recall" not in far.metrics, "of one sample there is none"


def test_labels_that_none_shares_have_no_recall() -> None:
    golden = golden_of([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0]], [0, 1, 2])
    assert "recall" not in judge(golden, golden.run).metrics
    shared = golden_of([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0]], [0, 0, 2])
    assert judge(shared, shared.run).metrics["recall"] == 1.0, "of the two samples of label 0"
    assert failed(shared, "crash").metrics["mean_cosine"] == 0.0


@pytest.mark.parametrize(
    ("vectors", "labels", "says"),
    [
        (np.zeros((2, 1)), None, "vectors have [N,D] with D of 2 or more"),
        (np.zeros((2, 3, 3)), None, "has shape [2,3,3]"),
        (np.zeros((1, 3)), None, "one sample has no neighbour"),
        (np.zeros((2, 3)), [0.5, 1.0], "classes are integers"),
    ],
)
def test_outputs_and_labels_of_another_task_are_refused(vectors: Any, labels: Any, says: str) -> None:
    data = Data((), len(vectors), None if labels is None else np.array(labels), False, "", None, None)  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        choose_task("embedding", vectors, "y", data)
    assert says in str(caught.value)


@pytest.mark.parametrize("given", [{"k": 0}, {"k": 1.5}, {"cosine": 2}, {"cosine": "near"}])
def test_options_out_of_range_are_refused(given: Any) -> None:
    with pytest.raises(InputError, match=next(iter(given))):
        embedding(**given)
