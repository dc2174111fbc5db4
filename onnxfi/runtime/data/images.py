"""A folder of images, one subfolder a class, as data. Apart from open_data.py because only this needs Pillow."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, closest
from onnxfi.file_fields import read_text
from onnxfi.runtime.data.preprocess import Preprocess, read_preprocess
from onnxfi.runtime.engine.ports import Array, Port, element_type, fits, one_line, shape_text

if TYPE_CHECKING:
    from PIL import Image

#: The formats that are opened; other formats of Pillow run programs (EPS) or are little tested.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: Pixels of an image as it lies or resized, and as the model gets it; bytes of a batch.
_MOST_PIXELS, _MOST_FINAL, _MOST_BYTES = 1 << 26, 1 << 24, 1 << 31
#: Files of a folder that are no images: how they are read, and the names of the model's classes, a line each.
_DESCRIPTION, _CLASSES, _LARGEST_LIST = "preprocess.yaml", "classes.txt", 1 << 20
_NUMBERED = re.compile(r"(\D*)(\d{1,9})(\D*)", re.ASCII)


@dataclass(frozen=True)
class Frame:
    """The part of an image file that a model sees, once resized to `resized` (width, height) from `size`.

    `left` and `top` are its corner in the resized image, `wide` and `high` its pixels.
    """

    size: tuple[int, int]
    resized: tuple[int, int]
    left: int
    top: int
    wide: int
    high: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The part as Pillow crops it: left, top, right, bottom."""
        return self.left, self.top, self.left + self.wide, self.top + self.high


@dataclass(frozen=True)
class ImageFolder:
    """Images in reading order: one of each class in turn, so that the first few cover all classes."""

    root: Path
    port: Port
    preprocess: Preprocess
    files: tuple[Path, ...]
    labels: NDArray[np.int64] | None
    folders: tuple[str, ...]
    #: Classes by the number of folders; None if their names or nothing says them.
    classes: int | None
    batch_axis: int

    @property
    def names(self) -> tuple[str, ...]:
        """The path of each image in the folder, with slashes."""
        return tuple(file.relative_to(self.root).as_posix() for file in self.files)

    def frame(self, number: int) -> Frame:
        """Return the part of an image that the model sees."""
        with open_image(self.files[number]) as image:
            return _frame(self.files[number], image.size, self.preprocess)

    def cut(self, size: int) -> Iterator[dict[str, Array]]:
        """Yield feeds of `size` images each, read on demand."""
        for start in range(0, len(self.files), size):
            _check_bytes(self.files[start : start + size], self.preprocess, self.port)
            images = [_read(file, self.preprocess, self.port) for file in self.files[start : start + size]]
            yield {self.port.name: np.stack(images, axis=self.batch_axis)}


def open_folder(
    root: Path, inputs: Sequence[Port], preprocess: Path | None, limit: int | None, batch_axis: int
) -> ImageFolder:
    """Find the images under `root` and check, from their headers, that all fit the model."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise DataError("reading images needs Pillow: pip install 'onnxfi[images]'") from error
    path = preprocess or root / _DESCRIPTION
    how = read_preprocess(path, tuple(inputs))
    if not how.classes and (names := root / _CLASSES).is_file():
        how = replace(how, classes=_listed_classes(names))
    port = _image_port(inputs, how, path)
    found = _find(root, how)
    numbers = _class_indices(root, tuple(found), listed=bool(how.classes) and "" not in found)
    lists = dict(enumerate(found.values()) if numbers is None else zip(numbers, found.values(), strict=True))
    order = sorted((rank, label) for label, files in lists.items() for rank in range(len(files)))
    files = tuple(lists[label][rank] for rank, label in order[:limit])
    if not files:
        raise DataError(f"no images in {str(root)!r}: it holds images, or one folder per class with the images in it")
    _check_sizes(files, how, port, batch_axis)
    labels = None if numbers is None else np.array([label for _, label in order[:limit]], np.int64)
    classes = len(found) if numbers == tuple(range(len(found))) and not all(map(_is_number, found)) else None
    return ImageFolder(root, port, how, files, labels, tuple(found), classes, batch_axis)


def _listed_classes(file: Path) -> tuple[str, ...]:
    """Return the names of the model's classes, a line each."""
    lines = read_text(file, _LARGEST_LIST, DataError).splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{str(file)!r} names the class {twice[:60]!r} twice; a line for each class, in their order")
    return names


def _is_number(name: str) -> bool:
    return re.fullmatch(r"\d{1,9}", name, re.ASCII) is not None


def _class_indices(root: Path, names: tuple[str, ...], *, listed: bool) -> tuple[int, ...] | None:
    """Return the class of each folder: its position in `classes:`, the number in its name, else its order by name.

    None for one folder with another name, which gives no classes. DataError if names and numbers disagree.
    """
    if listed:
        return tuple(range(len(names)))
    if names and all(map(_is_number, names)):
        numbers = tuple(map(int, names))
        if len(set(numbers)) < len(numbers):
            raise DataError(f"two folders in {str(root)!r} name one class index; keep one")
        return numbers
    if len(names) < 2:
        return None
    parts = [_NUMBERED.fullmatch(name) for name in names]
    known = [part for part in parts if part is not None]
    if len(known) == len(names) and len({(part[1], part[3]) for part in known}) == 1:
        in_order = [int(part[2]) for part in known]
        if in_order != sorted(in_order):
            raise DataError(
                f"folders {names[0]!r}, {names[1]!r}, … in {str(root)!r} have another order as texts than as numbers; "
                "list them in `classes:` of the preprocessing, in the order of the model's classes"
            )
    return tuple(range(len(names)))


def _check_bytes(files: Sequence[Path], how: Preprocess, port: Port) -> None:
    """Refuse a batch of more bytes than images need, before any is decoded."""
    with open_image(files[0]) as image:
        pixels = math.prod(_final_size(files[0], image.size, how))
    size_bytes = len(files) * pixels * how.channels * element_type(port.dtype).itemsize
    if size_bytes > _MOST_BYTES:
        raise DataError(
            f"a batch of {len(files)} images as {str(files[0])!r} takes {size_bytes:,} bytes, and {_MOST_BYTES:,} are "
            "allowed; give a smaller --batch, or set resize or crop in the preprocessing"
        )


def _check_sizes(files: Sequence[Path], how: Preprocess, port: Port, batch_axis: int) -> None:
    first: tuple[int, int] | None = None
    for file in files:
        with open_image(file) as image:
            size = _final_size(file, image.size, how)
        first = first or size
        shape = (how.channels, *size) if how.layout == "nchw" else (*size, how.channels)
        if not fits((*shape[:batch_axis], 1, *shape[batch_axis:]), port, free=batch_axis):
            raise DataError(
                f"{str(file)!r} becomes {shape_text(shape)}, which does not fit input {port}: "
                "set resize, crop, color or layout in the preprocessing"
            )
        if size != first:
            raise DataError(
                f"{str(file)!r} becomes {size[0]}x{size[1]} and {str(files[0])!r} {first[0]}x{first[1]}: "
                "set resize or crop in the preprocessing"
            )


def _image_port(inputs: Sequence[Port], how: Preprocess, path: Path) -> Port:
    """Return the one input that images feed."""
    names = [port.name for port in inputs]
    if how.input is not None and how.input not in names:
        raise DataError(f"{str(path)!r}: the model has no input {how.input!r}{closest(how.input, names)}")
    fitting = [
        port
        for port in inputs
        if (port.dtype == "uint8" or "float" in port.dtype)
        and (port.shape is None or len(port.shape) == 4)
        and how.input in (None, port.name)
    ]
    if len(fitting) != 1:
        has = "; ".join(map(str, inputs)) or "none"
        raise DataError(f"images feed one input of 4 dimensions, named by `input:`; the model has {has}")
    others = [port.name for port in inputs if port != fitting[0]]
    if others:
        raise DataError(
            f"a folder of images feeds {fitting[0].name!r} alone, and the model also takes "
            f"{', '.join(map(repr, others))}: give the data as .npz or module:function"
        )
    if fitting[0].dtype == "uint8" and (how.scale is not None or how.mean or how.std):
        raise DataError(f"{str(path)!r}: input {fitting[0]} takes bytes: leave out scale, mean and std")
    return fitting[0]


def _find(root: Path, how: Preprocess) -> dict[str, list[Path]]:
    """Return the image files of each class, in label order."""
    held = [path for path in visible(root) if path.name not in (_DESCRIPTION, _CLASSES)]
    if held and not any(path.is_dir() for path in held):  # images alone: of no known class
        return {"": [file_inside(file, root) for file in held]}
    found: dict[str, list[Path]] = {name: [] for name in how.classes}
    for folder in held:
        if not folder.is_dir():
            raise DataError(f"{str(folder)!r} lies beside the class folders; move it into one, or away")
        if how.classes and folder.name not in found:
            raise DataError(f"folder {str(folder)!r} is none of the classes{closest(folder.name, how.classes)}")
        files = found.setdefault(folder.name, [])
        files += [file_inside(file, root) for file in visible(folder)]
    return found


def visible(folder: Path) -> list[Path]:
    """Return what lies in a folder, by name, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"folder {str(folder)!r} cannot be read: {one_line(error)}") from error


def file_inside(file: Path, root: Path) -> Path:
    """Return a file that lies in the folder itself, behind no link out of it."""
    if not file.is_file():
        raise DataError(f"{str(file)!r} is not a file")
    if not file.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{str(file)!r} links to a place outside {str(root)!r}")
    return file


def open_image(file: Path) -> Image.Image:
    """Open an image without decoding it; Pillow's limit on the number of pixels is an error, not a warning."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=_FORMATS)
    except Exception as error:
        read = f"{', '.join(_FORMATS)} are read"
        raise DataError(f"{str(file)!r} is not a readable image: {one_line(error)}; {read}") from error
    if math.prod(image.size) > _MOST_PIXELS:
        image.close()
        raise DataError(f"{str(file)!r} has {math.prod(image.size):,} pixels; at most {_MOST_PIXELS:,} are read")
    if image.mode[0] in "IF":
        image.close()
        raise DataError(f"{str(file)!r} has pixels of more than 8 bits (mode {image.mode}); convert it")
    return image


def _resized(size: tuple[int, int], how: Preprocess) -> tuple[int, int]:
    """Width and height after `resize`; a single number is the shorter side, the ratio kept."""
    if how.resize is None:
        return size
    if isinstance(how.resize, tuple):
        return how.resize[1], how.resize[0]
    short = min(size)
    wide, high = (how.resize if side == short else int(how.resize * side / short) for side in size)
    return wide, high


def _final_size(file: Path, size: tuple[int, int], how: Preprocess) -> tuple[int, int]:
    """Height and width that the model gets."""
    wide, high = _resized(size, how)
    final = how.crop or (high, wide)
    if wide * high > _MOST_PIXELS or math.prod(final) > _MOST_FINAL:
        raise DataError(
            f"{str(file)!r} becomes {high}x{wide}, for the model {final[0]}x{final[1]}; at most {_MOST_PIXELS:,} and "
            f"{_MOST_FINAL:,} pixels are allowed: set a smaller resize or crop in the preprocessing"
        )
    if how.crop is None:
        return high, wide
    if how.crop[0] > high or how.crop[1] > wide:
        crop = f"{how.crop[0]}x{how.crop[1]}"
        raise DataError(f"{str(file)!r} is {high}x{wide} where the crop takes {crop}: set resize")
    return how.crop


def _frame(file: Path, size: tuple[int, int], how: Preprocess) -> Frame:
    wide, high = resized = _resized(size, how)
    final_high, final_wide = _final_size(file, size, how)
    left, top = round((wide - final_wide) / 2), round((high - final_high) / 2)
    return Frame(size, resized, left, top, final_wide, final_high)


def _read(file: Path, how: Preprocess, port: Port) -> Array:
    """Decode, resize, crop, scale, normalise and lay out one image."""
    from PIL import Image

    with open_image(file) as image:
        try:
            pixels = image.convert("L" if how.color == "gray" else "RGB")
        except Exception as error:
            raise DataError(f"{str(file)!r} is not a readable image: {one_line(error)}") from error
    frame = _frame(file, pixels.size, how)
    if how.resize is not None:
        pixels = pixels.resize(frame.resized, Image.Resampling[how.interpolation.upper()])
    array: Array = np.asarray(pixels.crop(frame.box))
    array = array.reshape(frame.high, frame.wide, how.channels)
    if how.color == "bgr":
        array = array[..., ::-1]
    if port.dtype != "uint8":
        values = array.astype(np.float64) * (1 / 255 if how.scale is None else how.scale)
        values = (values - np.array(how.mean or 0.0)) / np.array(how.std or 1.0)
        array = values.astype(np.float32).astype(element_type(port.dtype))
    return np.ascontiguousarray(array.transpose(2, 0, 1) if how.layout == "nchw" else array)
