"""Fronts: where the changes of a fault may have come to an end, and a model in pieces between them.

In an unrolled spiking network all that goes from a layer to the next are spikes, and many faults change none: behind
the spikes of each layer, of all its steps together, one can look whether anything differs from golden, and stop. In
other networks fronts are the narrow places between the operators that do the work: behind each block of a residual
network a single value goes on. What runs behind a front is the same whatever was struck before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxfi.errors import ModelError
from onnxfi.graph.model.graph_index import all_nodes, subgraphs
from onnxfi.graph.model.loading import Model
from onnxfi.graph.model.neuron_table import read_neuron_table
from onnxfi.graph.partition.subgraph import Cut, Wiring, backward, crossing
from onnxfi.graph.spiking.detect_neurons import find_spiking_layers
from onnxfi.graph.spiking.pattern_graph import MAKES_SPIKES

Fronts = tuple[tuple[str, ...], ...]

#: Operators that do the work of a network; what stands between two of them is not worth a piece.
_WORK = frozenset((
    "Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "DeformConv", "Gemm", "QGemm", "MatMul", "MatMulInteger",
    "QLinearMatMul", "MatMulNBits", "DynamicQuantizeMatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention",
    "MultiHeadAttention", "QAttention", "FusedConv", "FusedMatMul", "FusedGemm",
))  # fmt: skip
#: Fronts of a model at most, those of a spiking network apart.
_MOST_FRONTS = 32


def fronts(model: Model) -> Fronts:
    """The spikes of each layer of an unrolled spiking network; () for other models.

    >>> from onnxfi.graph.model.loading import load
    >>> [(len(spikes), spikes[0]) for spikes in fronts(load("models/fashion_snn.onnx"))][:2]
    [(8, 'lif1_spike_0'), (8, 'lif2_spike_0')]
    """
    if rows := read_neuron_table(model.proto):
        return tuple(tuple(map(str, row["spike"])) for row in rows if not row["loop"])
    if MAKES_SPIKES.isdisjoint(node.op_type for node in all_nodes(model.proto.graph.node)):
        return ()
    try:
        return tuple(
            tuple(step.spike for step in layer.steps) for layer in find_spiking_layers(model).layers if not layer.path
        )
    except ModelError:
        return ()


def narrows(wiring: Wiring, whole: Cut) -> Fronts:
    """The narrow places of a model: where the fewest values go on, between operators that do the work.

    >>> from onnxfi.graph.partition.subgraph import wire
    >>> from onnxfi.graph.model.loading import load
    >>> net = wire(load("models/fashion_cnn.onnx"))
    >>> narrows(net, everything(net, ()))
    (('max_pool2d',), ('view',), ('relu_2',))
    """
    nodes = [k for k in whole.nodes if k not in wiring.constant]
    last = {name: at for at, k in enumerate(nodes) for name in wiring.reads[k]}
    last |= dict.fromkeys(whole.outputs, len(nodes))
    live, stretches = set(whole.crossings), list[tuple[int, str]]()
    best: tuple[int, str] | None = None
    working = False
    for at, k in enumerate(nodes):
        if _works(wiring, k):
            stretches += [best] if working and best is not None else []
            best, working = None, True
        made = [name for name in wiring.proto.graph.node[k].output if last.get(name, -1) > at]
        live = {name for name in live if last.get(name, -1) > at}.union(made)
        if made and (best is None or len(live) <= best[0]) and _fit(wiring, made[0]):
            best = len(live), made[0]
    widths = [len(live) + len(nodes), *(width for width, _ in stretches), len(live) + len(nodes)]
    lowest = [w <= min(before, behind) for before, w, behind in zip(widths, widths[1:], widths[2:], strict=False)]
    found = [(name,) for (_, name), low in zip(stretches, lowest, strict=True) if low]
    step = -(-len(found) // _MOST_FRONTS)
    return tuple(found[step - 1 :: step]) if found else ()


def _works(wiring: Wiring, node: int) -> bool:
    """Whether a node does work that is worth a piece."""
    one = wiring.proto.graph.node[node]
    return one.op_type in _WORK or next(subgraphs(one), None) is not None


def _fit(wiring: Wiring, name: str) -> bool:
    """Whether a model may be cut at a value: not before what is put into integers with the operator in front of it."""
    users = wiring.users.get(name, ())
    return name not in wiring.uncut and all(wiring.proto.graph.node[k].op_type != "QuantizeLinear" for k in users)


def everything(wiring: Wiring, outputs: Sequence[str]) -> Cut:
    """All that is needed for these outputs (all, where none is named), from the model's inputs on.

    Raises ModelError where an output is no function of the inputs.
    """
    wanted = tuple(outputs) or wiring.outputs
    if any(k < 0 or k in wiring.constant for k in (wiring.makers.get(name, -1) for name in wanted)):
        raise ModelError("an output is no function of the inputs")
    needed = backward(wiring, wanted, range(len(wiring.reads)))
    return Cut(*crossing(wiring, needed, frozenset()), wanted)


def pieces(wiring: Wiring, whole: Cut, struck: Sequence[str], ends: Sequence[Sequence[str]]) -> tuple[Cut, ...]:
    """A cut in pieces, one behind the other: each makes the next of these ends that lie in it, the last one the rest.

    What crosses into a piece is golden, or an output of a piece before it. `struck` is fed.
    """
    left, rows = set(whole.nodes) - wiring.constant, list[set[int]]()
    for names in ends if not wiring.uncut else ():
        found = backward(wiring, names, left, struck)
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
