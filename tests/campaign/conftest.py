"""A tiny model with data, in an empty folder that is the current one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_campaigns import mlp, samples


@pytest.fixture
def here(here: Path) -> Path:
    """The empty folder, with m.onnx and d.npz."""
    mlp(here)
    samples(here)
    return here
