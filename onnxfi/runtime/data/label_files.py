"""Labels from a file of their own: COCO JSON, a folder of PNG masks, lines of text, a table of numbers, numpy's files.

Where samples are image files, labels find them by file name; else they come in the order of the samples, the k-th label
for the k-th sample. `labels.py` says what the arrays mean. Boxes and masks are brought to the pixels that the model
sees, as the preprocessing resizes and crops the images.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from onnxfi.errors import DataError, closest
from onnxfi.file_fields import read_text
from onnxfi.runtime.data.images import Frame, ImageFolder, open_image
from onnxfi.runtime.data.labels import VOID, Labels, checked
from onnxfi.runtime.data.npz import memory_bytes, read_npy, read_npz
from onnxfi.runtime.engine.ports import Array, one_line

#: Bytes of a file of text, and columns of a table.
_LARGEST_FILE, _MOST_COLUMNS = 1 << 28, 1 << 16
#: Images and boxes that a COCO file may list.
_MOST_ROWS = 1 << 24
LABEL_FILES = "an .npz or .npy, COCO .json, a folder of PNG masks, .txt with a line per sample, or .csv of numbers"


@dataclass(frozen=True)
class Samples:
    """The samples that labels are for: their number, whether these are the first of more, and their files, if any."""

    count: int
    limited: bool = False
    images: ImageFolder | None = None

    @property
    def names(self) -> tuple[str, ...] | None:
        """The files of the samples, by their path in the folder; None if they have none."""
        return None if self.images is None else self.images.names


def read_labels(path: Path, samples: Samples, name: str = "labels") -> Labels:
    """Return the labels of samples from a file, or from a folder of masks; `name` is the array of an .npz.

    Raises
    ------
    DataError
        If there is no such file, it cannot be read, or its labels are not those of the samples: the message names
        both sides.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "words.txt").write_text("cat\\ndog\\n")
    ...     read_labels(Path(folder, "words.txt"), Samples(2))
    array(['cat', 'dog'], dtype=object)
    """
    what = repr(str(path))
    if path.is_dir():
        return _masks(path, samples)
    if not path.is_file():
        raise DataError(f"no labels at {what}; give {LABEL_FILES}")
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _coco(path, samples)
    if suffix not in _READERS:
        raise DataError(f"labels in {what} have the unknown ending {suffix!r}; give {LABEL_FILES}")
    return checked(_READERS[suffix](path, samples, name), samples.count, what, limited=samples.limited)


def _archive(path: Path, samples: Samples, name: str) -> Array:
    arrays = read_npz(path)
    if len(arrays) == 1 and name == "labels":
        return next(iter(arrays.values()))
    if name not in arrays:
        raise DataError(f"{str(path)!r} has no array {name!r}{closest(name, arrays)}; name one: FILE.npz:NAME")
    return arrays[name]


def _array(path: Path, samples: Samples, name: str) -> Array:
    return read_npy(path)


def _read(path: Path) -> str:
    return read_text(path, _LARGEST_FILE, DataError).replace("\r\n", "\n").replace("\r", "\n")


def _texts(path: Path, samples: Samples, name: str) -> Array:
    """Return a line per sample, or for image files the text after a file's name and a tab."""
    lines = _read(path).split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    if samples.names is not None and lines and all("\t" in line for line in lines):
        rows = [line.split("\t", 1) for line in lines]
        by_file = _by_file([(file, text) for file, text in rows], samples.names, path)
        return np.array(by_file, object)
    return np.array(lines, object)


def _table(path: Path, samples: Samples, name: str) -> Array:
    """Return the numbers of a table, a row per sample, after headings, if any; a first column may name image files."""
    try:
        rows = [row for row in csv.reader(io.StringIO(_read(path))) if row]
    except csv.Error as error:
        raise DataError(f"{str(path)!r} is no readable table: {one_line(error)}") from None
    if rows and not any(map(_is_number, rows[0])):
        rows = rows[1:]
    if not rows or len(rows[0]) > _MOST_COLUMNS:
        raise DataError(f"{str(path)!r} holds no rows of numbers, or more than {_MOST_COLUMNS:,} columns")
    files = not _is_number(rows[0][0])
    if files and samples.names is None:
        raise DataError(f"{str(path)!r} names files, and the samples are none; give numbers alone, in their order")
    values = [_numbers(row[files:], k, len(rows[0]) - files, path) for k, row in enumerate(rows, 1)]
    if files and samples.names is not None:
        values = _by_file([(row[0], one) for row, one in zip(rows, values, strict=True)], samples.names, path)
    table = np.array(values)
    return table[:, 0] if table.shape[1] == 1 else table


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(cells: Sequence[str], row: int, columns: int, path: Path) -> list[float] | list[int]:
    """Return the numbers of a row: integers where all are written as such."""
    if len(cells) != columns or not all(map(_is_number, cells)):
        raise DataError(f"{str(path)!r}: row {row} holds no {columns} numbers: {','.join(cells)[:60]!r}")
    try:
        return [int(cell) for cell in cells]
    except ValueError:
        return [float(cell) for cell in cells]


def _by_file(rows: Sequence[tuple[str, Any]], names: Sequence[str], path: Path) -> list[Any]:
    """Return the value of each sample by the name of its file: by its path in the folder, else by the name alone."""
    full: dict[str, Any] = {}
    for given, value in rows:
        file = PurePosixPath(given.replace("\\", "/")).as_posix()
        if file in full:
            raise DataError(f"{str(path)!r} lists {file[:80]!r} twice")
        full[file] = value
    short = [PurePosixPath(file).name for file in full]
    alone = dict(zip(short, full.values(), strict=True)) if len(set(short)) == len(short) else {}
    found = []
    for name in names:
        key = name if name in full else PurePosixPath(name).name
        known: Mapping[str, Any] = full if name in full else alone
        if key not in known:
            raise DataError(
                f"{str(path)!r} lists {len(full):,} files, and none is sample {name!r}{closest(key, alone)}"
            )
        found.append(known[key])
    return found


def _masks(root: Path, samples: Samples) -> Labels:
    """Return the masks of a folder (int16 [N,H,W]): by the stem of a sample's file, else in the order of names."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise DataError("reading masks needs Pillow: pip install onnxfi[images]") from error
    files = sorted(path for path in root.rglob("*.png") if not path.name.startswith("."))
    if any(not path.resolve().is_relative_to(root.resolve()) for path in files):
        raise DataError(f"a file in {str(root)!r} links to a place outside of it")
    if samples.images is None:
        if all(path.stem.isascii() and path.stem.isdigit() for path in files):
            files.sort(key=lambda path: int(path.stem))
        few = len(files) < samples.count or (len(files) > samples.count and not samples.limited)
        if few:
            raise DataError(f"{len(files)} masks (.png) in {str(root)!r} for {samples.count} samples")
        return _stack(_mask(path, None) for path in files[: samples.count])
    images = samples.images
    stems = [PurePosixPath(name).with_suffix(".png").as_posix() for name in images.names]
    chosen = _by_file([(path.relative_to(root).as_posix(), path) for path in files], stems, root)
    return _stack(_mask(path, images.frame(k)) for k, path in enumerate(chosen))


def _mask(file: Path, frame: Frame | None) -> Array:
    """Return the classes of the pixels of one mask, as the model sees the image."""
    from PIL import Image

    with open_image(file) as image:
        if image.mode not in ("L", "P", "1"):
            raise DataError(f"{str(file)!r} has mode {image.mode}; a mask has a byte a pixel, the number of its class")
        if frame is None:
            return np.asarray(image).astype(np.int16)
        if image.size != frame.size:
            mask, own = (f"{wide}x{high}" for wide, high in (image.size, frame.size))
            raise DataError(f"{str(file)!r} has {mask} pixels, and its image {own}")
        return np.asarray(image.resize(frame.resized, Image.Resampling.NEAREST).crop(frame.box)).astype(np.int16)


def _stack(masks: Iterable[Array]) -> Labels:
    """Return masks as one array; the smaller ones end in pixels of no class."""
    read: list[Array] = []
    high = wide = 0
    for mask in masks:
        read.append(mask)
        high, wide = max(high, mask.shape[0]), max(wide, mask.shape[1])
        if 4 * len(read) * high * wide > memory_bytes() // 2:
            raise DataError(f"masks of {wide}x{high} take too much memory; take fewer with --samples")
    found = np.full((len(read), high, wide), VOID, np.int16)
    for row, mask in zip(found, read, strict=True):
        row[: mask.shape[0], : mask.shape[1]] = mask
    return found


def _coco(path: Path, samples: Samples) -> Labels:
    """Return the boxes of COCO JSON (float64 [N,K,6]); class k is the category with the k-th smallest id."""
    try:
        found = json.loads(_read(path))
        images = {int(one["id"]): str(one["file_name"]) for one in found["images"]}
        classes = {number: k for k, number in enumerate(_category_ids(found))}
        boxes: dict[int, list[list[float]]] = {number: [] for number in images}
        for one in found["annotations"]:
            boxes[int(one["image_id"])].append(_box(one, classes))
        if len(boxes) != len(found["images"]) or len(classes) != len(found["categories"]):
            raise ValueError("an id is given twice")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise DataError(
            f"{str(path)!r} is no COCO JSON of boxes ({why}); it holds images, annotations, categories"
        ) from None
    if samples.images is not None:
        rows = [(images[number], boxes[number]) for number in images]
        of_each = _by_file(rows, samples.images.names, path)
        of_each = [_as_seen(own, samples.images.frame(k)) for k, own in enumerate(of_each)]
    else:
        of_each = list(boxes.values())
    most = max((len(own) for own in of_each), default=0)
    if len(of_each) * most > _MOST_ROWS:
        raise DataError(
            f"{str(path)!r} has {most:,} boxes in one of {len(of_each):,} images; take fewer with --samples"
        )
    padded = np.full((len(of_each), most, 6), np.nan)
    for row, own in zip(padded, of_each, strict=True):
        row[: len(own)] = np.reshape(own, (-1, 6))
    return checked(padded, samples.count, repr(str(path)), limited=samples.limited)


def category_ids(path: Path) -> list[int]:
    """Return the ids of the categories of COCO JSON, in their order."""
    try:
        found = _category_ids(json.loads(_read(path)))
        if not found or len(set(found)) < len(found):
            raise ValueError("an id is given twice" if found else "no category")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise DataError(f"{str(path)!r} has no categories of COCO ({why})") from None
    return found


def _category_ids(found: Any) -> list[int]:
    return sorted(int(one["id"]) for one in found["categories"])


def _box(one: Mapping[str, Any], classes: Mapping[int, int]) -> list[float]:
    """Return an annotation as class, x1, y1, x2, y2, crowd."""
    left, top, wide, high = (float(number) for number in one["bbox"])
    box = [float(classes[int(one["category_id"])]), left, top, left + wide, top + high, float(bool(one.get("iscrowd")))]
    if not all(map(math.isfinite, box)) or wide < 0 or high < 0:
        raise ValueError(f"the box {one['bbox']} of image {one['image_id']} is none")
    return box


def _as_seen(boxes: Sequence[Sequence[float]], frame: Frame) -> list[list[float]]:
    """Return boxes in the pixels of the model's input, without those of which it sees nothing."""
    found = []
    by_x, by_y = (new / old for new, old in zip(frame.resized, frame.size, strict=True))
    for number, x1, y1, x2, y2, crowd in boxes:
        left, right = (min(max(x * by_x - frame.left, 0.0), frame.wide) for x in (x1, x2))
        top, bottom = (min(max(y * by_y - frame.top, 0.0), frame.high) for y in (y1, y2))
        if right > left and bottom > top:
            found.append([number, left, top, right, bottom, crowd])
    return found


_READERS = {".npz": _archive, ".npy": _array, ".txt": _texts, ".csv": _table}
