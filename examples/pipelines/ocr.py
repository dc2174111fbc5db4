r"""Reading printed lines: a detector of text, the crops of what it finds, and a recogniser; models of PP-OCR.

    python scripts/fetch_models.py --only rapidocr_det --only rapidocr_rec
    onnxfi run examples.pipelines.ocr:pipeline --stage recogniser --data examples.pipelines.ocr:pages \
        --task sequence --ber 1e-6

Run it in the folder of the repository. Pages are rendered here, so the text that is on them is known exactly.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from onnxfi import Pipeline, Stage

MODELS = Path(os.environ.get("ONNXFI_MODELS", Path(__file__).parents[2] / "fetched"))
LINES = (
    "The quick brown fox", "jumps over 13 lazy dogs", "Single event upset", "Bit 30 of a float", "Invoice 2024-117",
    "Total 1,284.50 EUR", "Gate B42 boarding 18:05", "Platform 9 to Geneva", "Serial AX7 0091 Q", "Made in Iceland",
    "Dose 2 x 250 mg daily", "Keep below 25 degrees", "Flight recorder", "Do not open before use", "Orbit 512 km",
    "Battery at 87 percent",
)  # fmt: skip
LINES_A_PAGE, WIDTH, HEIGHT = 2, 320, 96
#: Scores above which a pixel is text and, on average, a line; the share by which the shrunk line grows again.
PIXEL, LINE, GROWTH = 0.3, 0.6, 1.6
LINE_HEIGHT = 48
Arrays = Mapping[str, NDArray[np.generic]]


def pages() -> Arrays:
    """Return pages of two lines each, with their text."""
    font = ImageFont.load_default(size=22)
    images, texts = [], []
    for first in range(0, len(LINES), LINES_A_PAGE):
        page, lines = Image.new("RGB", (WIDTH, HEIGHT), "white"), LINES[first : first + LINES_A_PAGE]
        for k, line in enumerate(lines):
            ImageDraw.Draw(page).text((16, 10 + 42 * k), line, fill="black", font=font)
        images.append(np.asarray(page))
        texts.append("\n".join(lines))
    return {"page": np.stack(images), "labels": np.array(texts)}


def prepare(page: NDArray[np.uint8]) -> Arrays:
    """Return a page as the detector takes it: channels first, in units of the spread of photos."""
    mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return {"x": ((page / 255 - mean) / spread).transpose(0, 3, 1, 2).astype(np.float32)}


def crops(page: NDArray[np.uint8], shares: NDArray[np.float32]) -> Arrays:
    """Return the lines that the detector's map of text shows, from top to bottom, in one height and width."""
    sure = np.nan_to_num(shares[0, 0], nan=0.0)
    parts, count = ndimage.label(sure > PIXEL)
    boxes = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts, count), 1):
        inside = parts[rows, columns] == number
        height, width = inside.shape
        if min(height, width) < 3 or sure[rows, columns][inside].mean() < LINE:
            continue
        more = round(GROWTH * height * width / (2 * (height + width)))
        boxes.append((rows.start - more, rows.stop + more, columns.start - more, columns.stop + more))
    lines = [crop(page[0], box) for box in sorted(boxes)]
    widest = max((line.shape[1] for line in lines), default=LINE_HEIGHT)
    padded = [np.pad(line, ((0, 0), (0, widest - line.shape[1]), (0, 0))) for line in lines]
    stacked = np.array(padded, np.float32).reshape(-1, LINE_HEIGHT, widest, 3)
    return {"lines": np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))}


def crop(page: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Return a box of a page in the height of a line, from -1 to 1."""
    height, width, _ = page.shape
    top, bottom, left, right = np.clip(box, 0, (height, height, width, width)).tolist()
    image = Image.fromarray(page[top:bottom, left:right])
    width = max(8, round(image.width * LINE_HEIGHT / image.height))
    return np.asarray(image.resize((width, LINE_HEIGHT), Image.Resampling.BILINEAR), np.float32) / 127.5 - 1


@cache
def characters() -> list[str]:
    """Return the characters of the recogniser's classes: none, those that its file lists, and a blank."""
    said = {entry.key: entry.value for entry in onnx.load(MODELS / "rapidocr_rec.onnx").metadata_props}
    return ["", *said["character"].split("\n"), " "]


def text(shares: NDArray[np.float32]) -> Arrays:
    """Return the text of all lines: the likeliest character of each step, without repetitions (CTC)."""
    best = shares.argmax(axis=2) if len(shares) else np.zeros((0, 1), np.int64)
    changes = [[k for k, before in zip(line, [0, *line], strict=False) if k != before] for line in best.tolist()]
    return {"text": np.array("\n".join("".join(characters()[k] for k in line).strip() for line in changes))}


def pipeline() -> Pipeline:
    """Return the pipeline."""
    return Pipeline(
        [
            Stage("prepare", function=prepare, inputs={"page": "data.page"}),
            Stage("detector", model=str(MODELS / "rapidocr_det.onnx"), inputs={"x": "prepare.x"}),
            Stage("crops", function=crops, inputs={"page": "data.page", "shares": "detector.fetch_name_0"}),
            Stage("recogniser", model=str(MODELS / "rapidocr_rec.onnx"), inputs={"x": "crops.lines"}),
            Stage("text", function=text, inputs={"shares": "recogniser.fetch_name_0"}),
        ],
        data={"page": f"uint8 [N,{HEIGHT},{WIDTH},3]"},
    )
