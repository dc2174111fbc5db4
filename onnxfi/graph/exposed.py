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


def series(proto: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """The values in flight of an unrolled layer's neurons, step by step, under the names that they have in a loop.

    >>> from onnxfi.graph.model import load
    >>> from onnxfi.graph.neurons import find
    >>> from onnxfi.graph.expose import expose
    >>> made = expose(load(model := "models/fashion_snn.onnx"), find(load(model)))
    >>> [(name, len(steps), steps[-1]) for name, steps in series(made).items()][-2:]
    [('lif3/membrane', 8, 'lif3/membrane/7'), ('lif3/spiking', 8, 'lif3/spike/7')]
    """
    return {
        f"{row['layer']}/{name}": tuple(map(str, row[key]))
        for row in table(proto)
        for key, name in (("membrane", "membrane"), ("spike", "spiking"))
        if not row["loop"] and len(row[key]) > 1
    }
