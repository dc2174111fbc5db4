"""Data from every source: what is read, how it is cut, and how every kind of bad data reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sources import joined, refused

from onnxfi.errors import DataError
from onnxfi.runtime.data import npz
from onnxfi.runtime.data import open_data as data_module
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import Port

X = Port("x", "float32", ("N", 3))
ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)


# Cutting


def test_a_row_of_numbers_that_may_be_one_a_sample_or_not_is_refused() -> None:
    ids, at = Port("ids", "int64", (None, None)), Port("at", "int64", (None,))
    for samples, fits in ((5, False), (4, True)):
        arrays = {"ids": np.zeros((samples, 5), np.int64), "at": np.arange(samples)}
        if fits:
            assert open_data(arrays, [ids, at]).samples == samples
        else:
            with pytest.raises(DataError, match="'at' may hold a number for each of the 5 samples, or for each place"):
                open_data(arrays, [ids, at])
    named = [Port("ids", "int64", ("batch", "seq")), Port("at", "int64", ("seq",)), Port("n", "int64", ("batch",))]
    found = open_data({"ids": np.zeros((5, 5), np.int64), "at": np.arange(5), "n": np.arange(5)}, named)
    assert [sorted(batch.feeds["at"].tolist()) for batch in found.batches(2)] == [[0, 1, 2, 3, 4]] * 3
    assert [batch.feeds["n"].tolist() for batch in found.batches(2)] == [[0, 1], [2, 3], [4]]


def test_a_model_without_inputs_has_one_sample() -> None:
    assert [dict(batch.feeds) for batch in open_data({}, []).batches(4)] == [{}]


@pytest.mark.parametrize(("limit", "samples"), [(1, 1), (4, 4), (99, 5)])
def test_limit_keeps_the_first(limit: int, samples: int) -> None:
    found = open_data({"x": ROWS, "labels": np.arange(5)}, [X], limit=limit)
    np.testing.assert_array_equal(joined(found, 2)["x"], ROWS[:samples])
    assert found.labels is not None
    assert found.samples == len(found.labels) == samples


def test_limit_must_keep_something() -> None:
    assert refused({"x": ROWS}, X, limit=0) == "limit is 0; it takes 1 or more"


# Digests


# Archives


BAD_ARRAYS: list[tuple[str, dict[str, Any], str]] = [
    ("another name", {"y": ROWS}, "'y' is not an input, and input 'x' (float32 [N,3]) has no array; name it so"),
    ("one too many", {"x": ROWS, "xx": ROWS}, "'xx' is not an input; closest: 'x'; leave it out"),
    ("none", {"labels": np.arange(5)}, "input 'x' (float32 [N,3]) has no array"),
    (
        "type",
        {"x": ROWS.astype(np.float64)},
        "'x' is float64, input 'x' (float32 [N,3]) takes data['x'].astype('float32')",
    ),
    ("shape", {"x": ROWS[:, :2]}, "'x' has shape [5,2], the input is 'x' (float32 [N,3])"),
    ("rank", {"x": ROWS[0]}, "'x' has shape [3], the input is 'x' (float32 [N,3])"),
    ("empty", {"x": ROWS[:0]}, "no samples"),
    ("few labels", {"x": ROWS, "labels": np.arange(4)}, "4 labels for 5 samples"),
    (
        "one label for all",
        {"x": ROWS, "labels": np.array(3)},
        "labels are int64 []; they are integers, numbers or texts, samples first",
    ),
    (
        "complex labels",
        {"x": ROWS, "labels": np.zeros(5, complex)},
        "labels are complex128 [5]; they are integers, numbers or texts, samples first",
    ),
    (
        "labels under another name",
        {"x": ROWS, "y": np.arange(5)},
        "'y' is not an input; call it 'labels' if it holds them, else leave it out",
    ),
    (
        "huge labels",
        {"x": ROWS, "labels": np.full(5, 1 << 63, np.uint64)},
        f"a label is {1 << 63}; labels count the classes from 0",
    ),
]


@pytest.mark.parametrize(("arrays", "says"), [row[1:] for row in BAD_ARRAYS], ids=[row[0] for row in BAD_ARRAYS])
def test_arrays_that_do_not_fit(arrays: dict[str, Any], says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    assert refused(tmp_path / "d.npz", X) == f"'{tmp_path / 'd.npz'}': {says}"
    assert refused(arrays, X) == f"the arrays given: {says}"


def test_inputs_with_different_numbers_of_samples() -> None:
    assert refused({"x": ROWS, "z": ROWS[:2]}, X, Port("z", "float32", ("N", 3))).endswith(
        "5 samples in 'x' but 2 in 'z'"
    )


def test_a_list_that_is_no_array() -> None:
    assert refused({"x": [[1.0], [1.0, 2.0]]}, X).startswith("the arrays given: not an array: ")


def test_an_input_called_labels_is_an_input() -> None:
    port = Port("labels", "int64", ("N",))
    assert open_data({"labels": np.arange(3)}, [port]).labels is None


def test_a_model_that_takes_sequences_cannot_be_fed() -> None:
    assert refused(None, Port("s", "seq(tensor(float))", None)) == (
        "input 's' is a seq(tensor(float)); only models fed with tensors can be run"
    )


def test_nothing_there_says_what_would_be_taken() -> None:
    says = "; give an .npz archive, a folder of images by class or of event recordings, a .txt or .jsonl, or module:function"
    assert refused("gone.npz", X) == "no data at 'gone.npz'" + says
    assert refused(Path("module:function"), X) == "no data at 'module:function'" + says
    assert refused("not a.module:function", X) == "no data at 'not a.module:function'" + says


def test_the_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert npz.memory_bytes() > 1 << 28
    monkeypatch.delattr("os.sysconf", raising=False)
    assert npz.memory_bytes() == 1 << 34


# Functions


def test_a_function_may_give_all_at_once(module: Callable[[str], str]) -> None:
    spec = module("def feeds(): return {'x': np.ones((4, 3), np.float32), 'labels': np.arange(4)}")
    found = open_data(spec, [X])
    assert (found.samples, [batch.size for batch in found.batches(3)]) == (4, [3, 1])
    assert found.description == f"4 labelled samples of '{spec}'"


def test_batches_of_a_function_stay_as_they_are(module: Callable[[str], str]) -> None:
    spec = module("""
        def feeds():
            for size in (2, 3):
                yield {'x': np.full((size, 3 + size), size, np.float32), 'labels': np.arange(size)}
    """)
    found = open_data(spec, [Port("x", "float32", ("N", "T"))])
    batches = list(found.batches(64))
    assert [(batch.start, batch.size) for batch in batches] == [(0, 2), (2, 3)]
    assert [batch.labels.tolist() for batch in batches if batch.labels is not None] == [[0, 1], [0, 1, 2]]
    assert found.digest == open_data(spec, [Port("x", "float32", ("N", "T"))]).digest


def test_a_calibration_reader_is_read_to_its_end(module: Callable[[str], str]) -> None:
    spec = module("""
        from onnxruntime.quantization import CalibrationDataReader
        class feeds(CalibrationDataReader):
            buffer, left = np.zeros((1, 3), np.float32), 3
            def get_next(self):
                self.left -= 1
                self.buffer += 1
                return {'x': self.buffer} if self.left >= 0 else None
    """)
    found = open_data(spec, [X])
    np.testing.assert_array_equal(joined(found, 1)["x"][:, 0], [1, 2, 3])  # though the buffer was used again


def test_limit_ends_an_endless_function(module: Callable[[str], str]) -> None:
    spec = module("""
        def feeds():
            while True: yield {'x': np.ones((4, 3), np.float32), 'labels': np.arange(4)}
    """)
    found = open_data(spec, [X], limit=6)
    assert [batch.size for batch in found.batches(1)] == [4, 2]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nothing_here", "failed: ModuleNotFoundError: No module named 'nothing_here'"),
        ("def fodder(): pass", "has no attribute 'feeds'"),
        ("def feeds(): raise ValueError('two\\nlines')", "failed: ValueError: two lines"),
        ("def feeds(needed): pass", "failed: TypeError: feeds() missing 1 required positional argument"),
        ("def feeds(): return 5", "failed: TypeError: 'int' object is not iterable"),
        ("def feeds(): return []", "gave no batches"),
        ("def feeds(): return [5]", "is a int; a batch is a dict of arrays"),
        ("def feeds(): return [{'y': 5}]", "'y' is not an input, and input 'x' (float32 [N,3]) has no array"),
        ("def feeds(): raise SystemExit(3)", "failed: SystemExit: 3"),
        ("def feeds(: pass", "failed: SyntaxError: "),
        ("def feeds():\n    yield {'x': np.ones((1, 3), np.float32)}\n    1/0", "failed: ZeroDivisionError: "),
        (
            "x = np.ones((1, 3), np.float32)\ndef feeds(): return [{'x': x}, {'x': x, 'labels': np.ones(1, int)}]",
            "either all batches have labels or none",
        ),
    ],
)
def test_a_function_that_fails_is_reported_in_one_line(text: str, says: str, module: Callable[[str], str]) -> None:
    spec = module(text)
    line = refused(spec, X)
    assert repr(spec) in line
    assert says in line


def test_a_batch_larger_than_the_model_takes(module: Callable[[str], str]) -> None:
    spec = module("def feeds(): return [{'x': np.ones((5, 3), np.float32)}]")
    assert refused(spec, Port("x", "float32", (4, 3))).endswith("has 5 samples; the model takes 4 at a time")


def test_the_path_for_imports_is_left_as_it_was(module: Callable[[str], str]) -> None:
    import sys

    before = list(sys.path)
    open_data(module("def feeds(): return {'x': np.ones((4, 3), np.float32)}"), [X])
    refused(module("1/0"), X)
    assert sys.path == before


# Synthetic inputs


@pytest.mark.parametrize(
    "name",
    ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"],
)
def test_synthetic_floats_fill_the_unit_interval(name: str) -> None:
    found = open_data(None, [Port("x", name, ("N", 1000))])
    values = joined(found, 8)["x"].astype(np.float64)
    assert ((values >= 0) & (values < 1)).all()
    assert abs(values.mean() - 0.5) < 0.1
    assert len(np.unique(values)) >= 4


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint32", "int64", "bool"])
def test_synthetic_integers_are_small_or_bytes(name: str) -> None:
    values = joined(open_data(None, [Port("x", name, ("N", 1000))]), 8)["x"]
    assert values.dtype == name
    wide = name in ("int8", "uint8")
    assert len(np.unique(values)) == (256 if wide else 2)
    assert wide or set(np.unique(values).tolist()) == {0, 1}


def test_synthetic_data_is_pinned_to_its_seed() -> None:
    ports = [Port("x", "float32", ("N", 2)), Port("ids", "int64", ("N", "T"))]
    found = open_data(None, ports, seed=1)
    assert found.digest == open_data(None, ports, seed=1).digest
    assert found.digest != open_data(None, ports, seed=2).digest
    assert (found.samples, found.labels, found.synthetic) == (8, None, True)
    assert joined(found, 8)["ids"].shape == (8, 32)


def test_more_synthetic_samples_extend_fewer() -> None:
    port = Port("x", "float32", (3, "N", 2))
    few, many = (joined(open_data(None, [port], limit=limit, batch_axis=1), 8)["x"] for limit in (3, 20))
    assert many.shape == (3, 20, 2)
    np.testing.assert_array_equal(many[:, :3], few)


def test_what_cannot_be_made_up() -> None:
    assert (
        refused(None, Port("t", "string", ("N",)))
        == "input 't' (string [N]) takes text, which is not made up; give data"
    )
    assert refused(None, Port("x", "float32", ("N", 10**15))).endswith("is too large to be made up; give data")


# Folders of images


def test_the_module_exports_what_callers_need() -> None:
    assert set(data_module.__all__) == {"Batch", "Data", "data_of", "data_of_batches", "open_data", "synthetic"}
