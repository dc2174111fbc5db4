r"""Finding faces: a cascade of three models (MTCNN), each of which looks closer at what the one before left.

    python scripts/fetch_models.py --only pnet --only rnet --only onet --only photos
    onnxfi run examples.pipelines.faces:pipeline --stage refine --data examples.pipelines.faces:views \
        --task detection:format=rows --ber 1e-6

Run it in the folder of the repository. There is one face, whose box in its photo is the label of every view of it.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from onnxfi import Pipeline, Stage

MODELS = Path(os.environ.get("ONNXFI_MODELS", Path(__file__).parents[2] / "fetched"))
SIZE, SMALLEST, STEP = 160, 24, 0.709
#: The side of a cell of the first model, and how far its cells are apart, in pixels of its input.
CELL, STRIDE = 12, 2
SURE = (0.6, 0.7, 0.7)
#: The face in its photo, from the hair to the chin, in pixels: left, top, right, bottom.
FACE = np.array([178, 62, 268, 178])
Arrays = Mapping[str, NDArray[np.generic]]
Boxes = NDArray[np.float64]


def views() -> Arrays:
    """Return views of photos, of one with a face from near and far and of others without, and the boxes of the face."""
    found, labels = [], []
    photo = Image.open(MODELS / "photos" / "unlabelled" / "astronaut.png").convert("RGB")
    for side in (220, 260, 300, 360):
        for left, top in ((120, 0), (90, 10), (140, 20)):
            view = photo.crop((left, top, left + side, top + side)).resize((SIZE, SIZE))
            x1, y1, x2, y2 = (FACE - [left, top, left, top]) * (SIZE / side)
            mirrored = len(found) % 2 == 1
            found.append(ImageOps.mirror(view) if mirrored else view)
            labels.append([0, SIZE - x2, y1, SIZE - x1, y2] if mirrored else [0, x1, y1, x2, y2])
    for name in ("coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png"):
        found.append(ImageOps.fit(Image.open(MODELS / "photos" / "unlabelled" / name).convert("RGB"), (SIZE, SIZE)))
        labels.append([np.nan] * 5)
    return {"view": np.stack([np.asarray(view) for view in found]), "labels": np.array(labels)[:, np.newaxis]}


def scales() -> list[float]:
    """Return the scales of a view at which a cell of the first model covers faces of all sizes."""
    found = [CELL / SMALLEST]
    while round(SIZE * found[-1] * STEP) >= CELL:
        found.append(found[-1] * STEP)
    return found


def normal(image: Image.Image) -> NDArray[np.float32]:
    """Return an image from -1 to 1, channels first."""
    return ((np.asarray(image, np.float32) - 127.5) / 128).transpose(2, 0, 1)


def pyramid(view: NDArray[np.uint8]) -> Arrays:
    """Return a view at all scales, side by side on one canvas, so that the first model runs once."""
    image = Image.fromarray(view[0])
    sides = [round(SIZE * scale) for scale in scales()]
    canvas = np.zeros((1, 3, sides[0], sum(sides) + CELL * len(sides)), np.float32)
    left = 0
    for side in sides:
        canvas[0, :, :side, left : left + side] = normal(image.resize((side, side), Image.Resampling.BILINEAR))
        left += side + CELL
    return {"canvas": canvas}


def proposals(view: NDArray[np.uint8], shifts: NDArray[np.float32], shares: NDArray[np.float32]) -> Arrays:
    """Return the boxes of the cells that look like a face, and a small crop of each."""
    boxes, left = [np.zeros((0, 5))], 0
    for scale in scales():
        side = round(SIZE * scale)
        cells = max(0, (side - CELL) // STRIDE + 1)
        here = slice(0, cells), slice(left // STRIDE, left // STRIDE + cells)
        y, x = np.nonzero(shares[0, 1][here] >= SURE[0])
        at = np.stack([x, y, x, y], 1) * STRIDE + np.array([0, 0, CELL, CELL])
        moved = at / scale + shifts[0][:, here[0], here[1]][:, y, x].T * (CELL / scale)
        boxes.append(np.column_stack([moved, shares[0, 1][here][y, x]]))
        left += side + CELL
        left += left % STRIDE
    kept = squares(best(np.concatenate(boxes), 0.6))
    return {"boxes": kept, "crops": crops(view, kept, 24)}


def better(boxes: NDArray[np.float64], shifts: NDArray[np.float32], shares: NDArray[np.float32], stage: int) -> Boxes:
    """Return the boxes that the next model takes for faces, moved as it says."""
    sure = np.flatnonzero(shares[:, 1] >= SURE[stage])
    sides = np.tile(boxes[sure, 2:4] - boxes[sure, :2], 2)
    return best(np.column_stack([boxes[sure, :4] + shifts[sure] * sides, shares[sure, 1]]), 0.6)


def refined(view: NDArray[np.uint8], boxes: Boxes, shifts: NDArray[np.float32], shares: NDArray[np.float32]) -> Arrays:
    """Return the boxes that the second model takes for faces, and a larger crop of each."""
    kept = squares(better(boxes, shifts, shares, 1))
    return {"boxes": kept, "crops": crops(view, kept, 48)}


def faces(boxes: Boxes, shifts: NDArray[np.float32], shares: NDArray[np.float32]) -> Arrays:
    """Return the faces: x1, y1, x2, y2, score, class."""
    kept = better(boxes, shifts, shares, 2)
    return {"faces": np.column_stack([kept, np.zeros(len(kept))]).astype(np.float32)}


def best(boxes: Boxes, overlap: float) -> Boxes:
    """Return the finite boxes of two pixels or more that no better one overlaps, the best first."""
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:4] - boxes[:, :2] >= 2).all(axis=1)
    boxes = boxes[good & (np.abs(boxes) < 1e4).all(axis=1)]
    order = np.argsort(-boxes[:, 4], kind="stable")
    kept: list[int] = []
    for k in order.tolist():
        low, high = np.maximum(boxes[k, :2], boxes[kept, :2]), np.minimum(boxes[k, 2:4], boxes[kept, 2:4])
        common = np.prod(np.maximum(high - low, 0), axis=1)
        areas = [np.prod(boxes[which, 2:4] - boxes[which, :2], axis=-1) for which in (kept, k)]
        if not (common / (areas[0] + areas[1] - common) > overlap).any():
            kept.append(k)
    return boxes[kept]


def squares(boxes: Boxes) -> Boxes:
    """Return the squares around the middles of boxes, of which the next model says how they are to be moved."""
    middles, half = (boxes[:, :2] + boxes[:, 2:4]) / 2, (boxes[:, 2:4] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    return np.column_stack([middles - half, middles + half, boxes[:, 4]])


def crops(view: NDArray[np.uint8], boxes: Boxes, side: int) -> NDArray[np.float32]:
    """Return what is in each box, as a model of the cascade takes it."""
    image = Image.fromarray(view[0])
    cut = (image.crop(tuple(map(round, box))) for box in boxes[:, :4].tolist())
    found = [normal(one.resize((side, side), Image.Resampling.BILINEAR)) for one in cut]
    return np.array(found, np.float32).reshape(-1, 3, side, side)


def pipeline() -> Pipeline:
    """Return the cascade."""
    view = {"view": "data.view"}
    first = {"shifts": "propose.output1", "shares": "propose.output2"}
    second = {"boxes": "proposals.boxes", "shifts": "refine.output1", "shares": "refine.output2"}
    third = {"boxes": "refined.boxes", "shifts": "decide.output2", "shares": "decide.output3"}
    return Pipeline(
        [
            Stage("pyramid", function=pyramid, inputs=view),
            Stage("propose", model=str(MODELS / "pnet.onnx"), inputs={"input": "pyramid.canvas"}),
            Stage("proposals", function=proposals, inputs=view | first),
            Stage("refine", model=str(MODELS / "rnet.onnx"), inputs={"input": "proposals.crops"}),
            Stage("refined", function=refined, inputs=view | second),
            Stage("decide", model=str(MODELS / "onet.onnx"), inputs={"input": "refined.crops"}),
            Stage("faces", function=faces, inputs=third),
        ],
        data={"view": f"uint8 [N,{SIZE},{SIZE},3]"},
    )
