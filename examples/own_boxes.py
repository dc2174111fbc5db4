"""Boxes of a detector that no built-in format reads: `--task detection:decode=own_boxes:yolox`.

The raw heads of YOLOX ([n, cells, 5 + classes]) hold offsets from the corners of their cells, in cells, and the
logarithm of a size; cells lie in grids of 8, 16 and 32 pixels, one grid behind the other.
"""

import numpy as np

from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.tasks.kinds.boxes import suppressed

STRIDES, SIDE = (8, 16, 32), 416


def grid() -> np.ndarray:
    """Return the corner and the stride of each cell: [cells,3]."""
    parts = []
    for stride in STRIDES:
        y, x = np.mgrid[: SIDE // stride, : SIDE // stride].reshape(2, -1)
        parts.append(np.stack([x * stride, y * stride, np.full(x.size, stride)], axis=1))
    return np.concatenate(parts)


def yolox(outputs: Outputs) -> list[np.ndarray]:
    """Return x1, y1, x2, y2, score, class of each box of each sample."""
    cells, found = grid(), []
    (heads,) = outputs.arrays.values()
    for head in heads.astype(np.float64):
        with np.errstate(all="ignore"):
            scores = head[:, 4:5] * head[:, 5:]
            there = scores.max(axis=1) >= 0.25
            centre = cells[there, :2] + head[there, :2] * cells[there, 2:]
            half = np.exp(head[there, 2:4]) * cells[there, 2:] / 2
        score, kind = scores[there].max(axis=1), scores[there].argmax(axis=1)
        boxes = np.column_stack([centre - half, centre + half, score, kind])
        found.append(suppressed(boxes, 0.45, 300))
    return found
