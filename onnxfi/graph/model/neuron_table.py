"""The neuron table that neuron exposure writes into a model's metadata (expose_neurons.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from onnxfi.errors import SelectorError

if TYPE_CHECKING:
    import onnx

    from onnxfi.faults.fault_model import FaultModel

#: Metadata key of the table.
NEURON_TABLE_KEY = "onnxfi.neurons"
#: Metadata key of what each step reads (expose_reads.py).
READS_KEY = "onnxfi.reads"
_LARGEST = 1 << 24


def read_neuron_table(proto: onnx.ModelProto) -> list[dict[str, Any]]:
    """Return the spiking layers that the table of an exposed model lists; [] for other models."""
    written = next((entry.value for entry in proto.metadata_props if entry.key == NEURON_TABLE_KEY), "")
    try:
        rows = json.loads(written) if 0 < len(written) < _LARGEST else []
        return [row for row in rows if isinstance(row["layer"], str) and isinstance(row["words"], dict)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def step_reads(proto: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Return the activations through which the steps read a stored tensor, by its name; {} for other models."""
    written = next((entry.value for entry in proto.metadata_props if entry.key == READS_KEY), "")
    try:
        found = json.loads(written) if 0 < len(written) < _LARGEST else {}
        return {str(name): tuple(map(str, steps)) for name, steps in found.items()}
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {}


def neuron_roles(proto: onnx.ModelProto) -> dict[str, str]:
    """Return the role of each word of a neuron by target id: threshold, leak, synaptic, refractory, reset or spike."""
    return {
        str(target): str(role).partition("-")[0]
        for row in read_neuron_table(proto)
        for role, target in row["words"].items()
    }


def neuron_shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shape of one sample of each activation of a neuron, by target id."""
    return {
        str(name): tuple(row["shape"])
        for row in read_neuron_table(proto)
        for name in (*row["membrane"], *row.get("carried", ()), *row["spike"])
    }


def refuse_whole_tensor_models(proto: onnx.ModelProto, event: FaultModel, ids: Iterable[str]) -> None:
    """Refuse a fault of whole stored tensors on activations (by target id); spikes alone saturate, at 1."""
    if not event.depends_on_tensor:
        return
    spikes = {name for row in read_neuron_table(proto) for name in row["spike"]}
    for name in ids:
        if name not in spikes or not event.overwrites:
            raise SelectorError(
                f"{event} depends on the numbers of a whole stored tensor, and {name!r} is computed; "
                f"choose another fault for activations"
            )


def step_tensors(proto: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Return the activations of an unrolled layer's neurons, step by step, under the names that they have in a loop.

    >>> from onnxfi.graph.model.loading import load
    >>> from onnxfi.runtime.inject.neurons import expose_neurons
    >>> made = expose_neurons(load("models/fashion_snn.onnx")).proto
    >>> [(name, len(steps), steps[-1]) for name, steps in step_tensors(made).items()][-2:]
    [('lif3/carried', 7, 'lif3/carried/6'), ('lif3/spiking', 8, 'lif3/spike/7')]
    """
    rows = [row for row in read_neuron_table(proto) if not row["loop"]]
    found = {
        f"{row['layer']}/{name}": tuple(map(str, row.get(key, ())))
        for row in rows
        for key, name in (("membrane", "membrane"), ("carried", "carried"), ("spike", "spiking"))
        if len(row.get(key, ())) > 1
    }
    trips = max((len(row["spike"]) for row in rows), default=0)
    read = step_reads(proto)  # a tensor that some steps do not read has no place for each step
    return found | {f"{name}/read": steps for name, steps in read.items() if len(steps) == trips > 1}


_TIMED = re.compile(
    r"(?P<id>.*)(?P<index>\[[^\[\]]*\])(?P<sample>(?:@sample=\d+)?)(?:@(?P<how>step|from)=(?P<step>\d+))?(?P<bit>(?::\d+)?)",
    re.S,
)


def expand_steps(proto: onnx.ModelProto, sites: Sequence[str]) -> list[str]:
    """Return sites with those in all steps of an unrolled layer replaced by sites in each step.

    Raises SelectorError for a step that does not exist.

    >>> from onnxfi.graph.model.loading import load
    >>> from onnxfi.runtime.inject.neurons import expose_neurons
    >>> made = expose_neurons(load("models/fashion_snn.onnx")).proto
    >>> expand_steps(made, ["lif2/membrane[100]@from=6:30"])
    ['lif2/membrane/6[100]:30', 'lif2/membrane/7[100]:30']
    """
    known, out = step_tensors(proto), list[str]()
    for text in sites:
        found = _TIMED.fullmatch(text.strip())
        steps = known.get(found["id"]) if found else None
        if found is None or steps is None:
            out.append(text)
            continue
        first = int(found["step"][:9]) if found["how"] else 0
        if first >= len(steps):
            raise SelectorError(f"{text.strip()[:80]}: there are {len(steps)} steps, 0 to {len(steps) - 1}")
        chosen = steps[first : first + 1] if found["how"] == "step" else steps[first:]
        out += [f"{step}{found['index']}{found['sample']}{found['bit']}" for step in chosen]
    return out
