"""Set up the event recordings of N-MNIST or DVS128 Gesture from an archive that you have downloaded.

    python scripts/setup_events.py nmnist --archive N-MNIST.zip [--dir data/nmnist] [--force]
    python scripts/setup_events.py gesture --archive DvsGesture.tar.gz [--dir data/gesture] [--force]
    python scripts/setup_events.py frames data/nmnist/test --size 34 34 --steps 30 -o test.npz [--limit 1000]

The first two unpack the recordings as they are into DIR/train and DIR/test, each with an events.yaml, so that
`onnxfi run model.onnx --data DIR/test` reads them. `frames` bins a folder into an archive, [T, N, 2, H, W], as training
wants it. Of N-MNIST the archive holds Train.zip and Test.zip, or their folders; of DVS128 Gesture it is the .tar.gz of
the data set. Only files with the names of the data set are unpacked, whatever else an archive holds.
"""

import argparse
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from onnxfi import Port
from onnxfi.errors import DataError
from onnxfi.runtime.data.open_data import open_data

NMNIST = re.compile(r"(?:.*/)?(Train|Test)/([0-9])/(\d{1,6}\.bin)", re.ASCII)
GESTURE = re.compile(r"(?:.*/)?(user\d{2}_\w{1,40}?(?:_labels\.csv|\.aedat)|trials_to_(?:train|test)\.txt)", re.ASCII)
DESCRIPTIONS = {
    "nmnist": "version: 1\nsensor: [34, 34]\nstep_us: 10000   # 30 steps for the 300 ms of a recording\n",
    "gesture": "version: 1\nsensor: [128, 128]\nstep_us: 50000   # 30 steps for the first 1.5 s of a gesture\n",
}
#: Bytes of a recording: those of N-MNIST have some 20 kB, those of DVS128 Gesture some 40 MB.
LARGEST = {"nmnist": 1 << 24, "gesture": 1 << 30}


def fail(text: str) -> SystemExit:
    return SystemExit(f"setup_events.py: {text}")


def nmnist_files(archive: IO[bytes], part: str = "") -> Iterator[tuple[Path, int, IO[bytes]]]:
    """Yield the recordings of an archive: train/CLASS/NUMBER.bin, size, content; Train.zip in an archive is opened."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            inner = re.fullmatch(r"(?:.*/)?(Train|Test)\.zip", member.filename)
            found = NMNIST.fullmatch(f"{part}/{member.filename}" if part else member.filename)
            if inner and not part:
                with opened.open(member) as file, tempfile.TemporaryFile() as whole:
                    shutil.copyfileobj(file, whole)
                    yield from nmnist_files(whole, inner[1])
            elif found:
                with opened.open(member) as file:
                    yield Path(found[1].lower(), found[2], found[3]), member.file_size, file


def gesture_files(archive: IO[bytes]) -> Iterator[tuple[Path, int, IO[bytes]]]:
    """Yield the recordings, tables of labels and lists of an archive of DVS128 Gesture."""
    with tarfile.open(fileobj=archive, mode="r|*") as opened:
        for member in opened:
            found = GESTURE.fullmatch(member.name) if member.isreg() else None
            if found and (file := opened.extractfile(member)) is not None:
                yield Path(found[1]), member.size, file


def unpack(kind: str, archive: Path, place: Path) -> int:
    """Write the recordings of an archive under `place`; returns their number."""
    done = 0
    with archive.open("rb") as stream:
        for name, size, file in (nmnist_files if kind == "nmnist" else gesture_files)(stream):
            if size > LARGEST[kind]:
                raise fail(f"{name} claims {size:,} bytes; a recording has at most {LARGEST[kind]:,}")
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                for _ in range(-(-size // (1 << 20))):
                    out.write(file.read(min(1 << 20, size - out.tell())))
            done += target.suffix in (".bin", ".aedat")
    return done


def sort_gestures(place: Path) -> None:
    """Move the recordings into train/ and test/, as the lists of the data set say."""
    for part in ("train", "test"):
        (place / part).mkdir()
        listed = place / f"trials_to_{part}.txt"
        if not listed.is_file():
            raise fail(f"the archive holds no {listed.name}")
        for line in listed.read_text().split():
            name = Path(line).name
            labels = name.removesuffix(".aedat") + "_labels.csv"
            if not (place / name).is_file() or not (place / labels).is_file():
                raise fail(f"{listed.name} lists {name!r}, which the archive does not hold with its {labels}")
            for file in (name, labels):
                (place / file).rename(place / part / file)


def set_up(kind: str, archive: Path, folder: Path, *, force: bool) -> None:
    if not archive.is_file():
        raise fail(f"there is no archive {archive}; download it first, see docs/how-to/data.md")
    if folder.exists() and not force:
        raise fail(f"{folder} is there already; --force sets it up anew")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        place = Path(scratch, "new")
        try:
            done = unpack(kind, archive, place)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
            raise fail(f"{archive} cannot be unpacked: {error}") from error
        if not done:
            raise fail(f"{archive} holds no recordings of {kind}")
        if kind == "gesture":
            sort_gestures(place)
        for part in ("train", "test"):
            if (place / part).is_dir():
                (place / part / "events.yaml").write_text(DESCRIPTIONS[kind])
        if folder.exists():
            shutil.rmtree(folder)
        shutil.move(place, folder)
    print(f"{folder}: {done:,} recordings")


def frames(folder: Path, out: Path, size: tuple[int, int], steps: int, limit: int | None) -> None:
    """Write the frames of a folder of recordings as an archive."""
    port = Port("events", "float32", (steps, "N", 2, *size))
    try:
        data = open_data(folder, [port], limit=limit, batch_axis=1)
        made = np.concatenate([batch.feeds["events"] for batch in data.batches(64)], axis=1)
    except DataError as error:
        raise fail(str(error)) from error
    np.savez_compressed(out, events=made, labels=data.labels)
    print(f"{out}: {list(made.shape)}, {made.mean():.4f} events in a pixel and step")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = parser.add_subparsers(dest="kind", required=True)
    for kind in DESCRIPTIONS:
        one = parts.add_parser(kind)
        one.add_argument("--archive", type=Path, required=True)
        one.add_argument("--dir", type=Path, default=Path("data", kind))
        one.add_argument("--force", action="store_true", help="remove the folder and set it up anew")
    one = parts.add_parser("frames")
    one.add_argument("folder", type=Path)
    one.add_argument("--size", type=int, nargs=2, default=(34, 34), metavar=("H", "W"))
    one.add_argument("--steps", type=int, default=30)
    one.add_argument("--limit", type=int)
    one.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.kind == "frames":
        frames(given.folder, given.out, tuple(given.size), given.steps, given.limit)
    else:
        set_up(given.kind, given.archive, given.dir, force=given.force)


if __name__ == "__main__":
    main(sys.argv[1:])
