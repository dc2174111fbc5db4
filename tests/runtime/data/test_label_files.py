"""Labels in files of their own: every format, by order and by file name, and how a wrong one reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sources import refused
from PIL import Image

from onnxfi.errors import DataError
from onnxfi.runtime.data.label_files import Samples, read_labels
from onnxfi.runtime.data.labels import as_kind
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import Port

X = Port("x", "float32", ("N", 2))
PHOTO = Port("photo", "float32", ("N", 1, 4, 4))
NAN = [float("nan")] * 6
#: An array that claims 8 TB and holds 8 bytes.
HUGE = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}".ljust(117)
    + b"\n"
    + bytes(8)
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, the second twice as large, of which the model sees 4x4 pixels from the middle of 4x8 or 8x4."""
    root = tmp_path / "photos"
    for name, size in (("a.png", (8, 4)), ("b.jpg", (16, 8)), ("sub-c.png", (4, 8))):
        (root / "all").mkdir(parents=True, exist_ok=True)
        Image.new("L", size, 9).save(root / "all" / name)
    (root / "preprocess.yaml").write_text("version: 1\nresize: 4\ncrop: 4\ncolor: gray\n")
    return root


def coco(
    path: Path, *boxes: tuple[int, int, list[float], int], names: tuple[str, ...] = ("a.png", "b.jpg", "sub-c.png")
) -> Path:
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 10 - k, "file_name": name} for k, name in reversed(list(enumerate(names)))],
                "annotations": [
                    {"image_id": 10 - image, "category_id": category, "bbox": box, "iscrowd": crowd}
                    for image, category, box, crowd in boxes
                ],
                "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
            }
        )
    )
    return path


def test_boxes_are_found_by_file_and_brought_to_what_the_model_sees(photos: Path, tmp_path: Path) -> None:
    file = coco(
        tmp_path / "boxes.json",
        (0, 7, [2, 0, 4, 4], 0), (0, 3, [0, 0, 1, 4], 0), (1, 3, [0, 0, 16, 8], 1),
    )  # fmt: skip
    found = open_data(photos, [PHOTO], labels=file)
    assert found.images is not None and found.images.names == ("all/a.png", "all/b.jpg", "all/sub-c.png")
    assert found.labels is not None
    wanted = [[[1, 0, 0, 4, 4, 0]], [[0, 0, 0, 4, 4, 1]], [NAN]]  # 8x4 is cropped by 2 at each side: one box is gone
    np.testing.assert_array_equal(found.labels, wanted)
    np.testing.assert_array_equal(as_kind("boxes", found.labels), wanted)
    assert found.description == f"3 labelled images in '{photos}', labels of '{file}'"


def test_boxes_of_arrays_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = coco(tmp_path / "boxes.json", (0, 3, [1, 2, 3, 4], 0), names=("p", "q"))
    found = open_data({"x": np.zeros((2, 2), np.float32)}, [X], labels=file)
    np.testing.assert_array_equal(found.labels, [[NAN], [[0, 1, 2, 4, 6, 0]]])  # the file lists q first


def test_masks_are_resized_as_the_images_are(photos: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    wide = np.arange(32).reshape(4, 8).astype(np.uint8)
    Image.fromarray(wide).save(masks / "a.png")
    Image.fromarray(wide.repeat(2, 0).repeat(2, 1)).save(masks / "b.png")
    Image.fromarray(np.full((8, 4), 255, np.uint8)).save(masks / "sub-c.png")
    found = open_data(photos, [PHOTO], labels=masks)
    assert found.labels is not None and found.labels.dtype == np.int16
    np.testing.assert_array_equal(found.labels[0], wide[:, 2:6])
    np.testing.assert_array_equal(found.labels[1], wide[:, 2:6])
    np.testing.assert_array_equal(as_kind("masks", found.labels)[2], -1)
    Image.new("L", (4, 4)).save(masks / "b.png")
    assert "has 4x4 pixels, and its image 16x8" in refused(photos, PHOTO, labels=masks)
    (masks / "b.png").unlink()
    assert "2 files, and none is sample 'all/b.png'" in refused(photos, PHOTO, labels=masks)


def test_masks_of_arrays_come_in_the_order_of_numbers(tmp_path: Path) -> None:
    for number, size in ((10, (2, 2)), (9, (3, 1))):
        Image.new("L", size, number).save(tmp_path / f"{number}.png")
    data = {"x": np.zeros((2, 2), np.float32)}
    np.testing.assert_array_equal(
        open_data(data, [X], labels=tmp_path).labels, [[[9, 9, 9], [-1, -1, -1]], [[10, 10, -1], [10, 10, -1]]]
    )
    assert open_data(data, [X], labels=tmp_path, limit=1).labels.shape == (1, 1, 3)  # type: ignore[union-attr]
    Image.new("RGB", (2, 2)).save(tmp_path / "9.png")
    assert "has mode RGB; a mask has a byte a pixel" in refused(data, X, labels=tmp_path)
    assert "2 masks (.png)" in refused({"x": np.zeros((5, 2), np.float32)}, X, labels=tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("t.txt", "cat\n\nä b\r\n", ["cat", "", "ä b"]),
        ("t.csv", "price\n1\n-2\n3\n", [1, -2, 3]),
        ("t.csv", "1,0.5\n-2,1e3\n3,0\n", [[1, 0.5], [-2, 1e3], [3, 0]]),
    ],
)
def test_lines_are_samples(name: str, text: str, wanted: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, newline="")
    found = read_labels(tmp_path / name, Samples(3))
    assert found.tolist() == wanted
    assert name != "t.csv" or found.dtype == (np.int64 if found.ndim == 1 else np.float64)
    with pytest.raises(DataError, match="3 labels for 4 samples"):
        read_labels(tmp_path / name, Samples(4))


def test_lines_may_name_their_image(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("sub-c.png\tthree\na.png\tone\tand\nall/b.jpg\ttwo\nmore.png\tfour\n")
    found = open_data(photos, [PHOTO], labels=tmp_path / "t.txt")
    assert found.labels is not None and found.labels.tolist() == ["one\tand", "two", "three"]
    (tmp_path / "t.csv").write_text("file,value\nb.jpg,2\na.png,1\nsub-c.png,3.5\n")
    found = open_data(photos, [PHOTO], labels=str(tmp_path / "t.csv"), limit=2)
    assert found.labels is not None and found.labels.tolist() == [1, 2]


def test_numpys_files_and_other_arrays_of_the_data(tmp_path: Path) -> None:
    x = np.zeros((3, 2), np.float32)
    np.savez(tmp_path / "d.npz", x=x, labels=[0, 1, 2], other=[2, 1, 0], masks=np.zeros((3, 4, 4), np.uint8))
    np.savez(tmp_path / "plain.npz", x=x, labels=[0, 1, 2])
    np.savez(tmp_path / "two.npz", one=[5, 6, 7], labels=[1, 1, 1])
    np.save(tmp_path / "l.npy", np.array([[0.5], [1], [2]]))
    named: dict[str, list[Any]] = {
        "other": [2, 1, 0], str(tmp_path / "two.npz"): [1, 1, 1], f"{tmp_path / 'two.npz'}:one": [5, 6, 7],
        str(tmp_path / "l.npy"): [[0.5], [1.0], [2.0]],
    }  # fmt: skip
    for labels, wanted in named.items():
        found = open_data(tmp_path / ("d.npz" if labels == "other" else "plain.npz"), [X], labels=labels)
        assert found.labels is not None and found.labels.tolist() == wanted
    for labels, says in {
        "othr": "no array 'othr' of labels, and no such file; known: 'x'",
        "gone.json": "no labels at 'gone.json'; give an .npz or .npy, COCO .json",
        f"{tmp_path / 'two.npz'}:on": "has no array 'on'; closest: 'one'",
        str(tmp_path / "l.npy") + ":on": "no labels at",
    }.items():
        assert says in refused({"x": x}, X, labels=labels)
    assert "say nothing of synthetic inputs" in refused(None, X, labels=tmp_path / "l.npy")


def test_a_name_says_nothing_of_a_folder(photos: Path) -> None:
    assert "no labels at 'classes'; of files in a folder give" in refused(photos, PHOTO, labels="classes")


def broken(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        found = json.loads(coco(path, (0, 3, [0, 0, 1, 1], 0)).read_text())
        change(found)
        path.write_text(json.dumps(found))

    return write


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("categories"), "no 'categories'"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2]), "not enough values"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, -3, 4]), "the box [1, 2, -3, 4] of image 10 is none"),
        (lambda d: d["annotations"][0].update(image_id=99), "no 99"),
        (lambda d: d["annotations"][0].update(category_id=4), "no 4"),
        (lambda d: d["images"].append(d["images"][0]), "an id is given twice"),
    ],
)
def test_a_coco_file_that_is_none(change: Callable[[dict[str, Any]], Any], says: str, tmp_path: Path) -> None:
    broken(change)(tmp_path / "c.json")
    with pytest.raises(DataError) as caught:
        read_labels(tmp_path / "c.json", Samples(3))
    assert "is no COCO JSON of boxes" in str(caught.value) and says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.json", b"[" * 100_000, "is no COCO JSON"),
        ("t.txt", b"\xff\xfe\x00", "is no text in UTF-8"),
        ("t.csv", b"a\n", "holds no rows of numbers"),
        ("t.csv", b"1,2\n3\n", "row 2 holds no 2 numbers: '3'"),
        ("t.csv", b"f.png,2\n", "names files, and the samples are none"),
        ("l.npy", b"no", "is no readable .npy array"),
        ("l.npy", HUGE, "claims int64 of shape (1000000000000,) but holds 8 bytes"),
        ("l.pkl", b"no", "have the unknown ending '.pkl'"),
    ],
)
def test_files_that_are_no_labels(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_labels(tmp_path / name, Samples(1))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_pickled_labels_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"is no readable .npy array"):
        read_labels(tmp_path / "l.npy", Samples(1))
