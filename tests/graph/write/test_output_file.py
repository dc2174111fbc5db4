"""Places to write: what is refused, what is left after a kill, and what is nobody's to remove."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from onnxfi.errors import OutputError
from onnxfi.graph.write.output_file import atomic_files, check_folder, check_output_files, make_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")


def refused(place: Path, message: str) -> None:
    """The place is refused, before a byte is written and at the latest where it is."""
    with pytest.raises(OutputError, match=message) as raised:
        check_output_files(None, [place])
    assert "\n" not in str(raised.value)
    with pytest.raises(OutputError, match=message), atomic_files([place]) as (stream,):
        stream.write(b"x")


def test_what_is_no_file_is_refused_and_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to("pipe")
    (tmp_path / "to-link").symlink_to("to-pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "to-pipe", "to-link", "null"):
        refused(tmp_path / name, "is a device or pipe; give the name of a file")
    refused(tmp_path / "folder", "is a directory; give a file name")
    refused(tmp_path / "none" / "x", "no folder .*none' to write 'x' into; make it first")
    refused(tmp_path / "-", "the output cannot be '-'.*give the name of a file")
    refused(tmp_path / ("x" * 300), "cannot be written: File name too long")
    refused(tmp_path / "a\0b", "cannot be written: embedded null")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "null", "pipe", "to-link", "to-pipe"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root makes devices")
def test_a_device_stays_a_device(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "dev", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no devices can be made here")
    (tmp_path / "link").symlink_to("dev")
    for name in ("dev", "link"):
        refused(tmp_path / name, "is a device or pipe")
    assert stat.S_ISCHR((tmp_path / "dev").lstat().st_mode) and (tmp_path / "link").is_symlink()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc here")
def test_what_a_process_has_open_is_no_place_even_where_it_is_a_file(tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w") as stream:
        own = Path(f"/proc/self/fd/{stream.fileno()}")  # as /dev/stdout leads to behind `> out.txt`
        (tmp_path / "stdout").symlink_to(own)
        (tmp_path / "far").symlink_to("stdout")
        for place in (own, tmp_path / "stdout", tmp_path / "far"):
            refused(place, "is a device or pipe")
    assert os.readlink(tmp_path / "stdout") == str(own)


def test_a_link_to_a_file_becomes_a_file_and_what_it_led_to_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    for name, to in (("link", "kept"), ("dangling", "none")):
        (tmp_path / name).symlink_to(to)
        with atomic_files([tmp_path / name]) as (stream,):
            stream.write(b"new")
        assert (tmp_path / name).read_text() == "new" and not (tmp_path / name).is_symlink()
    assert (tmp_path / "kept").read_text() == "kept" and not (tmp_path / "none").exists()


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "dangling").symlink_to("none")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("file", "cannot be made: .*file' is not a folder"),
        ("file/below", "cannot be made: .*file' is not a folder"),
        ("pipe", "pipe' is not a folder"),
        ("dangling", "dangling' is not a folder"),
        ("-", "an output folder cannot be '-'"),
        ("x" * 300, "File name too long"),
    ):
        for refuse in (check_folder, make_folder):
            with pytest.raises(OutputError, match=message):
                refuse(tmp_path / name)
    for name in ("there", "link", "new/and/deep", "there/."):
        check_folder(tmp_path / name)
    assert not (tmp_path / "new").exists()
    make_folder(tmp_path / "new/and/deep")
    assert (tmp_path / "new/and/deep").is_dir()
