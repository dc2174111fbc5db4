"""Data from every source: what is read, how it is cut, and how every kind of bad data reads."""

from __future__ import annotations

import builtins
import io
import itertools
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from onnxfi.errors import DataError
from onnxfi.runtime.data import npz
from onnxfi.runtime.data import sources as data_module
from onnxfi.runtime.data.batches import Batch, Data, layout
from onnxfi.runtime.data.sources import open_data
from onnxfi.runtime.engine.ports import Port

X = Port("x", "float32", ("N", 3))
IMAGE = Port("image", "float32", ("N", 3, 4, 4))
ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)


def refused(spec: Any, *ports: Port, **options: Any) -> str:
    """The one line that `open_data` refuses with."""
    with pytest.raises(DataError) as caught:
        open_data(spec, ports, **options)
    line = str(caught.value)
    assert line.isprintable()
    return line


def joined(found: Data, size: int) -> dict[str, NDArray[Any]]:
    """All batches of every input, put together again without the padding."""
    axis = found.layout.axis
    parts = [batch.trim(batch.feeds, axis=axis) for batch in found.batches(size)]
    return {
        name: np.concatenate([part[name] for part in parts], axis) if name in found.layout.batched else parts[0][name]
        for name in found.inputs
    }


# Cutting


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


def test_the_digest_is_that_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.array([0, 1, 2, 1, 0])
    np.savez(tmp_path / "plain.npz", x=ROWS, labels=labels)
    np.savez_compressed(tmp_path / "small.npz", labels=labels.astype(np.uint8), x=np.asfortranarray(ROWS))
    np.savez(tmp_path / "other.npz", x=ROWS.astype(">f4"), labels=labels)
    write(
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


def test_the_digest_tells_names_types_and_shapes_apart() -> None:
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


# Archives


def test_an_archive_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ROWS, labels=np.arange(5, dtype=np.uint8))
    found = open_data(tmp_path / "d.npz", [X])
    np.testing.assert_array_equal(joined(found, 2)["x"], ROWS)
    assert found.labels is not None
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    assert found.description == f"5 labelled samples of '{tmp_path / 'd.npz'}'"


def test_types_that_numpy_files_lack_are_stored_as_words(tmp_path: Path) -> None:
    array = ROWS.astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "d.npz", x=array.view("V2"))
    found = open_data(tmp_path / "d.npz", [Port("x", "bfloat16", ("N", 3))])
    assert joined(found, 5)["x"].dtype == array.dtype
    assert joined(found, 5)["x"].tobytes() == array.tobytes()


BAD_ARRAYS: list[tuple[str, dict[str, Any], str]] = [
    ("another name", {"y": ROWS}, "'y' is no input, and input 'x' (float32 [N,3]) has no array; name it so"),
    ("one too many", {"x": ROWS, "xx": ROWS}, "'xx' is no input; closest: 'x'; leave it out"),
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
        "float labels",
        {"x": ROWS, "labels": np.zeros(5)},
        "labels are float64 [5]; they must be integers, one a sample; take labels.astype('int64')",
    ),
    (
        "labels that are no numbers of classes",
        {"x": ROWS, "labels": np.array([0.5, 1, 2, 3, np.nan])},
        "labels are float64 [5]; they must be integers, one a sample",
    ),
    (
        "labels of yes and no",
        {"x": ROWS, "labels": np.array([True, False, True, True, False])},
        "labels are bool [5]; they must be integers, one a sample; take labels.astype('int64')",
    ),
    (
        "labels in a column",
        {"x": ROWS, "labels": np.array([[3], [1], [4], [1], [5]])},
        "labels are int64 [5,1]; they must be integers, one a sample; take labels.reshape(-1)",
    ),
    (
        "float labels in a column",
        {"x": ROWS, "labels": np.array([[3.0], [1], [4], [1], [5]])},
        "labels are float64 [5,1]; they must be integers, one a sample; take labels.reshape(-1).astype('int64')",
    ),
    (
        "labels of several classes",
        {"x": ROWS, "labels": np.ones((5, 3), np.int64)},
        "labels are int64 [5,3]; they must be integers, one a sample; rows of several classes are not read",
    ),
    (
        "names as labels",
        {"x": ROWS, "labels": np.array(list("abcde"))},
        "labels are string [5]; they must be integers, one a sample; of names take their places in the list of the "
        "model's classes",
    ),
    (
        "one label for all",
        {"x": ROWS, "labels": np.array(3)},
        "labels are int64 []; they must be integers, one a sample",
    ),
    (
        "labels under another name",
        {"x": ROWS, "y": np.arange(5)},
        "'y' is no input; call it 'labels' if it holds them, else leave it out",
    ),
    (
        "one-hot labels",
        {"x": ROWS, "labels": np.eye(5, dtype=np.int64)},
        "labels are int64 [5,5]; they must be integers, one a sample; of one-hot ones take labels.argmax(1)",
    ),
    (
        "negative labels",
        {"x": ROWS, "labels": np.arange(-1, 4)},
        "a label is -1; labels count the classes from 0",
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


def test_the_line_that_converts_to_a_type_of_ml_dtypes() -> None:
    assert refused({"x": ROWS}, Port("x", "bfloat16", ("N", 3))).endswith(
        "takes data['x'].astype(ml_dtypes.bfloat16).view('V2')"
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


def npy(shape: object, descr: str = "<f4", body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A .npy member with any header."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + body


def archive(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        npy((10**12,), body=b"\0" * 8),
        npy((-1,), body=b"\0" * 4),
        npy((10**12,), "<U0"),
        npy((10**12,), "|V0"),
        npy((2, 3), body=b"\0" * 20),
        npy((2, 3), body=b"\0" * 28),
        npy((2, 3), "<f1", body=b"\0" * 6),
        npy((2, 3), "nonsense", body=b"\0" * 24),
        npy("(((", body=b"\0" * 24),
        npy("(" * 3000, body=b"\0" * 24),
        npy("open('/etc/passwd')", body=b"\0" * 24),
        npy((2, 3), body=b"\0" * 24, version=b"\x09\x00"),
        b"",
        b"\x93NUMPY",
        b"not numpy at all",
    ],
    ids=[
        "larger than it is",
        "negative",
        "empty text",
        "empty words",
        "too short",
        "too long",
        "float8",
        "no type",
        "no syntax",
        "nesting",
        "code",
        "version",
        "empty",
        "cut",
        "other",
    ],
)
def test_a_member_that_lies_is_refused(content: bytes, tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", ("x.npy", content))
    line = refused(path, X)
    assert line.startswith(f"'{path}' is no readable .npz archive (")
    assert line.endswith("); write it with np.savez")


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([print, None]), allow_pickle=True)
    assert refused(tmp_path / "d.npz", X).startswith("'x' in ")
    assert "Python objects, which are not loaded" in refused(tmp_path / "d.npz", X)


@pytest.mark.parametrize("keep", [0, 1, 30, -1, -40])
def test_a_truncated_archive(keep: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ROWS)
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[:keep])
    assert "is no readable .npz archive" in refused(tmp_path / "d.npz", X)


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_anywhere_is_refused_or_harmless(compressed: bool, tmp_path: Path) -> None:
    """Every byte of an archive in turn: the checksum or a parser finds what is in the data."""
    path = tmp_path / "d.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=ROWS)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        try:
            found = open_data(path, [X])
        except DataError:
            continue
        np.testing.assert_array_equal(joined(found, 5)["x"], ROWS)


def test_a_bomb_is_refused_before_it_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "d.npz", ("x.npy", npy((1000, 3), body=b"\0" * 12000)))
    monkeypatch.setattr(npz, "memory_bytes", lambda: 10_000)
    assert "unpacks to 12,0" in refused(path, X)
    assert refused(path, X).endswith("bytes; this machine has 10,000")


def test_an_archive_of_other_things(tmp_path: Path) -> None:
    assert "holds 'readme.txt' which is no .npy array" in refused(archive(tmp_path / "a.npz", ("readme.txt", b"")), X)
    member = ("x.npy", npy((1, 3), body=b"\0" * 12))
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = archive(tmp_path / "b.npz", member, member)
    assert "holds 'x.npy' twice" in refused(twice, X)


def _peak_bytes(path: Path, says: str) -> int:
    """What it takes at most to refuse an archive."""
    tracemalloc.start()
    try:
        assert says in refused(path, X)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("more", (1 << 22,), "'more' is no input"),
        ("x", (1 << 20, 4), "'x' has shape [1048576,4], the input is"),
        ("labels", (1 << 22,), "4194304 labels for 5 samples"),
        ("labels", (5, 1 << 21), "labels are int64 [5,2097152]; they must be integers, one a sample"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_unpacked(
    name: str, shape: tuple[int, ...], says: str, tmp_path: Path
) -> None:
    """Arrays of 16 or 32 MB that pack to a thousandth."""
    zeros = np.zeros(shape, np.int64 if name == "labels" else np.float32)
    np.savez_compressed(tmp_path / "d.npz", **({"x": ROWS} | {name: zeros}))
    assert _peak_bytes(tmp_path / "d.npz", says) < 1 << 21


def test_a_header_that_is_longer_than_any_is_not_read(tmp_path: Path) -> None:
    member = b"\x93NUMPY\x02\x00" + (1 << 24).to_bytes(4, "little") + b" " * (1 << 24)
    path = archive(tmp_path / "d.npz", ("x.npy", member))
    assert _peak_bytes(path, "is no readable .npz archive") < 1 << 20


def test_a_member_that_numpy_would_not_write_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", ("x.npy", b"1"), method=zipfile.ZIP_LZMA)
    assert "'x' is compressed by a method that numpy does not write" in refused(path, X)


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("1,2,3")
    assert refused(tmp_path / "d.csv", X).startswith(f"'{tmp_path / 'd.csv'}' is no readable .npz archive (File is not")
    with io.BytesIO() as buffer:
        np.save(buffer, ROWS)
        (tmp_path / "d.npy").write_bytes(buffer.getvalue())
    assert refused(tmp_path / "d.npy", X).endswith("write it with np.savez")


def test_nothing_there_says_what_would_be_taken() -> None:
    says = "; give an .npz archive, a folder of images by class or of event recordings, or module:function"
    assert refused("gone.npz", X) == "no data at 'gone.npz'" + says
    assert refused(Path("module:function"), X) == "no data at 'module:function'" + says
    assert refused("not a.module:function", X) == "no data at 'not a.module:function'" + says


def test_the_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert npz.memory_bytes() > 1 << 28
    monkeypatch.delattr("os.sysconf", raising=False)
    assert npz.memory_bytes() == 1 << 34


# Functions

COUNTER = itertools.count()


def write(folder: Path, name: str, text: str) -> str:
    """A module in `folder`."""
    import textwrap

    (folder / f"{name}.py").write_text("import numpy as np\n" + textwrap.dedent(text))
    return name


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module of a new name into the current directory, and gives `name:feeds`."""
    monkeypatch.chdir(tmp_path)
    return lambda text: write(tmp_path, f"user_data_{next(COUNTER)}", text) + ":feeds"


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


def test_a_small_batch_for_a_fixed_model_is_filled_up(module: Callable[[str], str]) -> None:
    spec = module("def feeds(): return [{'x': np.ones((1, 3), np.float32)}]")
    (batch,) = open_data(spec, [Port("x", "float32", (4, 3))]).batches(4)
    assert (batch.size, batch.valid, batch.feeds["x"].shape) == (4, 1, (4, 3))


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
        ("def feeds(): return [{'y': 5}]", "'y' is no input, and input 'x' (float32 [N,3]) has no array"),
        ("def feeds(): raise SystemExit(3)", "failed: SystemExit: 3"),
        ("def feeds(: pass", "failed: SyntaxError: "),
        ("def feeds():\n    yield {'x': np.ones((1, 3), np.float32)}\n    1/0", "failed: ZeroDivisionError: "),
        (
            "x = np.ones((1, 3), np.float32)\ndef feeds(): return [{'x': x}, {'x': x, 'labels': np.ones(1, int)}]",
            "either all batches have labels or none",
        ),
    ],
)
def test_a_function_that_fails_is_told_in_one_line(text: str, says: str, module: Callable[[str], str]) -> None:
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


def test_preprocessing_is_for_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ROWS)
    for spec in (None, tmp_path / "d.npz", {"x": ROWS}):
        assert refused(spec, X, preprocess="p.yaml").startswith("preprocessing is for a folder of images")


# Folders of images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two cats, one dog, 4x4, and a description that changes as little as possible."""
    root = tmp_path / "photos"
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for number, name in enumerate(["cat/a.png", "cat/b.png", "dog/a.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels + np.uint8(50 * number)).save(root / name)
    describe(root)
    return root


def describe(root: Path, text: str = "") -> None:
    (root / "preprocess.yaml").write_text("version: 1\n" + text)


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
        ("resise: 4", "has the unknown key 'resise'; closest: 'resize'"),
        ("resize: 0", "resize is '0'; it takes pixels of the shorter side, or [height, width]"),
        ("resize: true", "resize is 'True'; it takes pixels of the shorter side, or [height, width]"),
        ("resize: [4]", "resize is '[4]'; it takes pixels of the shorter side, or [height, width]"),
        ("crop: big", "crop is 'big'; it takes pixels of a square, or [height, width]"),
        ("crop: 100000", "crop is '100000'; it takes pixels of a square, or [height, width]"),
        ("color: red", "color is 'red'; it takes rgb or bgr or gray"),
        ("layout: chw", "layout is 'chw'; it takes nchw or nhwc"),
        ("scale: .nan", "scale is 'nan'; it takes a number"),
        ("mean: [a, b, c]", "mean is '['a', 'b', 'c']'; it takes a number"),
        ("mean: [1, 2]", "mean has 2 numbers for 3 channels"),
        ("std: 0", "std is '0'; it takes numbers above 0"),
        ("input: 5", "input is '5'; it takes a name"),
        ("input: imago", "the model has no input 'imago'; closest: 'image'"),
        ("classes: cat", "classes is 'cat'; it takes a list of folder names"),
        ("version: 2", "is no readable YAML file: line 2: 'version' is given twice"),
        ("- 1", "is no readable YAML file: "),
        ("mean: !!python/object/apply:os.system [ls]", "is no readable YAML file: "),
        ("mean: " + "[" * 5000, "is no readable YAML file: "),
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
    assert "is no preprocessing of version 1; an example: version: 1 / " in refused(photos, IMAGE)


def test_a_file_that_is_no_image_is_named(photos: Path) -> None:
    (photos / "cat" / "notes.txt").write_text("no image")
    assert refused(photos, IMAGE).startswith(f"'{photos / 'cat' / 'notes.txt'}' is no readable image: ")


def test_a_truncated_image_is_named_when_it_is_read(photos: Path) -> None:
    file = photos / "dog" / "a.png"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a\.png' is no readable image: "):
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
    assert refused(photos, IMAGE) == f"'{photos / 'cat' / 'more'}' is no image file"


def test_links_stay_within_the_folder(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "c.png").symlink_to(photos / "dog" / "a.png")
    assert open_data(photos, [IMAGE]).samples == 4
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    (photos / "cat" / "d.png").symlink_to(tmp_path / "outside.png")
    assert "d.png' links to a place outside" in refused(photos, IMAGE)
    (photos / "cat" / "d.png").unlink()
    (photos / "cat" / "loop.png").symlink_to(photos / "cat" / "loop.png")
    assert refused(photos, IMAGE) == f"'{photos / 'cat' / 'loop.png'}' is no image file"
    (photos / "cat" / "loop.png").unlink()
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "folder" / "e.png")
    (photos / "emu").symlink_to(tmp_path / "folder")
    assert "e.png' links to a place outside" in refused(photos, IMAGE)


def test_an_empty_folder(tmp_path: Path) -> None:
    describe(tmp_path)
    assert refused(tmp_path, IMAGE).startswith(f"no images in '{tmp_path}': it holds one folder per class")


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
    assert "is no readable image: Image size (16 pixels) exceeds limit" in refused(photos, IMAGE)


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
    assert refused(photos, IMAGE) == "reading images needs Pillow: pip install onnxfi[images]"


@pytest.mark.parametrize("format", ["EPS", "PDF", "ICO", "TGA", "PCX"])
def test_formats_beside_the_usual_ones_are_not_opened(format: str, photos: Path) -> None:
    Image.new("RGB", (4, 4)).save(photos / "cat" / "a.png", format)
    line = refused(photos, IMAGE)
    assert line.startswith(f"'{photos / 'cat' / 'a.png'}' is no readable image: ")
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


def test_a_batch_that_takes_all_memory_is_one_line(photos: Path) -> None:
    for number in range(20):
        Image.new("1", (1, 1)).save(photos / "cat" / f"{number}.png")
    describe(photos, "resize: [4000, 4000]")
    with pytest.raises(DataError, match=r"a batch of 23 images .* takes 4,416,000,000 bytes, .* a smaller --batch"):
        next(open_data(photos, [OPEN_IMAGE]).batches(32))


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
    assert refused(folders(tmp_path / "twice", "1", "01"), IMAGE).endswith("name one class number; keep one")


def test_folders_whose_order_is_not_sure_are_listed_first(tmp_path: Path) -> None:
    root = folders(tmp_path, *(f"class {number}" for number in range(11)))
    assert "'class 0', 'class 1', … in" in refused(root, IMAGE) and "list them in `classes:`" in refused(root, IMAGE)
    describe(root, f"classes: {[f'class {number}' for number in range(11)]}")
    found = open_data(root, [IMAGE])
    assert found.labels is not None and found.labels.tolist() == list(range(11)) and found.classes == 11
    padded = open_data(folders(tmp_path / "padded", *(f"n{number:04}" for number in (9, 10, 100))), [IMAGE])
    assert padded.labels is not None and padded.labels.tolist() == [0, 1, 2] and padded.classes == 3


def test_one_folder_tells_no_classes(tmp_path: Path) -> None:
    found = open_data(folders(tmp_path, "images"), [IMAGE])
    assert found.labels is None and found.description == f"1 unlabelled images in '{tmp_path}'"


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


def test_the_module_exports_what_callers_need() -> None:
    assert set(data_module.__all__) == {"Batch", "Data", "open_data", "synthetic"}
