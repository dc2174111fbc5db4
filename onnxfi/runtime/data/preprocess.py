"""From an image file to a model's input.

A YAML description, a preset by name, or the configuration that timm and transformers keep beside a model;
docs/how-to/data.md describes all for users.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnxfi.errors import DataError, closest
from onnxfi.runtime.engine.ports import Port, one_line

_LARGEST_NUMBER = sys.float_info.max
#: Pixels of a side where neither a description nor the model says how many.
_SIDE = 224
_EXAMPLE = "version: 1 / resize: 256 / crop: 224 / mean: [0.485, 0.456, 0.406] / std: [0.229, 0.224, 0.225]"
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
#: Descriptions by name. `layout` and the size of the crop are those of the model's input, unless they are given too.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "imagenet": {**_IMAGENET, "crop_pct": 0.875},
    "timm": {**_IMAGENET, "crop_pct": 0.875, "interpolation": "bicubic"},
    "inception": {"mean": 0.5, "std": 0.5, "crop_pct": 0.875, "interpolation": "bicubic"},
    "clip": {
        "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711], "crop_pct": 1.0,
        "interpolation": "bicubic",
    },
    "caffe": {"color": "bgr", "scale": 1, "mean": [103.939, 116.779, 123.68], "crop_pct": 0.875},
})  # fmt: skip
#: Filters of Pillow, each of which covers all pixels that go into one (antialiasing), but for `nearest`.
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "box", "hamming", "nearest")
#: Pillow's numbers of them, as transformers writes them.
_BY_NUMBER = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclass(frozen=True)
class Preprocess:
    """The steps from an image file to a model's input, in the order in which they apply."""

    input: str | None = None
    classes: tuple[str, ...] = ()
    color: str = "rgb"
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    crop: tuple[int, int] | None = None
    crop_pct: float | None = None
    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "nchw"

    @property
    def channels(self) -> int:
        """Colours of a pixel."""
        return 1 if self.color == "gray" else 3


def read_preprocess(path: Path, inputs: tuple[Port, ...] = ()) -> Preprocess:
    """Read a description for a model with these inputs; `DataError` names the file and the key.

    `path` is a YAML file, the name of a preset, timm's `config.json`, or `preprocessor_config.json` of transformers.

    >>> read_preprocess(Path("imagenet"), (Port("x", "float32", ("N", 3, 240, 240)),)).resize
    274
    """
    from onnxfi.runtime.data.untrusted_yaml import load_yaml

    if not path.is_file():
        if str(path) in PRESETS:
            return _made({"preset": str(path)}, path, inputs)
        near = closest(str(path), PRESETS) if str(path) == path.stem else ""
        raise DataError(
            f"no preprocessing at {str(path)!r}{near}: write one, name it, or give a preset with --preprocess "
            f"({', '.join(PRESETS)}); an example: {_EXAMPLE}"
        )
    given = load_yaml(path, "preprocessing", DataError)
    if isinstance(given, dict) and path.suffix.lower() == ".json":
        return _made(_of_config(given, path), path, inputs)
    if not isinstance(given, dict) or (version := given.pop("version", None)) is True or version != 1:
        raise DataError(f"{str(path)!r} is not a preprocessing of version 1; an example: {_EXAMPLE}")
    return _made(given, path, inputs)


def _made(given: dict[Any, Any], path: Path, inputs: tuple[Port, ...]) -> Preprocess:
    """Return the description of given keys, with those of the preset that they name below them."""
    preset = given.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        name = one_line(preset, limit=60)
        raise DataError(f"{str(path)!r}: no preset {name!r}{closest(name, PRESETS)}; there are {', '.join(PRESETS)}")
    if preset is not None:
        given = {**PRESETS[preset], **given}
    known = [one.name for one in fields(Preprocess)]
    values = {}
    for key, value in given.items():
        if key not in known:
            name = str(key)[:60]
            raise DataError(f"{str(path)!r} has the unknown key {name!r}{closest(name, [*known, 'preset'])}")
        try:
            values[key] = _FIELD[key](value)
        except ValueError as error:
            raise DataError(f"{str(path)!r}: {key} is {one_line(value, limit=80)!r}; it takes {error}") from error
    made = Preprocess(**values)
    for key, numbers in (("mean", made.mean), ("std", made.std)):
        if len(numbers) not in (0, 1, made.channels):
            raise DataError(f"{str(path)!r}: {key} has {len(numbers)} numbers for {made.channels} channels")
    if preset is None and made.crop_pct is None and path.suffix.lower() != ".json":
        return made
    return _sized(made, inputs, layout_given="layout" in values)


def _sized(made: Preprocess, inputs: tuple[Port, ...], *, layout_given: bool) -> Preprocess:
    """Return a description with the layout and sizes that the model's input has, and those that `crop_pct` asks for.

    The shorter side is resized to the crop's over `crop_pct`, rounded down, as timm has it.
    """
    shapes = [p.shape for p in inputs if p.shape is not None and len(p.shape) == 4 and made.input in (None, p.name)]
    shape = shapes[0] if len(shapes) == 1 else (None,) * 4
    if not layout_given and shape[3] == made.channels and shape[1] != made.channels:
        made = replace(made, layout="nhwc")
    sides = shape[2:] if made.layout == "nchw" else shape[1:3]
    fixed = tuple(side if isinstance(side, int) else _SIDE for side in sides)
    crop = made.crop or (None if made.resize is not None and made.crop_pct is None else (fixed[0], fixed[1]))
    if made.resize is not None or crop is None:
        return replace(made, crop=crop)
    high, wide = (math.floor(side / (made.crop_pct or 1.0)) for side in crop)
    return replace(made, crop=crop, resize=high if high == wide else (high, wide))


def _of_config(given: dict[Any, Any], path: Path) -> dict[str, Any]:
    """Return the keys of a description that the configuration of a published model stands for."""
    timm = given.get("pretrained_cfg", given)
    if isinstance(timm, dict) and "input_size" in timm:
        return _of_timm(timm, path)
    if "image_mean" in given or "crop_size" in given or "do_resize" in given:
        return _of_transformers(given)
    raise DataError(
        f"{str(path)!r} says nothing of images; give timm's config.json, transformers' preprocessor_config.json, a "
        f"YAML file or a preset ({', '.join(PRESETS)})"
    )


def _of_timm(given: dict[Any, Any], path: Path) -> dict[str, Any]:
    size, mode = given["input_size"], given.get("crop_mode") or "center"
    if not isinstance(size, list) or len(size) != 3 or mode not in ("center", "squash"):
        raise DataError(f"{str(path)!r}: input_size {one_line(size, limit=60)} and crop_mode {mode!r} are not known")
    found = {key: given[key] for key in ("mean", "std", "interpolation") if given.get(key) is not None}
    if found.get("interpolation") == "random":
        del found["interpolation"]
    if mode == "squash":
        return {**found, "resize": size[1:], "crop": size[1:]}
    return {**found, "crop": size[1:], "crop_pct": given.get("crop_pct") or 0.875}


def _of_transformers(given: dict[Any, Any]) -> dict[str, Any]:
    def sides(size: Any) -> Any:
        if not isinstance(size, dict):
            return size
        return size["shortest_edge"] if "shortest_edge" in size else [size.get("height"), size.get("width")]

    found: dict[str, Any] = {}
    if given.get("do_resize", True) and "size" in given:
        found["resize"] = sides(given["size"])
        number = given.get("resample", 2)
        found["interpolation"] = _BY_NUMBER.get(number, number) if isinstance(number, int) else number
    share = given.get("crop_pct")
    if isinstance(share, int | float) and isinstance(found.get("resize"), int):  # as ConvNeXT: resized, then cropped
        found |= {"crop": found["resize"], "resize": int(found["resize"] / share)}
    elif given.get("do_center_crop") and "crop_size" in given:
        found["crop"] = sides(given["crop_size"])
    if given.get("do_rescale", True) and "rescale_factor" in given:
        found["scale"] = given["rescale_factor"]
    elif given.get("do_rescale") is False:
        found["scale"] = 1
    if given.get("do_normalize", True):
        found |= {key: given[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in given}
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a name")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("a list of folder names")
    return tuple(value)


def _one_of(*allowed: str) -> Any:
    def read(value: object) -> object:
        if value not in allowed:
            raise ValueError(" or ".join(allowed))
        return value

    return read


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1 << 16


def _resize(value: Any) -> int | tuple[int, int]:
    if _is_size(value):
        return int(value)
    if isinstance(value, list) and len(value) == 2 and all(map(_is_size, value)):
        return value[0], value[1]
    raise ValueError("pixels of the shorter side, or [height, width]")


def _crop(value: Any) -> tuple[int, int]:
    try:
        size = _resize(value)
    except ValueError:
        raise ValueError("pixels of a square, or [height, width]") from None
    return size if isinstance(size, tuple) else (size, size)


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _LARGEST_NUMBER:
        raise ValueError("a number")
    return float(value)


def _numbers(value: object) -> tuple[float, ...]:
    return tuple(map(_number, value if isinstance(value, list) else [value]))


def _positive(value: object) -> tuple[float, ...]:
    numbers = _numbers(value)
    if min(numbers, default=0.0) <= 0:
        raise ValueError("numbers above 0")
    return numbers


def _share(value: object) -> float:
    number = _number(value)
    if not 0 < number <= 1:
        raise ValueError("a number above 0, at most 1")
    return number


_FIELD = {
    "input": _text,
    "classes": _texts,
    "color": _one_of("rgb", "bgr", "gray"),
    "resize": _resize,
    "crop": _crop,
    "interpolation": _one_of(*INTERPOLATIONS),
    "crop_pct": _share,
    "scale": _number,
    "mean": _numbers,
    "std": _positive,
    "layout": _one_of("nchw", "nhwc"),
}
