"""Outputs of a run: samples first wherever a model puts them, equal in every bit, and bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser

from onnxfi.errors import DataError
from onnxfi.graph.dataflow.batch_layout import BatchLayout
from onnxfi.runtime.data import sample_outputs
from onnxfi.runtime.data.batches import Batch, Data
from onnxfi.runtime.data.sample_outputs import (
    KeptInputs,
    Outputs,
    alike,
    as_run,
    class_axes,
    outputs_of,
    run_outputs,
    same_outputs,
    same_runs,
    sample_axes,
    stacked,
    without_ones,
)

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
X = np.arange(10, dtype=np.float32).reshape(5, 2)


def doubled() -> Any:
    """A session that doubles rows, and puts them out in two ways."""

    def run(feeds: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, Any]:
        every = {"y": 2 * feeds["x"], "t": (2 * feeds["x"]).T}
        return {name: every[name] for name in names or every}

    return SimpleNamespace(run=run)


def data(fixed: int | None = None) -> Data:
    return Data.of_arrays({"x": X}, None, BatchLayout(0, (("x", 0),), fixed), "")


@pytest.mark.parametrize("fixed", [None, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_outputs_of_all_samples_whatever_the_batch(size: int, fixed: int | None) -> None:
    run = run_outputs(doubled(), data(fixed), fixed or size, ["y"])
    assert np.concatenate([one.samples for one in run]).tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(stacked(run), 2 * X)
    transposed = run_outputs(doubled(), data(fixed), fixed or size, ["t"], axes={"t": (1,)})
    np.testing.assert_array_equal(stacked(transposed), 2 * X)
    assert all(one.has_rows for one in transposed)


def test_the_first_batches_alone_and_how_far_it_is() -> None:
    counted: list[tuple[int, int]] = []
    run = run_outputs(doubled(), data(), 2, ["y"], batches=2, progress=lambda *done: counted.append(done))
    assert len(run) == 2 and counted == [(2, 5), (4, 5)] and run[0].nbytes == 16


def test_more_than_can_be_compared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_outputs, "MOST_OUTPUT_BYTES", 60)
    with pytest.raises(
        DataError, match="the outputs take 8 bytes per sample, too much to compare 5 of them; take fewer"
    ):
        run_outputs(doubled(), data(), 2, ["y"])


def test_without_names_numbers_count_and_text_does_not() -> None:
    batch = Batch(4, {}, None, size=3, valid=2)
    found = outputs_of(batch, {"y": np.ones((3, 2)), "s": np.array(["a", "b", "c"])}, {})
    assert found.samples.tolist() == [4, 5] and found.arrays.keys() == {"y"} and found.arrays["y"].shape == (2, 2)
    with pytest.raises(DataError, match="the model has no output of numbers that could be compared"):
        outputs_of(batch, {"s": np.array(["a", "b", "c"])}, {})


@pytest.mark.parametrize(
    ("shape", "kept"), [((2, 5, 1, 1), (2, 5)), ((2, 5, 1), (2, 5, 1)), ((2, 5, 2, 1), (2, 5, 2, 1))]
)
def test_ones_at_the_end_of_scores_are_left_out(shape: tuple[int, ...], kept: tuple[int, ...]) -> None:
    assert without_ones(np.zeros(shape)).shape == tuple(class_axes(shape)) == kept


def test_rows_go_with_their_samples_and_their_inputs() -> None:
    whole = Outputs(np.array([7, 8, 9]), {"y": X[:3]}, {"ids": X[:3] + 1})
    some = whole.take(np.array([2, 0]))
    assert some.samples.tolist() == [9, 7]
    np.testing.assert_array_equal(some.arrays["y"], X[[2, 0]])
    np.testing.assert_array_equal(some.inputs["ids"], X[[2, 0]] + 1)
    assert not Outputs(np.arange(3), {"boxes": np.zeros((5, 6))}).has_rows


@given(st.integers(0, 39), st.integers(0, 7))
def test_one_bit_is_a_difference(byte: int, bit: int) -> None:
    other = X.copy()
    other.view(np.uint8).reshape(-1)[byte] ^= np.uint8(1 << bit)
    one, changed = (as_run(array)[0] for array in (X, other))
    assert same_outputs(one, as_run(X.copy())[0]) and not same_outputs(one, changed)
    assert alike(one, changed) and not same_runs([one], [changed]) and not same_runs([one], [one, one])
    assert not alike(one, Outputs.of(X.astype(np.float64))) and not alike(one, Outputs.of(X[:2]))


def test_outputs_lie_side_by_side_and_as_one_row_where_shapes_vary() -> None:
    two = Outputs(np.arange(2), {"a": np.ones((2, 3)), "b": np.zeros((2, 2, 2)), "s": np.array(["u", "v"])})
    assert stacked([two, two]).shape == (4, 7)
    assert stacked([two, Outputs(np.arange(1), {"a": np.ones((1, 9))})]).shape == (1, 23)
    assert stacked([Outputs(np.arange(2), {"boxes": np.zeros((5, 6)), "n": np.zeros(2)})]).shape == (1, 32)


@pytest.mark.parametrize(
    ("graph", "axes"),
    [
        ("g (float[N,2] x) => (float[N,3] y) { y = MatMul(x, w) }", (0, 0, 0)),
        ("g (float[N,2] x) => (float[2,N] y) { y = Transpose(x) }", (1, 0, 0)),
        ("g (float[1,2] x) => (float[2] y) { a = Constant<value_ints = [0]>() y = Squeeze(x, a) }", (0, 0, -1)),
    ],
)
def test_the_axis_of_the_samples_is_what_the_shapes_say(graph: str, axes: tuple[int, ...]) -> None:
    model = parser.parse_model(f"{HEAD} {graph}").SerializeToString()
    ports = {"y": SimpleNamespace(name="y", shape=shape_of(graph))}
    fed = SimpleNamespace(inputs=[SimpleNamespace(name="x", shape=("N", 2))], outputs=list(ports.values()))
    given = data(1 if "float[1,2]" in graph else None)
    assert sample_axes(fed, given, model)["y"] == axes  # type: ignore[arg-type]


def shape_of(graph: str) -> tuple[int | str, ...]:
    declared = graph.partition("=> (float[")[2].partition("]")[0]
    return tuple(int(dim) if dim.isdigit() else dim for dim in declared.split(","))


def two_inputs(samples: int, axis: int = 0, fixed: int | None = None) -> Data:
    arrays = {"ids": np.arange(samples * 6).reshape(samples, 2, 3), "mask": np.arange(samples * 2).reshape(samples, 2)}
    moved = {name: np.moveaxis(array, 0, axis) for name, array in arrays.items()}
    return Data.of_arrays(moved, None, BatchLayout(axis, tuple((name, axis) for name in moved), fixed), "")


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 1), st.data())
def test_samples_have_their_rows(samples: int, size: int, axis: int, draw: st.DataObject) -> None:
    kept = KeptInputs.read(two_inputs(samples, axis), size, ["ids", "mask"])
    first = draw.draw(st.integers(0, (samples - 1) // size)) * size
    chosen = np.array(draw.draw(st.lists(st.integers(first, min(first + size, samples) - 1), min_size=1, max_size=4)))
    found = kept.of(chosen)
    np.testing.assert_array_equal(found["ids"], np.arange(samples * 6).reshape(samples, 2, 3)[chosen])
    np.testing.assert_array_equal(found["mask"], np.arange(samples * 2).reshape(samples, 2)[chosen])


def test_samples_that_fill_a_batch_up_are_not_kept() -> None:
    kept = KeptInputs.read(two_inputs(5, fixed=4), 4, ["mask"])
    assert [len(batch["mask"]) for batch in kept.batches] == [4, 1] and kept.starts.tolist() == [0, 4]
    assert kept.of(np.array([], np.int64))["mask"].shape == (0, 2)


def test_inputs_that_are_not_there_or_take_too_much_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="the task reads input 'msk'; closest: 'mask' of each sample"):
        KeptInputs.read(two_inputs(3), 2, ["msk"])
    monkeypatch.setattr(sample_outputs, "MOST_BYTES", 3 * 16)
    assert KeptInputs.read(two_inputs(3), 2, ["mask"])
    with pytest.raises(DataError, match="inputs mask take too much memory; take fewer samples with --samples"):
        KeptInputs.read(two_inputs(4), 2, ["mask"])
