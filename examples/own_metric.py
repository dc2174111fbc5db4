"""A metric of one's own: `onnxfi run … --metric own_metric:HALF` adds it to every report."""

import numpy as np

from onnxfi.tasks.answers import AnswerPair
from onnxfi.tasks.task import Metric


def half_wrong(pair: AnswerPair) -> float:
    """Share of samples in which half of the elements or more differ in any bit."""
    return float(np.mean(2 * pair.differ >= pair.golden.rows.shape[1]))


HALF = Metric("half_wrong", half_wrong, label="half of the output wrong")
