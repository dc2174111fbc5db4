"""Archives of arrays: types, members that lie, damage, and archives that would fill the memory."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from data_sources import joined, refused

from onnxfi.errors import DataError
from onnxfi.runtime.data import npz
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import Port

X = Port("x", "float32", ("N", 3))


ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)


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


def test_the_line_that_converts_to_a_type_of_ml_dtypes() -> None:
    assert refused({"x": ROWS}, Port("x", "bfloat16", ("N", 3))).endswith(
        "takes data['x'].astype(ml_dtypes.bfloat16).view('V2')"
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
    assert line.startswith(f"'{path}' is not a readable .npz archive (")
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
    assert "is not a readable .npz archive" in refused(tmp_path / "d.npz", X)


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
    """Return the most memory that it takes to refuse an archive."""
    tracemalloc.start()
    try:
        assert says in refused(path, X)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("more", (1 << 22,), "'more' is not an input"),
        ("x", (1 << 20, 4), "'x' has shape [1048576,4], the input is"),
        ("labels", (1 << 22,), "4194304 labels for 5 samples"),
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
    assert _peak_bytes(path, "is not a readable .npz archive") < 1 << 20


def test_a_member_that_numpy_would_not_write_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "d.npz", ("x.npy", b"1"), method=zipfile.ZIP_LZMA)
    assert "'x' is compressed by a method that numpy does not write" in refused(path, X)


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("1,2,3")
    assert refused(tmp_path / "d.csv", X).startswith(
        f"'{tmp_path / 'd.csv'}' is not a readable .npz archive (File is not"
    )
    with io.BytesIO() as buffer:
        np.save(buffer, ROWS)
        (tmp_path / "d.npy").write_bytes(buffer.getvalue())
    assert refused(tmp_path / "d.npy", X).endswith("write it with np.savez")
