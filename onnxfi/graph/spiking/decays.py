"""Decays of states beside the membrane potential: synaptic currents, and refractory states that spikes alone feed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.spiking.membrane_steps import initial
from onnxfi.graph.spiking.pattern_graph import PatternGraph, Use

_SUMS = frozenset(("Add", "Sub", "Sum"))


def find_decays(
    pattern: PatternGraph, own: Collection[int], handed: Mapping[str, str], threshold: Collection[str]
) -> dict[str, tuple[Use, ...]]:
    """Return the uses of each decay among these nodes: `synaptic`, `refractory`, and `synaptic-2` for a second one.

    A decay is a constant that the value of the step before is multiplied with. In the body of a loop that value is a
    state, of which `handed` has what becomes of it; in an unrolled graph it comes from such a product of its own.
    A state that the current enters is synaptic, one that spikes alone enter is refractory; `threshold` are the weights
    of the threshold, whose products with spikes are resets.
    """
    products: dict[str, list[Use]] = {}
    for number in sorted(own):
        for use in pattern.factor(number)[:1]:
            name = text(pattern.graph.node[number].input[use.input])
            products.setdefault(pattern.origin(name), []).append(use)
    found: dict[str, tuple[Use, ...]] = {}
    for origin, uses in products.items():
        nodes = {use.node for use in uses}
        kept = [use for use in uses if _returns(pattern, use, nodes, handed)]
        if not kept:
            continue
        later = {use.node for use in kept}
        # The first product of an unrolled graph comes from no other one, but others come from it.
        first = [use for use in uses if use.node not in later and _feeds(pattern, use, kept)]
        fed = any(_fed_by_current(pattern, use, handed) for use in kept)
        if origin in threshold and not any(_external(pattern, _ancestors(pattern, use, handed)[1]) for use in kept):
            continue
        kind = "synaptic" if fed else "refractory"
        name, number = kind, 2
        while name in found:
            name, number = f"{kind}-{number}", number + 1
        found[name] = tuple(sorted((*first, *kept), key=lambda use: use.node))
    return found


def _operand(pattern: PatternGraph, use: Use) -> str:
    """Return the other input of a product with a constant."""
    return text(pattern.graph.node[use.node].input[1 - use.input])


def _ancestors(pattern: PatternGraph, use: Use, handed: Mapping[str, str]) -> tuple[set[int], set[str]]:
    """Return the elementwise ancestors of what is multiplied (of a state, of its next value), and where they begin."""
    name = _operand(pattern, use)
    return pattern.back(handed.get(name, name), dict.fromkeys(handed), first=name not in handed)


def _returns(pattern: PatternGraph, use: Use, products: Collection[int], handed: Mapping[str, str]) -> bool:
    """Return whether a product multiplies what came from such a product in the step before."""
    name = _operand(pattern, use)
    if handed and name not in handed:
        return False
    return not _ancestors(pattern, use, handed)[0].isdisjoint(products)


def _feeds(pattern: PatternGraph, use: Use, others: Sequence[Use]) -> bool:
    return any(use.node in pattern.back(_operand(pattern, other), {})[0] for other in others)


def _fed_by_current(pattern: PatternGraph, use: Use, handed: Mapping[str, str]) -> bool:
    """Return whether what is added to a product is more than spikes and constants."""
    product = text(pattern.graph.node[use.node].output[0])
    sums = [u.node for u in pattern.users.get(product, []) if pattern.graph.node[u.node].op_type in _SUMS]
    added = [text(n) for node in sums for n in pattern.graph.node[node].input if text(n) != product]
    leaves = {leaf for name in added for leaf in pattern.back(name, dict.fromkeys(handed), first=False)[1]}
    return _external(pattern, leaves - set(handed))


def _external(pattern: PatternGraph, leaves: Collection[str]) -> bool:
    """Return whether one of these names is neither constant nor that of a first state."""
    return any(pattern.constant(leaf) is None and not initial(pattern, leaf) for leaf in leaves)
