"""Descriptions of images: presets, the files of timm and transformers, and the filters, beside Pillow and torchvision."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sources import joined, refused
from PIL import Image

from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.data.preprocess import INTERPOLATIONS, PRESETS, Preprocess, read_preprocess
from onnxfi.runtime.engine.ports import Port

SMALL = Port("x", "float32", ("N", 3, 24, 24))
LAST = Port("x", "float32", ("N", 24, 24, 3))
OPEN = Port("x", "float32", ("N", 3, "H", "W"))
TIMM = {
    "architecture": "resnet18",
    "num_classes": 1000,
    "pretrained_cfg": {
        "input_size": [3, 24, 24], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center",
        "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "first_conv": "conv1",
    },
}  # fmt: skip


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A folder of one image of random pixels, of a size that no filter divides evenly."""
    (tmp_path / "noise").mkdir()
    pixels = np.random.default_rng(3).integers(0, 256, (61, 83, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise" / "a.png")
    return tmp_path / "noise"


def seen(folder: Path, port: Port = SMALL, **options: Any) -> np.ndarray[Any, Any]:
    return joined(open_data(folder, [port], **options), 1)["x"][0]


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_each_filter_is_that_of_pillow(name: str, noise: Path) -> None:
    (noise / "preprocess.yaml").write_text(f"version: 1\nresize: [24, 24]\ninterpolation: {name}\n")
    with Image.open(noise / "a.png") as image:
        expected = np.asarray(image.resize((24, 24), Image.Resampling[name.upper()])) / 255
    np.testing.assert_allclose(seen(noise), expected.transpose(2, 0, 1), rtol=1e-6)


def test_a_smaller_image_is_the_mean_of_what_it_covers(noise: Path) -> None:
    """Antialiased: a box filter to a whole fraction is a mean of blocks, worked out by numpy."""
    blocks = np.random.default_rng(4).integers(0, 256, (96, 72, 3), np.uint8)
    Image.fromarray(blocks).save(noise / "a.png")
    (noise / "preprocess.yaml").write_text("version: 1\nresize: [24, 24]\ninterpolation: box\n")
    means = blocks.reshape(24, 4, 24, 3, 3).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(seen(noise), means.transpose(2, 0, 1), atol=1.01 / 255)  # two passes, each rounded


def test_imagenet_is_what_torchvision_documents(noise: Path) -> None:
    """Shorter side to 256/224 of the crop, bilinear, centre crop, then mean and deviation."""
    with Image.open(noise / "a.png") as image:
        wide = image.resize((int(27 * 83 / 61), 27), Image.Resampling.BILINEAR)
    left, top = round((wide.width - 24) / 2), round((27 - 24) / 2)
    pixels = np.asarray(wide.crop((left, top, left + 24, top + 24))) / 255
    expected = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    found = seen(noise, preprocess="imagenet")
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(seen(noise, LAST, preprocess="imagenet"), found.transpose(1, 2, 0))


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_fits_the_input(name: str, noise: Path) -> None:
    assert seen(noise, preprocess=name).shape == (3, 24, 24)
    assert seen(noise, OPEN, preprocess=name).shape == (3, 224, 224)


def test_keys_of_a_description_replace_those_of_its_preset(noise: Path) -> None:
    file = noise / "preprocess.yaml"
    file.write_text("version: 1\npreset: timm\ncrop_pct: 0.5\nmean: 0\nstd: 1\n")
    how = read_preprocess(file, (SMALL,))
    assert how == Preprocess(crop=(24, 24), resize=48, interpolation="bicubic", crop_pct=0.5, mean=(0.0,), std=(1.0,))
    file.write_text("version: 1\npreset: imagenet\nresize: 26\n")
    assert (how := read_preprocess(file, (SMALL,))).resize == 26 and how.crop == (24, 24)


@pytest.mark.parametrize("nested", [True, False])
def test_the_file_of_timm(nested: bool, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TIMM if nested else TIMM["pretrained_cfg"]))
    how = read_preprocess(file, (SMALL,))
    assert (how.resize, how.crop, how.interpolation) == (math.floor(24 / 0.95), (24, 24), "bicubic")
    assert (how.mean, how.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    squashed = {**TIMM["pretrained_cfg"], "crop_mode": "squash"}  # type: ignore[dict-item]
    file.write_text(json.dumps(squashed))
    assert read_preprocess(file, (SMALL,)).resize == (24, 24)


@pytest.mark.parametrize(
    ("given", "resize", "crop", "scale", "mean"),
    [
        ({"size": {"height": 24, "width": 20}, "resample": 3, "image_mean": [0.5] * 3}, (24, 20), None, None, (0.5,) * 3),
        (
            {"size": {"shortest_edge": 28}, "do_center_crop": True, "crop_size": {"height": 24, "width": 24}},
            28, (24, 24), None, (),
        ),
        ({"size": {"shortest_edge": 24}, "crop_pct": 0.875, "image_mean": [0.1] * 3}, 27, (24, 24), None, (0.1,) * 3),
        ({"do_resize": False, "rescale_factor": 0.5, "do_normalize": False, "image_mean": [0.1] * 3}, None, None, 0.5, ()),
    ],
)  # fmt: skip
def test_the_file_of_transformers(
    given: dict[str, Any], resize: Any, crop: Any, scale: Any, mean: Any, tmp_path: Path
) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"do_resize": True, **given}))
    how = read_preprocess(file, (OPEN,))
    crop = crop or ((224, 224) if resize is None else None)
    assert (how.crop, how.scale, how.mean) == (crop, scale, mean)
    assert how.resize == (224 if resize is None else resize)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.yaml", "version: 1\npreset: imagnet", "unknown preset 'imagnet'; closest: 'imagenet'"),
        ("p.yaml", "version: 1\ncrop_pct: 2", "crop_pct is 2; it takes a number above 0, at most 1"),
        (
            "p.yaml",
            "version: 1\ninterpolation: spline",
            "unknown interpolation 'spline'; closest: 'bilinear'",
        ),
        ("p.yaml", "version: 1\nstd: []", "std is []; it takes numbers above 0"),
        ("config.json", '{"a": 1}', "says nothing of images; give timm's config.json"),
        ("config.json", '{"input_size": 3}', "input_size 3 and crop_mode 'center' are not known"),
        ("config.json", "[1", "is not a readable YAML file"),
    ],
)
def test_what_is_wrong_is_named(name: str, text: str, says: str, noise: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert says in refused(noise, SMALL, preprocess=tmp_path / name)


def test_a_preset_that_is_none_names_those_that_are(noise: Path) -> None:
    said = refused(noise, SMALL, preprocess="imagnet")
    assert "closest: 'imagenet'" in said and "(imagenet, timm, inception, clip, caffe)" in said


def test_torchvision_gives_the_same_pixels(noise: Path) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    chain = transforms.Compose(
        [
            transforms.Resize(27),
            transforms.CenterCrop(24),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    with Image.open(noise / "a.png") as image:
        expected = chain(image.convert("RGB")).numpy()
    np.testing.assert_allclose(seen(noise, preprocess="imagenet"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 24), ("vit_tiny_patch16_224", 224), ("mobilenetv3_small_100", 24)]
)
def test_timm_gives_the_same_pixels(name: str, size: int, noise: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    config = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    config["input_size"] = (3, size, size)
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": config}))
    with Image.open(noise / "a.png") as image:
        expected = timm.data.create_transform(**config, is_training=False)(image.convert("RGB")).numpy()
    found = seen(noise, Port("x", "float32", ("N", 3, size, size)), preprocess=tmp_path / "config.json")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
