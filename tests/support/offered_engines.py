"""Engines of other packages: those that a test offers, and OpenVINO where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from onnxfi import Engine
from onnxfi.runtime.engine import registry


def offer(monkeypatch: pytest.MonkeyPatch, *classes: type[Engine]) -> None:
    """Offer these engines by the group of entry points."""
    points = [SimpleNamespace(name=one.name, value=f"own:{one.__name__}", load=lambda one=one: one) for one in classes]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.ENTRY_POINTS else [])


def needs_openvino() -> None:
    """Skip the test where OpenVINO is missing; it is not imported here, since that would load its telemetry."""
    if find_spec("openvino") is None:
        pytest.skip("no openvino; pip install openvino")
