"""Data sources: all batches put together again, the line with which a source is refused, and modules of functions."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxfi.errors import DataError
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import Port


def refused(spec: Any, *ports: Port, **options: Any) -> str:
    """The one line that `open_data` refuses with."""
    with pytest.raises(DataError) as caught:
        open_data(spec, ports, **options)
    line = str(caught.value)
    assert line.isprintable()
    return line


def joined(found: Data, size: int) -> dict[str, NDArray[Any]]:
    """All batches of every input, put together again without the padding."""
    axis = found.layout.axis
    parts = [batch.trim(batch.feeds, axis=axis) for batch in found.batches(size)]
    return {
        name: np.concatenate([part[name] for part in parts], axis) if name in found.layout.batched else parts[0][name]
        for name in found.inputs
    }


def describe(root: Path, text: str = "") -> None:
    (root / "preprocess.yaml").write_text("version: 1\n" + text)


def write_module(folder: Path, name: str, text: str) -> str:
    """Write a module into `folder`."""
    (folder / f"{name}.py").write_text("import numpy as np\n" + textwrap.dedent(text))
    return name
