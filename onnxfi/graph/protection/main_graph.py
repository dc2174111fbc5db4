"""Reach of protections: stored tensors of a graph, and what is computed outside the main graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxfi.errors import SelectorError, closest
from onnxfi.faults.space import Selector, Target
from onnxfi.faults.words import WORDS
from onnxfi.graph.model.graph_index import Scope

if TYPE_CHECKING:
    import onnx

    from onnxfi.graph.model.loading import Model

_REMEDIES = {
    "Loop": "export the model with its loop unrolled",
    "Scan": "export the model with its loop unrolled",
    "If": "export the model without the condition",
    "": "inline functions first (onnx.inliner.inline_local_functions)",
}


def stored_tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the tensors that a graph stores, in initializers and in Constant nodes, by name."""
    constants = {
        node.output[0]: a.t
        for node in graph.node
        if node.op_type == "Constant"
        for a in node.attribute
        if a.name == "value"
    }
    return {**constants, **{t.name: t for t in graph.initializer}}


@dataclass(frozen=True)
class OutsideTensor:
    """A computed tensor outside the main graph: its target, and the node around it ("": a function)."""

    target: Target
    op: str

    def __str__(self) -> str:
        where = f"the body of the {self.op}" if self.op else "a function"
        return f"{self.target.id!r} ({self.target.op}) in {where}"

    @property
    def remedy(self) -> str:
        """The step that brings it into the main graph."""
        return _REMEDIES.get(self.op, _REMEDIES["Loop"])


def outside_tensors(model: Model) -> tuple[OutsideTensor, ...]:
    """Return the tensors that nodes outside the main graph compute, in file order.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> [str(one) for one in outside_tensors(load("models/fashion_snn_scan.onnx"))][0]
    "'steps.body::lif1_reset_above' (Greater) in the body of the Scan"
    """
    return tuple(one for scope in model.index.scopes if scope.path for one in _of_scope(scope))


def _of_scope(scope: Scope) -> Iterator[OutsideTensor]:
    op = scope.enclosing[-1].op if scope.enclosing else ""
    for node in scope.nodes:
        for value in node.outputs:
            target = Target(
                scope.path + value.name, WORDS["float32"], (), "activation", node.op, node.label, node.label
            )
            yield OutsideTensor(target, op)


def check_names(model: Model, patterns: Collection[str], field: str, inside: Collection[Target], kind: str) -> None:
    """Raise SelectorError for a pattern of a selector that takes nothing in the main graph.

    `inside` are the tensors of the main graph, and `kind` says what they are in the message.
    """
    for pattern in patterns:
        one = Selector(include=(pattern,)) if field == "include" else Selector(op=(pattern,))
        if any(one.selects(target) for target in inside):
            continue
        outside = [found for found in outside_tensors(model) if one.selects(found.target)]
        if outside:
            raise SelectorError(
                f"--{field} {pattern!r} names {outside[0]}, where this protection does not go; {outside[0].remedy}"
            )
        near = closest(pattern.lstrip("="), [target.id for target in inside])
        raise SelectorError(f"--{field} {pattern!r} matches no {kind} of this model{near}")


def left_outside(model: Model, ops: Collection[str], selector: Selector, *, functions: bool = False) -> Iterator[str]:
    """Yield a remark on results of such operators outside the main graph, which stay without protection.

    With `functions` those in functions of the model alone.
    """
    if selector.include or selector.op:
        return
    every = [one for one in outside_tensors(model) if not (functions and one.op)]
    found = [one for one in every if one.target.op in ops and selector.selects(one.target)]
    if found:
        more = f"and {len(found) - 1:,} more outside the main graph stay" if len(found) > 1 else "stays"
        yield f"{found[0]} {more} without protection; {found[0].remedy} to protect all"
