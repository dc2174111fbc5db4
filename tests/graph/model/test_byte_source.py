"""TODO."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build_models import floats, model, model_bytes, node, tensor_bytes
from external_data import external, numbers, saved
from loaded_models import refused
from onnx import TensorProto

from onnxfi.errors import ModelError, OnnxfiError
from onnxfi.graph.model.byte_source import ByteSource, StoredArray
from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.weights import sample


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"0123456789")
    source = ByteSource.file(path)
    with source.reading() as read:
        assert read(2, 5) == b"234"
        os.truncate(path, 4)
        with pytest.raises(ModelError, match="ends before byte 9"):
            read(2, 9)
    with pytest.raises(ModelError, match="changed while it was being read"), source.reading():
        pass
    path.unlink()
    with pytest.raises(ModelError, match="cannot read"), source.reading():
        pass


def test_empty_directory_device_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    os.mkfifo(tmp_path / "fifo.onnx")
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    refused(tmp_path / "empty.onnx", "is empty; give an ONNX file")
    refused(b"", "is empty; give an ONNX file")
    refused(tmp_path, "is a directory; give the .onnx file inside it")
    refused(tmp_path / "fifo.onnx", "is not a regular file")
    refused(Path("/dev/zero"), "is not a regular file")
    refused(tmp_path / "missing.onnx", "cannot read .*No such file")
    refused(tmp_path / "empty.onnx/inside", "cannot read .*Not a directory")
    refused(tmp_path / "loop.onnx", "cannot read .*symbolic links")
    refused(tmp_path / ("n" * 300), "cannot read .*File name too long")
    refused(tmp_path / "a\0b", "cannot read .*null")


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, [external("w", "w.bin", [1])], w_dot_bin=numbers(1))
    opened = Path.open
    for name in ("m.onnx", "w.bin"):

        def shut(place: Path, *more: Any, name: str = name, **named: Any) -> Any:
            if place.name == name:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return opened(place, *more, **named)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", shut)
            refused(path, rf"cannot read .*{name}': Permission denied; give a readable file")
    if os.geteuid():  # root may read anything
        path.chmod(0)
        refused(path, "Permission denied")


def test_names_with_terminal_escapes_are_shown_harmless_in_errors_and_notes() -> None:
    name = "\x1b]0;title\x07\x1b[2Jw\r\n\u202e"
    tensor = tensor_bytes(name, 1, [3], [1], "raw")
    assert "\\x1b]0;title" in refused(model_bytes(tensor), "the file is damaged")
    refused(model_bytes(tensor_bytes(name, 1, [-3], [1], "raw")), "no tensor has it")
    twice = model(
        [node("Mul", ["x", name])], [floats(name, 1), floats(name, 1), TensorProto(name=name + "2", data_type=77)]
    )
    found = load(twice)
    assert len(found.notes) == 2
    assert all(note.isprintable() for note in found.notes)
    with pytest.raises(OnnxfiError) as error:
        sample(found, sites=[f"{name}[7]:1"])
    assert str(error.value).isprintable()


def test_names_without_end_are_cut_in_messages_and_notes_are_few() -> None:
    name = "n" * 1_000_000
    refused(model_bytes(tensor_bytes(name, 1, [3], [1], "raw")), "the file is damaged")
    odd = [TensorProto(name=f"{name}{k}", data_type=77) for k in range(30)]
    notes = load(model([node("Relu", ["x"])], odd)).notes
    assert notes[-1] == "10 more of such notes"
    assert sum(map(len, notes)) < 10_000


def test_a_tensor_that_is_mapped_changes_in_this_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(3000, dtype="<f4")
    (tmp_path / "w.bin").write_bytes(bytes(4) + array.tobytes() + bytes(3))
    source = ByteSource.file(tmp_path / "w.bin")
    monkeypatch.setattr("onnxfi.graph.model.byte_source.MAPPED_BYTES", 1)
    for one in (
        StoredArray(source, 4, np.dtype("<f4"), (30, 100)),
        StoredArray(source, 3, np.dtype("<f4"), (2,)),  # not aligned
        StoredArray(ByteSource.memory(array.tobytes()), 0, np.dtype("<f4"), (3000,)),
    ):
        found, known = one.mapped(), one.read()
        assert found.tobytes() == known.tobytes() and type(found) is np.ndarray
        found[...] = 7
        assert one.read().tobytes() == known.tobytes() == one.mapped().tobytes()
    (tmp_path / "w.bin").write_bytes(bytes(20_000))
    with pytest.raises(ModelError, match="changed while it was being read"):
        StoredArray(source, 4, np.dtype("<f4"), (3000,)).mapped()
