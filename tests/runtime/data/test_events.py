"""Event recordings: the formats of N-MNIST and DVS128 Gesture against files that are written bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from event_files import aedat, gesture_folder, labels, nmnist, nmnist_folder, packet
from hypothesis import given
from hypothesis import strategies as st

from onnxfi import Port
from onnxfi.errors import DataError
from onnxfi.runtime.data import events as module
from onnxfi.runtime.data.events import read_aedat, read_nmnist
from onnxfi.runtime.data.open_data import open_data

FRAMES = Port("events", "float32", (4, "N", 2, 4, 4))
GESTURES = Port("events", "float32", ("N", "T", 2, 32, 32))
event = st.tuples(st.integers(0, (1 << 23) - 1), st.integers(0, 239), st.integers(0, 239), st.integers(0, 1))


def rows(parts: object) -> list[tuple[int, ...]]:
    return [tuple(map(int, row)) for part in parts for row in zip(*part, strict=True)]  # type: ignore[attr-defined]


@given(st.lists(event, min_size=1, max_size=20))
def test_both_formats_are_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, given: list[tuple[int, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("events")
    (folder / "a.bin").write_bytes(nmnist(given))
    assert rows(read_nmnist(folder / "a.bin")) == given
    (folder / "a.aedat").write_bytes(aedat(packet(given, overflow=2, capacity=len(given) + 3), packet(given[:1])))
    late = [(t + (2 << 31), *rest) for t, *rest in given]
    assert rows(read_aedat(folder / "a.aedat")) == [*late, given[0]]


def test_parts_of_a_file_give_the_same_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [(t, t % 34, t % 33, t & 1) for t in range(50)]
    given[7] = given[30] = (0, 0, 240, 0)
    (tmp_path / "a.bin").write_bytes(nmnist(given))
    (tmp_path / "a.aedat").write_bytes(aedat(packet(given)))
    whole = rows(read_nmnist(tmp_path / "a.bin")), rows(read_aedat(tmp_path / "a.aedat"))
    assert len(whole[0]) == 48
    assert [row[0] for row in whole[0][-2:]] == [48 + 2 * 8192, 49 + 2 * 8192]
    monkeypatch.setattr(module, "CHUNK", 15)
    assert (rows(read_nmnist(tmp_path / "a.bin")), rows(read_aedat(tmp_path / "a.aedat"))) == whole


def test_nmnist_becomes_frames_of_all_classes_in_turn(tmp_path: Path) -> None:
    data = open_data(nmnist_folder(tmp_path / "n"), [FRAMES], batch_axis=1)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 0, 1]
    frames = next(data.batches(4)).feeds["events"]
    expected = np.zeros((4, 4, 2, 4, 4), np.float32)
    for sample, (label, k) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        expected[k, sample, 1, 2, label] += 1
        expected[3, sample, 0, 3, 3] += 1
    np.testing.assert_array_equal(frames, expected)
    assert data.digest == open_data({"events": frames, "labels": data.labels}, [FRAMES], batch_axis=1).digest


def test_gestures_become_merged_binary_frames(tmp_path: Path) -> None:
    data = open_data(gesture_folder(tmp_path / "g"), [GESTURES])
    assert data.labels is not None
    assert data.labels.tolist() == [10, 1]
    frames = np.concatenate([batch.feeds["events"] for batch in data.batches(1)])
    assert frames.shape == (2, 3, 2, 32, 32)
    assert np.argwhere(frames).tolist() == [[0, 0, 1, 0, 0], [1, 0, 0, 31, 31], [1, 2, 1, 1, 1]]
    assert open_data(tmp_path / "g", [GESTURES], limit=1).samples == 1


def damaged(folder: Path, name: str, content: bytes | str) -> None:
    target = folder / name
    target.unlink(missing_ok=True)
    target.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("0/00000.bin", nmnist([(0, 4, 0, 1)]), r"has an event at x=4, y=0; the sensor is 4x4"),
        ("0/00000.bin", b"1234567", r"ends inside an event; one of N-MNIST has 5 bytes"),
        ("0/a.txt", b"", r"is not a recording \(\.bin\)"),
        ("one", b"", r"lies beside the recordings"),
        ("events.yaml", "version: 1\nstep_us: 1000\n", r"sensor is missing"),
        ("events.yaml", "version: 1\nsensor: [4, true]\nstep_us: 1\n", r"sensor is \[4, True\]; it takes a list of 2"),
        ("events.yaml", "version: 1\nsensor: [4, 4]\nstep_us: 1\nstep: 3\n", r"unknown field 'step'.*steps"),
        ("events.yaml", "version: 1\nsensor: [6, 6]\nstep_us: 1\n", r"6x6 do not merge to those of the input"),
        ("events.yaml", "version: 1\nsensor: [4, 4]\nstep_us: 1\nsteps: 5\n", r"steps is 5; the input .* takes 4"),
        ("events.yaml", "version: 2\n", r"version 2; this onnxfi reads version 1"),
    ],
)  # fmt: skip
def test_bad_folders_of_nmnist_are_refused(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    folder = nmnist_folder(tmp_path / "n")
    damaged(folder, name, content)
    with pytest.raises(DataError, match=message):
        list(open_data(folder, [FRAMES], batch_axis=1).batches(4))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("user01_led.aedat", b"#!AER-DAT2.0\r\n", r"begins with b'#!AER-DAT2.0\\r\\n'; AEDAT 3.1 is read"),
        ("user01_led.aedat", aedat(packet([(0, 0, 0, 1)])[:-3]), r"ends inside a packet"),
        ("user01_led.aedat", aedat(packet([(0, 0, 0, 1)])[:20]), r"ends inside the header of a packet"),
        ("user01_led.aedat", aedat(packet([(0, 0, 0, 1)], capacity=3)[:-1]), r"ends inside a packet"),
        ("user01_led.aedat", aedat(packet([(0, 0, 0, 1)], capacity=0)), r"a packet of 1 events of 8 bytes is damaged"),
        ("user01_led_labels.csv", labels([(12, 0, 1)]), r"the row '12,0,1' holds no class of 1 to 11"),
        ("user01_led_labels.csv", labels([(1, 5, 5)]), r"with a start before its end"),
        ("user01_led_labels.csv", "class,start\n", r"its first line is not class,startTime_usec,endTime_usec"),
        ("user01_led_labels.csv", labels([(1, 0, 1)]) + "1,2\n", r"is not a table of gestures: not enough values"),
        ("user01_led_labels.csv", b"\xff" * 9, r"is no text in UTF-8"),
        ("events.yaml", "version: 1\nsensor: [128, 128]\nstep_us: 9\n", r"lacks steps, and the input"),
        ("events.yaml", "version: 1\nsensor: [128, 128]\nstep_us: 9\nsteps: 1048576\n", r"more than .* numbers per sample"),
    ],
)  # fmt: skip
def test_bad_gestures_are_refused(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    folder = gesture_folder(tmp_path / "g")
    damaged(folder, name, content)
    with pytest.raises(DataError, match=message):
        list(open_data(folder, [GESTURES]).batches(2))


def test_folders_without_a_description_or_beside_the_place_are_refused(tmp_path: Path) -> None:
    folder = nmnist_folder(tmp_path / "n")
    (folder / "0" / "00000.bin").unlink()
    (folder / "0" / "00000.bin").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"")
    with pytest.raises(DataError, match="links to a place outside"):
        open_data(folder, [FRAMES], batch_axis=1)
    (folder / "events.yaml").unlink()
    with pytest.raises(DataError, match=r"no events\.yaml in .*n'; |no events\.yaml in"):
        open_data(folder, [FRAMES], batch_axis=1)
    with pytest.raises(DataError, match="events feed one input of 5 dimensions"):
        open_data(gesture_folder(tmp_path / "g"), [Port("image", "float32", ("N", 2, 4, 4))])
