"""Box formats: the same boxes, written as each detector puts them out, are read as the same boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import TIMES

from onnxfi.errors import DataError, InputError
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Array
from onnxfi.tasks.answers import Floats
from onnxfi.tasks.kinds.box_formats import FORMATS, BoxFormat, format_of, roles

#: Three samples: two boxes, none, one; x1, y1, x2, y2, score, class. No two overlap.
BOXES = (
    np.array([[10, 20, 30, 60, 0.9, 1], [40, 10, 60, 20, 0.5, 0]], np.float64),
    np.zeros((0, 6)),
    np.array([[0, 0, 8, 8, 0.75, 2]], np.float64),
)
CLASSES, SIDE = 3, 64


def centres(boxes: Floats) -> Floats:
    low, high = boxes[:, :2], boxes[:, 2:4]
    return np.concatenate([(low + high) / 2, high - low], axis=1)


def heads(first: int) -> Array:
    """A row a cell: centre, size, the score of an object where there is one, and the scores of the classes."""
    made = np.zeros((3, 9, first + CLASSES), np.float32)
    for cells, boxes in zip(made, BOXES, strict=True):
        for cell, box, centre in zip(cells[4:], boxes, centres(boxes), strict=False):
            cell[:4], cell[4:first], cell[first + int(box[5])] = centre, 1.0, box[4]
    return made


def padded(most: int = 4) -> dict[str, Array]:
    found = {"boxes": np.zeros((3, most, 4)), "scores": np.zeros((3, most)), "classes": np.zeros((3, most))}
    for k, boxes in enumerate(BOXES):
        n = len(boxes)
        found["boxes"][k, :n], found["scores"][k, :n], found["classes"][k, :n] = boxes[:, :4], boxes[:, 4], boxes[:, 5]
    return {name: array.astype(np.float32) for name, array in found.items()}


def ssd() -> dict[str, Array]:
    scores = np.zeros((3, 4, 1 + CLASSES), np.float32)
    for k, boxes in enumerate(BOXES):
        for n, box in enumerate(boxes):
            scores[k, n, 1 + int(box[5])] = box[4]
    return {"boxes": padded()["boxes"], "scores": scores}


def tensorflow() -> dict[str, Array]:
    made = padded()
    return {
        "detection_boxes": made["boxes"][:, :, [1, 0, 3, 2]] / SIDE, "detection_scores": made["scores"],
        "detection_classes": made["classes"] + 1, "num_detections": np.array([2, 0, 1], np.float32),
    }  # fmt: skip


def end2end() -> dict[str, Array]:
    rows = [[k, *box[:4], box[5], box[4]] for k, boxes in enumerate(BOXES) for box in boxes]
    return {"output": np.array(rows, np.float32)}


def rows() -> dict[str, Array]:
    made = padded()
    return {"dets": np.concatenate([made["boxes"], made["scores"][..., None], made["classes"][..., None]], axis=2)}


WRITTEN: dict[str, Callable[[], dict[str, Array]]] = {
    "yolo": lambda: {"output0": heads(4).transpose(0, 2, 1)},
    "yolov5": lambda: {"output0": heads(5)},
    "ssd": ssd,
    "rows": rows,
    "padded": lambda: padded() | {"num_dets": np.array([[2], [0], [1]], np.int32)},
    "tensorflow": tensorflow,
    "end2end": end2end,
}


def read(how: BoxFormat, arrays: dict[str, Array], samples: int = 3) -> list[Floats]:
    return how.boxes(Outputs(np.arange(samples), arrays))


def assert_boxes(found: list[Floats], expected: tuple[Floats, ...] = BOXES) -> None:
    assert len(found) == len(expected)
    for own, boxes in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, boxes, atol=1e-5)
        assert own.dtype == np.float64 and own.shape == boxes.shape


@pytest.mark.parametrize("name", WRITTEN)
def test_every_format_gives_the_same_boxes(name: str) -> None:
    how = BoxFormat(name, size=(SIDE, SIDE) if name == "tensorflow" else None)
    assert_boxes(read(how, WRITTEN[name]()))
    only_strong = read(BoxFormat(name, score=0.6, size=how.size), WRITTEN[name]())
    assert [len(boxes) for boxes in only_strong] == [1, 0, 1]


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"yolov5", "end2end"}))
def test_names_and_shapes_tell_the_format(name: str) -> None:
    arrays = torchvision(0) if name == "torchvision" else WRITTEN[name]()
    assert format_of(arrays) == name


def torchvision(k: int) -> dict[str, Array]:
    boxes = BOXES[k]
    return {
        "boxes": boxes[:, :4].astype(np.float32), "labels": boxes[:, 5].astype(np.int64) + 1,
        "scores": boxes[:, 4].astype(np.float32),
    }  # fmt: skip


@pytest.mark.parametrize("k", range(3))
def test_one_sample_may_come_without_an_axis_of_samples(k: int) -> None:
    """A runtime may give [K,4] of the sample, or put an axis in front of it."""
    assert_boxes(read(BoxFormat("torchvision"), torchvision(k), 1), BOXES[k : k + 1])
    in_front = {name: array[None] for name, array in torchvision(k).items()}
    assert_boxes(read(BoxFormat("torchvision"), in_front, 1), BOXES[k : k + 1])
    unnamed = dict(zip(("1", "2", "3"), torchvision(k).values(), strict=True))
    assert_boxes(read(BoxFormat("torchvision"), unnamed, 1), BOXES[k : k + 1])
    for array in (BOXES[k], BOXES[k][None]):
        assert_boxes(read(BoxFormat("rows"), {"dets": array.astype(np.float32)}, 1), BOXES[k : k + 1])


@pytest.mark.parametrize("width", [4, 28])
def test_masks_beside_boxes_are_no_boxes(width: int) -> None:
    kinds = np.zeros(5, np.int64)
    listed = {"1": np.zeros((5, 4)), "2": kinds, "3": np.zeros(5), "4": np.zeros((5, 1, 28, width))}
    padded = {"1": np.zeros((1, 5, 4)), "2": kinds[None], "3": np.zeros((1, 5)), "4": np.zeros((1, 5, 28, width))}
    assert [format_of(listed), format_of(padded)] == ["torchvision", "padded"]
    assert roles(listed)["boxes"] == roles(padded)["boxes"] == "1"


@pytest.mark.parametrize("named", [True, False])
def test_four_boxes_of_a_sample_are_not_taken_for_four_scores(named: bool) -> None:
    boxes, scores = np.arange(32.0).reshape(2, 4, 4), np.full((2, 4), 0.5)
    arrays = {"p": scores, "kinds": np.ones((2, 4), np.int64), "boxes" if named else "dets": boxes}
    found = read(BoxFormat("padded"), arrays, 2)
    np.testing.assert_array_equal([rows[:, :4] for rows in found], boxes)
    of_three_classes = {"boxes" if named else "dets": boxes, "p": np.full((2, 4, 4), 0.5)}
    assert format_of(of_three_classes) == "ssd"


def test_anchors_of_ssd_are_moved_and_sized(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    anchors = random.uniform(0.2, 0.8, (5, 4))
    truth = random.uniform(0.2, 0.8, (5, 4))
    offsets = np.column_stack([
        (truth[:, :2] - anchors[:, :2]) / anchors[:, 2:] / 0.1, np.log(truth[:, 2:] / anchors[:, 2:]) / 0.2
    ])  # fmt: skip
    np.save(tmp_path / "anchors.npy", anchors)
    np.savez(tmp_path / "anchors.npz", anchors=anchors)
    scores = np.zeros((1, 5, 2))
    scores[0, :, 1] = 0.9, 0.8, 0.7, 0.6, 0.5
    for file in ("anchors.npy", "anchors.npz"):
        how = BoxFormat("ssd", iou=1.0, anchors=str(tmp_path / file))
        (found,) = read(how, {"loc": offsets[None], "conf": scores}, 1)
        expected = np.concatenate([truth[:, :2] - truth[:, 2:] / 2, truth[:, :2] + truth[:, 2:] / 2], axis=1)
        np.testing.assert_allclose(found[:, :4], expected)
    with pytest.raises(DataError, match=r"has 5 anchors, and the model 4 boxes"):
        read(how, {"loc": offsets[None, :4], "conf": scores[:, :4]}, 1)
    (tmp_path / "anchors.npy").write_bytes(b"none")
    with pytest.raises(DataError, match="cannot be read"):
        read(BoxFormat("ssd", anchors=str(tmp_path / "anchors.npy")), {"loc": offsets[None], "conf": scores}, 1)


def test_raw_scores_become_probabilities() -> None:
    arrays = WRITTEN["yolo"]()
    with np.errstate(divide="ignore"):
        logits = arrays["output0"].copy()
        logits[:, 4:] = np.log(logits[:, 4:] / (1 - logits[:, 4:]))
    assert_boxes(read(BoxFormat("yolo", activation="sigmoid"), {"output0": logits}))
    made = ssd()
    made["scores"][..., 0] = 1 - made["scores"].sum(axis=2)
    with np.errstate(divide="ignore"):
        made["scores"] = np.log(made["scores"])
    assert_boxes(read(BoxFormat("ssd", activation="softmax"), made))


def test_numbers_behind_the_scores_are_left_out() -> None:
    heads = WRITTEN["yolo"]()["output0"]
    masks = np.concatenate([heads, np.full((3, 32, 9), 7.0, np.float32)], axis=1)
    assert_boxes(read(BoxFormat("yolo", classes=CLASSES), {"output0": masks}))


def test_a_value_that_is_not_finite_ends_no_decoding() -> None:
    """A faulty output may hold anything; the boxes that have a score come back, the others are gone."""
    for name, made in WRITTEN.items():
        for bad in (np.nan, np.inf, -np.inf):
            arrays = {key: array.astype(np.float32) for key, array in made().items()}
            for array in arrays.values():
                array.reshape(-1)[::3] = bad
            assert len(read(BoxFormat(name), arrays)) == 3
    high = WRITTEN["yolo"]()["output0"].copy()
    high[0, 0, 4] = np.nan
    (first, _, _) = read(BoxFormat("yolo"), {"output0": high})
    assert np.isnan(first[0, :4]).any() and len(first) == 2, "a box of no place is kept: it shows that there was one"


@pytest.mark.parametrize(
    ("how", "arrays", "message"),
    [
        ("auto", {"y": np.zeros((3, 25, 8))}, r"outputs 'y' \[3,25,8\] do not show their box format"),
        ("yolo", {"y": np.zeros((3, 10))}, r"0 of the outputs 'y' \[3,10\] have 3 dimensions"),
        ("yolo", {"y": np.zeros((3, 4, 9))}, r"is \[3,4,9\]; yolo is \[n,4\+classes,cells\]"),
        ("yolov5", {"y": np.zeros((3, 9, 5))}, r"yolov5 is \[n,anchors,5\+classes\]"),
        ("ssd", {"boxes": np.zeros((3, 9, 4))}, "sure to hold the scores"),
        ("ssd", {"boxes": np.zeros((3, 9, 4)), "scores": np.zeros((3, 8, 2))}, "ssd is boxes"),
        ("padded", {"a": np.zeros((3, 9, 4)), "b": np.zeros((3, 9))}, "sure to hold the classes"),
        ("rows", {"y": np.zeros((5, 6))}, "has no row for each of 3 samples; run with --batch 1"),
        ("rows", {"y": np.zeros((3, 5, 7))}, "a row has 6 columns"),
        ("end2end", {"y": np.zeros((5, 6))}, r"end2end is \[boxes,7\]"),
        ("torchvision", torchvision(0), "run with --batch 1"),
    ],
)
def test_outputs_of_another_format_are_refused(how: str, arrays: dict[str, Array], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(BoxFormat(how), arrays)


NUMBERS = st.sampled_from([np.float32, np.float16, np.float64, np.int64, np.uint8, np.bool_, np.complex64, np.str_])
NAMES = st.sampled_from(["boxes", "scores", "classes", "num", "y", "output0", "detection_boxes", "labels"])


@st.composite
def any_outputs(draw: st.DrawFn) -> dict[str, Array]:
    """Outputs of any names, types and shapes, some of their numbers not finite."""
    found: dict[str, Array] = {}
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 9]), max_size=4))
        random = np.random.default_rng(draw(st.integers(0, 99)))
        bad = random.choice([np.nan, np.inf, -np.inf, 1e30], size=shape)
        values = np.where(random.random(shape) < 0.2, bad, random.normal(size=shape))
        with np.errstate(all="ignore"):
            found[name] = np.asarray(values).astype(draw(NUMBERS))
    return found


@settings(max_examples=4 * TIMES)
@given(arrays=any_outputs(), name=st.sampled_from(["auto", *FORMATS]), activation=st.sampled_from(["none", "softmax"]))
def test_any_outputs_are_read_or_refused(arrays: dict[str, Array], name: str, activation: str) -> None:
    """Outputs hold boxes, or one line says why they hold none."""
    for samples in (1, 3):
        try:
            found = read(BoxFormat(name, score=0.01, activation=activation, size=(3, 4)), arrays, samples)
        except DataError:
            continue
        assert len(found) == samples and all(one.ndim == 2 and one.shape[1] == 6 for one in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "yolo5"}, "no box format 'yolo5', perhaps 'yolov5'|did you mean|yolov5"),
        ({"score": 1.5}, "score 1.5 is out of range; give a number from 0 to 1"),
        ({"iou": -1}, "iou -1.0 is out of range; give a number from 0 to 1"),
        ({"most": 0}, "most 0 is out of range; give a whole number from 1"),
        ({"classes": 0}, "classes 0 is out of range"),
        ({"activation": "relu"}, "activation is 'relu'; it is one of none, sigmoid, softmax"),
        ({"name": "yolo", "anchors": "a.npy"}, "anchors are for format ssd, and the format is yolo"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BoxFormat(**options)  # type: ignore[arg-type]


def test_options_that_are_texts_count_as_numbers() -> None:
    made = BoxFormat(score="0.5", iou="0.5", most="5", classes="3")  # type: ignore[arg-type]
    assert (made.score, made.iou, made.most, made.classes) == (0.5, 0.5, 5, 3)


def test_class_indices_with_gaps_are_the_ids_of_a_coco_file(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    file.write_text('{"categories": [{"id": 90}, {"id": 1}, {"id": 3}]}')
    rows = np.array(
        [[[0, 0, 8, 8, 0.9, 3], [0, 0, 9, 9, 0.8, 1], [0, 0, 7, 7, 0.7, 90], [0, 0, 6, 6, 0.6, 2]]], np.float32
    )
    (found,) = BoxFormat("rows", ids=str(file)).boxes(Outputs(np.arange(1), {"boxes": rows}))
    assert found[:, 5].tolist() == [1, 0, 2, 3 + 2], "2 is no category: it lies behind them all"
    with pytest.raises(InputError, match="leave first_class= out"):
        BoxFormat("rows", ids=str(file), first_class=1)
    file.write_text('{"categories": []}')
    with pytest.raises(DataError, match=r"has no categories of COCO \(no category\)"):
        BoxFormat("rows", ids=str(file)).boxes(Outputs(np.arange(1), {"boxes": rows}))
