"""Batches: cut, filled up, trimmed, and the digest of what they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sources import describe, joined, write_module
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from onnxfi.errors import DataError
from onnxfi.runtime.data.batches import Batch, layout
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import Port

X = Port("x", "float32", ("N", 3))


ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)


@given(samples=st.integers(1, 20), size=st.integers(1, 25), axis=st.integers(0, 2), fixed=st.booleans())
def test_batches_put_together_are_the_data(samples: int, size: int, axis: int, fixed: bool) -> None:
    shape = [2, 3]
    shape.insert(axis, samples)
    array = np.arange(6 * samples, dtype=np.float32).reshape(shape)
    dims: list[int | str] = [2, 3]
    dims.insert(axis, size if fixed else "N")
    port = Port("x", "float32", tuple(dims))
    labels = np.arange(samples)
    found = open_data({"x": array, "labels": labels}, [port], batch_axis=axis)
    batches = list(found.batches(size))
    np.testing.assert_array_equal(joined(found, size)["x"], array)
    np.testing.assert_array_equal(
        np.concatenate([batch.labels for batch in batches if batch.labels is not None]), labels
    )
    assert [batch.start for batch in batches] == list(range(0, samples, size))
    assert sum(batch.valid for batch in batches) == found.samples == samples
    assert all(batch.feeds["x"].shape[axis] == batch.size for batch in batches)
    assert all(batch.size == (size if fixed else batch.valid) for batch in batches)


def test_a_fixed_batch_is_filled_with_the_last_sample() -> None:
    last = list(open_data({"x": ROWS}, [Port("x", "float32", (4, 3))]).batches(4))[-1]
    assert (last.start, last.size, last.valid) == (4, 4, 1)
    np.testing.assert_array_equal(last.feeds["x"], ROWS[[4, 4, 4, 4]])
    outputs = {"y": last.feeds["x"] * 2, "whole": np.ones(7), "scalar": np.ones(())}
    trimmed = last.trim(outputs)
    np.testing.assert_array_equal(trimmed["y"], ROWS[4:] * 2)
    assert trimmed["whole"].shape == (7,)
    assert trimmed["scalar"].shape == ()


def test_a_full_batch_is_trimmed_to_itself() -> None:
    outputs = {"y": np.ones((2, 3))}
    assert Batch(0, {}, None, 2, 2).trim(outputs) == outputs


def test_batch_sizes_that_cannot_be() -> None:
    with pytest.raises(DataError, match="batch size is 0; it takes 1 or more"):
        list(open_data({"x": ROWS}, [X]).batches(0))
    with pytest.raises(DataError, match="the model takes batches of 4, not of 2"):
        list(open_data({"x": ROWS}, [Port("x", "float32", (4, 3))]).batches(2))


@pytest.mark.parametrize(
    ("shapes", "batched", "fixed"),
    [
        ([("N", 3)], {"0"}, None),
        ([(None, 3), ("M", 4), (2, 5)], {"0", "1"}, None),
        ([(1, 3), (1, 7), (80,)], {"0", "1"}, 1),
        ([("N", 3), ()], {"0"}, None),
        ([()], set(), None),
        ([], set(), None),
    ],
)
def test_which_inputs_hold_samples(
    shapes: list[tuple[int | str | None, ...]], batched: set[str], fixed: int | None
) -> None:
    found = layout([Port(str(number), "float32", shape) for number, shape in enumerate(shapes)], 0)
    assert set(found.batched) == batched
    assert found.fixed == fixed


def test_an_input_without_the_batch_axis_goes_whole_into_every_batch() -> None:
    rate = Port("rate", "int64", None)
    found = open_data({"x": ROWS, "rate": np.array(16000)}, [X, rate])
    assert [int(batch.feeds["rate"]) for batch in found.batches(2)] == [16000] * 3
    assert found.samples == 5


def test_the_digest_is_that_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.array([0, 1, 2, 1, 0])
    np.savez(tmp_path / "plain.npz", x=ROWS, labels=labels)
    np.savez_compressed(tmp_path / "small.npz", labels=labels.astype(np.uint8), x=np.asfortranarray(ROWS))
    np.savez(tmp_path / "other.npz", x=ROWS.astype(">f4"), labels=labels)
    write_module(
        tmp_path,
        "digest_feeds",
        f"""
        x = np.arange(15, dtype=np.float32).reshape(5, 3)
        labels = np.array({labels.tolist()})
        def whole(): return {{"x": x, "labels": labels}}
        def parts(): return [{{"x": x[:2], "labels": labels[:2]}}, {{"x": x[2:], "labels": labels[2:]}}]
    """,
    )
    monkeypatch.chdir(tmp_path)
    files: list[Any] = [tmp_path / f"{name}.npz" for name in ("plain", "small", "other")]
    specs = [*files, "digest_feeds:whole", "digest_feeds:parts", {"x": ROWS, "labels": labels}]
    digests = {open_data(spec, [X]).digest for spec in specs}
    assert digests == {"5dd7d6a9c3dfe08ab484b9c0943f5b183420146db3b2cc4a6c40f15b0fdad3cd"}


@pytest.mark.parametrize(
    "other",
    [
        {"x": ROWS + 1},
        {"x": ROWS[:4]},
        {"x": ROWS[::-1]},
        {"x": ROWS, "labels": np.zeros(5, np.int64)},
        {"x": -ROWS * 0},
    ],
    ids=["values", "fewer", "order", "labels", "sign of zero"],
)
def test_any_change_changes_the_digest(other: Mapping[str, NDArray[Any]]) -> None:
    base = {"x": ROWS if "sign" not in str(other) else ROWS * 0}
    assert open_data(other, [X]).digest != open_data(base, [X]).digest


def test_the_digest_distinguishes_names_types_and_shapes() -> None:
    zeros = np.zeros((4, 3), np.float32)
    found = [
        open_data({"x": zeros}, [X]),
        open_data({"z": zeros}, [Port("z", "float32", ("N", 3))]),
        open_data({"x": zeros.view(np.int32)}, [Port("x", "int32", ("N", 3))]),
        open_data({"x": zeros.reshape(4, 3, 1)}, [Port("x", "float32", ("N", 3, 1))]),
        open_data({"x": zeros.reshape(3, 4)}, [Port("x", "float32", ("N", 4))]),
    ]
    assert len({one.digest for one in found}) == len(found)


def test_the_digest_of_text_and_of_whole_inputs() -> None:
    text, rate = Port("t", "string", ("N",)), Port("rate", "int64", None)
    base: dict[str, Any] = {"t": np.array(["a", "bc"]), "rate": np.array(1)}
    same = open_data({"t": np.array(["a", "bc"], object), "rate": np.array(1)}, [text, rate])
    assert same.digest == open_data(base, [text, rate]).digest
    for other in ({**base, "t": np.array(["ab", "c"])}, {**base, "rate": np.array(2)}):
        assert open_data(other, [text, rate]).digest != same.digest


def test_a_small_batch_for_a_fixed_model_is_filled_up(module: Callable[[str], str]) -> None:
    spec = module("def feeds(): return [{'x': np.ones((1, 3), np.float32)}]")
    (batch,) = open_data(spec, [Port("x", "float32", (4, 3))]).batches(4)
    assert (batch.size, batch.valid, batch.feeds["x"].shape) == (4, 1, (4, 3))


OPEN_IMAGE = Port("image", "float32", ("N", 3, "H", "W"))


def test_a_batch_that_takes_all_memory_is_one_line(photos: Path) -> None:
    for number in range(20):
        Image.new("1", (1, 1)).save(photos / "cat" / f"{number}.png")
    describe(photos, "resize: [4000, 4000]")
    with pytest.raises(DataError, match=r"a batch of 23 images .* takes 4,416,000,000 bytes, .* a smaller --batch"):
        next(open_data(photos, [OPEN_IMAGE]).batches(32))
