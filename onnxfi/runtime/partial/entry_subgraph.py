"""Heads, opened: what runs of a piece in the place of the piece, where something in it is faulty.

A head fuses other nodes than its piece and may round another way. So it runs once without a fault: only where it then
gives golden itself, bit for bit, its kernels are those of the whole model, and what it gives with a fault is what the
whole model gives. Where it does not, it is not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from onnxfi.errors import SegmentMismatchError
from onnxfi.graph.partition.segmentation import EntrySubgraph
from onnxfi.graph.partition.subgraph import Cut, Home
from onnxfi.graph.partition.subgraph_model import Part, extract
from onnxfi.runtime.engine.engines import Session
from onnxfi.runtime.engine.model_io import Array, same_bytes
from onnxfi.runtime.partial.golden_cache import array_feed, feed_of
from onnxfi.runtime.partial.segmented_model import Patch, Rows, Spine, padded


def _as_it_is(array: Array) -> Array:
    return array


@dataclass(frozen=True)
class Strike:
    """A head with what strikes there in one trial: values that are fed, changes of values in flight, and sessions in
    the place of those of cuts. Struck tensors that are fed change where they are. `exact` says that it is known to give
    golden with the values that it is fed."""

    head: EntrySession
    values: Mapping[str, Array] = field(default_factory=dict)
    patches: Mapping[str, Patch] = field(default_factory=dict)
    sessions: Mapping[int, Session] = field(default_factory=dict)
    exact: bool = False

    @property
    def patched(self) -> frozenset[str]:
        """The values in flight that it changes itself."""
        return self.head.flown

    def run(self, rows: Rows, live: Mapping[str, Array]) -> dict[str, Array]:
        """What the piece hands on, where `live` differs from golden."""
        if not self.exact:
            self.head.hold(rows)
        return self.head.outputs(rows, live, self)


class EntrySession:
    """A head with its sessions. `stored` are the stored tensors that are fed; `prepare` makes a session of a part.

    Opening raises EngineError where the runtime does not take a part.
    """

    def __init__(
        self, spine: Spine, head: EntrySubgraph, prepare: Callable[[Part], Session], stored: Mapping[str, Array],
        home: Home | None = None,
    ) -> None:  # fmt: skip
        self.spine, self.head, self.stored = spine, head, stored
        self.wiring = spine.routes.wiring
        self._home = home if home is not None and home.node >= 0 else None
        self.values = tuple(name for name in head.fed if name not in stored)
        self.flown = frozenset((*self.values, *(name for one in head.cuts for name in one.outputs)))
        self.reads = [tuple(name for name in head.fed if self._reads(one, name)) for one in head.cuts]
        piece = spine.routes.pieces[head.piece]
        self.given = tuple(name for name in piece.outputs if name in self.flown)
        self.whole = head.cuts == (piece,) and not head.fed
        self._between = {name: array_feed(array) for name, array in stored.items()}
        self._between |= spine.chain.feeds([*head.takes, *self.values])
        self._sessions: list[Session] = []
        self._apart: dict[int, bool] = {}
        self._alike: dict[tuple[int, int], bool] = {}
        for number in range(len(head.cuts)):
            session = spine.chain.sessions[head.piece] if self.whole else prepare(self.part(number))
            self._between |= {port.name: feed_of(port) for port in session.outputs}
            self._sessions.append(session)

    def part(self, number: int, faulty: Mapping[Home, Array] | None = None) -> Part:
        """The model of a cut, with other tensors in the place of its own."""
        one = self.head.cuts[number]
        feeds = {name: self._between[name] for name in (*one.crossings, *self.reads[number])}
        lifted = self._home if self._home is not None and self._home.node in one.nodes else None
        return extract(self.wiring, one.nodes, feeds, one.outputs, lifted, faulty)

    def holds(self, number: int, home: Home) -> bool:
        """Whether a cut uses the tensor at a home."""
        one = self.head.cuts[number]
        return home.node in one.nodes if home.node >= 0 else self._reads(one, home.fed)

    def _reads(self, one: Cut, name: str) -> bool:
        if self._home is not None:
            return self._home.node in one.nodes
        return any(name in self.wiring.reads[k] for k in one.nodes)

    def outputs(self, rows: Rows, live: Mapping[str, Array], strike: Strike | None = None) -> dict[str, Array]:
        """What the head hands on, with what strikes there (None: disarmed), where `live` differs from golden."""
        strike = strike or Strike(self)
        at = {**live, **self.stored, **strike.values}
        for name in self.values:
            if name not in at:
                at |= rows.values([name])
            at[name] = strike.patches.get(name, _as_it_is)(at[name])
        return self._through(at, strike, rows)

    def _through(self, at: dict[str, Array], strike: Strike, rows: Rows | None = None) -> dict[str, Array]:
        """What the cuts make of these values one behind the other; what lacks is golden's of these rows."""
        few = None if rows is None or rows.some is None else len(rows.some)
        for number, (one, session) in enumerate(zip(self.head.cuts, self._sessions, strict=True)):
            names = (*one.crossings, *self.reads[number])
            at |= rows.values([name for name in names if name not in at]) if rows is not None else {}
            feeds, run = {name: at[name] for name in names}, strike.sessions.get(number, session).run
            found = run(feeds) if few is None else padded(run, feeds, few)
            at |= {n: strike.patches.get(n, _as_it_is)(array) for n, array in found.items()}
        return {name: at[name] for name in self.given}

    def hold(self, rows: Rows) -> None:
        """Compare its fault-free outputs of these rows with golden ones; SegmentMismatchError if any bit differs."""
        if self.whole:
            return
        keys = [(rows.k, -1)] if not rows.alone or rows.some is None else [(k, row) for k, row, _ in rows.some]
        for k, row in keys:
            if (k, row) not in self._alike:
                one = Rows(rows.golden, k, None if row < 0 else ((k, row, row),), rows.alone)
                found, known = self.outputs(one, {}), one.values(self.given)
                self._alike[k, row] = all(same_bytes(found[name], known[name]) for name in self.given)
            if not self._alike[k, row]:
                raise SegmentMismatchError(
                    f"the part of the model behind {self.head.fed} rounds another way than the whole"
                )

    def can(self, few: int) -> bool:
        """Whether it gives so many samples the bits that they have in their batch."""
        if few not in self._apart:
            taken = dict.fromkeys((*self.head.takes, *self.values))
            self._apart[few] = self.spine.apart(self.head.piece, few) and self.spine.tried(
                lambda feeds: self._through({**self.stored, **feeds}, Strike(self)), [*taken], self.given, few
            )
        return self._apart[few]
