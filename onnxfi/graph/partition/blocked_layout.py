"""Images in blocks of channels, as a runtime lays them, so that a part of a model sums in the order of the whole.

On blocks a runtime merges a convolution with the addition after it, and computes means in another order.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

#: Operators that runtimes fuse with the convolution before them.
ADDS = frozenset(("Add", "Sum"))
#: Operators whose output lies in blocks whatever their input.
_LAY = frozenset(("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"))
#: Operators that keep the blocks of their first input.
_KEEP = frozenset((
    "Identity", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Clip", "Dropout", "BatchNormalization",
))  # fmt: skip
#: Operators on several images, which keep blocks where each has them, in one size.
_COMBINE = frozenset((*ADDS, "Mul", "Concat"))
#: Operators with a constant that are folded into the convolution before them.
_FOLDED = frozenset((*ADDS, "Sub", "Mul", "Div", "Identity", "BatchNormalization"))
_STANDARD = frozenset(("", "ai.onnx"))


def images_in_blocks(nodes: Iterable[onnx.NodeProto], constant: Container[str]) -> frozenset[str]:
    """Return the activations that lie in blocks: of convolutions and poolings, and what is computed of them alone.

    Parameters
    ----------
    nodes : iterable of NodeProto
        The nodes of the whole model that are not constant, in order.
    constant : container of str
        The names of weights, and of what is computed of them alone.
    """
    nodes = [node for node in nodes if node.output and node.domain in _STANDARD]
    images, points = set[str](), set[str]()  # points: images of one pixel, with which no image is combined in blocks
    convolved = convolutions(nodes, constant)
    for node in nodes:
        read, made = [name for name in node.input if name not in constant], node.output[0]
        if node.op_type in _LAY:
            (points if node.op_type.startswith("Global") or points.issuperset(read) else images).add(made)
        elif node.op_type == "ReduceMean":
            points.add(made)
        elif node.op_type in _KEEP or made in convolved:
            for known in (images, points):
                known.update((made,) if known.intersection(read) else ())
        elif node.op_type in _COMBINE and len(read) == len(node.input):
            for known in (images, points):
                known.update((made,) if known.issuperset(read) else ())
    return frozenset(images)


def convolutions(
    nodes: Iterable[onnx.NodeProto], constant: Container[str], given: Container[str] = ()
) -> frozenset[str]:
    """Return the outputs of convolutions, also behind a constant bias or factor, but for those that are given."""
    found = set[str]()
    for node in nodes:
        read = [name for name in node.input if name not in constant]
        alone = node.op_type in _FOLDED and len(read) == 1 and read[0] in found
        if (node.op_type == "Conv" or alone) and node.output[0] not in given:
            found.add(node.output[0])
    return frozenset(found)


def keep_blocks(
    graph: onnx.GraphProto, fed: Container[str], in_blocks: Container[str], constant: Container[str]
) -> None:
    """Let a part of a model sum in the same order as the whole model, if images lie in blocks of channels.

    So those of its inputs that lie in blocks there go through an operator that runs on blocks and changes nothing
    (except −0, which becomes 0).

    Parameters
    ----------
    graph : GraphProto
        The part, which is changed.
    fed : container of str
        Its inputs that are images.
    in_blocks : container of str
        The activations of the whole model that lie in blocks.
    constant : container of str
        The names of weights, and of what is computed of them alone.
    """
    from onnx import helper

    makers = {name: node for node in graph.node for name in node.output}

    def first(name: str) -> str:
        """Return the first of the activations that lead to a name by operators of one input."""
        for _ in graph.node:  # a cycle would have no end
            if name not in makers or len(makers[name].input) != 1:
                break
            name = makers[name].input[0]
        return name

    laid = dict[str, str]()
    convolved = convolutions(graph.node, constant, {output.name for output in graph.output})
    for node in (node for node in graph.node if node.domain in _STANDARD):
        names: list[str] = []
        if node.op_type in ADDS and not convolved.isdisjoint(node.input):
            names = [name for name in map(first, node.input) if name in in_blocks]
        elif node.op_type == "GlobalAveragePool":
            names = [first(node.input[0])]
        laid |= {name: f"{name} in blocks" for name in names if name in fed}
    for node in graph.node if laid else ():
        node.input[:] = [laid.get(name, name) for name in node.input]
    for name, other in laid.items():
        graph.node.insert(0, helper.make_node("AveragePool", [name], [other], kernel_shape=[1, 1]))
