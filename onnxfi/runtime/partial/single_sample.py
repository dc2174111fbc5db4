"""One sample alone: a fault that strikes a value in flight of one sample runs again what that value reaches, for it.

Faults of many trials in one value share a run behind the piece that they strike, each in a row of its own, where rows
have the bits that they have in their batches: then it does not matter which trials a worker gets together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxfi.errors import SegmentMismatchError
from onnxfi.graph.partition.route import Route
from onnxfi.graph.partition.subgraph_model import Part
from onnxfi.runtime.data.batches import Batch
from onnxfi.runtime.data.sample_outputs import scored
from onnxfi.runtime.engine.engines import Session
from onnxfi.runtime.engine.model_io import Array, same_bytes
from onnxfi.runtime.partial.entry_subgraph import EntrySession, Strike
from onnxfi.runtime.partial.golden_cache import check_shapes, of_golden_shapes
from onnxfi.runtime.partial.reexecution import golden_scores
from onnxfi.runtime.partial.segmented_model import Patch, Rows, Spine

#: A batch, and a row of it.
_Place = tuple[int, int]
#: Rows of a run that several trials share.
_ROWS = 8


class OneSample:
    """What one value in flight reaches, ready to run for any one sample.

    Opening raises SegmentMismatchError where the model cannot be cut there, or where it does not keep samples apart.
    """

    name = Route.SINGLE_SAMPLE

    def __init__(self, spine: Spine, value: str, output: str | None) -> None:
        self.spine, self.value, self.golden, self.output = spine, value, spine.golden, output
        routes, self.cost_bytes = spine.routes, 0
        found = routes.in_flight([value])
        if found is None or len(found) > 1 or not (found or routes.goes_on(value)):
            raise SegmentMismatchError(f"the model cannot be cut at {value!r}")
        self.start = (found[0].piece if found else routes.makers[value]) + 1
        self._head = EntrySession(spine, found[0], self._prepared, {}) if found else None
        first = self.start - 1 if found else self.start
        apart = first >= len(routes.pieces) or spine.apart(first, 1)
        if apart and self._head is not None:
            # A shape may have as many numbers as there are samples.
            taken = self.golden.values(0, [*self._head.head.takes]).values()
            apart = all(array.ndim > 1 for array in taken) or self._head.can(1)
        if not apart:
            raise SegmentMismatchError(f"samples are not apart behind {value!r}")

    def _prepared(self, part: Part) -> Session:
        self.cost_bytes += part.size_bytes
        return self.spine.chain.prepare(part)

    def scores(self, sample: int, change: Patch | None = None) -> Array:
        """The scored output of one sample ([1, …]), its value struck."""
        [found] = self.shared([(sample, change)])
        return found

    def shared(self, asked: Sequence[tuple[int, Patch | None]]) -> list[Array]:
        """The same for samples with what strikes each, in as few runs as can be."""
        found = [self._golden(sample) for sample, _ in asked]
        running: list[tuple[int, _Place, dict[str, Array]]] = []
        for number, (sample, change) in enumerate(asked):
            live = self._struck(self.golden.place(sample), change) if change is not None else {}
            if live:
                running.append((number, self.golden.place(sample), live))
        for first in range(0, len(running), _ROWS):
            some = running[first : first + _ROWS]
            rows = self._behind([place for _, place, _ in some], [live for _, _, live in some])
            for (number, _, _), row in zip(some, rows, strict=True):
                found[number] = row if row is not None else found[number]
        return found

    def _golden(self, sample: int) -> Array:
        k, row = self.golden.place(sample)
        piece, whole = self.golden.piece(k), golden_scores(self.spine, k, self.output)
        if piece is None or not whole.ndim or len(whole) != piece.valid:
            raise SegmentMismatchError("the scores have no row for each sample")
        return whole[row : row + 1]

    def _struck(self, place: _Place, change: Patch) -> dict[str, Array]:
        """What differs from golden behind the piece in which a value of one sample is struck."""
        rows = Rows(self.golden, place[0], ((*place, 0),), alone=True)
        before = rows.values([self.value])[self.value]
        after = change(before)
        if same_bytes(after, before):
            return {}
        if self._head is None:
            return {self.value: after}
        with of_golden_shapes():
            found = Strike(self._head, {self.value: after}).run(rows, {})
        golden = rows.values([*found])
        check_shapes(found, golden)
        return {name: found[name] for name, array in golden.items() if not same_bytes(found[name], array)}

    def _behind(self, places: Sequence[_Place], lives: Sequence[Mapping[str, Array]]) -> list[Array | None]:
        """The scores of each, several to a run; None for those that are golden again."""
        some = tuple((k, row, number) for number, (k, row) in enumerate(places))
        rows = Rows(self.golden, places[0][0], some, alone=True)
        names = dict.fromkeys(name for live in lives for name in live)
        live = rows.values([*names])
        for number, one in enumerate(lives):
            for name, array in one.items():
                live[name][number] = array[0]
        with of_golden_shapes():
            ended, found = self.spine.follow(rows, live, self.start)
        assert ended.some is not None
        size = len(ended.some)
        wanted = [self.output] if self.output is not None else list(self.spine.outputs)
        outputs = {**ended.values([name for name in wanted if name not in found]), **found}
        scores = scored(Batch(0, {}, None, size, size), outputs, self.golden.axes, self.output)
        if not scores.ndim or len(scores) != size:
            raise SegmentMismatchError("the scores of one sample are not one row")
        out: list[Array | None] = [None] * len(lives)
        for at, (_, _, number) in enumerate(ended.some):
            out[number] = scores[at : at + 1]
        return out
