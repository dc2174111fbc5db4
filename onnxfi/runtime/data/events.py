"""Event recordings as data: N-MNIST (.bin) and DVS128 Gesture (AEDAT 3.1), binned into frames [T, N, 2, H, W].

A recording is read part by part and added up in its frame, so that memory is bounded by the frames of a batch,
whatever a file claims. docs/how-to/data.md describes the folders and `events.yaml`.

References
----------
.. [1] G. Orchard et al., "Converting static image datasets to spiking neuromorphic datasets using saccades",
   Frontiers in Neuroscience 9, 2015: the 40-bit events of N-MNIST.
.. [2] iniVation, "AEDAT 3.1": https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-3.1.html
.. [3] A. Amir et al., "A low power, fully event-based gesture recognition system", CVPR 2017: labels of DVS128 Gesture.
"""

from __future__ import annotations

import csv
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError
from onnxfi.file_fields import read_text
from onnxfi.runtime.data.batches import Data, layout
from onnxfi.runtime.data.images import file_inside, visible
from onnxfi.runtime.engine.ports import Array, Port, element_type, one_line

DESCRIPTION = "events.yaml"
_EXAMPLE = "version: 1 / sensor: [34, 34] / step_us: 10000"
_CLASSES_OF_GESTURES = 11
#: Bytes that are read at a time, of a line of a header, of a table of labels; elements of a sample, bytes of a batch.
CHUNK, _LONGEST_LINE, _LARGEST_TABLE, _MOST_ELEMENTS, _MOST_BYTES = 5 << 16, 1 << 12, 1 << 20, 1 << 28, 1 << 31
_PACKET = struct.Struct("<HHIIIIII")
_POLARITY, _EVENT_BYTES = 1, 8
#: In N-MNIST the y address that is not a pixel but says that the sensor's clock has gone on by so many microseconds.
_OVERFLOW_Y, _OVERFLOW_US = 240, 1 << 13


class Events(NamedTuple):
    """Events in the order of the file: times in microseconds, addresses, and polarity (1: brighter, 0: darker)."""

    time_us: NDArray[np.int64]
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    polarity: NDArray[np.int64]


@dataclass(frozen=True)
class Binning:
    """From events to frames; docs/how-to/data.md describes the fields."""

    sensor: tuple[int, int] = (0, 0)
    step_us: int = 0
    steps: int | None = None
    values: str = "counts"
    input: str | None = None


@dataclass(frozen=True)
class Recording:
    """One sample: a file, and the part of it that belongs to the sample (`stop_us` None: to its end)."""

    path: Path
    label: int
    start_us: int = 0
    stop_us: int | None = None

    def events(self) -> Iterator[Events]:
        """Yield the events of the sample, with times from its start on."""
        read = read_nmnist if self.path.suffix == ".bin" else read_aedat
        for part in read(self.path):
            if self.stop_us is not None and len(part.x) and part.time_us.min() >= self.stop_us:
                return  # the times of a file go on
            inside = part.time_us >= self.start_us
            if self.stop_us is not None:
                inside &= part.time_us < self.stop_us
            yield Events(part.time_us[inside] - self.start_us, part.x[inside], part.y[inside], part.polarity[inside])


def holds_events(root: Path) -> bool:
    """Return True if a folder holds event recordings rather than images."""
    if (root / DESCRIPTION).is_file() or any(root.glob("*.aedat")):
        return True
    first = next((folder for folder in sorted(root.glob("*")) if folder.is_dir()), None)
    return first is not None and any(first.glob("*.bin"))


def read_binning(path: Path) -> Binning:
    """Read the description of a folder of recordings; DataError names the file and the field."""
    from onnxfi.runtime.data.untrusted_yaml import load_fields

    given = load_fields(path, "description of events", ("version", *(one.name for one in fields(Binning))), DataError)
    high, wide = given.wholes("sensor", 1, 1 << 13, range(2, 3))
    return Binning(
        (high, wide),
        given.whole("step_us", 1, 1 << 32),
        given.whole("steps", 1, 1 << 20, default=None),
        given.one_of("values", ("counts", "binary"), "counts"),
        given.text("input", "the name of an input", default=None),
    )


def read_nmnist(path: Path) -> Iterator[Events]:
    """Yield the events of a file of N-MNIST: 40 bits each, x, y, polarity and 23 bits of time, big-endian [1].

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "00001.bin").write_bytes(bytes([3, 7, 0x80, 1, 2, 0, 240, 0, 0, 0, 4, 5, 0, 0, 9]))
    ...     [part] = read_nmnist(Path(folder, "00001.bin"))
    >>> part.time_us.tolist(), part.x.tolist(), part.y.tolist(), part.polarity.tolist()
    ([258, 8201], [3, 4], [7, 5], [1, 0])
    """
    late_us = 0
    with _opened(path) as file:
        while data := file.read(CHUNK):
            if len(data) % 5:
                raise DataError(f"{str(path)!r} ends inside an event; one of N-MNIST has 5 bytes")
            rows = np.frombuffer(data, np.uint8).reshape(-1, 5).astype(np.int64)
            overflow = rows[:, 1] == _OVERFLOW_Y
            late = late_us + _OVERFLOW_US * np.cumsum(overflow)
            time_us = ((rows[:, 2] & 127) << 16 | rows[:, 3] << 8 | rows[:, 4]) + late
            late_us = int(late[-1])
            kept = ~overflow
            yield Events(time_us[kept], rows[kept, 0], rows[kept, 1], rows[kept, 2] >> 7)


def read_aedat(path: Path) -> Iterator[Events]:
    """Yield the polarity events of an AEDAT 3.1 file, packet by packet [2]; other packets and invalid events are left.

    DataError for another version, and for a packet that the file does not hold.
    """
    with _opened(path) as file:
        _skip_header(file, path)
        while header := file.read(_PACKET.size):
            if len(header) < _PACKET.size:
                raise DataError(f"{str(path)!r} ends inside the header of a packet")
            kind, _, size, _, overflow, capacity, number, _ = _PACKET.unpack(header)
            if number > capacity or (kind == _POLARITY and size != _EVENT_BYTES):
                raise DataError(f"{str(path)!r}: a packet of {number} events of {size} bytes is damaged")
            left, rest = number * size, (capacity - number) * size
            if kind != _POLARITY:
                _skip(file, left + rest, path)
                continue
            while left:
                data = file.read(min(left, CHUNK // 5 * _EVENT_BYTES))
                left -= len(data)
                if not data or len(data) % _EVENT_BYTES:
                    raise DataError(f"{str(path)!r} ends inside a packet of {number:,} events")
                yield _polarity_events(data, overflow)
            _skip(file, rest, path)


def _polarity_events(data: bytes, overflow: int) -> Events:
    words = np.frombuffer(data, "<u4").reshape(-1, 2).astype(np.int64)
    word = words[words[:, 0] & 1 == 1]
    return Events(
        word[:, 1] + (overflow << 31), word[:, 0] >> 17 & 0x7FFF, word[:, 0] >> 2 & 0x7FFF, word[:, 0] >> 1 & 1
    )


def _skip_header(file: IO[bytes], path: Path) -> None:
    line = file.readline(_LONGEST_LINE)
    if line.rstrip() != b"#!AER-DAT3.1":
        raise DataError(f"{str(path)!r} begins with {line[:20]!r}; AEDAT 3.1 is read, which begins with '#!AER-DAT3.1'")
    while not line.startswith(b"#!END-HEADER"):
        before = file.tell()
        line = file.readline(_LONGEST_LINE)
        if not line.startswith(b"#"):
            file.seek(before)
            return


def _skip(file: IO[bytes], size_bytes: int, path: Path) -> None:
    """Skip bytes, which must be there."""
    if size_bytes:
        file.seek(size_bytes - 1, 1)
        if not file.read(1):
            raise DataError(f"{str(path)!r} ends inside a packet")


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {one_line(error)}") from error


def read_gestures(path: Path, recording: Path) -> list[Recording]:
    """Return the samples of a recording of DVS128 Gesture, by its table of labels: class, start and end [3].

    Classes count from 1 in the table, labels from 0.
    """
    text = read_text(path, _LARGEST_TABLE, DataError)
    try:
        head, *rows = csv.reader(text.splitlines()) if text else [[]]
        if [name.strip() for name in head] != ["class", "startTime_usec", "endTime_usec"]:
            raise ValueError("its first line is not class,startTime_usec,endTime_usec")
        found = []
        for row in filter(None, rows):
            label, start_us, stop_us = (int(cell) for cell in row)
            if not 1 <= label <= _CLASSES_OF_GESTURES or not 0 <= start_us < stop_us < 1 << 62:
                raise ValueError(
                    f"the row {','.join(row)[:60]!r} holds no class of 1 to 11 with a start before its end"
                )
            found.append(Recording(recording, label - 1, start_us, stop_us))
    except (ValueError, csv.Error) as error:
        raise DataError(f"{str(path)!r} is not a table of gestures: {one_line(error)}") from error
    return found


def to_frames(parts: Iterator[Events], binning: Binning, steps: int, size: tuple[int, int], what: str) -> Array:
    """Return events as frames: float32 [steps, 2, height, width], darker first, brighter second.

    `size` divides the sensor's: pixels are merged. Events after the last step are left out. DataError for an event
    beside the sensor; `what` names the recording.

    >>> events = Events(*np.array([[0, 1500, 1600, 9000], [0, 3, 2, 1], [0, 1, 0, 1], [1, 0, 0, 1]]))
    >>> frames = to_frames(iter([events]), Binning((2, 4), 1000), 2, (1, 2), "here")
    >>> frames[:, :, 0].tolist()
    [[[0.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]]
    """
    (high, wide), merged = binning.sensor, binning.sensor[0] // size[0]
    frames = np.zeros(steps * 2 * size[0] * size[1], np.float32)
    for time_us, x, y, polarity in parts:
        if len(x) and (x.max() >= wide or y.max() >= high):
            at = int(np.flatnonzero((x >= wide) | (y >= high))[0])
            raise DataError(
                f"{what} has an event at x={x[at]}, y={y[at]}; the sensor is {high}x{wide} (height x width)"
            )
        step = time_us // binning.step_us
        kept = (step >= 0) & (step < steps)
        shape = (steps, 2, *size)
        where = np.ravel_multi_index((step[kept], polarity[kept], y[kept] // merged, x[kept] // merged), shape)
        np.add.at(frames, where, np.float32(1))
    counted = np.minimum(frames, np.float32(1)) if binning.values == "binary" else frames
    return counted.reshape(steps, 2, *size)


def find_recordings(root: Path) -> list[Recording]:
    """Return the samples of a folder: files .bin in folders 0, 1, …, or .aedat files, each with its _labels.csv.

    Of .bin the first of each class come first, then the second of each; of .aedat those of a recording together.
    """
    found: list[tuple[tuple[int, int], Recording]] = []
    for path in visible(root):
        if path.suffix == ".aedat":
            rows = read_gestures(file_inside(path.with_name(f"{path.stem}_labels.csv"), root), file_inside(path, root))
            found += [((0, len(found) + k), row) for k, row in enumerate(rows)]
        elif path.is_dir():
            if not (path.name.isascii() and path.name.isdecimal() and len(path.name) < 10):
                raise DataError(f"folder {str(path)!r} has no class index for a name; N-MNIST has folders 0 to 9")
            for k, file in enumerate(visible(path)):
                if file.suffix != ".bin":
                    raise DataError(f"{str(file)!r} is not a recording (.bin); move it away")
                found.append(((k, int(path.name)), Recording(file_inside(file, root), int(path.name))))
        elif path.name != DESCRIPTION and not path.name.endswith("_labels.csv"):
            raise DataError(f"{str(path)!r} lies beside the recordings; move it away")
    return [recording for _, recording in sorted(found, key=lambda pair: pair[0])]


def open_events(
    root: Path, inputs: Sequence[Port], description: Path | None, limit: int | None, batch_axis: int
) -> Data:
    """Open a folder of event recordings for a model with one input of frames, [T, N, 2, H, W] or [N, T, 2, H, W].

    T, H and W are those of the input; where it leaves T open, `steps:` of the description says it. Recordings are read
    as batches are asked for.
    """
    path = description or root / DESCRIPTION
    if not path.is_file():
        raise DataError(f"no {DESCRIPTION} in {str(root)!r}: write one, or name it with --preprocess; e.g. {_EXAMPLE}")
    binning = read_binning(path)
    port, steps, size = _frame_port(inputs, binning, path, batch_axis)
    found = find_recordings(root)[:limit]
    if not found:
        raise DataError(f"no recordings in {str(root)!r}: folders 0 to 9 with .bin files, or .aedat with _labels.csv")
    sample_bytes = steps * 2 * size[0] * size[1] * 4

    def cut(n: int) -> Iterator[dict[str, Array]]:
        if n * sample_bytes > _MOST_BYTES:
            raise DataError(f"a batch of {n} recordings takes {n * sample_bytes:,} bytes; give a smaller --batch")
        for start in range(0, len(found), n):
            frames = [
                to_frames(one.events(), binning, steps, size, repr(str(one.path))) for one in found[start : start + n]
            ]
            yield {port.name: np.stack(frames, axis=batch_axis).astype(element_type(port.dtype))}

    labels = np.array([one.label for one in found], np.int64)
    of = f"{len(found)} labelled event recordings in {str(root)!r}, {steps} steps of {binning.step_us:,} µs"
    return Data((port.name,), len(found), labels, False, of, layout(inputs, batch_axis, {port.name: (1,) * 5}), cut)


def _frame_port(
    inputs: Sequence[Port], binning: Binning, path: Path, batch_axis: int
) -> tuple[Port, int, tuple[int, int]]:
    """Return the input that frames feed, its number of steps, and the height and width of its frames."""
    if batch_axis not in (0, 1):
        raise DataError(
            f"frames of events are [T, N, 2, H, W] or [N, T, 2, H, W]; --batch-axis {batch_axis} is neither"
        )
    if len(inputs) != 1 or "float" not in inputs[0].dtype or len(inputs[0].shape or ()) != 5:
        raise DataError(f"events feed one input of 5 dimensions, floats; the model has {'; '.join(map(str, inputs))}")
    [port] = inputs
    shape = port.shape or ()
    if binning.input not in (None, port.name):
        raise DataError(f"{str(path)!r}: the model has no input {binning.input!r}; it has {port.name!r}")
    known = shape[1 - batch_axis]
    steps = known if isinstance(known, int) else binning.steps
    if steps is None:
        raise DataError(f"{str(path)!r} lacks steps, and the input {port} leaves their number open")
    if binning.steps not in (None, steps):
        raise DataError(f"{str(path)!r}: steps is {binning.steps}; the input {port} takes {steps}")
    if isinstance(shape[2], int) and shape[2] != 2:
        raise DataError(f"the input {port} takes {shape[2]} channels; events have 2, darker and brighter")
    high, wide = binning.sensor
    down = shape[3] if isinstance(shape[3], int) else high
    across = shape[4] if isinstance(shape[4], int) else wide
    if high % down or wide % across or high // down != wide // across:
        raise DataError(f"{str(path)!r}: pixels of a sensor of {high}x{wide} do not merge to those of the input {port}")
    if steps * 2 * down * across > _MOST_ELEMENTS:
        raise DataError(f"{steps} steps of 2x{down}x{across} are more than {_MOST_ELEMENTS:,} numbers per sample")
    return port, steps, (down, across)
