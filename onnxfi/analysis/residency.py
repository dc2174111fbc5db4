"""Residency of activations: the share of an inference in which what a layer outputs is in memory."""

from __future__ import annotations

from collections import defaultdict

from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import Model


def resident_shares(model: Model) -> dict[str, float]:
    """Return for each layer the share of the schedule in which its outputs are in memory, weighted by their bits.

    Nodes run in file order, and each counts as equally long. An output is in memory from the node that makes it to the
    last that reads it, and to the end where it is an output of the model; an input of the model from the start. What is
    made inside a loop or a branch is in memory as long as the node that holds the graph runs.

    >>> from onnxfi.graph.model.loading import load
    >>> shares = resident_shares(load("models/fashion_cnn.onnx"))
    >>> 0 < min(shares.values()) <= max(shares.values()) <= 1
    True
    """
    scope = model.index.main
    nodes = [node for node in scope.nodes if node.op != "Constant"]
    place, end = {node: k for k, node in enumerate(nodes)}, len(nodes)
    outputs = set(scope.outputs)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one in activations(model):
        target, live = one.target, 1
        value = scope.values.get(target.id)
        if value is not None:
            first = 0 if value.producer is None else place.get(value.producer, 0)
            last = max((place.get(node, first) for node in value.consumers), default=first)
            live = (end if value in outputs else last + 1) - first
        bits = max(1, target.size) * target.word.bits
        sums[target.layer][0] += bits * live / max(1, end)
        sums[target.layer][1] += bits
    return {layer: lived / bits for layer, (lived, bits) in sums.items()}
