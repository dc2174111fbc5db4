"""The spine: a model in pieces that every trial runs through behind what it strikes, as far as anything differs.

Late start and early stop: nothing runs in front of the fault, a piece into which only golden values go does not run,
and samples that are golden again go on no further. What a fault changes is kept as values that differ from golden.

Few samples may be computed another way than many. That hangs on shapes alone, so each piece is tried once with so many
golden samples from both ends of a batch, before it runs for that many; where one comes out otherwise, all samples run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, EngineError, SegmentMismatchError
from onnxfi.runtime.engine.model_io import Array, same_by, same_bytes
from onnxfi.runtime.partial.golden_cache import GoldenValues, check_shapes

#: Operators that decide for all samples together.
_TOGETHER = frozenset(("If", "Loop"))
#: Given a value in flight, the value that goes on.
Patch = Callable[[Array], Array]


@dataclass(frozen=True)
class Rows:
    """Samples that run together: all of batch k, or some rows of batches, each with its batch, its place there, and the
    number by which who asked for it knows it."""

    golden: GoldenValues
    k: int
    some: tuple[tuple[int, int, int], ...] | None = None
    alone: bool = False

    def values(self, names: Sequence[str]) -> dict[str, Array]:
        """Their golden values."""
        if self.some is None:
            return self.golden.values(self.k, names)
        batches = {k: self.golden.values(k, names) for k in dict.fromkeys(k for k, _, _ in self.some)}
        for k, values in batches.items():
            piece = self.golden.piece(k)
            if without := [n for n, a in values.items() if piece is None or not a.ndim or len(a) != piece.size]:
                raise SegmentMismatchError(f"{without[0]!r} has no row for each sample")
        return {name: self.pick_of(lambda k, name=name: batches[k][name]) for name in names}  # type: ignore[misc]

    def pick_of(self, whole: Callable[[int], Array]) -> Array:
        """Their rows of what there is of each batch."""
        if self.some is None:
            return whole(self.k)
        if len({k for k, _, _ in self.some}) == 1:
            return whole(self.some[0][0])[self.places]
        return np.stack([whole(k)[row] for k, row, _ in self.some])

    @property
    def places(self) -> NDArray[np.int64]:
        """Their places in their batch."""
        return np.array([row for _, row, _ in self.some or ()], np.int64)

    def pick(self, keep: NDArray[np.int64]) -> Rows:
        """Some of them."""
        piece = self.golden.piece(self.k)
        assert piece is not None
        every = self.some or tuple((self.k, row, row) for row in range(piece.size))
        return Rows(self.golden, self.k, tuple(every[at] for at in keep.tolist()), self.alone)


class Struck(Protocol):
    """What stands in the place of a piece, for a fault in it."""

    @property
    def patched(self) -> frozenset[str]:
        """The values in flight that it changes itself."""
        ...

    def run(self, rows: Rows, live: Mapping[str, Array]) -> dict[str, Array]:
        """What the piece hands on, where `live` differs from golden."""
        ...


class First(Protocol):
    """What stands in the place of the piece that a trial comes to first."""

    def run(self, number: int, rows: Rows, live: Mapping[str, Array]) -> dict[str, Array] | None:
        """What the piece hands on; None where it runs as a whole."""
        ...


class Spine:
    """The pieces of a model. `late` starts at the fault; `exact` asks that no part of a model rounds another way."""

    def __init__(self, golden: GoldenValues, *, late: bool = True, exact: bool = False) -> None:
        self.golden, self.late, self.exact = golden, late, exact
        self.chain, self.routes = golden.chain, golden.chain.routes
        self.outputs = self.routes.outputs or self.routes.wiring.outputs
        self._apart: dict[tuple[int, int], bool] = {}
        self.first: First | None = None

    def follow(
        self,
        rows: Rows,
        live: Mapping[str, Array],
        start: int,
        struck: Mapping[int, Struck] | None = None,
        patches: Mapping[str, Patch] | None = None,
    ) -> tuple[Rows, dict[str, Array]]:
        """The values among the model's outputs that come to differ, and for which samples, from a piece on.

        `live` differs from golden where that begins, `struck` stand for pieces, `patches` change values on their way.
        Raises SegmentMismatchError where samples cannot run alone.
        """
        struck, patches, live = struck or {}, dict(patches or {}), dict(live)
        last = max([start - 1, *struck, *(self.routes.makers[name] for name in patches if name in self.routes.makers)])
        self._patch(rows, live, patches, -1)
        first = self.first
        for number in range(start if self.late else 0, len(self.routes.pieces)):
            piece, head = self.routes.pieces[number], struck.get(number)
            begun = number >= start
            if head is not None or not (begun and live.keys().isdisjoint(piece.crossings)):
                if number > last:
                    rows, live = self._fewer(rows, live, number)
                found = None
                if head is not None:
                    found = head.run(rows, live)
                elif first is not None:
                    found, first = first.run(number, rows, live), None
                found = self._run(number, rows, live) if found is None else found
                golden = rows.values(list(found))
                check_shapes(found, golden)
                for name, array in golden.items():
                    if same_bytes(found[name], array):
                        live.pop(name, None)
                    else:
                        live[name] = found[name]
            self._patch(rows, live, patches, number, head.patched if head is not None else frozenset())
        return rows, {name: array for name, array in live.items() if name in self.outputs}

    def _patch(
        self, rows: Rows, live: dict[str, Array], patches: Mapping[str, Patch], maker: int,
        done: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        """Change the values in flight that a piece hands on (−1: the model's inputs), but for those that are done."""
        for name in patches:
            if self.routes.makers.get(name) == maker and name not in done:
                [before] = rows.values([name]).values()
                after = patches[name](live.get(name, before))
                if same_bytes(after, before):
                    live.pop(name, None)
                else:
                    live[name] = after

    def _run(self, number: int, rows: Rows, live: Mapping[str, Array]) -> dict[str, Array]:
        piece = self.routes.pieces[number]
        known = rows.values([name for name in piece.crossings if name not in live])
        feeds = {name: live[name] if name in live else known[name] for name in piece.crossings}
        session = self.chain.sessions[number]
        return session.run(feeds) if rows.some is None else padded(session.run, feeds, len(rows.some))

    def _fewer(self, rows: Rows, live: dict[str, Array], number: int) -> tuple[Rows, dict[str, Array]]:
        """The samples that still differ, where the pieces from here on can run them by themselves."""
        size = self.size(rows)
        # To look at each sample of the spikes of all steps costs more than what lies behind them.
        free = self.golden.data.layout.fixed is None and not self.routes.steps
        if free and live and all(array.ndim and len(array) == size for array in live.values()):
            masked = np.ones(size, np.bool_)
            for name, array in rows.values([*live]).items():
                masked &= same_by(live[name], array, 0) if masked.any() else False
            keep = np.flatnonzero(~masked)
            if len(keep) < size and self._can(number, len(keep), size):
                return rows.pick(keep), {name: array[keep] for name, array in live.items()}
        if rows.some is None or self.apart(number, among(size)):
            return rows, live
        if rows.alone:
            raise SegmentMismatchError(f"piece {number} does not keep samples apart")
        return Rows(self.golden, rows.k), self.whole(rows, live)

    def _can(self, number: int, few: int, size: int) -> bool:
        """Whether a piece may run so few samples, and that is worth it."""
        return few > 0 and 2 * among(few) <= size and self.apart(number, among(few))

    def size(self, rows: Rows) -> int:
        """How many samples run."""
        piece = self.golden.piece(rows.k)
        assert piece is not None
        return piece.size if rows.some is None else len(rows.some)

    def whole(self, rows: Rows, live: Mapping[str, Array]) -> dict[str, Array]:
        """Values of some samples put into those of their batch."""
        found = {name: np.array(array) for name, array in self.golden.values(rows.k, list(live)).items()}
        for name, array in found.items():
            array[rows.places] = live[name]
        return found

    def apart(self, number: int, few: int) -> bool:
        """Whether a piece gives so many samples the bits that they have in their batch."""
        if (number, few) not in self._apart:
            piece, nodes = self.routes.pieces[number], self.routes.wiring.proto.graph.node
            self._apart[number, few] = _TOGETHER.isdisjoint(nodes[k].op_type for k in piece.nodes) and self.tried(
                self.chain.sessions[number].run, piece.crossings, piece.outputs, few
            )
        return self._apart[number, few]

    def tried(
        self,
        run: Callable[[Mapping[str, Array]], Mapping[str, Array]],
        taken: Sequence[str],
        given: Sequence[str],
        few: int,
    ) -> bool:
        """Whether runs of the first batch's first samples, and of its last, give the golden values of the batch.

        In another order, and both ends of it: what hangs on all samples together, as their largest value does, does not
        come out the same in both.
        """
        first = self.golden.piece(0)
        if self.golden.data.layout.fixed is not None or first is None or few > first.size:
            return False
        into = self.golden.values(0, taken)
        known = self.golden.values(0, given)
        if any(not array.ndim or len(array) != first.size for array in (*into.values(), *known.values())):
            return False
        try:
            for index in (np.arange(few)[::-1], np.arange(first.size - few, first.size)):
                found = run({name: np.ascontiguousarray(array[index]) for name, array in into.items()})
                if not all(same_bytes(found[name], known[name][index]) for name in given):
                    return False
        except (EngineError, DataError):  # as where a shape has as many numbers as there are samples
            return False
        return True


def among(few: int) -> int:
    """With how many samples so few of them run: kernels may hang on the number, so there are few of these."""
    return 1 << max(0, few - 1).bit_length()


def padded(
    run: Callable[[Mapping[str, Array]], dict[str, Array]], feeds: Mapping[str, Array], few: int
) -> dict[str, Array]:
    """A run of so few samples, the last one repeated as often as it takes."""
    size = among(few)
    if size == few:
        return run(feeds)
    index = np.minimum(np.arange(size), few - 1)
    return {name: array[:few] for name, array in run({n: array[index] for n, array in feeds.items()}).items()}
