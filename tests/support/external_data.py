"""Models with external data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from build_models import model, node
from onnx import NodeProto, TensorProto


def external(name: str, location: str, dims: list[int], data_type: int = 1, **more: Any) -> TensorProto:
    """A tensor in external data; `more` are further entries, as offset and length."""
    held = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **more}.items():
        held.external_data.add(key=key, value=str(text))
    return held


def saved(folder: Path, tensors: list[TensorProto], nodes: Sequence[NodeProto] = (), **files: bytes) -> Path:
    """A model with these initializers, each used once or by these nodes, and its data files beside it."""
    folder.mkdir(exist_ok=True)
    nodes = nodes or [node("Identity", [t.name], [f"y{k}"]) for k, t in enumerate(tensors)]
    (folder / "m.onnx").write_bytes(model(nodes, tensors).SerializeToString())
    for name, data in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return folder / "m.onnx"


def numbers(count: int, start: float = 1.0) -> bytes:
    return (np.arange(count) + start).astype("<f4").tobytes()
