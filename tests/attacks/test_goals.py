"""Truth table of an attacker's gain."""

from __future__ import annotations

import numpy as np
import pytest

from onnxfi.attacks.goals import Goal
from onnxfi.errors import InputError
from onnxfi.tasks.answers import AnswerPair, Answers

LABELS = np.array([0, 1, 2])
GOLDEN = np.eye(3, dtype=np.float32) * 4


def gain(goal: Goal, faulty: np.ndarray) -> float:
    return goal.gain(AnswerPair(Answers.of(GOLDEN, LABELS), Answers.of(faulty.astype(np.float32))))


def answered(*classes: int) -> np.ndarray:
    return np.eye(3)[list(classes)] * 4


def test_untargeted_gain_counts_wrong_answers_first() -> None:
    assert gain(Goal(), GOLDEN) == 0
    one, two = gain(Goal(), answered(1, 1, 2)), gain(Goal(), answered(1, 2, 2))
    assert 1 / 3 < one < 2 / 3 < two < 1
    assert 0 < gain(Goal(), GOLDEN * 0.9) < 0.01, "a loss that rises without another answer counts little"
    assert gain(Goal(), GOLDEN * 1.1) < 0


def test_a_detected_sample_gains_nothing() -> None:
    broken = answered(1, 1, 2)
    broken[0, 2] = np.nan
    assert gain(Goal(), broken) == 0


def test_targeted_gain_keeps_the_others() -> None:
    goal = Goal(source=0, target=2)
    assert gain(goal, answered(2, 1, 2)) > gain(goal, answered(2, 0, 2)) > gain(goal, answered(1, 0, 2))
    assert gain(goal, answered(1, 1, 2)) < 1 / 3
    assert Goal(target=1).victims(LABELS).tolist() == [True, False, True]


def success(goal: Goal, faulty: np.ndarray) -> tuple[float, float]:
    return goal.success(AnswerPair(Answers.of(GOLDEN, LABELS), Answers.of(faulty.astype(np.float32))))


def test_success_is_silent_answers_as_the_target_and_the_rest_right() -> None:
    goal = Goal(source=0, target=2)
    assert success(goal, GOLDEN) == (0, 1) and success(goal, answered(2, 0, 2)) == (1, 0.5)
    broken = answered(2, 1, 2)
    broken[0, 1] = broken[2, 1] = np.nan  # an attacked sample and another are detected
    assert success(goal, broken) == (0, 0.5)
    assert success(Goal(target=1), answered(1, 1, 2)) == (0.5, 1)
    assert [metric.name for metric in goal.metrics] == ["gain", "reached", "kept"] and len(Goal().metrics) == 1


def test_a_confident_wrong_answer_is_worth_no_more_than_another() -> None:
    huge = answered(1, 1, 2)
    huge[0, 1] = 3e38
    assert gain(Goal(), huge) - gain(Goal(), answered(1, 1, 2)) < 0.1


def test_classes_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="source class needs the class"):
        Goal(source=1)
    with pytest.raises(InputError, match="both class 1"):
        Goal(source=1, target=1)
    with pytest.raises(InputError, match=r"target class 9 is out of range; the model scores classes 0 to 2"):
        Goal(target=9).check(LABELS, 3)
    with pytest.raises(InputError, match="no attack sample that is run has class 2"):
        Goal(source=2, target=0).check(np.array([0, 1]), 3)
