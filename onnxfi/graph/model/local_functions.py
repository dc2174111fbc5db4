"""Local functions: a bound on the number of nodes after inlining, which runtimes do first.

If each function calls the next one twice, the number of nodes doubles with each: thirty functions give 2^30 nodes, more
than fit in memory.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from onnxfi.errors import ModelError
from onnxfi.graph.model.graph_index import FunctionKey, all_nodes, function_key

if TYPE_CHECKING:
    import onnx

#: Largest number of nodes after inlining, and deepest nesting of calls.
_MOST_NODES, _DEEPEST = 1 << 18, 100
#: The graph itself, which no function calls.
_GRAPH: FunctionKey = ("", "", "")


def check_unfolded(proto: onnx.ModelProto) -> None:
    """Raise ModelError for a model whose functions inline to more nodes than a runtime can hold, or call themselves."""
    functions = {function_key(f.domain, f.name, f.overload): f.node for f in proto.functions}
    if not functions:
        return
    bodies = {
        name: Counter(function_key(node.domain, node.op_type, node.overload) for node in all_nodes(nodes))
        for name, nodes in (*functions.items(), (_GRAPH, proto.graph.node))
    }
    sizes, depths, waiting = dict[FunctionKey, int](), dict[FunctionKey, int](), [_GRAPH]
    begun = set[FunctionKey]()
    while waiting:
        name = waiting[-1]
        called = [one for one in bodies[name] if one in functions]
        left = [one for one in called if one not in sizes]
        if not left:
            sizes[name] = min(sum(n * sizes.get(one, 1) for one, n in bodies[name].items()), _MOST_NODES + 1)
            depths[name] = 1 + max((depths[one] for one in called), default=0)
            begun.discard(name)
            waiting.pop()
            continue
        begun.add(name)
        if not begun.isdisjoint(left):
            raise ModelError("a local function calls itself, through others or not, which no model may do")
        waiting += left
    if sizes[_GRAPH] > _MOST_NODES:
        raise ModelError(
            f"its local functions unfold to more than {_MOST_NODES:,} nodes, which no runtime can open; call fewer "
            f"functions from functions"
        )
    if depths[_GRAPH] > _DEEPEST:
        raise ModelError(
            f"its local functions call each other more than {_DEEPEST} deep; inline them first "
            f"(onnx.inliner.inline_local_functions)"
        )
