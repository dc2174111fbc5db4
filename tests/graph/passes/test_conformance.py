"""A sample of the conformance run (scripts/conformance.py): every value armed, against the plain model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "conformance.py"
pytestmark = pytest.mark.filterwarnings("ignore")  # the onnx package's own test data warn of overflows


def _script() -> object:
    spec = importlib.util.spec_from_file_location("conformance", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["conformance"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("kind", "every", "least"),
    [pytest.param("node", 40, 30, marks=pytest.mark.slow), ("files", 10, 8)],
)
def test_disarmed_is_plain_and_armed_is_numpy(kind: str, every: int, least: int) -> None:
    script = _script()
    verdicts = script.run([kind], every)[kind]  # type: ignore[attr-defined]
    assert [(v.case, v.detail) for v in verdicts if v.end == "failed"] == []
    assert sum(v.end == "passed" for v in verdicts) >= least
