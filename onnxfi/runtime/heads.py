"""Heads, opened: what runs of a piece in the place of the piece, where something in it is struck.

A head fuses other nodes than its piece and may round another way, so it has a disarmed run of its own: what differs
from that is put into the golden values that the piece hands on, and behind it all trials share golden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from onnxfi.graph.downstream import Cut, Home
from onnxfi.graph.parts import Part, extract
from onnxfi.graph.routes import Head
from onnxfi.runtime.engines import Session
from onnxfi.runtime.golden import UnlikeError, array_feed, feed_of
from onnxfi.runtime.ports import Array, same_bytes, words_of
from onnxfi.runtime.spine import Patch, Rows, Spine, padded

#: How far a disarmed run may lie from golden, as a share of golden's range: other optimisations round otherwise.
DRIFT = 0.1


def drift(own: Array, golden: Array, *, exact: bool) -> float:
    """How far a disarmed run lies from golden; 0 where that is no more than rounding may do."""
    if same_bytes(own, golden):
        return 0.0
    if own.shape != golden.shape or own.dtype != golden.dtype or own.dtype.kind == "O":
        return float("inf")
    with np.errstate(all="ignore"):
        wide = golden if golden.dtype.kind == "f" and golden.itemsize >= 4 else golden.astype(np.float64)
        reach = float(np.abs(wide).max(initial=0.0, where=np.isfinite(wide)))
        far = float(np.nanmax(np.abs(own.astype(wide.dtype) - wide), initial=0.0))
    return max(far, 1e-300) if exact or far > DRIFT * reach else 0.0


def moved(found: Array, own: Array, golden: Array) -> Array:
    """What differs from a disarmed run, put into golden."""
    if own is golden or same_bytes(own, golden):
        return found
    if found.shape != own.shape or found.dtype != own.dtype or found.dtype.kind == "O":
        return golden if same_bytes(found, own) else found
    differs = words_of(found) != words_of(own)
    if differs.ndim > found.ndim:
        differs = differs.any(-1)
    return np.where(differs, found, golden)


def _as_it_is(array: Array) -> Array:
    return array


@dataclass(frozen=True)
class Strike:
    """A head with what strikes there in one trial: values that are fed, changes of values in flight, and sessions in
    the place of those of cuts. Struck tensors that are fed change where they are. With the values that it is fed the
    head gives golden itself (`exact`), or rounds another way."""

    head: OpenHead
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
        found = self.head.outputs(rows, live, self)
        if self.exact or self.head.gives_golden(rows):
            return found
        own, known = self.head.disarmed(rows), rows.values([*found])
        return {name: moved(array, own[name], known[name]) for name, array in found.items()}


class OpenHead:
    """A head with its sessions. `stored` are the stored tensors that are fed; `prepare` makes a session of a part.

    Opening raises EngineError where the runtime does not take a part.
    """

    def __init__(
        self, spine: Spine, head: Head, prepare: Callable[[Part], Session], stored: Mapping[str, Array],
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
        self._key = head.piece, hash(head)
        self._sessions: list[Session] = []
        self._apart: dict[int, bool] = {}
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

    def disarmed(self, rows: Rows) -> dict[str, Array]:
        """What the head hands on without a fault, from golden values; UnlikeError where that is far from golden."""
        if self.whole:
            return rows.values(self.given)
        golden = rows.golden
        if rows.some is None:
            return self._kept(rows, "")
        found = []
        for k, row, _ in rows.some:
            if all(golden.has(k, (self._key, name, "")) for name in self.given):
                whole = self._kept(Rows(golden, k), "")
                found.append({name: array[row : row + 1] for name, array in whole.items()})
            else:
                found.append(self._kept(Rows(golden, k, ((k, row, row),)), str(row)))
        return {name: np.concatenate([one[name] for one in found]) for name in self.given}

    def gives_golden(self, rows: Rows) -> bool:
        """Whether it is known to give golden itself without a fault, bit for bit."""
        golden = rows.golden
        batches = {rows.k} if rows.some is None else {k for k, _, _ in rows.some}
        return self.whole or all(
            golden.has(k, (self._key, name, ""))
            and golden.kept(k, (self._key, name, "")) is golden.values(k, [name])[name]
            for k in batches
            for name in self.given
        )

    def _kept(self, rows: Rows, which: str) -> dict[str, Array]:
        """A disarmed run, kept as golden values are."""
        golden = rows.golden
        if not all(golden.has(rows.k, (self._key, name, which)) for name in self.given):
            found, known = self.outputs(rows, {}), rows.values(self.given)
            for name, array in found.items():
                if far := drift(array, known[name], exact=self.spine.exact):
                    raise UnlikeError(
                        f"the part of the model behind {self.head.fed} gives {name!r} otherwise ({far:.3g})"
                    )
                alike = same_bytes(array, known[name])
                golden.derived(rows.k, (self._key, name, which), partial(np.asarray, known[name] if alike else array))
        return {name: golden.kept(rows.k, (self._key, name, which)) for name in self.given}

    def can(self, few: int) -> bool:
        """Whether it gives so many samples the bits that they have in their batch."""
        if few not in self._apart:
            taken = dict.fromkeys((*self.head.takes, *self.values))
            self._apart[few] = self.spine.apart(self.head.piece, few) and self.spine.tried(
                lambda feeds: self._through({**self.stored, **feeds}, Strike(self)), [*taken], self.given, few,
                lambda k, names: self.disarmed(Rows(self.spine.golden, k)),
            )  # fmt: skip
        return self._apart[few]
