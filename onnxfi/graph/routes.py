"""Routes: how little of a model has to run again for a fault in one of its tensors, from the graph alone.

*Downstream* runs what the tensor reaches, the tensor itself being fed. *Resumed* computes the struck output channels of
one operator apart, puts them into its golden output and runs what that reaches: the large rest of the operator, and of
its prepared weights, stays as it is. *Baked* runs what several tensors reach, from a faulty copy of that part; so do
tensors that runtimes want constant, or prepare in a way that rounds otherwise where they are fed. Where none of these
can be, the route is *plain*: the whole model, from a faulty copy of its file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from onnxfi.faults.space import Target
from onnxfi.graph.channels import Channels, channels
from onnxfi.graph.downstream import Cut, Home, Wiring, cut, home
from onnxfi.graph.fronts import Fronts, pieces
from onnxfi.graph.model import Model

#: Fewer output channels are not worth a model of their own; so many at least are computed together.
LEAST_CHANNELS = 8
#: Numbers in a tensor from which on the whole operator costs more than a session for its struck channels.
_WORTH_A_SESSION = 1 << 18
#: Places at which trials of several tensors start.
_STARTS = 4
#: Operators whose weights a runtime packs where they are constant; where they are fed it sums in another order.
_PACKED = frozenset(("Gemm", "MatMul", "LSTM", "GRU", "RNN", "ConvTranspose", "Einsum", "Attention"))


@dataclass(frozen=True)
class Route:
    """How faults in tensors run: from `cut` on, or, of one, through its `channels` in `apart` and on from `behind`.

    The tensors are `baked` into a faulty copy of what runs, or fed.
    """

    homes: tuple[Home, ...]
    cut: Cut
    baked: bool = False
    channels: Channels | None = None
    apart: Cut | None = None
    behind: Cut | None = None

    @property
    def name(self) -> str:
        """The name that is recorded."""
        return "resumed" if self.channels is not None else "baked" if self.baked else "downstream"

    @property
    def home(self) -> Home:
        """Where the tensor is, of a route for one."""
        return self.homes[0]

    @property
    def fed(self) -> tuple[str, ...]:
        """The tensors that are fed."""
        return () if self.baked else tuple(home.fed for home in self.homes)

    @property
    def values(self) -> Iterator[str]:
        """The golden values that it takes."""
        for one in (self.cut, self.apart, self.behind):
            yield from one.crossings if one is not None else ()


@dataclass(frozen=True)
class Routes:
    """The routes of a model's tensors, as far as the outputs that are scored need them (all, where none is named).

    `fronts` are where a change may have come to an end (graph/fronts.py); without `late` all runs from the start.
    """

    model: Model = field(repr=False)
    wiring: Wiring = field(repr=False)
    outputs: tuple[str, ...]
    fronts: Fronts = ()
    late: bool = True

    @cached_property
    def by_target(self) -> dict[str, Route]:
        """The route of each target that has another one than the plain."""
        cuts: dict[object, Cut] = {}
        found = {}
        for target in self.model.targets:
            where = home(self.wiring, self.model, target) if target.size else None
            if where is None:
                continue
            key = where.node if where.node >= 0 else self.wiring.users.get(where.fed, ())
            if key not in cuts or where.node < 0:
                cuts[key] = self._cut(where)
            if not cuts[key].outputs:
                continue
            users = [target.op] if where.node >= 0 else [self._operator(k) for k in self.wiring.users[where.fed]]
            baked = target.role in ("scale", "zero-point") or not _PACKED.isdisjoint(users)
            found[target.id] = self._route(Route((where,), cuts[key], baked))
        return found

    def of(self, targets: Sequence[Target]) -> Route | None:
        """The route of a trial that strikes these tensors; None where it is the plain one."""
        found = [self.by_target.get(target.id) for target in targets]
        known = [route for route in found if route is not None]
        if len(known) <= 1 or len(known) < len(found):
            return known[0] if len(found) == 1 and known else None
        reached = {k for route in known for k in route.cut.nodes}
        for whole in self._starts:
            if reached.issubset(whole.nodes):
                return Route(tuple(route.home for route in known), whole, True)
        return None

    @cached_property
    def _starts(self) -> tuple[Cut, ...]:
        """Where trials of several tensors may start, the last place first.

        Only a few places: each has a golden of its own, which many trials then share.
        """
        by_reach = sorted(self.by_target.values(), key=lambda route: len(route.cut.nodes))
        names, found = {*self.values, *self.wiring.inputs}, []
        for number in range(1, _STARTS + 1):
            homes = [route.home for route in by_reach[: -(-len(by_reach) * number // _STARTS)]]
            tops, inside = [h.fed for h in homes if h.node < 0], [h.node for h in homes if h.node >= 0]
            found.append(cut(self.wiring, tops, inside=inside, outputs=self.outputs))
        return tuple(one for one in dict.fromkeys(found) if names.issuperset(one.crossings))

    @cached_property
    def values(self) -> tuple[str, ...]:
        """All golden values that any route takes: a function of the model alone, so that they have the same bits
        whatever a campaign strikes."""
        names = dict.fromkeys(name for route in self.by_target.values() for name in self._taken(route))
        return tuple(name for name in names if name not in self.wiring.inputs)

    def _taken(self, route: Route) -> Iterator[str]:
        yield from route.values
        for piece in self.pieces(route.cut, route.fed, self.ends(route)) if self.fronts else ():
            yield from (*piece.crossings, *piece.outputs)

    def pieces(self, whole: Cut, fed: Sequence[str], ends: Fronts = ()) -> tuple[Cut, ...]:
        """A cut in pieces, between these ends and the fronts."""
        return pieces(self.wiring, whole, fed, (*ends, *self.fronts))

    def ends(self, route: Route) -> Fronts:
        """Where what a baked route makes anew for each trial ends: behind the operators that use the tensor."""
        where = route.home
        if not (self.fronts and route.baked) or route.channels is not None or len(route.homes) > 1 or where.node >= 0:
            return ()
        return (tuple(n for k in self.wiring.users[where.fed] for n in self.wiring.proto.graph.node[k].output if n),)

    def in_flight(self, values: Sequence[str]) -> tuple[Cut, tuple[str, ...], Fronts] | None:
        """What values in flight reach, which of them are fed, and the others, each an end.

        None for several of them without fronts.
        """
        if (
            not (self.fronts or len(values) == 1)
            or not self.wiring.uncut.isdisjoint(values)
            or not self.wiring.makers.keys() >= set(values)
        ):
            return None
        whole = cut(self.wiring, values if self.late else [*values, *self.wiring.inputs], outputs=self.outputs)
        inner = sorted((k, n) for n in values if (k := self.wiring.makers[n]) in whole.nodes)
        made = tuple((name,) for _, name in inner)
        return (whole, tuple(n for n in values if (n,) not in made), made) if whole.outputs else None

    def between(self, values: Sequence[str]) -> Iterator[str]:
        """The golden values that a route of these values in flight takes."""
        found = self.in_flight(values)
        for piece in self.pieces(*found) if found is not None else ():
            yield from (*piece.crossings, *piece.outputs)

    def _cut(self, where: Home) -> Cut:
        if not self.late:
            inside = [where.node] if where.node >= 0 else []
            return cut(self.wiring, [where.fed, *self.wiring.inputs], inside=inside, outputs=self.outputs)
        if where.node >= 0:
            return cut(self.wiring, (), inside=[where.node], outputs=self.outputs)
        return cut(self.wiring, [where.fed], outputs=self.outputs)

    def _operator(self, node: int) -> str:
        return self.wiring.proto.graph.node[node].op_type

    def _route(self, whole: Route) -> Route:
        """The route through channels where there is one, else the one that is given."""
        where = whole.home
        lined = channels(self.wiring, where.fed) if where.node < 0 else None
        if (
            not self.late
            or lined is None
            or lined.output in self.wiring.uncut
            or (not whole.baked and lined.count < LEAST_CHANNELS)
        ):
            return whole
        if lined.constant and not whole.baked and math.prod(self.wiring.stored[where.fed].dims) < _WORTH_A_SESSION:
            return whole
        behind = cut(self.wiring, [lined.output], outputs=self.outputs)
        apart = cut(self.wiring, [where.fed], outputs=[lined.output])
        along = {*lined.nodes, *self.wiring.constant, *filter(self.wiring.dequantises, apart.nodes)}
        if not along.issuperset(apart.nodes):
            return whole
        return replace(whole, baked=whole.baked or lined.constant, channels=lined, apart=apart, behind=behind)
