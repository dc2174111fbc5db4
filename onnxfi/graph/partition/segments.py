"""The segmentation of a model, and the part of it that a fault reaches, from the graph alone.

The model is split into segments at its cut points (cut_points.py). A fault in a weight tensor has an *entry subgraph*
in each segment that reads the tensor: the nodes that the tensor reaches in the first of these segments, and all nodes
of the others. After the entry subgraphs the segments run unchanged. The tensor is fed to its entry subgraphs; these are
rebuilt with it if there are several faulty tensors, if runtimes need the tensor constant, or if they pack it in a way
that rounds differently from a tensor that is fed. If one operator computes each output channel from a slice of the
tensor, only the faulty channels are computed, by a small subgraph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from onnxfi.faults.space import Target
from onnxfi.graph.model.loading import Model
from onnxfi.graph.partition.conv_partial_sums import ConvSum, largest_conv_sum
from onnxfi.graph.partition.cut_points import CutPoints, segments, whole_subgraph
from onnxfi.graph.partition.output_channels import OutputChannels, looks_up_rows, output_channels
from onnxfi.graph.partition.route import Route
from onnxfi.graph.partition.subgraph import (
    PartitionGraph,
    Subgraph,
    TensorLocation,
    boundary_tensors,
    location,
    nodes_needed,
    nodes_reached,
    reachable_subgraph,
    reached,
    with_inputs,
)

#: Size of a tensor from which the whole operator costs more than a session for its faulty channels.
_WORTH_A_SESSION = 1 << 18
#: Operators whose constant weights a runtime packs; if weights are fed it sums in another order. It also packs those of
#: convolutions if images lie in blocks of channels.
_PACKED = frozenset(("Gemm", "MatMul", "LSTM", "GRU", "RNN", "ConvTranspose", "Einsum", "Attention"))


@dataclass(frozen=True)
class EntrySubgraph:
    """The part of one segment that is executed for a fault: subgraphs in sequence, up to the segment's outputs.

    `fed` are the weights and activations that are fed instead of being stored or computed.
    """

    segment: int
    subgraphs: tuple[Subgraph, ...]
    fed: tuple[str, ...] = ()

    @property
    def inputs(self) -> Iterator[str]:
        """Yield the golden activations that it reads, without those that are fed."""
        made: set[str] = set()
        for subgraph in self.subgraphs:
            yield from (name for name in subgraph.inputs if name not in made)
            made.update(subgraph.outputs)


@dataclass(frozen=True)
class FaultPath:
    """The entry subgraphs of faulty weights.

    The weights are `rebuilt` into the subgraphs, or fed. If one tensor changes only `channels` of one operator,
    `channel_subgraph` computes these.
    """

    locations: tuple[TensorLocation, ...]
    entries: tuple[EntrySubgraph, ...]
    rebuilt: bool = False
    channels: OutputChannels | None = None
    channel_subgraph: Subgraph | None = None

    @property
    def route(self) -> Route:
        """Return the route of a trial whose faults are all in these weights."""
        return Route.CHANNEL_DELTA if self.channels is not None else Route.REBUILT if self.rebuilt else Route.PARTIAL

    @property
    def shares(self) -> bool:
        """Return whether one run computes the channels of several trials."""
        return self.channels is not None

    @property
    def location(self) -> TensorLocation:
        """Return the location of the one faulty tensor."""
        return self.locations[0]


@dataclass(frozen=True)
class Segmentation:
    """A model in segments, as far as its scored outputs need it.

    Attributes
    ----------
    model : Model
        The model.
    net : PartitionGraph
        Its graph.
    outputs : tuple of str
        The scored outputs; () scores all.
    cut_points : CutPoints
        The activations at the end of each segment but the last.
    steps : bool
        Whether the cut points lie after all steps of a layer of an unrolled network.
    faulty_activations : tuple of tuple of str
        The activations that may be faulty, those of one trial together.
    late : bool
        Whether a trial starts at its fault, not at the inputs of the model.
    chosen : frozenset of str, optional
        The ids of the targets that may be faulty; None for all.
    by_channel : bool
        Whether few output channels of an operator may be computed apart.
    """

    model: Model = field(repr=False)
    net: PartitionGraph = field(repr=False)
    outputs: tuple[str, ...]
    cut_points: CutPoints = ()
    steps: bool = False
    faulty_activations: tuple[tuple[str, ...], ...] = ()
    late: bool = True
    chosen: frozenset[str] | None = None
    by_channel: bool = True
    _alone: dict[str, FaultPath | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def segments(self) -> tuple[Subgraph, ...]:
        """Return the segments; ModelError if an output is not a function of the inputs."""
        return segments(self.net, whole_subgraph(self.net, self.outputs), (), self.cut_points)

    @cached_property
    def makers(self) -> dict[str, int]:
        """Return the segment that computes each activation at a cut point; −1 for the inputs of the model."""
        found = dict.fromkeys(self.net.inputs, -1)
        return found | {name: number for number, segment in enumerate(self.segments) for name in segment.outputs}

    @cached_property
    def inner(self) -> tuple[tuple[str, ...], ...]:
        """Return the activations within each segment that some route reads.

        They depend on the model and on the possible faults alone, so that they have the same bits for every trial.
        """
        found: list[dict[str, None]] = [{} for _ in self.segments]
        firsts = [EntrySubgraph(number, (segment,)) for number, segment in enumerate(self.segments)]

        def note(segment: int, names: Iterable[str]) -> None:
            found[segment].update(dict.fromkeys(name for name in names if self.within.get(name) == segment))

        paths, taken = self.prepared
        for number, names in enumerate(taken):
            note(number, sorted(names))
        for route in paths.values():
            if route.channel_subgraph is not None and route.channels is not None:
                note(self.within[route.channels.output], (*route.channel_subgraph.inputs, route.channels.output))
            if route.channels is not None:
                firsts += self.activation_entries([route.channels.output]) or ()
                values, indices = self.looked_up(route.channels)
                for entry in (self.activation_entries(values) or ()) if values else ():
                    note(entry.segment, (*entry.inputs, *entry.fed))
                for name in indices:
                    note(self.within.get(name, 0), (name,))
        for values in self.faulty_activations:
            for entry in self.activation_entries(values) or ():
                note(entry.segment, (*entry.inputs, *entry.fed))
        for entry in firsts:
            split = self.conv_entry(entry)
            note(entry.segment, () if split is None else (*split[1].inputs, *split[0].values))
        return tuple(tuple(name for name in some if name not in self.makers) for some in found)

    def shares(self, targets: Iterable[Target]) -> bool:
        """Return whether one run computes the channels of several trials with faults in some of these targets."""
        routes = self.prepared[0]
        return any(target.id in routes and routes[target.id].shares for target in targets)

    @cached_property
    def prepared(self) -> tuple[dict[str, FaultPath], list[set[str]]]:
        """Return the paths of all chosen targets, not all with entries, and the inputs of entries by segment."""
        ready = [t for t in self.model.targets if self.chosen is None or t.id in self.chosen]
        taken: list[set[str]] = [set() for _ in self.segments]
        if self.steps or not self.net.in_order:
            routes = {t.id: route for t in ready if (route := self.alone(t)) is not None}
            for entry in (entry for route in routes.values() for entry in route.entries):
                taken[entry.segment].update(entry.inputs)
            return routes, taken
        # For many targets at once: one by one, the work would grow with targets times nodes.
        known = [(t, where) for t in ready if (where := self._location(t)) is not None]
        starts = [([where.fed], [where.node] if where.node >= 0 else []) for _, where in known]
        seen = 0
        for number, nodes in enumerate(self._nodes):
            marks = reached(self.net, starts, self._among[number])
            here = 0
            for k in nodes:
                here |= marks[k]
            first = here & ~seen if self.late else 0
            if first:
                mine = [mark & first if k in nodes else 0 for k, mark in enumerate(marks)]
                taken[number] |= boundary_tensors(self.net, mine)
            if here & ~first:
                taken[number].update(with_inputs(self.net, set(nodes), frozenset(), joined=True)[1])
            seen |= here
        routes = {
            t.id: self._with_channels(FaultPath((where,), (), self._must_be_constant(t, where)))
            for number, (t, where) in enumerate(known)
            if seen >> number & 1
        }
        return routes, taken

    @cached_property
    def within(self) -> dict[str, int]:
        """Return the segment that computes each activation, the first if several compute it."""
        graph = self.net.proto.graph
        every = reversed([*enumerate(self._nodes)])
        return {name: number for number, nodes in every for k in nodes for name in graph.node[k].output}

    @cached_property
    def _nodes(self) -> tuple[frozenset[int], ...]:
        """Return the nodes of each segment that its outputs need; some are in several, constant ones in none."""
        mine = ((one, frozenset(one.nodes) - self.net.constant) for one in self.segments)
        return tuple(frozenset(nodes_needed(self.net, one.outputs, nodes)) for one, nodes in mine)

    def alone(self, target: Target) -> FaultPath | None:
        """Return the path of faults in one target; None if it is in no segment. Each is searched for once."""
        if target.id not in self._alone:
            self._alone[target.id] = self._find_path(target)
        return self._alone[target.id]

    def _find_path(self, target: Target) -> FaultPath | None:
        where = self._location(target)
        if where is None:
            return None
        inside, rebuilt = where.node >= 0, self._must_be_constant(target, where)
        ends = self._ends(where) if rebuilt else ()
        entries = self.entries([where.fed], [where.node] if inside else (), ends, fed=not rebuilt)
        return self._with_channels(FaultPath((where,), entries, rebuilt)) if entries else None

    def _location(self, target: Target) -> TensorLocation | None:
        return location(self.net, self.model, target) if target.size and not target.is_activation else None

    def _must_be_constant(self, target: Target, where: TensorLocation) -> bool:
        """Return whether a target must be a constant of the executed model."""
        inside = where.node >= 0
        users = [*target.ops] if inside else [self._operator(k) for k in self.net.users.get(where.fed, ())]
        laid = self.net.blocks and "Conv" in users
        scales = not {"scale", "zero-point"}.isdisjoint((target.role, *target.roles))
        return laid or scales or not _PACKED.isdisjoint(users)

    def _ends(self, where: TensorLocation) -> CutPoints:
        """Return the end of what is rebuilt for each trial: the outputs of the operators that read the tensor."""
        if not self.steps or where.node >= 0:
            return ()
        nodes = self.net.proto.graph.node
        return (tuple(name for k in self.net.users[where.fed] for name in nodes[k].output if name),)

    def paths(self, targets: Sequence[Target], route: Route) -> Iterator[FaultPath]:
        """Yield the ways in which a route runs faults in these weights, the shortest first."""
        found = [path for target in targets if (path := self.alone(target)) is not None]
        if len(found) < len(targets):
            return
        entries: tuple[EntrySubgraph, ...] = ()
        if len(found) == 1:
            [path] = found
            if route is Route.CHANNEL_DELTA:
                yield from (path,) if path.channels is not None else ()
                return
            alone = replace(path, channels=None, channel_subgraph=None)
            if route is alone.route:
                yield alone
            entries = path.entries
        if route is Route.REBUILT and (len(found) > 1 or len(self.segments) > 1):
            whole = self.rebuilt(targets)
            if whole is not None and whole.entries != entries:
                yield whole

    def rebuilt(self, targets: Sequence[Target]) -> FaultPath | None:
        """Return the whole segments that read these weights, to be rebuilt; None if one of them is in no segment."""
        found = [path for target in targets if (path := self.alone(target)) is not None]
        if len(found) < len(targets):
            return None
        numbers = sorted({entry.segment for path in found for entry in path.entries})
        whole = tuple(EntrySubgraph(number, (self.segments[number],)) for number in numbers)
        return FaultPath(tuple(path.location for path in found), whole, True)

    def entries(
        self, faulty: Sequence[str], inside: Sequence[int] = (), ends: CutPoints = (), *, fed: bool = True
    ) -> tuple[EntrySubgraph, ...]:
        """Return the entry subgraphs of faulty tensors, which are `fed` or rebuilt, or lie inside these nodes' bodies.

        `ends` are the activations at which an entry subgraph is split.
        """
        found = list[EntrySubgraph]()
        for number in range(len(self.segments)):
            reached = self._reached(faulty, inside, number)
            if reached:
                nodes = reached if self.late and not found else self._nodes[number]
                found += self._entry(number, nodes, faulty if fed else (), ends)
        return tuple(found)

    def _entry(
        self, number: int, nodes: frozenset[int], fed: Sequence[str], ends: CutPoints
    ) -> Iterator[EntrySubgraph]:
        """Yield the entry subgraph of these nodes of a segment; nothing if they reach none of its outputs."""
        outputs = tuple(name for name in self.segments[number].outputs if self.net.makers[name] in nodes)
        if not outputs:
            return
        needed = nodes_needed(self.net, outputs, nodes, fed)
        part = Subgraph(*with_inputs(self.net, needed, frozenset(fed), joined=True), outputs)
        yield EntrySubgraph(number, segments(self.net, part, fed, ends) if ends else (part,), tuple(fed))

    def _reached(self, faulty: Sequence[str], inside: Sequence[int], number: int) -> frozenset[int]:
        """Return the nodes of a segment that these names reach within the segment."""
        return self._nodes[number] & nodes_reached(self.net, faulty, inside, self._among[number])

    @cached_property
    def _among(self) -> tuple[frozenset[int], ...]:
        """Return the nodes of each segment with the constant ones."""
        return tuple(nodes | self.net.constant for nodes in self._nodes)

    def activation_entries(self, values: Sequence[str], *, any_of: bool = False) -> tuple[EntrySubgraph, ...] | None:
        """Return the entry subgraphs of faulty activations; None if the model cannot be cut there.

        In the first segment the activations that no other one reaches are fed. Entries are split at all others, and at
        all of them if only `any_of` them may be faulty. An activation at the end of a segment has no entry subgraph.
        """
        known = {name: self.within.get(name, -1) for name in values}
        if not self.net.uncut.isdisjoint(values) or not {*self.within, *self.makers}.issuperset(values):
            return None
        if any(self._taken_along(name) for name in values):
            return self.entries(values) if len(values) == 1 else None
        first, found = min(known.values(), default=-1), list[EntrySubgraph]()
        for number in sorted(set(known.values()) - {-1}):
            names = [name for name, k in known.items() if k == number and not self.is_boundary(name)]
            reached = self._reached(names, (), number)
            fed = [name for name in names if self.net.makers[name] not in reached]
            if any_of or number > first or not self.late:
                reached, fed = self._nodes[number], []
            inner = sorted((self.net.makers[name], name) for name in names if name not in fed)
            found += self._entry(number, reached, fed, tuple((name,) for _, name in inner)) if names else ()
        return tuple(found)

    def conv_entry(self, entry: EntrySubgraph) -> tuple[ConvSum, EntrySubgraph] | None:
        """Return the largest convolution that reads a faulty activation, and the entry without it, fed its output.

        None if there is no such convolution.
        """
        if len(entry.subgraphs) > 1:
            return None
        [part] = entry.subgraphs
        one = largest_conv_sum(self.net, part.nodes, entry.fed or part.inputs)
        if one is None:
            return None
        fed = (*entry.fed, one.output)
        needed = nodes_needed(self.net, part.outputs, {*part.nodes} - {one.node}, fed)
        rest = Subgraph(*with_inputs(self.net, needed, frozenset(fed), joined=True), part.outputs)
        return one, EntrySubgraph(entry.segment, (rest,), fed)

    def is_boundary(self, name: str) -> bool:
        """Return whether an activation is read only after the segment that computes it."""
        mine = self._nodes[self.makers[name]] if self.makers.get(name, -1) >= 0 else frozenset()
        return name in self.makers and mine.isdisjoint(self.net.users.get(name, ()))

    def row_indices(self, where: TensorLocation) -> tuple[str, ...] | None:
        """Return the activations that say which rows of a tensor are read; None if more than these may be."""
        readers = self.net.users.get(where.fed, ())
        if where.node >= 0 or not readers or where.fed in self.net.outputs:
            return None
        if not all(looks_up_rows(self.net, k, where.fed) for k in readers):
            return None
        indices = tuple(dict.fromkeys(self.net.proto.graph.node[k].input[1] for k in readers))
        return indices if all(name in self.makers for name in indices) else None

    def _taken_along(self, name: str) -> bool:
        """Return whether several segments compute an activation, each for itself."""
        maker = self.net.makers.get(name, -1)
        return name not in self.makers and sum(maker in nodes for nodes in self._nodes) > 1

    def _operator(self, node: int) -> str:
        return self.net.proto.graph.node[node].op_type

    def looked_up(self, channels: OutputChannels) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the activations that are rows of the faulty tensor, and their indices."""
        found = [self.net.proto.graph.node[k] for k in channels.lookups]
        return tuple(node.output[0] for node in found), tuple(node.input[1] for node in found)

    def _looked_up_before(self, where: TensorLocation, channels: OutputChannels) -> bool:
        """Return whether rows are looked up in segments before that of the channels, which end it.

        By indices that no fault in the tensor reaches: others may look up other rows than the golden ones.
        """
        values, indices = self.looked_up(channels)
        last = self.within[channels.output]
        return (
            not reachable_subgraph(self.net, [where.fed], outputs=indices).outputs
            and self.is_boundary(channels.output)
            and all(name in self.within and self.within[name] < last for name in values)
            and self.activation_entries(values) is not None
        )

    def _with_channels(self, whole: FaultPath) -> FaultPath:
        """Return the path with its channels, where the tensor has some."""
        where = whole.location
        found = output_channels(self.net, where.fed) if where.node < 0 else None
        if (
            not (self.late and self.by_channel)
            or found is None
            or found.output in self.net.uncut
            or found.output not in self.within  # computed from constants alone
            or len({self.within.get(n) for k in found.nodes for n in self.net.proto.graph.node[k].output} - {None}) > 1
            or (not whole.rebuilt and found.count < found.least)
        ):
            return whole
        if found.constant and not whole.rebuilt and math.prod(self.net.stored[where.fed].dims) < _WORTH_A_SESSION:
            return whole
        if found.lookups:
            if not self._looked_up_before(where, found):
                return whole
            nodes, inputs = with_inputs(self.net, set(found.nodes), frozenset((where.fed,)))
            subgraph = Subgraph(nodes, inputs, (found.output,))
        else:
            subgraph = reachable_subgraph(self.net, [where.fed], outputs=[found.output])
        along = {*found.nodes, *self.net.constant, *filter(self.net.dequantises, subgraph.nodes)}
        if not along.issuperset(subgraph.nodes):
            return whole
        return replace(whole, channels=found, channel_subgraph=subgraph)
