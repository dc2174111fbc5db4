"""Fronts: where the changes of a fault may have come to an end, and a cut in pieces between them.

In an unrolled spiking network all that goes from a layer to the next are spikes, and many faults change none: behind
the spikes of each layer, of all its steps together, one can look whether anything differs from golden, and stop.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxfi.errors import ModelError
from onnxfi.graph.activations import graphs
from onnxfi.graph.cones import MAKES_SPIKES
from onnxfi.graph.downstream import Cut, Wiring, crossing
from onnxfi.graph.exposed import table
from onnxfi.graph.model import Model
from onnxfi.graph.neurons import find

Fronts = tuple[tuple[str, ...], ...]


def fronts(model: Model) -> Fronts:
    """The spikes of each layer of an unrolled spiking network; () for other models.

    >>> from onnxfi.graph.model import load
    >>> [(len(spikes), spikes[0]) for spikes in fronts(load("models/fashion_snn.onnx"))][:2]
    [(8, 'lif1_spike_0'), (8, 'lif2_spike_0')]
    """
    if rows := table(model.proto):
        return tuple(tuple(map(str, row["spike"])) for row in rows if not row["loop"])
    if MAKES_SPIKES.isdisjoint(node.op_type for _, graph, _ in graphs(model.proto) for node in graph.node):
        return ()
    try:
        return tuple(tuple(step.spike for step in layer.steps) for layer in find(model).layers if not layer.path)
    except ModelError:
        return ()


def pieces(wiring: Wiring, whole: Cut, struck: Sequence[str], ends: Sequence[Sequence[str]]) -> tuple[Cut, ...]:
    """A cut in pieces, one behind the other: each makes the next of these ends that lie in it, the last one the rest.

    What crosses into a piece is golden, or an output of a piece before it. `struck` is fed.
    """
    left, rows = set(whole.nodes) - wiring.constant, list[set[int]]()
    for names in ends if not wiring.uncut else ():
        found: set[int] = set()
        todo = [k for name in names if name not in struck and (k := wiring.makers.get(name, -1)) in left]
        while todo:
            k = todo.pop()
            if k not in found:
                found.add(k)
                todo += [
                    m for name in wiring.reads[k] if name not in struck and (m := wiring.makers.get(name, -1)) in left
                ]
        if found and found != left:
            rows.append(found)
            left -= found
    cuts = [crossing(wiring, nodes, frozenset(struck)) for nodes in (*rows, left)]
    out, later = [], set(whole.outputs)
    for (nodes, values), mine in zip(reversed(cuts), reversed([*rows, left]), strict=True):
        made = [name for k in sorted(mine) for name in wiring.proto.graph.node[k].output if name in later]
        out.append(Cut(nodes, values, tuple(made)))
        later |= set(values)
    return tuple(reversed(out))
