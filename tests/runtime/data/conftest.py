"""Sources of data that several test modules read: a folder of images, and a module of functions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_sources import describe, write_module
from PIL import Image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two cats, one dog, 4x4, and a description that changes as little as possible."""
    root = tmp_path / "photos"
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for number, name in enumerate(["cat/a.png", "cat/b.png", "dog/a.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels + np.uint8(50 * number)).save(root / name)
    describe(root)
    return root


COUNTER = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module of a new name into the current directory, and gives `name:feeds`."""
    monkeypatch.chdir(tmp_path)
    return lambda text: write_module(tmp_path, f"user_data_{next(COUNTER)}", text) + ":feeds"
