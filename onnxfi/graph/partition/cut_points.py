"""Cut points of a model, and its segments between them.

In an unrolled spiking network only spikes pass from layer to layer, and many faults change none: a trial can stop after
the spikes of a layer, of all its steps together, if all equal the golden ones. In other networks the cut points are
narrow: between operators with most of the computation, where the fewest activations pass, as after each block of a
residual network. The segments after a cut point are the same for every fault before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxfi.errors import ModelError
from onnxfi.graph.model.graph_index import all_nodes, subgraphs
from onnxfi.graph.model.loading import Model
from onnxfi.graph.model.neuron_table import read_neuron_table
from onnxfi.graph.partition.subgraph import PartitionGraph, Subgraph, nodes_needed, with_inputs
from onnxfi.graph.spiking.detect_neurons import find_spiking_layers
from onnxfi.graph.spiking.pattern_graph import MAKES_NUMBERS, MAKES_SPIKES

CutPoints = tuple[tuple[str, ...], ...]

#: Operators with most of the computation; the others between two of them are not worth a segment.
_WORK = frozenset((
    "Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "DeformConv", "Gemm", "QGemm", "MatMul", "MatMulInteger",
    "QLinearMatMul", "MatMulNBits", "DynamicQuantizeMatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention",
    "MultiHeadAttention", "QAttention", "FusedConv", "FusedMatMul", "FusedGemm",
))  # fmt: skip
#: Operators that decide: numbers that a runtime rounds differently give the same outputs nearly always.
_DECIDES = frozenset((
    "ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "Less", "LessOrEqual",
    "NonMaxSuppression", "NonZero", "Round", "Sign", "TopK",
))  # fmt: skip
#: TensorProto's numbers of floats that a Cast does not decide on.
_FLOATS = frozenset((1, 10, 11, 16))
#: Largest number of cut points, except in spiking networks.
_MOST_FRONTS = 32


def spike_cut_points(model: Model) -> CutPoints:
    """Return the spikes of each layer of an unrolled spiking network; () for other models.

    >>> from onnxfi.graph.model.loading import load
    >>> [(len(spikes), spikes[0]) for spikes in spike_cut_points(load("models/fashion_snn.onnx"))][:2]
    [(8, 'lif1_spike_0'), (8, 'lif2_spike_0')]
    """
    if rows := read_neuron_table(model.proto):
        return tuple(tuple(map(str, row["spike"])) for row in rows if not row["loop"])
    # The search reads the weights too: not where comparisons give masks alone, as in a transformer.
    nodes = [*all_nodes(model.proto.graph.node)]
    compared = {name for node in nodes if node.op_type in MAKES_SPIKES for name in node.output}
    if compared.isdisjoint(name for node in nodes if node.op_type in MAKES_NUMBERS for name in node.input):
        return ()
    try:
        return tuple(
            tuple(step.spike for step in layer.steps) for layer in find_spiking_layers(model).layers if not layer.path
        )
    except ModelError:
        return ()


def narrow_cut_points(net: PartitionGraph, whole: Subgraph) -> CutPoints:
    """Return the narrow cut points: where the fewest activations pass, between operators with most of the computation.

    >>> from onnxfi.graph.partition.subgraph import partition_graph
    >>> from onnxfi.graph.model.loading import load
    >>> net = partition_graph(load("models/fashion_cnn.onnx"))
    >>> narrow_cut_points(net, whole_subgraph(net, ()))
    (('max_pool2d',), ('view',), ('relu_2',))
    """
    nodes = [k for k in whole.nodes if k not in net.constant]
    last = {name: at for at, k in enumerate(nodes) for name in net.reads[k]}
    last |= dict.fromkeys(whole.outputs, len(nodes))
    live, stretches = set(whole.inputs), list[tuple[int, str]]()
    best: tuple[int, str] | None = None
    working = False
    for at, k in enumerate(nodes):
        if _works(net, k):
            stretches += [best] if working and best is not None else []
            best, working = None, True
        made = [name for name in net.proto.graph.node[k].output if last.get(name, -1) > at]
        live = {name for name in live if last.get(name, -1) > at}.union(made)
        if made and (best is None or len(live) <= best[0]) and _fit(net, made[0]):
            best = len(live), made[0]
    widths = [len(live) + len(nodes), *(width for width, _ in stretches), len(live) + len(nodes)]
    lowest = [w <= min(before, behind) for before, w, behind in zip(widths, widths[1:], widths[2:], strict=False)]
    found = [(name,) for (_, name), low in zip(stretches, lowest, strict=True) if low]
    step = -(-len(found) // _MOST_FRONTS)
    return tuple(found[step - 1 :: step]) if found else ()


def decision_cut(net: PartitionGraph, whole: Subgraph) -> tuple[str, ...]:
    """Return the activations on which the answers are decided, behind all computation; () where nothing is.

    The scores in front of an ArgMax, or the boxes and scores in front of a suppression. A segment ends there, so that
    routes are compared by them: the answers alone would hide that a part rounds differently, or lacks a fusion.

    >>> from onnxfi.graph.partition.subgraph import partition_graph
    >>> from onnxfi.graph.model.loading import load
    >>> net = partition_graph(load("models/fashion_cnn.onnx"))
    >>> decision_cut(net, whole_subgraph(net, ()))
    ()
    """
    nodes = [k for k in whole.nodes if k not in net.constant] if net.in_order else []
    before, behind = set[int](), set[int]()
    for k in reversed(nodes):
        if _works(net, k) or not before.isdisjoint(net.after[k]):
            before.add(k)
    for k in nodes:
        if k not in before and (_decides(net, k) or any(maker in behind for _, maker in net.before[k])):
            behind.add(k)
    read = dict.fromkeys(name for k in nodes if k in behind for name, maker in net.before[k] if maker not in behind)
    return tuple(name for name in read if net.makers[name] not in net.constant)


def _decides(net: PartitionGraph, node: int) -> bool:
    """Return whether the outputs of a node hide small differences of its inputs."""
    one = net.proto.graph.node[node]
    if one.op_type == "Cast":
        return any(a.name == "to" and a.i not in _FLOATS for a in one.attribute)
    return one.op_type in _DECIDES


def _works(net: PartitionGraph, node: int) -> bool:
    """Return whether a node has enough computation for a segment of its own."""
    one = net.proto.graph.node[node]
    return one.op_type in _WORK or next(subgraphs(one), None) is not None


def _fit(net: PartitionGraph, name: str) -> bool:
    """Return whether a model may be cut at an activation: not before a QuantizeLinear, which runtimes fuse."""
    users = net.users.get(name, ())
    return name not in net.uncut and all(net.proto.graph.node[k].op_type != "QuantizeLinear" for k in users)


def whole_subgraph(net: PartitionGraph, outputs: Sequence[str]) -> Subgraph:
    """Return the subgraph from the model's inputs to these outputs (by default all).

    Raises ModelError if an output is not a function of the inputs.
    """
    wanted = tuple(outputs) or net.outputs
    if any(k < 0 or k in net.constant for k in (net.makers.get(name, -1) for name in wanted)):
        raise ModelError("an output is not a function of the inputs")
    needed = nodes_needed(net, wanted, range(len(net.reads)))
    return Subgraph(*with_inputs(net, needed, frozenset()), wanted)


def segments(
    net: PartitionGraph, whole: Subgraph, faulty: Sequence[str], ends: Sequence[Sequence[str]]
) -> tuple[Subgraph, ...]:
    """Split a subgraph into segments, one after the other: each computes the next of these ends, the last one the rest.

    The inputs of a segment are golden activations or outputs of earlier segments. `faulty` is fed.
    """
    left, rows = set(whole.nodes) - net.constant, list[set[int]]()
    for names in ends if not net.uncut else ():
        found = nodes_needed(net, names, left, faulty)
        if found and found != left:
            rows.append(found)
            left -= found
    cuts = [with_inputs(net, nodes, frozenset(faulty)) for nodes in (*rows, left)]
    out, later = [], set(whole.outputs)
    for (nodes, values), mine in zip(reversed(cuts), reversed([*rows, left]), strict=True):
        made = [name for k in sorted(mine) for name in net.proto.graph.node[k].output if name in later]
        out.append(Subgraph(nodes, values, tuple(made)))
        later |= set(values)
    return tuple(reversed(out))
