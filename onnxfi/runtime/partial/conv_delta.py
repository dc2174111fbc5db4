"""Narrow changes: where a convolution takes a value that differs from golden in few channels.

Only the terms of these channels (graph/sums.py) are computed, and added to golden's others in the order in which the
runtime adds them; what lies behind the convolution runs as a head. That the sum of golden's terms is golden's output,
bit for bit, is seen for each batch; where it is not, the convolution runs as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from onnxfi.errors import EngineError
from onnxfi.graph.partition.conv_partial_sums import Sum, blocks, term_input, term_output, terms
from onnxfi.graph.partition.segmentation import EntrySubgraph
from onnxfi.graph.partition.subgraph import Home, array_of
from onnxfi.graph.partition.subgraph_model import Part
from onnxfi.runtime.engine.engines import Session
from onnxfi.runtime.engine.model_io import Array, same_by, same_bytes
from onnxfi.runtime.engine.turn_taking import claim, others
from onnxfi.runtime.partial.entry_subgraph import EntrySession, Strike
from onnxfi.runtime.partial.segmented_model import Rows, Spine, among, padded

#: The share of what golden values may take that the terms of one convolution may.
_SHARE = 8
#: Products from which on a convolution takes longer than its terms: about a millisecond of one core.
_WORTH = 1 << 27


class Narrow:
    """A head without its first convolution, and the terms of that.

    Opening raises EngineError where the runtime does not take a part.
    """

    def __init__(self, spine: Spine, one: Sum, head: EntrySubgraph, prepare: Callable[[Part], Session]) -> None:
        self.spine, self.one, self.golden = spine, one, spine.golden
        self.head = EntrySession(spine, head, prepare, {})
        wiring = spine.routes.wiring
        self._prepare = prepare
        self._shape = tuple(wiring.stored[one.weight].dims)
        self._bias = array_of(wiring, Home(one.bias)) if one.bias else None
        #: Channels that are summed at a time, as the first batch says (0: none; None: it was not asked yet).
        self._size: int | None = None
        #: The batches for which the sum is golden, and for which not. By batch, so that it is the same whatever runs
        #: first.
        self._alike_in, self._unlike = set[int](), set[int]()
        self._session: Session | None = None

    def strike(self, rows: Rows, values: Mapping[str, Array]) -> Strike | None:
        """What strikes the head, given what differs from golden; None where the convolution runs as a whole."""
        value = values.get(self.one.taken)
        if value is None or rows.alone or self._size == 0 or rows.k in self._unlike or not self.golden.fits:
            return None
        if self.one.added in values:
            return None
        try:
            if not self._worth(rows) or (rows.some is not None and not self.head.can(among(len(rows.some)))):
                return None
            if not self.one.added:
                self.head.hold(Rows(self.golden, rows.k))
            given = self._given(rows, value)
        except (EngineError, MemoryError):  # nothing of this is the fault's doing
            self._unlike.add(rows.k)
            return None
        fed = {name: values[name] for name in self.head.values if name in values}
        return None if given is None else Strike(self.head, {**fed, self.one.given: given}, exact=bool(self.one.added))

    def _worth(self, rows: Rows) -> bool:
        """Whether the whole convolution takes longer than what is done here instead."""
        whole = self.golden.values(rows.k, [self.one.given])[self.one.given]
        share = 1.0 if rows.some is None else len(rows.some) / max(1, len(whole))
        return bool(whole.size * share * math.prod(self._shape[1:]) >= _WORTH)

    def _given(self, rows: Rows, value: Array) -> Array | None:
        """What the convolution gives for these samples."""
        known = rows.values([self.one.taken])[self.one.taken]
        if value.shape != known.shape:
            return None
        differs = np.flatnonzero(~same_by(value, known, 1))
        with claim((id(self), "terms")):
            if self._size is None:
                self._size = self._size_of_blocks()
            size, golden = self._size, self._terms(rows.k, self._size) if self._size else None
            session = self._opened(size) if golden is not None else None
        if golden is None or session is None:
            self._unlike.add(rows.k)
            return None
        struck = dict.fromkeys((differs // size).tolist())
        if not struck or 2 * len(struck) > len(golden):
            return None
        made = _struck(session, rows, value, size, [*struck])
        every = (made[n] if n in made else rows.pick_of(partial(_one_of, golden, n)) for n in range(len(golden)))
        return self._sum(rows, [*every])

    def _size_of_blocks(self) -> int:
        """How many channels the runtime sums at a time; 0 where that is not known, or the terms would take too much."""
        whole = self.golden.values(0, [self.one.given])[self.one.given]
        batches = -(-self.golden.data.samples // self.golden.size)
        for size in blocks(self.spine.routes.wiring, self.one):
            many = -(-self._shape[1] // size) * batches
            if many * whole.nbytes * _SHARE <= self.golden.budget_bytes and self._terms(0, size) is not None:
                return size
            self._session = None
        return 0

    def _terms(self, k: int, size: int) -> list[Array] | None:
        """Golden's terms of a batch, of so many channels each; None where their sum is not golden."""
        golden, name = self.golden, self.one.given
        numbers = range(-(-self._shape[1] // size))
        if all(golden.has(k, (name, size, number)) for number in numbers):
            made = [golden.kept(k, (name, size, number)) for number in numbers]
        else:
            into = golden.values(k, [self.one.taken])[self.one.taken]
            feeds = {term_input(n): np.ascontiguousarray(into[:, n * size : (n + 1) * size]) for n in numbers}
            made = [*self._opened(size).run(feeds).values()]
        if k not in self._alike_in:  # another head's terms are the same, what it makes of their sum may be not
            if not self._alike(k, self._sum(Rows(golden, k), made)):
                return None
            self._alike_in.add(k)
        return [golden.derived(k, (name, size, n), partial(made.__getitem__, n)) for n in numbers]

    def _opened(self, size: int) -> Session:
        """What computes terms of so many channels each."""
        if self._session is None:
            wiring = self.spine.routes.wiring
            self._session = self._prepare(terms(wiring, self.one, array_of(wiring, Home(self.one.weight)), size))
        return self._session

    def _alike(self, k: int, given: Array) -> bool:
        """Whether the sum of golden's terms is what the convolution gives.

        With an addition behind it, that is no value that a runtime shows: what the head makes of it must be golden.
        """
        if not self.one.added:
            return same_bytes(given, self.golden.values(k, [self.one.given])[self.one.given])
        rows = Rows(self.golden, k)
        found = self.head.outputs(rows, {}, Strike(self.head, {self.one.given: given}))
        return all(same_bytes(found[name], array) for name, array in rows.values(self.head.given).items())

    def _sum(self, rows: Rows, of: Sequence[Array]) -> Array:
        """The sum of these terms, of what is added and of the bias, as the runtime adds them."""
        added = list(rows.values([self.one.added]).values()) if self.one.added else []
        bias = [] if self._bias is None else [self._bias.reshape(-1, *[1] * (of[0].ndim - 2))]
        return _sum([*added, *of, *bias])


def _struck(session: Session, rows: Rows, value: Array, size: int, struck: Sequence[int]) -> dict[int, Array]:
    """The terms of these blocks for values that differ from golden."""
    names = [term_output(number) for number in struck]
    every = {n: value[:, n * size : (n + 1) * size] for n in range(-(-value.shape[1] // size))}
    # Of the other blocks no sample: a runtime takes all inputs that a model has.
    none = {term_input(n): block[:0] for n, block in every.items() if n not in struck}

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return session.run({**none, **feeds}, names)

    feeds = {term_input(n): np.ascontiguousarray(every[n]) for n in struck}
    found = run(feeds) if rows.some is None else padded(run, feeds, len(rows.some))
    return dict(zip(struck, found.values(), strict=True))


def _sum(arrays: Sequence[Array]) -> Array:
    """The sum of arrays from the first to the last, in memory of its own."""
    with others(), np.errstate(all="ignore"):
        total = np.array(arrays[0])
        for array in arrays[1:]:
            np.add(array, total, out=total)
    return total


def _one_of(arrays: Sequence[Array], number: int, k: int) -> Array:
    return arrays[number]


class FirstPieces:
    """The pieces of a model that a trial may come to first, each opened when that happens."""

    def __init__(self, spine: Spine) -> None:
        self.spine = spine
        self._open: dict[int, Narrow | None] = {}

    def run(self, number: int, rows: Rows, live: Mapping[str, Array]) -> dict[str, Array] | None:
        """What a piece hands on; None where it runs as a whole."""
        with claim((id(self), number)):
            if number not in self._open:
                self._open[number] = narrowed(
                    self.spine, EntrySubgraph(number, (self.spine.routes.pieces[number],)), self.spine.chain.prepare
                )
        narrow = self._open[number]
        strike = None if narrow is None else narrow.strike(rows, live)
        return None if strike is None else strike.run(rows, live)


def narrowed(spine: Spine, head: EntrySubgraph, prepare: Callable[[Part], Session]) -> Narrow | None:
    """A head that may be struck in few channels, opened; None where it has no convolution that takes what is struck."""
    found = spine.routes.narrowed(head)
    if found is None or spine.exact:
        return None
    try:
        return Narrow(spine, *found, prepare)
    except EngineError:
        return None
