"""Sequences of membrane potentials: those of a layer of neurons over its steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxfi.graph.model.graph_index import integer
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.spiking.pattern_graph import PatternGraph, SpikeComparison

if TYPE_CHECKING:
    import onnx

#: Operators that record a membrane potential over time without computing with it.
_RECORDERS = frozenset((
    "Unsqueeze", "Concat", "Identity", "Reshape", "SequenceInsert", "SequenceConstruct", "Flatten", "Squeeze",
))  # fmt: skip
_HIERARCHY = "pkg.torch.onnx.class_hierarchy"
_CLASS = re.compile(r"snntorch\.[\w.]*\.(\w+)")


@dataclass(frozen=True)
class MembraneChain:
    """Membrane potentials of a layer in the order of its steps, and the nodes of each step."""

    membranes: tuple[str, ...]
    nodes: tuple[frozenset[int], ...]
    #: The potential before each step, or the state.
    before: tuple[str, ...]
    #: In a body: the nodes between the potential and the next state.
    after: frozenset[int] = frozenset()
    #: The potentials of each step after its reset, if they are compared again.
    again: tuple[tuple[str, ...], ...] = ()
    #: In a body: what each state of the loop becomes.
    handed: Mapping[str, str] = field(default_factory=dict)
    #: In a body: the nodes of the other states that enter the potential.
    beside: frozenset[int] = frozenset()

    def later(self, k: int) -> tuple[str, ...]:
        """Return the potentials of a step after its reset."""
        return self.again[k] if self.again else ()


def unrolled_membranes(pattern: PatternGraph, fires: Mapping[str, list[SpikeComparison]]) -> list[MembraneChain]:
    """Return the sequences of membrane potentials in an unrolled graph."""
    before: dict[str, str] = {}
    nodes: dict[str, frozenset[int]] = {}
    again: dict[str, tuple[str, ...]] = {}
    for name in sorted(fires, key=lambda one: pattern.maker.get(one, -1)):
        way, leaves = pattern.back(name, fires)
        nodes[name] = frozenset(way)
        mine = [leaf for leaf in leaves if leaf in fires and _leads(pattern, leaf, way)]
        # If a potential is computed from another state, the previous step's spikes reset that state.
        mine = mine or [one for one in fires if one != name and any(fire.compare in way for fire in fires[one])]
        if not mine:
            continue
        # The latest one: a state of the first step may reach all steps.
        old = max(
            mine,
            key=lambda one: (
                threshold_of(pattern, fires, one) == threshold_of(pattern, fires, name),
                pattern.maker.get(one, -1),
            ),
        )
        if _within_step(pattern, fires, old, way, leaves):
            again[old] = (*again.get(old, ()), name)
            continue
        step = next((one for one, later in again.items() if old in later), old)
        for later in again.get(step, ()):
            nodes[name] |= nodes[later]
        before[name] = step
    later_ones = {name for names in again.values() for name in names}
    after = {old: new for new, old in before.items()}
    chains = []
    for head in (name for name in fires if name not in before and name not in later_ones):
        names = [head]
        while names[-1] in after and len(names) <= len(fires):
            names.append(after[names[-1]])
        fits = len(names) > 1 and all(_only_neurons(pattern, fires, nodes, names, k) for k in range(1, len(names)))
        if fits or (len(names) == 1 and spiking_class(pattern, fires[head][0])):
            steps = (frozenset[int]() if _heavy(pattern, head) else nodes[head], *(nodes[n] for n in names[1:]))
            chains.append(
                MembraneChain(tuple(names), steps, ("", *names[:-1]), again=tuple(again.get(n, ()) for n in names))
            )
    return chains


def _within_step(
    pattern: PatternGraph, fires: Mapping[str, list[SpikeComparison]], old: str, way: set[int], leaves: set[str]
) -> bool:
    """Return whether a potential is another one after its reset in the same step, without current or leak between."""
    current = any(leaf not in fires and pattern.constant(leaf) is None for leaf in leaves)
    return (
        not current
        and not any(pattern.factor(n) for n in pattern.between(old, way))
        and bool(pattern.between(old, way))
    )


def initial(pattern: PatternGraph, name: str) -> bool:
    """Return whether a potential is the initial one, which does not depend on the model's inputs."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        now = todo.pop()
        if now in seen or pattern.constant(now) is not None:
            continue
        seen.add(now)
        if now not in pattern.maker:
            return False
        node = pattern.graph.node[pattern.maker[now]]
        if node.op_type not in ("Shape", "Size"):
            todo += [text(one) for one in node.input if one]
    return True


def _heavy(pattern: PatternGraph, name: str) -> bool:
    return name in pattern.maker and not pattern.back(name, {})[0]


def _leads(pattern: PatternGraph, start: str, way: set[int]) -> bool:
    return bool(pattern.between(start, way))


def threshold_of(
    pattern: PatternGraph, fires: Mapping[str, list[SpikeComparison]], name: str
) -> tuple[str, tuple[int, ...]]:
    """Return the stored tensor that a potential is compared with, and its shape."""
    fire = fires[name][0]
    limit = text(pattern.graph.node[fire.threshold.node].input[fire.threshold.input])
    value = pattern.constant(limit)
    return pattern.origin(limit), () if value is None else value.shape


def _only_neurons(
    pattern: PatternGraph,
    fires: Mapping[str, list[SpikeComparison]],
    nodes: Mapping[str, frozenset[int]],
    names: Sequence[str],
    k: int,
) -> bool:
    """Return whether a potential is only used by its comparisons, the next step and records."""
    allowed = {n for fire in fires[names[k]] for n in fire.nodes}
    allowed |= nodes[names[k + 1]] if k + 1 < len(names) else set()
    users = {use.node for use in pattern.users.get(names[k], [])}
    return all(n in allowed or pattern.graph.node[n].op_type in _RECORDERS for n in users)


def carried_membranes(
    pattern: PatternGraph, fires: Mapping[str, list[SpikeComparison]], loop: onnx.NodeProto
) -> list[MembraneChain]:
    """Return the sequences of membrane potentials that a loop carries from step to step."""
    body = pattern.graph
    skip = 0
    if loop.op_type == "Scan":
        scanned = integer(loop, "num_scan_inputs")
        states = [text(v.name) for v in body.input[: len(body.input) - scanned]]
    else:
        states, skip = [text(v.name) for v in body.input[2:]], 1
    handed = [text(v.name) for v in body.output[skip : skip + len(states)]]
    chains = []
    for name in (n for n in fires if n not in states):
        others = {n: None for n in (*states, *fires)}
        way, leaves = pattern.back(name, others)
        for state, out in zip(states, handed, strict=False):
            rest, ends = pattern.back(out, {name: None}, first=False)
            if state in leaves and (out == name or name in ends):
                after = frozenset(rest) if out != name else frozenset[int]()
                becomes = dict(zip(states, handed, strict=False))
                others_nodes = (
                    pattern.back(becomes[s], others, first=False)[0] for s in leaves & becomes.keys() - {state}
                )
                beside = frozenset[int]().union(*others_nodes)
                chains.append(MembraneChain((name,), (frozenset(way),), (state,), after, (), becomes, beside))
                break
    return chains


def spiking_class(pattern: PatternGraph, fire: SpikeComparison) -> str:
    """Return the neuron class of the source framework that a comparison comes from; '' if none is recorded."""
    return class_of(pattern.graph.node[fire.compare])


def class_of(node: onnx.NodeProto) -> str:
    """Return the neuron class of snntorch that a node comes from; '' if none is recorded."""
    for entry in node.metadata_props:
        if entry.key == _HIERARCHY and (match := _CLASS.search(text(entry.value))):
            return match[1]
    return ""
