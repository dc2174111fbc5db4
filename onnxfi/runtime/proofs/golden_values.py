"""The golden activations that proofs rest on, as a run gives them whose scores are the golden ones bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import EngineError, UnprovableError
from onnxfi.graph.partition.subgraph import PartitionGraph
from onnxfi.graph.partition.subgraph_model import extract_model
from onnxfi.runtime.data.batches import Batch
from onnxfi.runtime.engine.ports import Port, same_bytes
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.runtime.partial.golden_cache import feed_of

#: Operators that add up products of inputs and weights.
LINEAR = frozenset(("Conv", "Gemm", "MatMul"))


#: Golden activations of some samples by name ([samples, …]), as the runtime computes them.
Golden: TypeAlias = Mapping[str, NDArray[Any]]


def needed_activations(net: PartitionGraph, tensor: str, scored: str) -> tuple[str, ...]:
    """Return the activations that proofs for a stored tensor rest on.

    These are the inputs of linear operators from its reader on, what is added there, and the scores. No more: an output
    that is read from outside is not merged with what follows, and may then be rounded differently.

    Raises
    ------
    UnprovableError
        If the tensor has not one reader, or there is more than one way from it to the scores.
    """
    found, name = dict[str, None](), tensor
    while name != scored:
        users = net.users.get(name, ())
        if len(users) != 1 or name in net.outputs:
            raise UnprovableError(f"several operators read {name!r}, or none")
        node = net.proto.graph.node[users[0]]
        if node.op_type in LINEAR or (node.op_type == "Softmax" and scored in node.output):
            found[node.input[0]] = None
        elif node.op_type == "Add":
            found |= dict.fromkeys(other for other in node.input if other != name and other not in net.stored)
        elif node.op_type in ("Reshape", "Flatten"):
            found[node.output[0]] = None
        name = node.output[0]
    return (*found, scored)


def golden_activations(
    engine: Engine, net: PartitionGraph, inputs: Sequence[Port], batches: Iterable[Batch], scores: NDArray[Any],
    needed: Sequence[str], most_bytes: int | None = None,
) -> Golden:  # fmt: skip
    """Return the golden values of the needed activations, of which the last are the scores.

    Raises
    ------
    UnprovableError
        If the runtime gives other scores with them than `scores` ([samples, …]), the golden ones, or they take more
        than `most_bytes`.
    """
    names = [name for name in needed if name not in net.inputs]
    every: dict[str, list[NDArray[Any]]] = {}
    taken = 0
    try:
        feeds = {port.name: feed_of(port) for port in inputs}
        part = extract_model(net, range(len(net.proto.graph.node)), feeds, names)
        session = engine.prepare_part(part.data, part.stored)
        for batch in batches:
            for name, array in {**batch.feeds, **session.run(batch.feeds)}.items():
                if not array.ndim or len(array) != batch.size:
                    array = np.zeros((batch.size, 0))  # noqa: PLW2901
                every.setdefault(name, []).append(array[: batch.valid])
                taken += array.nbytes
            if most_bytes is not None and taken > most_bytes:
                raise UnprovableError("the golden activations take too many bytes")
        values = {name: np.concatenate(parts) for name, parts in every.items()}
    except (EngineError, ValueError) as error:
        raise UnprovableError(str(error)) from error
    if not same_bytes(values[needed[-1]].reshape(scores.shape), scores):
        raise UnprovableError("the golden activations come with other scores")
    return values
