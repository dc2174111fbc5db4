"""Ways to copy a file of 1 GB with SHA-256 digests, as `onnxfi inject` must: what each takes.

    python scripts/bench/copying.py [--rounds 5] [--folder FOLDER]

All ways run once in each round, in turns; printed are medians and the least of wall time, and the median of processor
time. All but `cp` end with `fsync`: what is not on the disk must not get its name.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import statistics
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

MB = 1 << 20
SIZE = 1 << 30
#: Bytes after which the system is asked to write them to the disk.
ASK = 16 * MB


def copied(
    source: Path,
    copy: Path,
    *,
    hashes: int,
    chunk: int = 2 * MB,
    direct: bool = False,
    ask: bool = False,
    allocate: bool = False,
) -> None:
    """Read a file in chunks, hash each so many times and write it, in threads, while the next ones are read."""
    read = os.open(source, os.O_RDONLY)
    write = os.open(copy, os.O_WRONLY | os.O_CREAT | (os.O_DIRECT if direct else 0))
    if allocate:
        os.posix_fallocate(write, 0, SIZE)
    threads = [ThreadPoolExecutor(1) for _ in range(hashes + 1)]
    jobs = [hashlib.sha256().update for _ in range(hashes)]
    buffers = deque(memoryview(mmap.mmap(-1, chunk)) for _ in range(7))
    waiting: deque[list[Future[object]]] = deque()
    for start in range(0, SIZE, chunk):
        while len(waiting) > 5:
            for done in waiting.popleft():
                done.result()
        buffers.rotate()
        os.preadv(read, [buffers[0]], start)
        calls: list[Callable[[], object]] = [partial(os.pwrite, write, buffers[0], start)]
        calls += [partial(job, buffers[0]) for job in jobs]
        waiting.append([thread.submit(call) for thread, call in zip(threads, calls, strict=True)])
        if ask and start and start % ASK == 0:
            os.posix_fadvise(write, start - ASK, ASK, os.POSIX_FADV_DONTNEED)
    for thread in threads:
        thread.shutdown()
    os.fsync(write)
    os.close(read)
    os.close(write)


def hashed(*files: Path) -> None:
    """Hash files, each in a thread of its own."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda file: hashlib.file_digest(file.open("rb"), "sha256"), files))


def in_kernel(source: Path, copy: Path) -> None:
    """Copy within the kernel, then read both for the digests."""
    with source.open("rb") as read, copy.open("wb") as write:
        for start in range(0, SIZE, 256 * MB):
            os.copy_file_range(read.fileno(), write.fileno(), 256 * MB, start, start)
        hashed(source, copy)
        os.fsync(write.fileno())


def ways() -> dict[str, Callable[[Path, Path], object]]:
    """The ways by name."""
    through, past = partial(copied, hashes=2), partial(copied, direct=True)
    return {
        "`cp`": lambda source, copy: subprocess.run(["cp", source, copy], check=True),
        "two digests, no copy": lambda source, copy: hashed(source, source),
        "`copy_file_range`, then two digests": in_kernel,
        "page cache, two digests": through,
        "page cache, space allocated first": partial(through, allocate=True),
        "page cache, writing asked for every 16 MB": partial(through, ask=True),
        "`O_DIRECT`, two digests": partial(past, hashes=2),
        "`O_DIRECT`, space allocated first": partial(past, hashes=2, allocate=True),
        "`O_DIRECT`, 1 MB at a time": partial(past, hashes=2, chunk=MB),
        "`O_DIRECT`, one digest": partial(past, hashes=1),
        "`O_DIRECT`, no digest": partial(past, hashes=0),
    }


def taken(rounds: int, folder: Path) -> Iterator[tuple[str, float, float]]:
    """Run all ways in turns; yield name, wall seconds and processor seconds."""
    source, copy = folder / "source", folder / "copy"
    with source.open("wb") as stream:
        for _ in range(SIZE // MB):
            stream.write(os.urandom(MB))
    for _ in range(rounds):
        for name, run in ways().items():
            os.sync()
            begun, cpu = time.perf_counter(), sum(os.times()[:4])
            run(source, copy)
            yield name, time.perf_counter() - begun, sum(os.times()[:4]) - cpu
            copy.unlink(missing_ok=True)


def main() -> None:
    """Measure, and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        found = list(taken(given.rounds, Path(folder)))
    for way in ways():
        walls, cpus = zip(*((wall, cpu) for name, wall, cpu in found if name == way), strict=True)
        least, cpu = min(walls), statistics.median(cpus)
        print(f"| {way} | {statistics.median(walls):.2f} s | {least:.2f} s | {cpu:.2f} s |")


if __name__ == "__main__":
    main()
