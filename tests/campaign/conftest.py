"""A tiny model with data, in an empty folder that is the current one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_campaigns import mlp, samples


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with m.onnx and d.npz."""
    monkeypatch.chdir(tmp_path)
    mlp(tmp_path)
    samples(tmp_path)
    return tmp_path
