"""Models that commands are run on: written on the spot, shipped and fetched ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import parser
from tiny_campaigns import mlp, samples

ROOT = Path(__file__).parents[2]


@pytest.fixture
def save(here: Path) -> Callable[..., str]:
    """Write a model in ONNX's text form to the current folder: `save("m.onnx", "g (float[N] x) => …")`."""

    def saved(name: str, graph: str) -> str:
        head = '<ir_version: 10, opset_import: ["": 21, "ai.onnx.ml": 3]>'
        onnx.save(parser.parse_model(head + graph), here / name)
        return name

    return saved


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the shipped models."""
    return ROOT / "models"


@pytest.fixture(scope="session")
def fetched() -> Path:
    """The folder of the fetched models."""
    return ROOT / "fetched"


@pytest.fixture
def tiny(here: Path) -> Path:
    """An empty folder with m.onnx and d.npz."""
    mlp(here)
    samples(here)
    return here
