"""From an image file to a model's input.

A YAML description, a preset by name, or the configuration that timm and transformers keep beside a model;
docs/how-to/data.md describes all for users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnxfi.errors import DataError, closest
from onnxfi.file_fields import Fields, is_number
from onnxfi.runtime.engine.ports import Port, one_line

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


_FIELDS = tuple(one.name for one in fields(Preprocess))


def read_preprocess(path: Path, inputs: tuple[Port, ...] = ()) -> Preprocess:
    """Read a description for a model with these inputs; `DataError` names the file and the key.

    `path` is a YAML file, the name of a preset, timm's `config.json`, or `preprocessor_config.json` of transformers.

    >>> read_preprocess(Path("imagenet"), (Port("x", "float32", ("N", 3, 240, 240)),)).resize
    274
    """
    from onnxfi.runtime.data.untrusted_yaml import load_yaml

    if not path.is_file():
        if str(path) in PRESETS:
            return _made(Fields({"preset": str(path)}, str(path), DataError), path, inputs)
        near = closest(str(path), PRESETS) if str(path) == path.stem else ""
        raise DataError(
            f"no preprocessing at {str(path)!r}{near}: write one, name it, or give a preset with --preprocess "
            f"({', '.join(PRESETS)}); an example: {_EXAMPLE}"
        )
    given, where = load_yaml(path, "preprocessing", DataError), f"preprocessing {str(path)!r}"
    if isinstance(given, dict) and path.suffix.lower() == ".json":
        return _made(Fields(_of_config(given, path), where, DataError), path, inputs)
    return _made(Fields.of(given, ("version", "preset", *_FIELDS), where, DataError, version=1), path, inputs)


def _made(given: Fields, path: Path, inputs: tuple[Port, ...]) -> Preprocess:
    """Return the description of given fields, with those of the preset that they name below them."""
    preset = given.one_of("preset", PRESETS, default=None)
    if preset is not None:
        given = replace(given, values={**PRESETS[preset], **given.values})
    crop = given.take("crop", _is_size, "pixels of a square, or [height, width]", None)
    resize = given.take("resize", _is_size, "pixels of the shorter side, or [height, width]", None)
    share = given.take("crop_pct", lambda value: is_number(value, 0, 1) and value, "a number above 0, at most 1", None)
    scale = given.take("scale", is_number, "a number", None)
    made = Preprocess(
        input=given.text("input", "a name", default=None),
        classes=given.texts("classes", "a list of folder names", ()),
        color=given.one_of("color", ("rgb", "bgr", "gray"), "rgb"),
        resize=(resize[0], resize[1]) if isinstance(resize, list) else resize,
        interpolation=given.one_of("interpolation", INTERPOLATIONS, "bilinear"),
        crop=crop and ((crop[0], crop[1]) if isinstance(crop, list) else (crop, crop)),
        crop_pct=None if share is None else float(share),
        scale=None if scale is None else float(scale),
        mean=_numbers(given, "mean", is_number, "a number for each channel, or one"),
        std=_numbers(given, "std", lambda value: is_number(value) and value > 0, "numbers above 0"),
        layout=given.one_of("layout", ("nchw", "nhwc"), "nchw"),
    )
    for key, numbers in (("mean", made.mean), ("std", made.std)):
        if len(numbers) not in (0, 1, made.channels):
            raise given.fail(f"{key} has {len(numbers)} numbers for {made.channels} channels")
    if preset is None and made.crop_pct is None and path.suffix.lower() != ".json":
        return made
    return _sized(made, inputs, layout_given="layout" in given)


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


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(isinstance(side, int) and is_number(side, 1, 1 << 16) for side in sides)


def _numbers(given: Fields, name: str, fits: Callable[[Any], bool], allowed: str) -> tuple[float, ...]:
    def fit(value: Any) -> bool:
        return value != [] and all(map(fits, value if isinstance(value, list) else [value]))

    listed = given.take(name, fit, allowed, [])
    return tuple(map(float, listed if isinstance(listed, list) else [listed]))
