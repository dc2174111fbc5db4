"""Boxes: their overlap, suppression of those that say the same, and pairs of the same object in two answers.

An answer is float64 [K,6], a row a box: x1, y1, x2, y2, score, class. A box without a finite extent overlaps nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxfi.tasks.answers import Flags, Floats

#: Boxes that suppression looks at, by falling score, as usual for detectors that output tens of thousands.
_MOST_CANDIDATES = 4096


def overlaps(one: Floats, other: Floats) -> Floats:
    """Return the intersection over union of each box of one answer with each of another ([K,4+], [L,4+]: [K,L]).

    >>> overlaps(np.array([[0.0, 0, 2, 2]]), np.array([[0.0, 0, 2, 1], [5, 5, 6, 6], [np.nan, 0, 2, 2]])).tolist()
    [[0.5, 0.0, 0.0]]
    """
    a, b = one[:, None, :4], other[None, :, :4]
    with np.errstate(all="ignore"):
        sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
        shared = np.maximum(sides, 0.0).prod(axis=-1)
        areas = [np.maximum(box[..., 2:] - box[..., :2], 0.0).prod(axis=-1) for box in (a, b)]
        found = shared / (areas[0] + areas[1] - shared)
    return np.where(np.isfinite(found), found, 0.0)


def suppressed(boxes: Floats, limit: float, most: int) -> Floats:
    """Return the boxes that are left by non-maximum suppression, by falling score, `most` of them at most.

    A box goes where one of its class with a higher score overlaps it by more than `limit`; the first of equal scores
    stays.

    >>> rows = np.array([[0, 0, 9, 9, 0.8, 1], [0, 0, 9, 8, 0.9, 1], [0, 0, 9, 9, 0.7, 2]], float)
    >>> suppressed(rows, 0.5, 10)[:, 4].tolist()
    [0.9, 0.7]
    """
    left = boxes[np.argsort(-boxes[:, 4], kind="stable")][:_MOST_CANDIDATES]
    kept = list[Floats]()
    while len(left) and len(kept) < most:
        first, left = left[0], left[1:]
        kept.append(first)
        left = left[(left[:, 5] != first[5]) | (overlaps(first[None], left)[0] <= limit)]
    return np.array(kept).reshape(-1, boxes.shape[1])


def pairs(golden: Floats, faulty: Floats, match: float) -> int:
    """Return the number of boxes of two answers that are the same object: of one class, and overlapping enough.

    Each box is in one pair at most, and there are as many pairs as there can be, so the order of the boxes does not
    count.

    >>> one, other = np.array([[0.0, 0, 9, 9, 0.9, 1]]), np.array([[0.0, 0, 9, 8, 0.3, 1], [0, 0, 9, 9, 0.9, 0]])
    >>> pairs(one, other, 0.5), pairs(one, other, 0.95), pairs(one, other[:0], 0.5)
    (1, 0, 0)
    """
    same = (overlaps(golden, faulty) >= match) & (golden[:, None, 5] == faulty[None, :, 5])
    if not same.any():
        return 0
    if (same.sum(axis=0) <= 1).all() and (same.sum(axis=1) <= 1).all():
        return int(same.sum())
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    found: NDArray[np.int32] = maximum_bipartite_matching(csr_array(same), perm_type="column")
    return int(np.count_nonzero(found >= 0))


def finite(boxes: Floats) -> Flags:
    """Return the boxes all of whose numbers are finite ([K])."""
    return np.asarray(np.isfinite(boxes).all(axis=1))
