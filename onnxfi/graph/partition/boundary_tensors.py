"""The inputs of the subgraphs that many tensors reach, found at once: each node is visited once.

Each node has the set of tensors that reach it, as the bits of one number. An activation is an input of the subgraph of
a tensor where the tensor reaches a node that reads the activation, and not the node that computes it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from onnxfi.graph.partition.subgraph import PartitionGraph

#: The names of faulty weights, and the nodes in whose bodies faulty weights lie.
Start = tuple[Sequence[str], Sequence[int]]


def reached(net: PartitionGraph, starts: Iterable[Start], among: Container[int]) -> list[int]:
    """Return for each node which of the starts reach it through these nodes, as the bits of a number."""
    marks = [0] * len(net.reads)
    for number, (names, inside) in enumerate(starts):
        for k in (*inside, *(user for name in names for user in net.users.get(name, ()))):
            marks[k] |= 1 << number
    for k in range(len(marks)):
        if k not in among:
            marks[k] = 0
        for user in net.after[k] if marks[k] else ():
            marks[user] |= marks[k]
    return marks


def boundary_tensors(net: PartitionGraph, marks: Sequence[int]) -> set[str]:
    """Return the inputs of the subgraphs that the starts mark, of all starts together.

    The union of `subgraph.with_inputs` of each start.
    """
    every = list(marks)
    for k in reversed(range(len(every))):
        for name, maker in net.before[k] if every[k] else ():
            if name not in net.stored and net.along(name, maker, k):
                every[maker] |= every[k]
    return {
        name
        for k, mine in enumerate(every)
        if mine
        for name, maker in net.before[k]
        if mine & ~every[maker] and name not in net.stored and not net.along(name, maker, k)
    }
