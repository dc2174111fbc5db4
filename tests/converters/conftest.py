"""Converting in an empty folder; what frameworks warn of while they train and save is theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onnxfi.graph.model.loading import load


@pytest.fixture
def layers() -> Callable[[Path], dict[str, str]]:
    """The stored tensors of a file and their layers."""

    def found(path: Path) -> dict[str, str]:
        return {target.id: target.layer for target in load(path).targets if not target.structural}

    return found
