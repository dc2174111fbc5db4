"""Folders of images: pixels, sizes, classes, and everything that is refused."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sources import describe, joined, refused
from numpy.typing import NDArray
from PIL import Image

from onnxfi.errors import DataError
from onnxfi.runtime.data.batches import Batch
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import Port

X = Port("x", "float32", ("N", 3))


IMAGE = Port("image", "float32", ("N", 3, 4, 4))


ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)


def test_preprocessing_is_for_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ROWS)
    for spec in (None, tmp_path / "d.npz", {"x": ROWS}):
        assert refused(spec, X, preprocess="p.yaml").startswith("preprocessing is for a folder of images")


def images(root: Path, port: Port = IMAGE, **options: Any) -> NDArray[Any]:
    found = open_data(root, [port], **options)
    return joined(found, found.layout.fixed or 2)[port.name]


def test_images_are_bytes_over_255_class_by_class_in_turn(photos: Path) -> None:
    found = open_data(photos, [IMAGE])
    first = np.arange(48).reshape(4, 4, 3).transpose(2, 0, 1)
    expected = np.stack([first, first + 100, first + 50]).astype(np.float64) / 255
    np.testing.assert_allclose(joined(found, 2)["image"], expected, rtol=1e-6)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 0]
    assert found.description == f"3 images of 2 classes in '{photos}'"


def test_images_and_an_archive_of_the_same_have_one_digest(photos: Path) -> None:
    found = open_data(photos, [IMAGE])
    again: dict[str, Any] = {"image": joined(found, 3)["image"], "labels": found.labels}
    assert open_data(again, [IMAGE]).digest == found.digest


def test_limit_takes_images_of_every_class(photos: Path) -> None:
    found = open_data(photos, [IMAGE], limit=2)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_mean_and_std_are_per_channel(dtype: str, photos: Path) -> None:
    describe(photos, "scale: 0.5\nmean: [1, 2, 3]\nstd: [1, 2, 4]")
    got = images(photos, Port("image", dtype, ("N", 3, 4, 4)))[0, :, 0, 1]
    np.testing.assert_array_equal(got.astype(np.float64), [(1.5 - 1) / 1, (2.0 - 2) / 2, (2.5 - 3) / 4])


def test_colors_and_layouts(photos: Path) -> None:
    rgb = images(photos)
    describe(photos, "color: bgr")
    np.testing.assert_array_equal(images(photos), rgb[:, ::-1])
    describe(photos, "layout: nhwc")
    np.testing.assert_array_equal(images(photos, Port("image", "float32", ("N", 4, 4, 3))), rgb.transpose(0, 2, 3, 1))
    describe(photos, "color: gray\nmean: 0\nstd: 1")
    gray = images(photos, Port("image", "float32", ("N", 1, 4, 4)))
    np.testing.assert_allclose(gray[:, 0], np.tensordot([0.299, 0.587, 0.114], rgb, (0, 1)), atol=1 / 255)


def test_an_input_of_bytes_gets_bytes(photos: Path) -> None:
    port = Port("image", "uint8", ("N", 3, 4, 4))
    assert images(photos, port)[0, :, 0, 0].tolist() == [0, 1, 2]
    describe(photos, "scale: 1")
    assert refused(photos, port).endswith("takes bytes: leave out scale, mean and std")


def test_resize_keeps_the_ratio_and_crop_takes_the_centre(photos: Path) -> None:
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 255
    for file in photos.glob("*/*.png"):
        Image.fromarray(wide).save(file)
    describe(photos, "crop: 4")
    assert (images(photos) == 1).all()
    describe(photos, "resize: 8\ncrop: [8, 6]")
    assert (images(photos, Port("image", "float32", ("N", 3, 8, 6)))[..., 1:-1] == 1).all()
    describe(photos, "resize: [2, 6]")
    assert images(photos, Port("image", "float32", ("N", 3, "H", "W"))).shape == (3, 3, 2, 6)


def test_the_batch_axis_and_a_fixed_batch(photos: Path) -> None:
    batches = list(open_data(photos, [Port("image", "float32", (2, 3, 4, 4))]).batches(2))
    assert [(batch.size, batch.valid) for batch in batches] == [(2, 2), (2, 1)]
    np.testing.assert_array_equal(batches[1].feeds["image"][0], batches[1].feeds["image"][1])


def test_classes_give_the_labels(photos: Path) -> None:
    describe(photos, "classes: [owl, dog, cat]")
    found = open_data(photos, [IMAGE])
    assert found.labels is not None
    assert found.labels.tolist() == [1, 2, 2]
    describe(photos, "classes: [dogs, cat]")
    assert refused(photos, IMAGE) == f"folder '{photos / 'dog'}' is none of the classes; closest: 'dogs'"


def test_the_description_may_lie_elsewhere(photos: Path, tmp_path: Path) -> None:
    (photos / "preprocess.yaml").rename(tmp_path / "p.yml")
    assert open_data(photos, [IMAGE], preprocess=tmp_path / "p.yml").samples == 3
    assert refused(photos, IMAGE).startswith(f"no preprocessing at '{photos / 'preprocess.yaml'}': write one")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resise: 4", "unknown field 'resise'; closest: 'resize'"),
        ("resize: 0", "resize is 0; it takes pixels of the shorter side, or [height, width]"),
        ("resize: true", "resize is True; it takes pixels of the shorter side, or [height, width]"),
        ("resize: [4]", "resize is [4]; it takes pixels of the shorter side, or [height, width]"),
        ("crop: big", "crop is 'big'; it takes pixels of a square, or [height, width]"),
        ("crop: 100000", "crop is 100000; it takes pixels of a square, or [height, width]"),
        ("color: red", "unknown color 'red'; known: 'rgb', 'bgr', 'gray'"),
        ("layout: chw", "unknown layout 'chw'; closest: 'nchw', 'nhwc'"),
        ("scale: .nan", "scale is nan; it takes a number"),
        ("mean: [a, b, c]", "mean is ['a', 'b', 'c']; it takes a number"),
        ("mean: [1, 2]", "mean has 2 numbers for 3 channels"),
        ("std: 0", "std is 0; it takes numbers above 0"),
        ("input: 5", "input is 5; it takes a name"),
        ("input: imago", "the model has no input 'imago'; closest: 'image'"),
        ("classes: cat", "classes is 'cat'; it takes a list of folder names"),
        ("version: 2", "is not a readable YAML file: line 2: 'version' is given twice"),
        ("- 1", "is not a readable YAML file: "),
        ("mean: !!python/object/apply:os.system [ls]", "is not a readable YAML file: "),
        ("mean: " + "[" * 5000, "is not a readable YAML file: "),
    ],
)
def test_a_description_that_is_wrong_names_the_key(text: str, says: str, photos: Path) -> None:
    describe(photos, text)
    line = refused(photos, IMAGE)
    assert str(photos / "preprocess.yaml") in line
    assert says.replace("''", "'") in line.replace('"', "'")


@pytest.mark.parametrize("text", ["", "- 1", "5", "resize: 4", "version: x", "version: 2", "version: true"])
def test_a_description_without_its_version(text: str, photos: Path) -> None:
    (photos / "preprocess.yaml").write_text(text)
    said = refused(photos, IMAGE)
    assert (
        "holds no fields; it takes version" in said
        or "version is missing; add version: 1" in said
        or ("this onnxfi reads version 1" in said)
    )


def test_a_file_that_is_no_image_is_named(photos: Path) -> None:
    (photos / "cat" / "notes.txt").write_text("no image")
    assert refused(photos, IMAGE).startswith(f"'{photos / 'cat' / 'notes.txt'}' is not a readable image: ")


def test_a_truncated_image_is_named_when_it_is_read(photos: Path) -> None:
    file = photos / "dog" / "a.png"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a\.png' is not a readable image: "):
        list(open_data(photos, [IMAGE]).batches(3))


def test_hidden_files_are_passed_over(photos: Path) -> None:
    (photos / ".cache").mkdir()
    (photos / ".DS_Store").write_text("")
    (photos / "cat" / ".DS_Store").write_text("")
    assert open_data(photos, [IMAGE]).samples == 3


def test_what_does_not_belong_is_named(photos: Path) -> None:
    (photos / "README.md").write_text("pets")
    assert "README.md' lies beside the class folders; move it into one, or away" in refused(photos, IMAGE)
    (photos / "README.md").unlink()
    (photos / "cat" / "more").mkdir()
    assert refused(photos, IMAGE) == f"'{photos / 'cat' / 'more'}' is not a file"


def test_links_stay_within_the_folder(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "c.png").symlink_to(photos / "dog" / "a.png")
    assert open_data(photos, [IMAGE]).samples == 4
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    (photos / "cat" / "d.png").symlink_to(tmp_path / "outside.png")
    assert "d.png' links to a place outside" in refused(photos, IMAGE)
    (photos / "cat" / "d.png").unlink()
    (photos / "cat" / "loop.png").symlink_to(photos / "cat" / "loop.png")
    assert refused(photos, IMAGE) == f"'{photos / 'cat' / 'loop.png'}' is not a file"
    (photos / "cat" / "loop.png").unlink()
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "folder" / "e.png")
    (photos / "emu").symlink_to(tmp_path / "folder")
    assert "e.png' links to a place outside" in refused(photos, IMAGE)


def test_an_empty_folder(tmp_path: Path) -> None:
    describe(tmp_path)
    assert refused(tmp_path, IMAGE).startswith(f"no images in '{tmp_path}': it holds images, or one folder per class")


def test_images_of_different_sizes(photos: Path) -> None:
    Image.new("RGB", (5, 4)).save(photos / "dog" / "a.png")
    line = refused(photos, Port("image", "float32", ("N", 3, "H", "W")))
    assert line == (
        f"'{photos / 'dog' / 'a.png'}' becomes 4x5 and '{photos / 'cat' / 'a.png'}' 4x4: "
        "set resize or crop in the preprocessing"
    )
    assert "becomes [3,4,5], which does not fit input 'image' (float32 [N,3,4,4]): set resize" in refused(photos, IMAGE)
    describe(photos, "crop: 5")
    assert refused(photos, IMAGE).endswith("is 4x4 where the crop takes 5x5: set resize")


def test_deep_pixels_are_refused(photos: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(photos / "dog" / "a.png")
    assert "has pixels of more than 8 bits (mode I" in refused(photos, IMAGE)


@pytest.mark.parametrize("most", [10, 3], ids=["warning", "error"])
def test_an_image_of_too_many_pixels_is_refused(most: int, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    assert "is not a readable image: Image size (16 pixels) exceeds limit" in refused(photos, IMAGE)


@pytest.mark.parametrize(
    ("ports", "says"),
    [
        ([X], "images feed one input of 4 dimensions, named by `input:`; the model has 'x' (float32 [N,3])"),
        ([IMAGE, Port("b", "float32", ("N", 3, 4, 4))], "images feed one input of 4 dimensions"),
        ([IMAGE, X], "a folder of images feeds 'image' alone, and the model also takes 'x'"),
        ([], "the model has none"),
    ],
)
def test_models_that_images_cannot_feed(ports: list[Port], says: str, photos: Path) -> None:
    assert says in refused(photos, *ports)


def test_images_without_pillow_say_what_to_install(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "PIL":
            raise ImportError(name)
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert refused(photos, IMAGE) == "reading images needs Pillow: pip install 'onnxfi[images]'"


@pytest.mark.parametrize("format", ["EPS", "PDF", "ICO", "TGA", "PCX"])
def test_formats_beside_the_usual_ones_are_not_opened(format: str, photos: Path) -> None:
    Image.new("RGB", (4, 4)).save(photos / "cat" / "a.png", format)
    line = refused(photos, IMAGE)
    assert line.startswith(f"'{photos / 'cat' / 'a.png'}' is not a readable image: ")
    assert line.endswith("BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP are read")


@pytest.mark.parametrize("format", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_the_usual_formats_are_opened_without_an_ending(format: str, photos: Path) -> None:
    Image.new("RGB", (4, 4), "white").save(photos / "cat" / "none", format)
    assert images(photos).shape == (4, 3, 4, 4)


OPEN_IMAGE = Port("image", "float32", ("N", 3, "H", "W"))


@pytest.mark.parametrize(
    ("size", "text", "says"),
    [
        ((4, 4), "resize: 65536", "a.png' becomes 65536x65536, for the model 65536x65536; at most 67,108,864 and"),
        (
            (4, 4),
            "resize: 65536\ncrop: 4",
            "at most 67,108,864 and 16,777,216 pixels are allowed: set a smaller resize",
        ),
        ((4000, 1), "resize: 224", "a.png' becomes 224x896000, for the model 224x896000"),
        ((4, 4), "resize: 5000", "a.png' becomes 5000x5000, for the model 5000x5000"),
        ((9000, 9000), "crop: 4", "a.png' has 81,000,000 pixels; at most 67,108,864 are read"),
    ],
)
def test_sizes_that_take_all_memory_are_one_line(size: tuple[int, int], text: str, says: str, photos: Path) -> None:
    Image.new("1", size).save(photos / "cat" / "a.png")
    describe(photos, text)
    assert says in refused(photos, OPEN_IMAGE)


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name / "a.png")
    describe(root)
    return root


def test_folders_named_by_numbers_are_those_classes(tmp_path: Path) -> None:
    found = open_data(folders(tmp_path, *map(str, range(12))), [IMAGE])
    assert found.labels is not None and sorted(found.labels.tolist()) == list(range(12)) and found.classes is None
    some = open_data(folders(tmp_path / "some", "7", "10", "003"), [IMAGE])
    assert some.labels is not None and sorted(some.labels.tolist()) == [3, 7, 10]
    assert refused(folders(tmp_path / "twice", "1", "01"), IMAGE).endswith("name one class index; keep one")


def test_folders_whose_order_is_not_sure_are_listed_first(tmp_path: Path) -> None:
    root = folders(tmp_path, *(f"class {number}" for number in range(11)))
    assert "'class 0', 'class 1', … in" in refused(root, IMAGE) and "list them in `classes:`" in refused(root, IMAGE)
    describe(root, f"classes: {[f'class {number}' for number in range(11)]}")
    found = open_data(root, [IMAGE])
    assert found.labels is not None and found.labels.tolist() == list(range(11)) and found.classes == 11
    padded = open_data(folders(tmp_path / "padded", *(f"n{number:04}" for number in (9, 10, 100))), [IMAGE])
    assert padded.labels is not None and padded.labels.tolist() == [0, 1, 2] and padded.classes == 3


def test_one_folder_gives_no_classes(tmp_path: Path) -> None:
    found = open_data(folders(tmp_path, "images"), [IMAGE])
    assert found.labels is None and found.description == f"1 unlabelled images in '{tmp_path}'"


def test_a_flat_folder_holds_images_of_no_known_class(photos: Path) -> None:
    with_folders = joined(open_data(photos, [IMAGE]), 3)["image"]
    for k, file in enumerate(sorted(photos.rglob("*.png"))):
        file.rename(photos / f"{k}.png")
    for folder in [path for path in photos.iterdir() if path.is_dir()]:
        folder.rmdir()
    found = open_data(photos, [IMAGE])
    assert found.labels is None and found.classes is None
    assert found.description == f"3 unlabelled images in '{photos}'"
    seen = joined(found, 3)["image"]
    assert sorted(map(bytes, seen)) == sorted(map(bytes, with_folders))
    listed = photos.parent / "labels.csv"
    listed.write_text("0.png,2\n1.png,0\n2.png,1\n")
    assert open_data(photos, [IMAGE], labels=listed).labels.tolist() == [2, 0, 1]
    (photos / "notes.txt").write_text("no image")
    assert "notes.txt' is not a readable image" in refused(photos, IMAGE)


def test_a_list_of_the_models_classes_gives_folders_their_numbers(photos: Path) -> None:
    names = sorted(path.name for path in photos.iterdir() if path.is_dir())
    (photos / "classes.txt").write_text("\n".join(["zebra", *reversed(names), "ape"]) + "\n")
    found = open_data(photos, [IMAGE])
    assert found.labels is not None
    assert sorted(found.labels.tolist()) == [1, 2, 2] and found.classes == 4
    (photos / "classes.txt").write_text(f"{names[0]}\nzebra\n")
    assert f"{names[1]}' is none of the classes" in refused(photos, IMAGE)
    (photos / "classes.txt").write_text("zebra\nzebra\n")
    assert "names the class 'zebra' twice" in refused(photos, IMAGE)
    (photos / "classes.txt").write_bytes(b"\xff\xfe")
    assert "is no text in UTF-8" in refused(photos, IMAGE)


def test_images_are_read_batch_by_batch(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_data(photos, [IMAGE])
    read: list[Path] = []
    convert = Image.Image.convert

    def counting(self: Image.Image, mode: str) -> Image.Image:
        read.append(Path())
        return convert(self, mode)

    monkeypatch.setattr(Image.Image, "convert", counting)
    batches: Iterator[Batch] = found.batches(1)
    next(batches)
    assert len(read) == 1
    assert found.digest == found.digest
    assert len(read) == 4
