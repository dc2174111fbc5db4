"""Neurons: the spiking layers of a model, found in its graph.

A step of integrate-and-fire neurons is a comparison of a membrane potential with a constant, whose outcome becomes a
number, where the potential comes from the potential of the step before by elementwise operators alone. Unrolled graphs
have a copy of it for each step; in the body of a Scan or Loop the potential before is a state. Steps are grouped over
time into layers, and in each the places are known where threshold, leak, reset and spikes enter.

Neurons of other kinds are said by a mapping (`mapped`): their tensors by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import ModelError
from onnxfi.graph.activations import activations, graphs, labels
from onnxfi.graph.cones import Cone, Fire, Use
from onnxfi.graph.layers import layer_of, owner_in_name
from onnxfi.graph.model import Model, parse
from onnxfi.graph.samples import Dims
from onnxfi.graph.wire import text

if TYPE_CHECKING:
    import onnx

#: Operators that record a membrane potential over time, and do not compute with it.
_RECORDERS = frozenset((
    "Unsqueeze", "Concat", "Identity", "Reshape", "SequenceInsert", "SequenceConstruct", "Flatten", "Squeeze",
))  # fmt: skip
_DAMAGE = (IndexError, KeyError, ValueError, TypeError, AttributeError, StopIteration, RecursionError)
_HIERARCHY = "pkg.torch.onnx.class_hierarchy"
_CLASS = re.compile(r"snntorch\.[\w.]*\.(\w+)")


@dataclass(frozen=True)
class Variable:
    """A parameter of a layer's neurons: its value, the stored tensors that it comes from, and where it is used."""

    name: str
    value: NDArray[Any] = field(repr=False, compare=False)
    origins: tuple[str, ...] = ()
    uses: tuple[Use, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Step:
    """One step of a layer: the tensors of its membrane potential and of its spikes.

    `inner` are the uses of both by the layer itself: those in the next step. `resets` are those of them through which
    a spike resets its neuron.
    """

    membrane: str
    spike: str
    inner: tuple[Use, ...] = field(default=(), repr=False)
    resets: tuple[Use, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class SpikingLayer:
    """Neurons that spike, all of them in all their steps.

    `shape` are the neurons of one sample (None: the file does not say it), `path` the graph that they lie in, `trips`
    how many steps there are (None: only a run tells), `reset` subtract, zero or none.
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
        """How many neurons a sample has."""
        return None if self.shape is None else int(np.prod(self.shape, dtype=np.int64))

    def variable(self, name: str) -> Variable | None:
        """A parameter by its name: threshold, leak or refractory."""
        return next((v for v in self.variables if v.name == name), None)


@dataclass(frozen=True)
class TimeAxis:
    """An axis that counts the steps: of an input, of an output, or of a tensor inside that is folded over time."""

    tensor: str
    axis: int
    role: str


@dataclass(frozen=True)
class Spiking:
    """What a search found: the layers in file order, the axes of time, and what there is to say."""

    layers: tuple[SpikingLayer, ...]
    axes: tuple[TimeAxis, ...] = ()
    notes: tuple[str, ...] = ()


def find(model: Model) -> Spiking:
    """The spiking layers of a model, by pattern; their names are those of the source framework's modules.

    ModelError for a damaged graph.

    >>> from onnxfi.graph.model import load
    >>> found = find(load("models/fashion_snn.onnx"))
    >>> [(layer.name, layer.shape, layer.trips, layer.reset) for layer in found.layers][-1]
    ('lif3', (10,), 8, 'subtract')
    """
    proto = parse(model)
    try:
        return _found(model, proto)
    except _DAMAGE as error:  # a node without the inputs or attributes that its operator has
        what = f"{type(error).__name__} {error}"[:120]
        raise ModelError(f"{model.name}: neurons cannot be looked for, since the graph is damaged ({what})") from None


def _found(model: Model, proto: onnx.ModelProto) -> Spiking:
    from onnxfi.graph.times import time_axes, trips_of

    cones: dict[str, Cone] = {}
    layers: list[SpikingLayer] = []
    strangers: dict[str, str] = {}
    for path, graph, around in graphs(proto):
        outer = cones.get(path.rpartition("::")[0].rpartition("::")[0] + "::" if path.count("::") > 1 else "")
        cone = cones[path] = Cone(path, graph, outer if path else None)
        fires: dict[str, list[Fire]] = {}
        for fire in cone.fires():
            fires.setdefault(fire.membrane, []).append(fire)
        loop = around[-1] if around and around[-1].op_type in ("Scan", "Loop") else None
        chains = _carried(cone, fires, loop) if loop is not None else _chained(cone, fires)
        found = [_layer(cone, chain, fires, loop) for chain in chains]
        if loop is not None and found:
            trips = trips_of(loop, cone.outer or cone, proto)
            found = [replace(layer, trips=trips) for layer in found]
        layers += found
        strangers |= _strangers(graph, found)
    named = _shaped(model, _named(layers))
    notes = tuple(
        f"{scope!r} is a {kind} of snntorch, but its neurons were not found; describe them in a mapping file"
        for scope, kind in strangers.items()
    )
    return Spiking(tuple(named), time_axes(proto, named) if named else (), notes)


@dataclass(frozen=True)
class _Chain:
    """The membrane potentials of a layer in the order of its steps, and the nodes of each step."""

    membranes: tuple[str, ...]
    nodes: tuple[frozenset[int], ...]
    #: What each step comes from: the potential before, or the state.
    before: tuple[str, ...]
    #: In a body: the nodes between the potential and the state that is handed on.
    after: frozenset[int] = frozenset()


def _chained(cone: Cone, fires: Mapping[str, list[Fire]]) -> list[_Chain]:
    """Potentials that come from one another, in an unrolled graph."""
    before: dict[str, str] = {}
    nodes: dict[str, frozenset[int]] = {}
    for name in fires:
        way, leaves = cone.back(name, fires)
        mine = [leaf for leaf in leaves if leaf in fires and _leads(cone, leaf, way)]
        nodes[name] = frozenset(way)
        if mine:
            before[name] = min(mine, key=lambda one: (_origin(cone, fires, one) != _origin(cone, fires, name), one))
    after = {old: new for new, old in before.items()}
    chains = []
    for head in (name for name in fires if name not in before):
        names = [head]
        while names[-1] in after and len(names) <= len(fires):
            names.append(after[names[-1]])
        fits = len(names) > 1 and all(_only_neurons(cone, fires, nodes, names, k) for k in range(1, len(names)))
        if fits or (len(names) == 1 and _spiking_class(cone, fires[head][0])):
            steps = (frozenset[int]() if _heavy(cone, head) else nodes[head], *(nodes[n] for n in names[1:]))
            chains.append(_Chain(tuple(names), steps, ("", *names[:-1])))
    return chains


def _heavy(cone: Cone, name: str) -> bool:
    return name in cone.maker and not cone.back(name, {})[0]


def _leads(cone: Cone, start: str, way: set[int]) -> bool:
    return bool(cone.between(start, way))


def _origin(cone: Cone, fires: Mapping[str, list[Fire]], name: str) -> tuple[str, tuple[int, ...]]:
    fire = fires[name][0]
    limit = text(cone.graph.node[fire.threshold.node].input[fire.threshold.input])
    value = cone.constant(limit)
    return cone.origin(limit), () if value is None else value.shape


def _only_neurons(
    cone: Cone, fires: Mapping[str, list[Fire]], nodes: Mapping[str, frozenset[int]], names: Sequence[str], k: int
) -> bool:
    """Whether a potential goes nowhere but into its comparisons, the next step, and records."""
    allowed = {n for fire in fires[names[k]] for n in fire.nodes}
    allowed |= nodes[names[k + 1]] if k + 1 < len(names) else set()
    users = {use.node for use in cone.users.get(names[k], [])}
    return all(n in allowed or cone.graph.node[n].op_type in _RECORDERS for n in users)


def _spiking_class(cone: Cone, fire: Fire) -> str:
    """The neuron class of the source framework that a node tells; '' where it tells none."""
    return _class_of(cone.graph.node[fire.compare])


def _class_of(node: onnx.NodeProto) -> str:
    for entry in node.metadata_props:
        if entry.key == _HIERARCHY and (match := _CLASS.search(text(entry.value))):
            return match[1]
    return ""


def _carried(cone: Cone, fires: Mapping[str, list[Fire]], loop: onnx.NodeProto) -> list[_Chain]:
    """Potentials that a loop carries from step to step."""
    body = cone.graph
    skip = 0
    if loop.op_type == "Scan":
        scanned = next(a.i for a in loop.attribute if a.name == "num_scan_inputs")
        states = [text(v.name) for v in body.input[: len(body.input) - scanned]]
    else:
        states, skip = [text(v.name) for v in body.input[2:]], 1
    handed = [text(v.name) for v in body.output[skip : skip + len(states)]]
    chains = []
    for name in (n for n in fires if n not in states):
        others = {n: None for n in (*states, *fires)}
        way, leaves = cone.back(name, others)
        for state, out in zip(states, handed, strict=False):
            rest, ends = cone.back(out, {name: None}, first=False)
            if state in leaves and (out == name or name in ends):
                after = frozenset(rest) if out != name else frozenset[int]()
                chains.append(_Chain((name,), (frozenset(way),), (state,), after))
                break
    return chains


def _layer(cone: Cone, chain: _Chain, fires: Mapping[str, list[Fire]], loop: onnx.NodeProto | None) -> SpikingLayer:
    """A chain as a layer, with the places where its parameters enter."""
    threshold, leak, resets = list[Use](), list[Use](), set[str]()
    steps: list[Step] = []
    for k, name in enumerate(chain.membranes):
        own, before = chain.nodes[k], chain.before[k]
        threshold += [fire.threshold for fire in fires[name]]
        following = chain.after if loop is not None else chain.nodes[k + 1] if k + 1 < len(chain.nodes) else frozenset()
        steps.append(_step(cone, fires[name], name, following))
        if not before:
            if not _fires_out(cone, steps[0], following) and len(chain.membranes) > 1:
                steps = []  # the potential before the first step
            continue
        fired = {fire.spike for fire in fires.get(before, [])} | (
            {f.spike for f in fires[name]} if chain.after else set()
        )
        if loop is not None:
            threshold += [fire.threshold for fire in fires.get(before, [])]
            extra = tuple(_uses(cone, fired, own | chain.after))
            steps[-1] = replace(steps[-1], resets=tuple(dict.fromkeys((*steps[-1].resets, *extra))))
        way = cone.between(before, set(own))
        leak += [use for n in sorted(way) for use in _factor(cone, n)][:1]
        kind, amounts = _reset(cone, fired, own | chain.after)
        resets |= {kind}
        threshold += [use for use in amounts if _same(cone, use, threshold[0])]
    kinds = resets - {"none"}
    first = fires[chain.membranes[0]][0]
    node = cone.graph.node[first.compare]
    label = labels(cone.graph.node)[first.compare]
    layer, kind = layer_of(node, label), _spiking_class(cone, first)
    owner = owner_in_name(cone.origin(text(cone.graph.node[threshold[0].node].input[threshold[0].input])))
    layer = owner if owner.endswith(f".{layer}") else layer  # the older exporter loses the names of containers
    variables = [_variable(cone, n, uses) for n, uses in (("threshold", threshold), ("leak", leak)) if uses]
    return SpikingLayer(
        layer, kind or "integrate-and-fire", cone.path, None, tuple(steps), len(steps) if loop is None else None,
        tuple(v for v in variables if v is not None), min(kinds) if kinds else "none",
        loop.op_type if loop is not None else "",
    )  # fmt: skip


def _step(cone: Cone, fires: Sequence[Fire], membrane: str, following: frozenset[int]) -> Step:
    """The spikes that leave a layer, and what of them and of the potential stays in it."""
    names = {fire.spike for fire in fires}
    resets = tuple(_uses(cone, names, following))
    ends = {o.name for o in cone.graph.output}

    def leaving(name: str) -> list[Use]:
        return [use for use in cone.users.get(name, []) if use.node not in following]

    spike = next((f.spike for f in fires if leaving(f.spike) or f.spike in ends), fires[0].spike)
    out = leaving(spike)
    if len(out) == 1 and spike not in ends:  # a grade of the spikes: a factor behind them
        node = cone.graph.node[out[0].node]
        if node.op_type == "Mul" and cone.constant(text(node.input[1 - out[0].input])) is not None:
            spike = text(node.output[0])
    mine = following | {n for fire in fires for n in fire.nodes}
    return Step(membrane, spike, tuple(_uses(cone, {membrane, *names}, mine)), resets)


def _fires_out(cone: Cone, step: Step, following: frozenset[int]) -> bool:
    """Whether the spikes of a step leave the layer."""
    leaves = any(use.node not in following for use in cone.users.get(step.spike, []))
    return leaves or step.spike in {o.name for o in cone.graph.output}


def _uses(cone: Cone, names: Iterable[str], nodes: Iterable[int]) -> list[Use]:
    inside = set(nodes)
    return [use for name in sorted(names) for use in cone.users.get(name, []) if use.node in inside and use.input >= 0]


def _factor(cone: Cone, number: int) -> list[Use]:
    """The constant that a node multiplies with."""
    node = cone.graph.node[number]
    if node.op_type != "Mul":
        return []
    return [Use(number, k) for k, name in enumerate(node.input) if cone.constant(text(name)) is not None]


def _reset(cone: Cone, spikes: set[str], nodes: frozenset[int]) -> tuple[str, list[Use]]:
    """How spikes reset: subtract (with the constants that they are multiplied with), zero, or none."""
    kind, amounts = "none", list[Use]()
    for use in _uses(cone, spikes, nodes):
        node = cone.graph.node[use.node]
        if node.op_type == "Mul" and _factor(cone, use.node):
            kind, amounts = "subtract", amounts + _factor(cone, use.node)
        elif node.op_type == "Sub" and use.input == 1:
            kind = "zero" if cone.constant(text(node.input[0])) is not None else "subtract"
    if kind == "none" and any(cone.graph.node[n].op_type == "Where" for n in nodes):
        kind = "zero"
    return kind, amounts


def _same(cone: Cone, use: Use, other: Use) -> bool:
    one, two = (cone.origin(text(cone.graph.node[u.node].input[u.input])) for u in (use, other))
    return one == two


def _variable(cone: Cone, name: str, uses: Sequence[Use]) -> Variable | None:
    names = [text(cone.graph.node[u.node].input[u.input]) for u in uses]
    value = cone.constant(names[0])
    if value is None:
        return None
    kept = [use for use, one in zip(uses, names, strict=True) if _equal(cone.constant(one), value)]
    return Variable(name, value, tuple(dict.fromkeys(cone.origin(n) for n in names)), tuple(dict.fromkeys(kept)))


def _equal(one: NDArray[Any] | None, other: NDArray[Any]) -> bool:
    return one is not None and one.shape == other.shape and one.tobytes() == other.tobytes()


def _strangers(graph: onnx.GraphProto, found: Sequence[SpikingLayer]) -> dict[str, str]:
    """Modules of snntorch that no layer was found in."""
    known = {layer.name for layer in found}
    told = {layer_of(node, ""): _class_of(node) for node in graph.node if _class_of(node)}
    return {scope: kind for scope, kind in told.items() if scope and scope not in known}


def _named(layers: Sequence[SpikingLayer]) -> list[SpikingLayer]:
    """Give each layer a name of its own."""
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
    """The layers with their neurons counted, as far as shapes can be inferred."""
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
