"""Classification by class indices: an output of integers, [N] or [N,1], as of ArgMax and scikit-learn.

There are no scores, so no top-5 and no shifts: SDC-1 is every other number, and a sample is masked with its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.labels import as_kind
from onnxfi.runtime.data.sample_outputs import Outputs, stacked
from onnxfi.runtime.engine.ports import shape_text
from onnxfi.tasks.answers import AnswerPair, Answers, Flags, share
from onnxfi.tasks.task import Metric, Task


def numbers(answers: Answers) -> NDArray[np.int64]:
    """Return the number of each sample ([N])."""
    return np.asarray(answers.rows[:, 0].astype(np.int64))


def faulty(pair: AnswerPair) -> NDArray[np.int64]:
    """Return the faulty number of each sample ([N])."""
    return numbers(pair.faulty)


def truth(pair: AnswerPair) -> NDArray[np.int64]:
    """Return the labels ([N])."""
    if pair.labels is None:
        raise DataError("accuracy needs labels; the data has none")
    return as_kind("classes", pair.labels)


def other(pair: AnswerPair) -> Flags:
    """Return the samples with another number ([N])."""
    return pair.differ > 0


def top1(pair: AnswerPair) -> float:
    """Share of samples whose number is their label."""
    return share(pair.once(faulty) == truth(pair))


def sdc1(pair: AnswerPair) -> float:
    """Share of samples whose number is another."""
    return share(pair.once(other))


def critical(pair: AnswerPair) -> float:
    """Share of samples whose number is another, and was right."""
    return share(pair.once(other) & (pair.golden.once(numbers) == truth(pair)))


def balanced(found: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Return the share of right samples in each class of the labels, and of these the mean.

    >>> balanced(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    0.75
    """
    if not len(labels):
        return 0.0
    right = np.bincount(labels, weights=found == labels)
    held = np.bincount(labels)
    return float((right[held > 0] / held[held > 0]).mean())


def balanced_accuracy(pair: AnswerPair) -> float:
    """Mean over the classes of the labels of the share of samples that are right."""
    return balanced(pair.once(faulty), truth(pair))


def misfit(run: Sequence[Outputs], data: Data, kind: str) -> str:
    """Return why a golden run holds no class indices; empty where it does."""
    found = stacked(run)
    if found.dtype.kind not in "iu" or found.shape not in ((data.samples,), (data.samples, 1)):
        return f"the output is {found.dtype.name} {shape_text(found.shape)}; class indices are integers [N]"
    if found.size and found.min() < 0:
        return f"the golden run puts out {found.min()}; class indices count from 0"
    return ""


CLASS_INDICES = Task(
    "classification",
    (
        Metric("any_sdc1", label="any SDC-1", per="trial", any_of="sdc1"),
        Metric.of_labels("top1", top1, "top-1", axis="Top-1 accuracy (%)"),
        Metric.of_labels(
            "balanced_accuracy", balanced_accuracy, "balanced accuracy", axis="Balanced accuracy (%)", per="set",
            needs_all=True,
        ),
        Metric("sdc1", sdc1, label="SDC-1 (silent)", axis="SDC-1, silent\n(% of answers)", silent=True),
        Metric("top1_changed", sdc1, label="top-1 changed", axis="Top-1 changed (%)"),
        Metric(
            "critical", critical, silent=True, needs_labels=True,
            failed=lambda golden: share(numbers(golden) == golden.labels),
        ),
    ),
    headline="sdc1",
    columns=(("top1", "top1_changed"), ("sdc1",), ("any_sdc1",), ("sdc",), ("due",)),
    curves=("top1", "top1_changed", "sdc"),
    orders=(("critical", "sdc1"), ("sdc1", "any_sdc1"), ("sdc1", "top1_changed")),
    absent="the output is no classifier's; name another with --output",
    labels="classes",
    takes_tolerance=False,
    masked=lambda pair: ~pair.once(other),
    wrong=other,
    misfit=misfit,
)  # fmt: skip
