"""Narrow changes: where a convolution takes a value that differs from golden in few channels.

Only the terms of these channels (graph/sums.py) are computed, and added to golden's others in the order in which the
runtime adds them; what lies behind the convolution runs as a head. That the sum of golden's terms is golden's output,
bit for bit, is seen for each batch; where it is not, the convolution runs as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from onnxfi.errors import EngineError
from onnxfi.graph.downstream import Home, array_of
from onnxfi.graph.parts import Part
from onnxfi.graph.routes import Head
from onnxfi.graph.sums import Sum, blocks, term_input, term_output, terms
from onnxfi.runtime.engines import Session
from onnxfi.runtime.heads import OpenHead, Strike
from onnxfi.runtime.ports import Array, same_by, same_bytes
from onnxfi.runtime.sharing import claim, others
from onnxfi.runtime.spine import Rows, Spine, among, padded

#: The share of what golden values may take that the terms of one convolution may.
_SHARE = 8
#: Products from which on a convolution takes longer than its terms: about a millisecond of one core.
_WORTH = 1 << 27


class Narrow:
    """A head without its first convolution, and the terms of that.

    Opening raises EngineError where the runtime does not take a part.
    """

    def __init__(self, spine: Spine, one: Sum, head: Head, prepare: Callable[[Part], Session]) -> None:
        self.spine, self.one, self.golden = spine, one, spine.golden
        self.head = OpenHead(spine, head, prepare, {})
        wiring = spine.routes.wiring
        self._prepare = prepare
        held = wiring.weights.get(one.weight)
        self._weight = array_of(wiring, Home(one.weight)) if held is None else held
        self._bias = array_of(wiring, Home(one.bias)) if one.bias else None
        #: Channels that are summed at a time, as the first batch says (0: none; None: it was not asked yet).
        self._size: int | None = None
        #: The batches for which the sum is not golden. By batch, so that it is the same whatever runs first.
        self._unlike: set[int] = set()
        self._sessions: dict[tuple[int, int], Session] = {}  # by size and block

    def strike(self, rows: Rows, values: Mapping[str, Array]) -> Strike | None:
        """What strikes the head, given what differs from golden; None where the convolution runs as a whole."""
        value = values.get(self.one.taken)
        if value is None or rows.alone or self._size == 0 or rows.k in self._unlike or not self.golden.fits:
            return None
        try:
            if not self._worth(rows) or (rows.some is not None and not self.head.can(among(len(rows.some)))):
                return None
            self.head.disarmed(Rows(self.golden, rows.k))
            given = self._given(rows, value)
        except (EngineError, MemoryError):  # nothing of this is the fault's doing
            self._unlike.add(rows.k)
            return None
        fed = {name: values[name] for name in self.head.values if name in values}
        return None if given is None else Strike(self.head, {**fed, self.one.given: given})

    def _worth(self, rows: Rows) -> bool:
        """Whether the whole convolution takes longer than what is done here instead."""
        whole = self.golden.values(rows.k, [self.one.given])[self.one.given]
        share = 1.0 if rows.some is None else len(rows.some) / max(1, len(whole))
        return bool(whole.size * share * self._weight[0].size >= _WORTH)

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
        if golden is None:
            self._unlike.add(rows.k)
            return None
        struck = dict.fromkeys((differs // size).tolist())
        if not struck or 2 * len(struck) > len(golden):
            return None
        first = min(struck)
        before = self._before(rows, size, golden[:first])
        made = {number: self._term(rows, value, size, number) for number in struck}
        of = range(first, len(golden))
        return self._sum([made[n] if n in made else rows.pick_of(partial(_one_of, golden, n)) for n in of], before)

    def _size_of_blocks(self) -> int:
        """How many channels the runtime sums at a time; 0 where that is not known, or the terms would take too much."""
        whole = self.golden.values(0, [self.one.given])[self.one.given]
        batches = -(-self.golden.data.samples // self.golden.size)
        for size in blocks(self.spine.routes.wiring, self.one):
            many = -(-self._weight.shape[1] // size) * batches
            if many * whole.nbytes * _SHARE <= self.golden.budget_bytes and self._terms(0, size) is not None:
                return size
        return 0

    def _terms(self, k: int, size: int) -> list[Array] | None:
        """Golden's terms of a batch, of so many channels each; None where their sum is not golden."""
        golden, name = self.golden, self.one.given
        numbers = range(-(-self._weight.shape[1] // size))
        if all(golden.has(k, (name, size, number)) for number in numbers):
            return [golden.kept(k, (name, size, number)) for number in numbers]
        into, whole = golden.values(k, [self.one.taken, name]).values()
        feeds = {term_input(n): np.ascontiguousarray(into[:, n * size : (n + 1) * size]) for n in numbers}
        found = self._opened(size, numbers).run(feeds)
        made = [found[term_output(number)] for number in numbers]
        if not same_bytes(self._sum(made), whole):
            return None
        return [golden.derived(k, (name, size, n), partial(made.__getitem__, n)) for n in numbers]

    def _opened(self, size: int, numbers: Sequence[int]) -> Session:
        """What computes these terms."""
        return self._prepare(terms(self.spine.routes.wiring, self.one, self._weight, size, numbers))

    def _term(self, rows: Rows, value: Array, size: int, number: int) -> Array:
        """The term of a block for values that differ from golden."""
        if (size, number) not in self._sessions:
            self._sessions[size, number] = self._opened(size, (number,))
        run = self._sessions[size, number].run
        feeds = {term_input(number): np.ascontiguousarray(value[:, number * size : (number + 1) * size])}
        found = run(feeds) if rows.some is None else padded(run, feeds, len(rows.some))
        return found[term_output(number)]

    def _before(self, rows: Rows, size: int, golden: Sequence[Array]) -> Array | None:
        """The sum of golden's terms in front of a block."""
        if not golden:
            return None

        name = self.one.given, size, "before", len(golden)
        return rows.pick_of(lambda k: self.golden.derived(k, name, lambda: _added(golden)))

    def _sum(self, of: Sequence[Array], before: Array | None = None) -> Array:
        """The sum of these terms, those `before` and the bias."""
        bias = [] if self._bias is None else [self._bias.reshape(-1, *[1] * (of[0].ndim - 2))]
        return _added([*([] if before is None else [before]), *of, *bias])


def _added(arrays: Sequence[Array]) -> Array:
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
                    self.spine, Head(number, (self.spine.routes.pieces[number],)), self.spine.chain.prepare
                )
        narrow = self._open[number]
        strike = None if narrow is None else narrow.strike(rows, live)
        return None if strike is None else strike.run(rows, live)


def narrowed(spine: Spine, head: Head, prepare: Callable[[Part], Session]) -> Narrow | None:
    """A head that may be struck in few channels, opened; None where it has no convolution that takes what is struck."""
    found = spine.routes.narrowed(head)
    if found is None or spine.exact:
        return None
    try:
        return Narrow(spine, *found, prepare)
    except EngineError:
        return None
