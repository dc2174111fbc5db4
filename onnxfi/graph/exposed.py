"""What an exposed model says of its neurons (expose.py): a table in its metadata."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

#: Where the table stands.
TABLE = "onnxfi.neurons"
_LARGEST = 1 << 24


def table(proto: onnx.ModelProto) -> list[dict[str, Any]]:
    """The spiking layers of an exposed model, as it says them itself; [] for other models."""
    said = next((entry.value for entry in proto.metadata_props if entry.key == TABLE), "")
    try:
        rows = json.loads(said) if 0 < len(said) < _LARGEST else []
        return [row for row in rows if isinstance(row["layer"], str) and isinstance(row["words"], dict)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def roles(proto: onnx.ModelProto) -> dict[str, str]:
    """What each word of a neuron is for, by target id: threshold, leak, refractory, reset or spike."""
    return {str(target): str(role) for row in table(proto) for role, target in row["words"].items()}
