"""Small event recordings in the formats of N-MNIST and DVS128 Gesture, written from lists of events."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

#: An event: time in microseconds, x, y, polarity.
Event = tuple[int, int, int, int]


def nmnist(events: Iterable[Event]) -> bytes:
    """Return events as N-MNIST stores them: x, y, a bit of polarity, 23 bits of time, big-endian."""
    return b"".join(bytes((x, y)) + (on << 23 | t).to_bytes(3, "big") for t, x, y, on in events)


def packet(events: Sequence[Event], *, kind: int = 1, overflow: int = 0, capacity: int | None = None) -> bytes:
    """Return a packet of AEDAT 3.1."""
    capacity = len(events) if capacity is None else capacity
    words = b"".join(struct.pack("<II", x << 17 | y << 2 | on << 1 | 1, t) for t, x, y, on in events)
    head = struct.pack("<hhiiiiii", kind, 1, 8, 4, overflow, capacity, len(events), len(events))
    return head + words.ljust(8 * capacity, b"\0")


def aedat(*packets: bytes) -> bytes:
    """Return a file of AEDAT 3.1."""
    return b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n" + b"".join(packets)


def labels(rows: Iterable[tuple[int, int, int]]) -> str:
    """Return a table of labels of DVS128 Gesture."""
    return "\n".join(["class,startTime_usec,endTime_usec", *(",".join(map(str, row)) for row in rows)]) + "\n"


def nmnist_folder(root: Path) -> Path:
    """Write two samples of each of two classes."""
    for label in range(2):
        (root / str(label)).mkdir(parents=True)
        for k in range(2):
            (root / str(label) / f"{k:05}.bin").write_bytes(nmnist([(1000 * k, label, 2, 1), (3999, 3, 3, 0)]))
    (root / "events.yaml").write_text("version: 1\nsensor: [4, 4]\nstep_us: 1000\n")
    return root


def gesture_folder(root: Path) -> Path:
    """Write one recording with two gestures."""
    root.mkdir(parents=True)
    first = packet([(100, 0, 0, 1), (5_000, 127, 127, 0)])
    (root / "user01_led.aedat").write_bytes(aedat(first, packet([(0, 0, 0, 0)], kind=0), packet([(9_000, 5, 6, 1)])))
    (root / "user01_led_labels.csv").write_text(labels([(11, 0, 4_000), (2, 5_000, 9_001)]))
    (root / "events.yaml").write_text("version: 1\nsensor: [128, 128]\nstep_us: 2000\nsteps: 3\nvalues: binary\n")
    return root
