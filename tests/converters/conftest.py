"""Converting in an empty folder; what frameworks warn of while they train and save is theirs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxfi.converters import FRAMEWORKS
from onnxfi.graph.model.loading import load


@pytest.fixture
def layers() -> Callable[[Path], dict[str, str]]:
    """The stored tensors of a file and their layers."""

    def found(path: Path) -> dict[str, str]:
        return {target.id: target.layer for target in load(path).targets if not target.structural}

    return found


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Modules that are not to be found, whatever is installed."""
    gone: set[str] = {module for framework in FRAMEWORKS.values() for module in framework.modules}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else find(name))
    return gone
