"""A task of one's own: `onnxfi run … --task own_task:thermometer`; degrees, right within a limit."""

import numpy as np

from onnxfi.tasks.answers import AnswerPair
from onnxfi.tasks.task import Metric, Task


def mean_error(pair: AnswerPair) -> float:
    """Mean distance of the faulty readings from the golden ones, in kelvin."""
    return float(pair.distances.mean())


def thermometer(limit: float = 0.5) -> Task:
    """Return a task in which a reading counts as golden within `limit` kelvin."""
    error = Metric("error", mean_error, unit="K", per="set", bounds=(0.0, np.inf), failed=np.inf)
    return Task("thermometer", (error,), masked=lambda pair: pair.distances <= limit)
