"""What crosses into the parts of a model that tensors reach, of many tensors at once: each node is looked at once.

A node has a set of tensors, as the bits of one number: those that reach it. A value crosses for some tensor where that
tensor reaches a node that reads the value and not the one that makes it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from onnxfi.graph.partition.subgraph import Wiring

#: What is struck: names that are stored, and nodes in whose bodies something is.
Start = tuple[Sequence[str], Sequence[int]]


def reached(wiring: Wiring, starts: Iterable[Start], among: Container[int]) -> list[int]:
    """Return for each node which of the starts reach it through these nodes, as the bits of a number."""
    marks = [0] * len(wiring.reads)
    for number, (names, inside) in enumerate(starts):
        for k in (*inside, *(user for name in names for user in wiring.users.get(name, ()))):
            marks[k] |= 1 << number
    for k in range(len(marks)):
        if k not in among:
            marks[k] = 0
        for user in wiring.after[k] if marks[k] else ():
            marks[user] |= marks[k]
    return marks


def crossings(wiring: Wiring, marks: Sequence[int]) -> set[str]:
    """Return the names that cross into the nodes that each start marks, with those that are taken along, of all starts.

    The same as `downstream.crossing` of each start, put together.
    """
    every = list(marks)
    for k in reversed(range(len(every))):
        for name, maker in wiring.before[k] if every[k] else ():
            if name not in wiring.stored and wiring.along(name, maker, k):
                every[maker] |= every[k]
    return {
        name
        for k, mine in enumerate(every)
        if mine
        for name, maker in wiring.before[k]
        if mine & ~every[maker] and name not in wiring.stored and not wiring.along(name, maker, k)
    }
