"""Detection of spiking layers by the pattern of their equations in the graph.

A step of integrate-and-fire neurons is a comparison of a membrane potential with a constant, whose result becomes a
number; the potential follows from that of the previous step by elementwise operators alone. Unrolled graphs have a copy
for each step; in the body of a Scan or Loop the previous potential is a state. Steps are grouped over time into layers,
each with the node inputs at which threshold, leak, reset and spikes enter.

Neurons of other kinds are described by a mapping (undetected_neurons.py): their tensors by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import ModelError
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.dataflow.batch_layout import Dims
from onnxfi.graph.model.graph_index import GraphIndex, node_labels
from onnxfi.graph.model.layers import layer_of, module_in_parameter_name
from onnxfi.graph.model.loading import Model, parse
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.spiking.decays import find_decays
from onnxfi.graph.spiking.membrane_steps import (
    MembraneChain,
    carried_membranes,
    class_of,
    initial,
    spiking_class,
    threshold_of,
    unrolled_membranes,
)
from onnxfi.graph.spiking.pattern_graph import PatternGraph, SpikeComparison, Use
from onnxfi.graph.spiking.time_axes import TimeAxis, time_axes, trips_of

if TYPE_CHECKING:
    import onnx

#: Neuron classes of snntorch that have a leak, which is not in the graph where it is 1.
_WITH_LEAK = ("Leaky", "RLeaky", "Synaptic", "RSynaptic")
_DAMAGE = (IndexError, KeyError, ValueError, TypeError, AttributeError, StopIteration, RecursionError)


@dataclass(frozen=True)
class Variable:
    """Parameter of a layer's neurons: its value, the weights that it comes from, and its uses.

    `factors` are the uses of a value that a parameter of 1 would multiply, where an exporter left the product out.
    """

    name: str
    value: NDArray[Any] = field(repr=False, compare=False)
    origins: tuple[str, ...] = ()
    uses: tuple[Use, ...] = field(default=(), repr=False)
    factors: tuple[Use, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Step:
    """Step of a layer: the tensors of its membrane potential and of its spikes.

    `inner` are the uses of both by the layer itself: those in the next step. `resets` are those of them through which
    a spike resets its neuron, `carried` those of the potential behind its comparison, by the next step.
    """

    membrane: str
    spike: str
    inner: tuple[Use, ...] = field(default=(), repr=False)
    resets: tuple[Use, ...] = field(default=(), repr=False)
    carried: tuple[Use, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class SpikingLayer:
    """Layer of spiking neurons, in all their steps.

    `shape` are the neurons of one sample (None if the file leaves it open), `path` that of their graph,
    `trips` the number of steps (None if it depends on the data), `reset` subtract, zero or none.
    """

    name: str
    kind: str
    path: str
    shape: tuple[int, ...] | None
    steps: tuple[Step, ...]
    trips: int | None
    variables: tuple[Variable, ...]
    reset: str
    loop: str = ""

    @property
    def neurons(self) -> int | None:
        """The number of neurons of a sample; None if the shape is open."""
        return None if self.shape is None else int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class SpikingLayers:
    """Result of a search: the layers in file order, the axes of time, and notes."""

    layers: tuple[SpikingLayer, ...]
    axes: tuple[TimeAxis, ...] = ()
    notes: tuple[str, ...] = ()


def find_spiking_layers(model: Model) -> SpikingLayers:
    """Find the spiking layers of a model by pattern; their names are those of the source framework's modules.

    ModelError for a damaged graph.

    >>> from onnxfi.graph.model.loading import load
    >>> found = find_spiking_layers(load("models/fashion_snn.onnx"))
    >>> [(layer.name, layer.shape, layer.trips, layer.reset) for layer in found.layers][-1]
    ('lif3', (10,), 8, 'subtract')
    """
    proto = parse(model)
    try:
        return _found(model, proto)
    except _DAMAGE as error:  # a node without required inputs or attributes
        what = f"{type(error).__name__} {error}"[:120]
        raise ModelError(f"{model.name}: its neurons cannot be detected, since the graph is damaged ({what})") from None


def _found(model: Model, proto: onnx.ModelProto) -> SpikingLayers:
    cones: dict[str, PatternGraph] = {}
    layers: list[SpikingLayer] = []
    undetected: dict[str, str] = {}
    notes: list[str] = []
    for scope in GraphIndex.of(proto).graphs:
        path = scope.path
        outer = cones.get(path.rpartition("::")[0].rpartition("::")[0] + "::" if path.count("::") > 1 else "")
        pattern = cones[path] = PatternGraph(scope, outer if path else None)
        fires: dict[str, list[SpikeComparison]] = {}
        for fire in pattern.fires():
            fires.setdefault(fire.membrane, []).append(fire)
        enclosing = scope.enclosing[-1] if scope.enclosing else None
        loop = enclosing.proto if enclosing is not None and enclosing.op in ("Scan", "Loop") else None
        chains = carried_membranes(pattern, fires, loop) if loop is not None else unrolled_membranes(pattern, fires)
        found = [_layer(pattern, chain, fires, loop) for chain in chains]
        if loop is not None and found:
            trips = trips_of(loop, pattern.outer or pattern, proto)
            found = [replace(layer, trips=trips) for layer in found]
        found, incomplete = _split_incomplete(pattern, fires, chains, _merged(found))
        layers += found
        undetected |= _undetected(scope.graph, [*found, *incomplete])
        notes += [
            f"{layer.name!r}: steps of its neurons were found in part only; describe them in a mapping file"
            for layer in incomplete
        ]
    named = _shaped(model, _named(layers))
    notes += [
        f"{scope!r} is a {kind} of snntorch, but its neurons were not found; describe them in a mapping file"
        for scope, kind in undetected.items()
    ]
    steps = {layer.trips for layer in named if layer.trips and not layer.loop}
    loops = {layer.path for layer in named if layer.loop}
    return SpikingLayers(tuple(named), time_axes(proto, steps, loops) if named else (), tuple(notes))


def _layer(
    pattern: PatternGraph,
    chain: MembraneChain,
    fires: Mapping[str, list[SpikeComparison]],
    loop: onnx.NodeProto | None,
) -> SpikingLayer:
    """Return a sequence of membrane potentials as a layer, with the uses of its parameters."""
    threshold, leak, resets = list[Use](), list[Use](), set[str]()
    steps: list[Step] = []
    ways, carried = set[int](), list[Use]()
    for k, name in enumerate(chain.membranes):
        own, before = chain.nodes[k], chain.before[k]
        later = [fire for one in chain.later(k) for fire in fires[one]]
        threshold += [fire.threshold for fire in (*fires[name], *later)]
        following = chain.after if loop is not None else chain.nodes[k + 1] if k + 1 < len(chain.nodes) else frozenset()
        steps.append(_step(pattern, fires[name], later, name, following))
        if not before:
            if len(chain.membranes) > 1 and initial(pattern, name):
                steps = []  # the potential before the first step
            continue
        earlier = (before, *chain.later(k - 1)) if loop is None else (before,)
        fired = {fire.spike for one in earlier for fire in fires.get(one, [])} | (
            {f.spike for f in fires[name]} if chain.after else set()
        )
        if loop is not None:
            threshold += [fire.threshold for fire in fires.get(before, [])]
            extra = tuple(_uses(pattern, fired, own | chain.after))
            steps[-1] = replace(steps[-1], resets=tuple(dict.fromkeys((*steps[-1].resets, *extra))))
        way = pattern.between(before, set(own))
        leak += [use for n in sorted(way) for use in pattern.factor(n)][:1]
        ways |= way
        left = earlier[-1]  # what a step hands on: after a reset at once, that
        comparing = {n for fire in fires.get(left, []) for n in fire.nodes}
        carried += [use for use in pattern.users.get(left, []) if use.node in way - comparing and use.input >= 0]
        kind, amounts = _reset(pattern, fired, own | chain.after)
        resets |= {kind}
        threshold += [use for use in amounts if _same(pattern, use, threshold[0])]
    kinds = resets - {"none"}
    layer, kind = _name_and_class(pattern, fires[chain.membranes[0]][0], threshold[0])
    rest = frozenset[int]().union(*chain.nodes, chain.after, chain.beside) - ways
    limits = {pattern.origin(_constant_name(pattern, use)) for use in threshold}
    found = {"threshold": threshold, "leak": leak, **find_decays(pattern, rest, chain.handed, limits)}
    variables = [v for n, uses in found.items() if uses and (v := _variable(pattern, n, uses)) is not None]
    if not leak and kind in _WITH_LEAK and carried and variables:
        variables.append(Variable("leak", np.ones((), variables[0].value.dtype), factors=tuple(carried)))
    return SpikingLayer(
        layer, kind or "integrate-and-fire", pattern.path, None, tuple(steps), len(steps) if loop is None else None,
        tuple(variables), min(kinds) if kinds else "none", loop.op_type if loop is not None else "",
    )  # fmt: skip


def _name_and_class(pattern: PatternGraph, fire: SpikeComparison, threshold: Use) -> tuple[str, str]:
    """Return the module that a comparison belongs to, and its neuron class; '' where none is recorded."""
    label = node_labels(pattern.graph.node)[fire.compare]
    layer = layer_of(pattern.graph.node[fire.compare], label)
    owner = module_in_parameter_name(pattern.origin(_constant_name(pattern, threshold)))
    # The older exporter loses the names of containers.
    return owner if owner.endswith(f".{layer}") else layer, spiking_class(pattern, fire)


def _constant_name(pattern: PatternGraph, use: Use) -> str:
    return text(pattern.graph.node[use.node].input[use.input])


def _step(
    pattern: PatternGraph,
    fires: Sequence[SpikeComparison],
    later: Sequence[SpikeComparison],
    membrane: str,
    following: frozenset[int],
) -> Step:
    """Return a step: the spikes of a layer and their uses inside it; `later` are comparisons after its reset."""
    names = {fire.spike for fire in (*fires, *later)}
    ends = {o.name for o in pattern.graph.output}

    def leaving(name: str) -> list[Use]:
        return [use for use in pattern.users.get(name, []) if use.node not in following]

    def grades(name: str) -> list[int]:
        """Return the multiplications of the spikes; some lead back into the layer as well."""
        found = [use.node for use in pattern.users.get(name, []) if use.input >= 0 and pattern.factor(use.node)]
        outputs = ((node, text(pattern.graph.node[node].output[0])) for node in found)
        return [node for node, made in outputs if leaving(made) or made in ends]

    spike = next((f.spike for f in fires if leaving(f.spike) or f.spike in ends), "")
    inner = list(following)
    if not spike:
        graded = [(f.spike, node) for f in fires for node in grades(f.spike)]
        spike = graded[0][0] if graded else fires[0].spike
    graders = grades(spike) if spike not in ends else []
    others = [use for use in leaving(spike) if use.node not in graders]
    if len(graders) == 1 and not others:
        names.add(spike := text(pattern.graph.node[graders[0]].output[0]))
        inner = [node for node in following if node != graders[0]]
    uses = _uses(pattern, names, inner)
    comparing = {n for fire in fires for n in fire.nodes}
    return Step(
        membrane,
        spike,
        tuple(_uses(pattern, {membrane, *names}, {*inner, *comparing})),
        tuple(use for use in uses if _resets(pattern, use)),
        tuple(_uses(pattern, {membrane}, set(inner) - comparing)),
    )


def _resets(pattern: PatternGraph, use: Use) -> bool:
    """Return whether this use of a spike lowers or clears the potential; one that raises it is a recurrent synapse."""
    seen: set[Use] = set()
    todo = [use]
    while todo:
        now = todo.pop()
        if now in seen or now.input < 0:
            continue
        seen.add(now)
        node = pattern.graph.node[now.node]
        if node.op_type in ("Where", "Not", "Neg") or (node.op_type == "Sub" and now.input == 1):
            return True
        if node.op_type in ("Sub", "Mul", "Div", "Cast", "Identity"):
            todo += pattern.users.get(text(node.output[0]), [])
    return False


def _uses(pattern: PatternGraph, names: Iterable[str], nodes: Iterable[int]) -> list[Use]:
    inside = set(nodes)
    return [
        use for name in sorted(names) for use in pattern.users.get(name, []) if use.node in inside and use.input >= 0
    ]


def _reset(pattern: PatternGraph, spikes: set[str], nodes: frozenset[int]) -> tuple[str, list[Use]]:
    """Return how spikes reset: subtract (with the constants that they are multiplied with), zero, or none."""
    kind, amounts = "none", list[Use]()
    for use in _uses(pattern, spikes, nodes):
        node = pattern.graph.node[use.node]
        if node.op_type == "Mul" and pattern.factor(use.node):
            kind, amounts = "subtract", amounts + pattern.factor(use.node)
        elif node.op_type == "Sub" and use.input == 1:
            kind = "zero" if pattern.constant(text(node.input[0])) is not None else "subtract"
    if kind == "none" and any(pattern.graph.node[n].op_type == "Where" for n in nodes):
        kind = "zero"
    return kind, amounts


def _same(pattern: PatternGraph, use: Use, other: Use) -> bool:
    one, two = (pattern.origin(text(pattern.graph.node[u.node].input[u.input])) for u in (use, other))
    return one == two


def _variable(pattern: PatternGraph, name: str, uses: Sequence[Use]) -> Variable | None:
    names = [text(pattern.graph.node[u.node].input[u.input]) for u in uses]
    value = pattern.constant(names[0])
    if value is None:
        return None
    kept = [use for use, one in zip(uses, names, strict=True) if _equal(pattern.constant(one), value)]
    return Variable(name, value, tuple(dict.fromkeys(pattern.origin(n) for n in names)), tuple(dict.fromkeys(kept)))


def _equal(one: NDArray[Any] | None, other: NDArray[Any]) -> bool:
    return one is not None and one.shape == other.shape and one.tobytes() == other.tobytes()


def _undetected(graph: onnx.GraphProto, found: Sequence[SpikingLayer]) -> dict[str, str]:
    """Return the modules of snntorch in which no layer was found, and their classes."""
    known = {layer.name for layer in found}
    modules = {layer_of(node, ""): class_of(node) for node in graph.node if class_of(node)}
    inside = tuple(f"{name}." for name in known)  # a submodule of a neuron, such as its recurrent synapses
    return {s: kind for s, kind in modules.items() if s and s not in known and not s.startswith(inside)}


def _merged(layers: Sequence[SpikingLayer]) -> list[SpikingLayer]:
    """Merge layers whose steps do not depend on one another, as without a reset: those of one module are its steps."""
    out: dict[object, SpikingLayer] = {}
    for k, layer in enumerate(layers):
        alone = layer.trips == 1 and not layer.loop and layer.name
        key = (layer.name, layer.path, *(v.origins for v in layer.variables)) if alone else k
        first = out.get(key)
        if first is None:
            out[key] = layer
            continue
        variables = zip(first.variables, layer.variables, strict=True)
        out[key] = replace(
            first, steps=(*first.steps, *layer.steps), trips=len(first.steps) + 1,
            variables=tuple(replace(one, uses=(*one.uses, *two.uses)) for one, two in variables),
        )  # fmt: skip
    return list(out.values())


def _split_incomplete(
    pattern: PatternGraph,
    fires: Mapping[str, list[SpikeComparison]],
    chains: Sequence[MembraneChain],
    layers: Sequence[SpikingLayer],
) -> tuple[list[SpikingLayer], list[SpikingLayer]]:
    """Return the layers with all their steps, and those whose threshold is compared with other potentials as well."""
    known = {
        name for chain in chains for name in (*chain.membranes, *chain.before, *(n for a in chain.again for n in a))
    }
    missed = {
        threshold_of(pattern, fires, name)[0]
        for name, here in fires.items()
        if name not in known and any(pattern.users.get(fire.spike) for fire in here) and not initial(pattern, name)
    }
    partly = [one for one in layers if any(v.name == "threshold" and missed & {*v.origins} for v in one.variables)]
    return [layer for layer in layers if layer not in partly], partly


def _named(layers: Sequence[SpikingLayer]) -> list[SpikingLayer]:
    """Give each layer a unique name."""
    seen: set[str] = set()
    out = []
    for k, layer in enumerate(layers):
        name = layer.name or f"spiking{k}"
        while name in seen:
            name += f"#{k}"
        seen.add(name)
        out.append(replace(layer, name=name))
    return out


def _shaped(model: Model, layers: Sequence[SpikingLayer]) -> list[SpikingLayer]:
    """Return the layers with the shapes of their neurons, as far as those can be inferred."""
    if not layers:
        return []
    known: dict[tuple[str, str], Dims | None] = {(a.path, a.name): a.dims for a in activations(model)}

    def shape(layer: SpikingLayer) -> tuple[int, ...] | None:
        for step in reversed(layer.steps):
            for name in (step.membrane, step.spike):
                dims = known.get((layer.path, name))
                if dims and all(isinstance(n, int) for n in dims[1:]):
                    return tuple(n for n in (dims[1:] if len(dims) > 1 else dims) if isinstance(n, int))
        return None

    return [replace(layer, shape=shape(layer)) for layer in layers]
