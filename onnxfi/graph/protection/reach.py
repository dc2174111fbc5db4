"""Reach of protections: the stored tensors that a node can read, and functions of the model, into which none goes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from onnxfi.errors import SelectorError, closest
from onnxfi.faults.space import Selector, Target
from onnxfi.faults.words import WORDS
from onnxfi.graph.model.stored_tensors import stored_tensors

if TYPE_CHECKING:
    import onnx

    from onnxfi.graph.model.graph_index import Scope
    from onnxfi.graph.model.loading import Model

_REMEDY = "inline functions first (onnx.inliner.inline_local_functions)"


def stored_in_reach(scope: Scope) -> dict[str, onnx.TensorProto]:
    """Return the stored tensors that nodes of a graph can read, its own and those of graphs around it."""
    around = {} if scope.outer is None else stored_in_reach(scope.outer)
    return {**around, **stored_tensors(scope.graph)}


def outside_tensors(model: Model) -> tuple[Target, ...]:
    """Return the tensors that functions of a model compute, in file order: no protection goes there.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> outside_tensors(load("models/fashion_snn_scan.onnx"))
    ()
    """
    scopes = model.index.scopes[len(model.index.graphs) :]
    return tuple(
        Target(scope.path + value.name, WORDS["float32"], (), "activation", node.op, node.label, node.label)
        for scope in scopes
        for node in scope.nodes
        for value in node.outputs
    )


def check_names(model: Model, patterns: Collection[str], field: str, inside: Collection[Target], kind: str) -> None:
    """Raise SelectorError for a pattern of a selector that takes nothing that can be protected.

    `inside` are the tensors of the graphs, and `kind` says what they are in the message.
    """
    for pattern in patterns:
        one = Selector(include=(pattern,)) if field == "include" else Selector(op=(pattern,))
        if any(one.selects(target) for target in inside):
            continue
        outside = [target for target in outside_tensors(model) if one.selects(target)]
        if outside:
            raise SelectorError(f"--{field} {pattern!r} names {_in_function(outside[0])}, where none goes; {_REMEDY}")
        near = closest(pattern.lstrip("="), [target.id for target in inside])
        raise SelectorError(f"--{field} {pattern!r} matches no {kind} of this model{near}")


def left_outside(model: Model, ops: Collection[str], selector: Selector) -> Iterator[str]:
    """Yield a remark on results of such operators in functions of the model, which stay without protection."""
    if selector.include or selector.op:
        return
    found = [target for target in outside_tensors(model) if target.op in ops and selector.selects(target)]
    if found:
        more = f"and {len(found) - 1:,} more in functions stay" if len(found) > 1 else "stays"
        yield f"{_in_function(found[0])} {more} without protection; {_REMEDY} to protect all"


def _in_function(target: Target) -> str:
    return f"{target.id!r} ({target.op}) in a function"
