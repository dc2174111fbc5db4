"""Tests of external data: inside the folder of the model, behind no link unless allowed, and long enough."""

from __future__ import annotations

import os
from pathlib import Path

import protobuf_reader
import pytest
from build_models import floats
from external_data import external, numbers, saved
from loaded_models import refused
from onnx import ModelProto, TensorProto

from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.weights import inject, sample


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("/etc/passwd", "is an absolute path"),
        ("//etc/passwd", "is an absolute path"),
        ("C:\\secret.bin", "is an absolute path"),
        ("C:secret.bin", "is an absolute path"),
        ("c:/secret.bin", "is an absolute path"),
        ("\\\\host\\share\\w.bin", "is an absolute path"),
        ("\\secret.bin", "is an absolute path"),
        ("\\\\?\\C:\\secret.bin", "is an absolute path"),
        ("../secret.bin", r"leaves the model's folder with '\.\.'"),
        ("sub/../../secret.bin", r"leaves the model's folder with '\.\.'"),
        ("sub/..", r"leaves the model's folder with '\.\.'"),
        ("..", r"leaves the model's folder with '\.\.'"),
        ("sub\\..\\..\\secret.bin", r"leaves the model's folder with '\.\.'"),
        ("..\\secret.bin", r"leaves the model's folder with '\.\.'"),
        ("", "names no file"),
        ("w.bin\0.txt", "names no file"),
        ("\0", "names no file"),
        (".", "is not a regular file"),
        ("sub", "is not a regular file"),
        ("./sub/", "is not a regular file"),
        ("fifo", "is not a regular file"),
        ("missing.bin", "is missing: no file .* put it beside the model"),
        ("m.onnx/w.bin", r"is missing.*\(Not a directory\)"),
        ("n" * 300, r"is missing.*\(File name too long\)"),
        ("d/" * 3000 + "w.bin", "is missing"),
        ("link.bin", "is behind the symbolic link .* --allow-links follows it"),
        ("linked/inner.bin", "is behind the symbolic link"),
        ("dangling.bin", "is behind the symbolic link"),
        ("loop.bin", "is behind the symbolic link"),
        ("hard.bin", r"is a hard link \(2 names\); --allow-links follows it"),
        ("\x1b[2J", "is missing"),
    ],
)
def test_places_of_external_data_that_are_refused(tmp_path: Path, location: str, message: str) -> None:
    (tmp_path / "secret.bin").write_bytes(numbers(4))
    path = saved(tmp_path / "in", [external("w", location, [4])], sub__inner_dot_bin=numbers(4))
    folder = path.parent
    os.mkfifo(folder / "fifo")
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "linked").symlink_to(folder / "sub")
    (folder / "dangling.bin").symlink_to("nowhere")
    (folder / "loop.bin").symlink_to("loop.bin")
    os.link(tmp_path / "secret.bin", folder / "hard.bin")
    refused(path, message)


def test_links_are_followed_where_they_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(numbers(4))
    tensors = [external(name, location, [4]) for name, location in (("a", "link"), ("b", "hard"), ("c", "dir/w"))]
    path = saved(tmp_path / "in", tensors)
    (path.parent / "link").symlink_to(tmp_path / "blob")
    os.link(tmp_path / "blob", path.parent / "hard")
    (tmp_path / "far").mkdir()
    (tmp_path / "far/w").write_bytes(numbers(4, 9.0))
    (path.parent / "dir").symlink_to(tmp_path / "far")
    held = load(path, allow_links=True)
    assert len(held.external) == 2  # the blob under two names is one file
    inject(held, sample(held, sites=["c[0]:31"]), tmp_path / "o.onnx")
    assert (tmp_path / "far/w").read_bytes() == numbers(4, 9.0)
    assert protobuf_reader.read(tmp_path / "o.onnx")["c"].words.tolist()[0] == 0xC1100000
    for location in ("/etc/passwd", "../blob", "dangling"):
        bad = saved(tmp_path / "bad", [external("w", location, [1])])
        if location == "dangling":
            (bad.parent / location).symlink_to("nowhere")
        refused(bad, "absolute|leaves|missing", allow_links=True)


def test_a_model_cache_of_links_into_one_folder_of_blobs(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/1"
    snapshot.mkdir(parents=True)
    made = saved(blobs, [external("w", "m.onnx.data", [2])], aaaa=numbers(2))
    (snapshot / "m.onnx").symlink_to(made)
    (snapshot / "m.onnx.data").symlink_to(blobs / "aaaa")
    refused(snapshot / "m.onnx", "is behind the symbolic link")
    assert [t.id for t in load(snapshot / "m.onnx", allow_links=True).targets] == ["w"]


def test_a_model_without_external_data_may_be_any_link(tmp_path: Path) -> None:
    path = saved(tmp_path / "in", [floats("w", 1)])
    (tmp_path / "soft.onnx").symlink_to(path)
    os.link(path, tmp_path / "hard.onnx")
    for link in ("soft.onnx", "hard.onnx"):
        assert [t.id for t in load(tmp_path / link).targets] == ["w"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "-1"}, "offset '-1' is not a whole number"),
        ({"length": "-16"}, "length '-16' is not a whole number"),
        ({"offset": "1.0"}, "is not a whole number"),
        ({"offset": "0x10"}, "is not a whole number"),
        ({"offset": "1e3"}, "is not a whole number"),
        ({"offset": ""}, "is not a whole number"),
        ({"offset": "text\x1b[31m"}, "is not a whole number"),
        ({"length": "9" * 19}, "is not a whole number"),
        ({"length": "9" * 100_000}, "is not a whole number"),
        ({"offset": "9" * 18}, "is too short"),
        ({"offset": "1"}, r"is too short: 'w' lies at 1 to 17, the file has 16 bytes"),
        ({"length": "8"}, "needs 16 bytes, but its external data has length 8"),
        ({"length": "17"}, "needs 16 bytes, but its external data has length 17"),
    ],
)
def test_offsets_and_lengths_that_are_refused(tmp_path: Path, entries: dict[str, str], message: str) -> None:
    path = saved(tmp_path, [external("w", "w.bin", [4], **entries)], w_dot_bin=numbers(4))
    refused(path, message)


def test_external_data_without_a_location_or_a_folder(tmp_path: Path) -> None:
    held = TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    refused(saved(tmp_path, [held]), "names no file")
    path = saved(tmp_path / "in", [external("w", "w.bin", [1])], w_dot_bin=numbers(1))
    refused(path.read_bytes(), "a model in memory has no folder; load it from its file")
    refused(ModelProto.FromString(path.read_bytes()), "a model in memory has no folder")


def test_external_data_in_the_model_file_itself(tmp_path: Path) -> None:
    # Odd, but inside the folder and no link: the copy gets a data file of its own, and the model stays as it is.
    path = saved(tmp_path / "in", [external("w", "m.onnx", [2])])
    held = load(path)
    before = path.read_bytes()
    inject(held, sample(held, sites=["w[0]:0"]), tmp_path / "o.onnx")
    data = (tmp_path / "o.onnx.data").read_bytes()
    assert len(data) == len(before)
    assert [k for k, (a, b) in enumerate(zip(before, data, strict=True)) if a != b] == [0]
    assert path.read_bytes() == before
