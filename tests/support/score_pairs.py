"""Golden and faulty scores, mostly alike, with labels; and the metrics that are measured on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from onnxfi.tasks.kinds.classification import CLASSIFICATION
from onnxfi.tasks.kinds.deviation import DEVIATION

METRICS = {metric.name: metric for metric in CLASSIFICATION.view(CLASSIFICATION.evaluated)}
OF_SCORES = METRICS.keys() - DEVIATION.by_name.keys()
LABELLED = {name for name, metric in METRICS.items() if metric.needs_labels}
NAN, INF = np.nan, np.inf

Pair = tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]


@st.composite
def outputs(draw: st.DrawFn, *, finite: bool = False) -> Pair:
    """Golden and faulty scores [N, classes], mostly alike, and labels."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 8)))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16]))
    few = st.sampled_from([0.0, -0.0, 1.0, -2.5, 100.0, *([] if finite else [NAN, INF, -INF])])
    any_value = arrays.from_dtype(np.dtype(dtype), allow_nan=not finite, allow_infinity=not finite)
    golden = draw(arrays.arrays(dtype, shape, elements=few | any_value))
    other = draw(arrays.arrays(dtype, shape, elements=few | any_value))
    faulty = np.where(draw(arrays.arrays(np.bool_, shape)), golden, other)
    return golden, faulty, draw(arrays.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))


def measure(name: str, golden: Any, faulty: Any, labels: Any = None) -> float:
    """Return a metric of float32 scores."""
    return METRICS[name](np.array(golden, np.float32), np.array(faulty, np.float32), labels)
