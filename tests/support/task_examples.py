"""Outputs and labels that fit each task, for tests of all that is declared of it; other tasks get scores of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Array
from onnxfi.tasks.kinds.token_scores import NAME, TokenScores
from onnxfi.tasks.outcomes import GoldenRun
from onnxfi.tasks.task import Task

SAMPLES = 8


def scores(random: np.random.Generator) -> tuple[Array, Array]:
    return random.normal(size=(SAMPLES, 7)), np.arange(SAMPLES) % 7


def boxes(random: np.random.Generator) -> tuple[Array, Array]:
    """Rows of x1, y1, x2, y2, score, class, and the same boxes as labels of class, x1, y1, x2, y2, crowd."""
    corner = random.integers(0, 30, (SAMPLES, 3, 2))
    places = np.concatenate([corner, corner + 10], axis=2)
    kinds = random.integers(0, 2, (SAMPLES, 3, 1))
    none = np.zeros_like(kinds)
    rows = np.concatenate([places, random.uniform(0.3, 1, (SAMPLES, 3, 1)), kinds], axis=2)
    return rows, np.concatenate([kinds, places, none], axis=2).astype(np.float64)


def masks(random: np.random.Generator) -> tuple[Array, Array]:
    truth = random.integers(0, 3, (SAMPLES, 6, 5))
    return np.moveaxis(np.eye(3)[truth], -1, 1) + random.normal(0, 0.3, (SAMPLES, 3, 6, 5)), truth


def decisions(random: np.random.Generator) -> tuple[Array, Array]:
    truth = np.arange(SAMPLES)[:, None] % (2 + np.arange(3)) == 0
    return truth + random.normal(0, 0.4, (SAMPLES, 3)), truth


def decision(random: np.random.Generator) -> tuple[Array, Array]:
    output, truth = decisions(random)
    return output[:, :1], truth[:, 0]


def numbers(random: np.random.Generator) -> tuple[Array, Array]:
    truth = random.normal(size=(SAMPLES, 5))
    return truth + random.normal(0, 0.1, truth.shape), truth


def vectors(random: np.random.Generator) -> tuple[Array, Array]:
    labels = np.arange(SAMPLES) // 2
    return random.normal(size=(SAMPLES, 6))[labels] + random.normal(0, 0.1, (SAMPLES, 6)), labels


def texts(random: np.random.Generator) -> tuple[Array, Array]:
    words = np.array(["a cat", "dog", "", "two words", "x", "y z", "ü", "end"], object)
    return words, np.where(random.random(SAMPLES) < 0.3, "cat", words).astype(object)


def tokens(random: np.random.Generator) -> tuple[Array, Array]:
    """Scores of tokens as they are kept of logits, and tokens of two multiple-choice items among the rows."""
    labels = random.integers(0, 5, (SAMPLES, 6))
    labels[:, 0] = [1, 0, 2, 3, -100, -100, -100, -100]
    logits = Outputs(np.arange(SAMPLES), {"logits": random.normal(size=(SAMPLES, 6, 5)).astype(np.float32)})
    following = np.concatenate([labels[:, 1:], np.full((SAMPLES, 1), -1)], axis=1)
    return TokenScores(following)(logits).arrays[NAME], labels


def new_tokens(random: np.random.Generator) -> tuple[Array, Array]:
    """New tokens of a decoder, and texts as labels."""
    return random.integers(0, 9, (SAMPLES, 6)), np.array(["a text"] * SAMPLES, object)


#: By the name of a task what makes a golden output and labels.
EXAMPLES: Mapping[str, Callable[[np.random.Generator], tuple[Array, Array]]] = {
    "binary": decision, "multi-label": decisions, "regression": numbers, "signal": numbers, "embedding": vectors,
    "sequence": texts, "detection": boxes, "segmentation": masks,
    "language-model": tokens, "generation": new_tokens,
}  # fmt: skip


def golden_example(task: Task, random: np.random.Generator) -> GoldenRun:
    """Return a golden run that fits a task."""
    output, labels = EXAMPLES.get(task.name, scores)(random)
    given = output if output.dtype.kind == "O" else output.astype(np.float32)
    run = (Outputs(np.arange(SAMPLES), {NAME if task.name == "language-model" else "y": given}),)
    return GoldenRun.of(run, labels, task, "auto", 0.0, ("crash", "nonfinite"))


def faulty_example(golden: GoldenRun, random: np.random.Generator) -> tuple[Outputs, ...]:
    """Return outputs of which a fifth is drawn again."""
    (outputs,) = golden.run
    ((name, y),) = outputs.arrays.items()
    other = y[::-1] if y.dtype.kind == "O" else random.normal(size=y.shape).astype(np.float32)
    return (Outputs(outputs.samples, {name: np.where(random.random(y.shape) < 0.2, other, y)}),)
