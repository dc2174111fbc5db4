"""Routes: how little of a model has to run again for a fault in one of its tensors, from the graph alone.

The model is in pieces, one behind the other (graph/fronts.py). A fault in a tensor has a *head* in each piece that uses
it: of the first of them what the tensor reaches, of the others all. Behind a head the pieces run as they are, whatever
was struck. *Downstream* feeds the tensor to its heads. *Resumed* computes the struck output channels of one operator
apart, puts them into its golden output and runs what that reaches: the large rest of the operator, and of its prepared
weights, stays as it is. *Baked* runs faulty copies of the pieces that several tensors lie in; so do tensors that
runtimes want constant, or prepare in a way that rounds otherwise where they are fed. Where none of these can be, the
route is *plain*: the whole model, from a faulty copy of its file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from onnxfi.faults.space import Target
from onnxfi.graph.model.loading import Model
from onnxfi.graph.partition.boundary_tensors import crossings, reached
from onnxfi.graph.partition.conv_partial_sums import Sum, largest_sum
from onnxfi.graph.partition.cut_points import Fronts, everything, pieces
from onnxfi.graph.partition.output_channels import Channels, channels
from onnxfi.graph.partition.route import Route
from onnxfi.graph.partition.subgraph import Cut, Home, Wiring, backward, crossing, cut, forward, home

#: Numbers in a tensor from which on the whole operator costs more than a session for its struck channels.
_WORTH_A_SESSION = 1 << 18
#: Operators whose weights a runtime packs where they are constant; where they are fed it sums in another order. So it
#: does with those of convolutions, where images lie in blocks of channels.
_PACKED = frozenset(("Gemm", "MatMul", "LSTM", "GRU", "RNN", "ConvTranspose", "Einsum", "Attention"))


@dataclass(frozen=True)
class EntrySubgraph:
    """What runs of one piece for what is struck: cuts of it one behind the other, to the outputs of the piece.

    `fed` are the tensors and values that are fed instead of being stored or made.
    """

    piece: int
    cuts: tuple[Cut, ...]
    fed: tuple[str, ...] = ()

    @property
    def takes(self) -> Iterator[str]:
        """The values that it takes from outside, without those that are fed."""
        made: set[str] = set()
        for one in self.cuts:
            yield from (name for name in one.crossings if name not in made)
            made.update(one.outputs)


@dataclass(frozen=True)
class FaultPath:
    """How faults in tensors run: through their heads, or, of one, through its `channels` in `apart` and what these
    reach in their piece.

    The tensors are `baked` into a faulty copy of what runs, or fed.
    """

    homes: tuple[Home, ...]
    heads: tuple[EntrySubgraph, ...]
    baked: bool = False
    channels: Channels | None = None
    apart: Cut | None = None

    @property
    def route(self) -> Route:
        """The route of a trial with faults there alone."""
        return Route.CHANNEL_DELTA if self.channels is not None else Route.REBUILT if self.baked else Route.PARTIAL

    @property
    def shares(self) -> bool:
        """Whether one run computes the channels of several trials."""
        return self.channels is not None

    @property
    def home(self) -> Home:
        """Where the tensor is, of a route for one."""
        return self.homes[0]


@dataclass(frozen=True)
class Segmentation:
    """The routes of a model's tensors, as far as the outputs that are scored need them (all, where none is named).

    `chosen` are the ids of the targets whose routes are made ready (None: all). `fronts` are where the model is cut in
    pieces, `steps` says that these lie behind all steps of a layer; `flown` are values in flight that may be struck,
    those together that one trial strikes. Without `late` all runs from the start.
    """

    model: Model = field(repr=False)
    wiring: Wiring = field(repr=False)
    outputs: tuple[str, ...]
    fronts: Fronts = ()
    steps: bool = False
    flown: tuple[tuple[str, ...], ...] = ()
    late: bool = True
    chosen: frozenset[str] | None = None
    _alone: dict[str, FaultPath | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def pieces(self) -> tuple[Cut, ...]:
        """The model in pieces; ModelError where an output is no function of the inputs."""
        return pieces(self.wiring, everything(self.wiring, self.outputs), (), self.fronts)

    @cached_property
    def makers(self) -> dict[str, int]:
        """The piece that hands on each value at a front; of the model's inputs −1."""
        found = dict.fromkeys(self.wiring.inputs, -1)
        return found | {name: number for number, piece in enumerate(self.pieces) for name in piece.outputs}

    @cached_property
    def inner(self) -> tuple[tuple[str, ...], ...]:
        """By piece the values in it that some route takes: a function of the model and of what the campaign may strike,
        so that they have the same bits whatever a trial strikes."""
        found: list[dict[str, None]] = [{} for _ in self.pieces]
        firsts = [EntrySubgraph(number, (piece,)) for number, piece in enumerate(self.pieces)]

        def note(piece: int, names: Iterable[str]) -> None:
            found[piece].update(dict.fromkeys(name for name in names if self.within.get(name) == piece))

        routes, taken = self._ready
        for number, names in enumerate(taken):
            note(number, sorted(names))
        for route in routes.values():
            if route.apart is not None and route.channels is not None:
                note(self.within[route.channels.output], (*route.apart.crossings, route.channels.output))
            if route.channels is not None:
                firsts += self.in_flight([route.channels.output]) or ()
        for values in self.flown:
            for head in self.in_flight(values) or ():
                note(head.piece, (*head.takes, *head.fed))
        for head in firsts:
            narrow = self.narrowed(head)
            note(head.piece, () if narrow is None else (*narrow[1].takes, *narrow[0].values))
        return tuple(tuple(name for name in some if name not in self.makers) for some in found)

    def shares(self, targets: Iterable[Target]) -> bool:
        """Whether one run computes the channels of several trials, of faults in some of these targets."""
        routes = self._ready[0]
        return any(target.id in routes and routes[target.id].shares for target in targets)

    @cached_property
    def _ready(self) -> tuple[dict[str, FaultPath], list[set[str]]]:
        """The routes that are made ready, by target, not all with their heads; and by piece the values that the heads
        take from outside."""
        ready = [t for t in self.model.targets if self.chosen is None or t.id in self.chosen]
        taken: list[set[str]] = [set() for _ in self.pieces]
        if self.steps or not self.wiring.in_order:
            routes = {t.id: route for t in ready if (route := self.alone(t)) is not None}
            for head in (head for route in routes.values() for head in route.heads):
                taken[head.piece].update(head.takes)
            return routes, taken
        # Of many targets at once: of each by itself the work would grow with targets times nodes.
        known = [(t, where) for t in ready if (where := self._home(t)) is not None]
        starts = [([where.fed], [where.node] if where.node >= 0 else []) for _, where in known]
        seen = 0
        for number, nodes in enumerate(self._nodes):
            marks = reached(self.wiring, starts, self._among[number])
            here = 0
            for k in nodes:
                here |= marks[k]
            first = here & ~seen if self.late else 0
            if first:
                mine = [mark & first if k in nodes else 0 for k, mark in enumerate(marks)]
                taken[number] |= crossings(self.wiring, mine)
            if here & ~first:
                taken[number].update(crossing(self.wiring, set(nodes), frozenset(), joined=True)[1])
            seen |= here
        routes = {
            t.id: self._route(FaultPath((where,), (), self._baked(t, where)))
            for number, (t, where) in enumerate(known)
            if seen >> number & 1
        }
        return routes, taken

    @cached_property
    def within(self) -> dict[str, int]:
        """The piece that makes each value, the first one where several do for themselves."""
        graph = self.wiring.proto.graph
        every = reversed([*enumerate(self._nodes)])
        return {name: number for number, nodes in every for k in nodes for name in graph.node[k].output}

    @cached_property
    def _nodes(self) -> tuple[frozenset[int], ...]:
        """By piece the nodes that make what it hands on; some are in several, those of stored values alone in none."""
        mine = ((one, frozenset(one.nodes) - self.wiring.constant) for one in self.pieces)
        return tuple(frozenset(backward(self.wiring, one.outputs, nodes)) for one, nodes in mine)

    def alone(self, target: Target) -> FaultPath | None:
        """The route of faults in one target; None where that is the plain one. Each is looked for once."""
        if target.id not in self._alone:
            self._alone[target.id] = self._look(target)
        return self._alone[target.id]

    def _look(self, target: Target) -> FaultPath | None:
        where = self._home(target)
        if where is None:
            return None
        inside, baked = where.node >= 0, self._baked(target, where)
        ends = self._ends(where) if baked else ()
        heads = self.heads([where.fed], [where.node] if inside else (), ends, fed=not baked)
        return self._route(FaultPath((where,), heads, baked)) if heads else None

    def _home(self, target: Target) -> Home | None:
        return home(self.wiring, self.model, target) if target.size and not target.is_activation else None

    def _baked(self, target: Target, where: Home) -> bool:
        """Whether a target has to be constant where it runs."""
        inside = where.node >= 0
        users = [*target.ops] if inside else [self._operator(k) for k in self.wiring.users.get(where.fed, ())]
        laid = self.wiring.blocks and "Conv" in users
        scales = not {"scale", "zero-point"}.isdisjoint((target.role, *target.roles))
        return laid or scales or not _PACKED.isdisjoint(users)

    def _ends(self, where: Home) -> Fronts:
        """Where what a baked route makes anew for each trial ends: behind the operators that use the tensor."""
        if not self.steps or where.node >= 0:
            return ()
        nodes = self.wiring.proto.graph.node
        return (tuple(name for k in self.wiring.users[where.fed] for name in nodes[k].output if name),)

    def of(self, targets: Sequence[Target]) -> FaultPath | None:
        """The route of a trial that strikes these tensors; None where it is the plain one."""
        found = [self.alone(target) for target in targets]
        known = [route for route in found if route is not None]
        if len(known) <= 1 or len(known) < len(found):
            return known[0] if len(found) == 1 and known else None
        struck = sorted({head.piece for route in known for head in route.heads})
        whole = tuple(EntrySubgraph(number, (self.pieces[number],)) for number in struck)
        return FaultPath(tuple(route.home for route in known), whole, True)

    def longer(self, route: FaultPath) -> FaultPath | None:
        """The next longer route, where one rounds another way than the whole model: through the heads, then from faulty
        copies of whole pieces; None where only the plain one is left."""
        if route.channels is not None:
            return replace(route, channels=None, apart=None)
        whole = tuple(EntrySubgraph(head.piece, (self.pieces[head.piece],)) for head in route.heads)
        return FaultPath(route.homes, whole, True) if whole != route.heads and len(self.pieces) > 1 else None

    def heads(
        self, struck: Sequence[str], inside: Sequence[int] = (), ends: Fronts = (), *, fed: bool = True
    ) -> tuple[EntrySubgraph, ...]:
        """What runs of each piece that uses these names, which are `fed` or not, or has some in these nodes' bodies.

        `ends` are where a head is cut.
        """
        found = list[EntrySubgraph]()
        for number in range(len(self.pieces)):
            reached = self._reached(struck, inside, number)
            if reached:
                nodes = reached if self.late and not found else self._nodes[number]
                found += self._head(number, nodes, struck if fed else (), ends)
        return tuple(found)

    def _head(self, number: int, nodes: frozenset[int], fed: Sequence[str], ends: Fronts) -> Iterator[EntrySubgraph]:
        """What these nodes of a piece change of its outputs; nothing where they change none."""
        outputs = tuple(name for name in self.pieces[number].outputs if self.wiring.makers[name] in nodes)
        if not outputs:
            return
        needed = backward(self.wiring, outputs, nodes, fed)
        part = Cut(*crossing(self.wiring, needed, frozenset(fed), joined=True), outputs)
        yield EntrySubgraph(number, pieces(self.wiring, part, fed, ends) if ends else (part,), tuple(fed))

    def _reached(self, struck: Sequence[str], inside: Sequence[int], number: int) -> frozenset[int]:
        """The nodes of a piece that change with these names, through nothing but the piece and stored values."""
        return self._nodes[number] & forward(self.wiring, struck, inside, self._among[number])

    @cached_property
    def _among(self) -> tuple[frozenset[int], ...]:
        """By piece its nodes and those of stored values alone."""
        return tuple(nodes | self.wiring.constant for nodes in self._nodes)

    def in_flight(self, values: Sequence[str], *, any_of: bool = False) -> tuple[EntrySubgraph, ...] | None:
        """What runs of each piece that makes some of these values in flight; None where the model cannot be cut there.

        Of the first piece those values are fed that no other one reaches, all others are ends; where `any_of` them may
        be struck, all are. What goes on from a piece and is used nowhere in it has no head: it is changed on its way.
        """
        known = {name: self.within.get(name, -1) for name in values}
        if not self.wiring.uncut.isdisjoint(values) or not {*self.within, *self.makers}.issuperset(values):
            return None
        if any(self._taken_along(name) for name in values):
            return self.heads(values) if len(values) == 1 else None
        first, found = min(known.values(), default=-1), list[EntrySubgraph]()
        for number in sorted(set(known.values()) - {-1}):
            names = [name for name, k in known.items() if k == number and not self.goes_on(name)]
            reached = self._reached(names, (), number)
            fed = [name for name in names if self.wiring.makers[name] not in reached]
            if any_of or number > first or not self.late:
                reached, fed = self._nodes[number], []
            inner = sorted((self.wiring.makers[name], name) for name in names if name not in fed)
            found += self._head(number, reached, fed, tuple((name,) for _, name in inner)) if names else ()
        return tuple(found)

    def narrowed(self, head: EntrySubgraph) -> tuple[Sum, EntrySubgraph] | None:
        """The largest convolution that takes as it is what differs in a head, and the head without it, to which its
        output is fed; None where there is none."""
        if len(head.cuts) > 1:
            return None
        [part] = head.cuts
        one = largest_sum(self.wiring, part.nodes, head.fed or part.crossings)
        if one is None:
            return None
        fed = (*head.fed, one.given)
        needed = backward(self.wiring, part.outputs, {*part.nodes} - {one.node}, fed)
        rest = Cut(*crossing(self.wiring, needed, frozenset(fed), joined=True), part.outputs)
        return one, EntrySubgraph(head.piece, (rest,), fed)

    def goes_on(self, name: str) -> bool:
        """Whether a value is used behind the piece that makes it alone."""
        mine = self._nodes[self.makers[name]] if self.makers.get(name, -1) >= 0 else frozenset()
        return name in self.makers and mine.isdisjoint(self.wiring.users.get(name, ()))

    def _taken_along(self, name: str) -> bool:
        """Whether several pieces make a value, each for itself."""
        maker = self.wiring.makers.get(name, -1)
        return name not in self.makers and sum(maker in nodes for nodes in self._nodes) > 1

    def _operator(self, node: int) -> str:
        return self.wiring.proto.graph.node[node].op_type

    def _route(self, whole: FaultPath) -> FaultPath:
        """The route through channels where there is one, else the one that is given."""
        where = whole.home
        lined = channels(self.wiring, where.fed) if where.node < 0 else None
        if (
            not self.late
            or lined is None
            or lined.output in self.wiring.uncut
            or lined.output not in self.within  # made of stored values alone
            or len({self.within.get(n) for k in lined.nodes for n in self.wiring.proto.graph.node[k].output} - {None})
            > 1
            or (not whole.baked and lined.count < lined.least)
        ):
            return whole
        if lined.constant and not whole.baked and math.prod(self.wiring.stored[where.fed].dims) < _WORTH_A_SESSION:
            return whole
        apart = cut(self.wiring, [where.fed], outputs=[lined.output])
        along = {*lined.nodes, *self.wiring.constant, *filter(self.wiring.dequantises, apart.nodes)}
        if not along.issuperset(apart.nodes):
            return whole
        return replace(whole, channels=lined, apart=apart)
