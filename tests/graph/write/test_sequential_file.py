"""Files written chunk by chunk: what is in them is what was written, past the page cache or through it."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxfi.graph.write.sequential_file import SequentialFile

SIZES = [1 << 20, 1 << 18, (1 << 17) + 5, 3, 1 << 16, 70_000]


def chunks() -> list[memoryview]:
    """Chunks in memory that begins at a page, half of their blocks zero."""
    words = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
    found = []
    for size in SIZES:
        view = memoryview(mmap.mmap(-1, size))
        for low in range(0, size, 1 << 17):
            view[low : low + (1 << 16)] = words[: len(view[low : low + (1 << 16)])].tobytes()
        found.append(view)
    return [*found, memoryview(bytes(1 << 18))]


@pytest.mark.parametrize("direct", [False, True])
def test_a_file_holds_what_was_written_and_keeps_its_holes(tmp_path: Path, direct: bool) -> None:
    with (tmp_path / "out").open("wb") as stream:
        file = SequentialFile(stream, direct=direct)
        for chunk in chunks():
            file.write(chunk)
        file.finish()
    expected = b"".join(map(bytes, chunks()))
    assert (tmp_path / "out").read_bytes() == expected
    blocks = (tmp_path / "out").stat().st_blocks
    assert blocks * 512 < 0.8 * len(expected), "stretches of zeros are holes"


def refusing(*_: object) -> int:
    raise OSError(errno.EINVAL, "not aligned")


def halting(write: Callable[..., int]) -> Callable[..., int]:
    return lambda file, view, at: write(file, bytes(view[: max(1, len(view) // 2)]), at)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no writes past its page cache")
@pytest.mark.parametrize("how", ["refused", "half of them"])
def test_what_cannot_go_past_the_page_cache_goes_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    plain, written = os.pwrite, refusing if how == "refused" else halting(os.pwrite)
    with (tmp_path / "out").open("wb") as stream:
        file = SequentialFile(stream, direct=True)
        monkeypatch.setattr(os, "pwrite", written)
        for chunk in chunks():
            file.write(chunk)
        monkeypatch.setattr(os, "pwrite", plain)
        file.finish()
    assert (tmp_path / "out").read_bytes() == b"".join(map(bytes, chunks()))


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no writes past its page cache")
def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (tmp_path / "out").open("wb") as stream:
        file = SequentialFile(stream, direct=True)
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            file.write(chunks()[0])
        file.close()
