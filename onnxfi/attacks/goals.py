"""Goals of an attacker, as a metric of one trial that is larger the better a flip serves it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import InputError
from onnxfi.tasks.answers import AnswerPair, Answers, Flags, Floats
from onnxfi.tasks.task import Metric

#: The largest loss of one sample, in nats: a confident wrong answer is worth no more than another.
MOST_LOSS = 10.0


@dataclass(frozen=True)
class Goal:
    """Untargeted: as many silent wrong answers as can be; targeted: samples of one class answered as another.

    Only silent answers count: a sample whose output is not finite is detected, and as good as its golden one.

    Attributes
    ----------
    source, target : int or None
        Samples of class `source` (None: of every other class) are to be answered as `target`, and the others as
        before. Without a target any wrong answer serves.

    Examples
    --------
    >>> goal = Goal()
    >>> scores, labels = np.array([[3.0, 0.0], [0.0, 3.0]], np.float32), np.array([0, 1])
    >>> golden, faulty = Answers.of(scores, labels), Answers.of(scores[::-1])
    >>> round(goal.gain(AnswerPair(golden, faulty)), 2)
    1.03
    """

    source: int | None = None
    target: int | None = None

    def __post_init__(self) -> None:
        if self.source is not None and self.target is None:
            raise InputError("a source class needs the class that its samples are to be answered as; give a target")
        if self.target is not None and self.source == self.target:
            raise InputError(f"source and target are both class {self.target}; give two classes")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The gain as a metric of a campaign's trials; of a targeted attack also both halves of its success."""
        gain = Metric("gain", self.gain, unit="", bounds=(-np.inf, np.inf), better="higher", failed=0.0)
        if self.target is None:
            return (gain,)
        reached, kept = (lambda pair, k=k: self.success(pair)[k] for k in (0, 1))
        return (
            gain,
            Metric("reached", reached, better="higher", failed=0.0),
            Metric("kept", kept, better="higher", failed=0.0),
        )

    def check(self, labels: NDArray[np.int64], classes: int) -> None:
        """Refuse classes that the model does not score, or of which there is no sample."""
        for name, number in (("source", self.source), ("target", self.target)):
            if number is not None and not 0 <= number < classes:
                raise InputError(f"{name} class {number} is out of range; the model scores classes 0 to {classes - 1}")
        if self.target is not None and not self.victims(labels).any():
            raise InputError(
                f"no attack sample that is run has class {self.source}; give more --attack-samples, or --screen"
            )

    def victims(self, labels: NDArray[np.int64]) -> Flags:
        """Return the samples that are to be answered otherwise ([N])."""
        if self.target is None:
            return np.ones(len(labels), np.bool_)
        return np.asarray(labels != self.target if self.source is None else labels == self.source)

    def success(self, pair: AnswerPair) -> tuple[float, float]:
        """Return the share of the attacked samples silently answered as the target, and of the rest answered right."""
        labels, victims = pair.golden.truth, self.victims(pair.golden.truth)
        served = ~pair.nonfinite & self._served(pair.top, labels, victims).astype(np.bool_)
        return tuple(float(served[some].mean()) if some.any() else 0.0 for some in (victims, ~victims))  # type: ignore[return-value]

    def gain(self, pair: AnswerPair) -> float:
        """Return the gain of a trial: the share of samples that serve the goal, and a hundredth of the loss's rise.

        The share alone could not rank flips that change no answer yet.
        """
        labels, which = pair.golden.truth, pair.changed[~pair.nonfinite[pair.changed]]
        if not len(which):
            return 0.0
        victims, own = self.victims(labels)[which], labels[which]
        wished = own if self.target is None else np.where(victims, self.target, own)
        way = np.where(victims & (self.target is not None), 1.0, -1.0)  # a wished class is more likely, a label less
        way = np.where(~victims, 1.0, way)
        before = _logs(pair.golden, wished, which, pair.golden.kind)
        after = _logs(pair.faulty, wished, which, pair.golden.kind)
        served = self._served(pair.top[which], own, victims) - self._served(pair.golden.top[which], own, victims)
        return float((served + 0.01 * way * (after - before)).sum() / len(labels))

    def _served(self, top: NDArray[np.int64], labels: NDArray[np.int64], victims: Flags) -> Floats:
        """Return 1 for a victim whose answer serves the goal, and for another whose answer is right ([n])."""
        if self.target is None:
            return np.asarray(top != labels).astype(np.float64)
        return np.asarray(np.where(victims, top == self.target, top == labels), np.float64)


def _logs(answers: Answers, classes: NDArray[np.int64], which: NDArray[np.int64], kind: str) -> Floats:
    """Return the logarithm of the probability of one class of each of some samples, at least -MOST_LOSS ([n])."""
    chance = answers.chances(classes, which, kind)
    if kind == "counts":
        totals = np.array([row.sum() for _, block in answers.blocks(which) for row in block], np.float64)
        chance = chance / np.maximum(totals, 1.0)
    return np.asarray(np.log(np.clip(np.nan_to_num(chance, nan=1.0), np.exp(-MOST_LOSS), 1.0)), np.float64)
