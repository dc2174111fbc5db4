"""Files that describe faults: bounded, of one version, and with a digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxfi.errors import FaultError
from onnxfi.faults.hardware.fault_description import Description


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    kind, file = Description("map", "docs/map.md", ("version",), max_bytes=20), tmp_path / "m.json"
    file.write_bytes(b'{"version": 1}')
    text = kind.read(str(file))
    assert kind.parse(text, "m").values == {"version": 1}
    with pytest.raises(FaultError, match="map 'm': '1e-400' is so small that it would be taken as 0"):
        kind.parse(b'{"version": 1e-400}', "m")
    file.write_bytes(b" " * 21)
    with pytest.raises(FaultError, match="has more than 20 bytes"):
        kind.read(str(file))
    with pytest.raises(FaultError, match="cannot read"):
        kind.read("\0")
    with pytest.raises(FaultError, match="it is no regular file"):  # the writer of a pipe may never come
        kind.read("/dev/zero")
