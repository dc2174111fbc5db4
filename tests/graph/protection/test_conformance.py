"""A sample of scripts/protected_conformance.py: outputs on calibration data stay byte for byte under every protection."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the onnx package's own test data warn of overflows
def test_protected_is_plain_on_calibration_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    script: Any = importlib.import_module("protected_conformance")
    verdicts = script.run(["node"], 40)
    assert [v for v in verdicts if v.end == script.FAILED] == []
    assert {v.end.partition(":")[0] for v in verdicts} <= {script.SAME, script.ZEROS, "nothing to protect", "refused"}
    same = {v.protection for v in verdicts if v.end == script.SAME}
    assert same >= {"range:clip", "range:zero", "range:average", "nan-filter", "duplicate", "triplicate"}
