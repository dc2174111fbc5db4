"""One sample alone: a fault that strikes a value in flight of one sample runs again what that value reaches, for it.

Faults of many trials in one value share a run, each in a row of its own, where a row has the bits that it has alone:
then it does not matter which trials a worker gets together. Each such run has a row without faults as a witness, among
the faults of the others: where it comes out otherwise than alone, they all run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxfi.errors import EngineError
from onnxfi.graph.downstream import cut
from onnxfi.graph.parts import extract
from onnxfi.graph.routes import Routes
from onnxfi.runtime.batches import Batch, Feeds
from onnxfi.runtime.engines import OrtEngine
from onnxfi.runtime.evaluation import scored
from onnxfi.runtime.golden import GoldenValues
from onnxfi.runtime.ports import Array, same_bytes
from onnxfi.runtime.rerun import feed_of

#: What becomes of a value of one sample ([1, …]).
Strike = Callable[[Array], Array]
#: Rows of a run that several trials share, with that of the witness.
_ROWS = 8


class OneSample:
    """What one value in flight reaches, ready to run for any one sample.

    Opening raises EngineError where the model cannot be cut there, or where it does not keep samples apart.
    """

    name = "sample"

    def __init__(self, engine: OrtEngine, routes: Routes, value: str, golden: GoldenValues, output: str | None) -> None:
        self.routes, self.value, self.golden, self.output = routes, value, golden, output
        self.cut = cut(routes.wiring, [value], outputs=routes.outputs)
        wanted = routes.outputs or routes.wiring.outputs
        names = (*self.cut.crossings, value)
        if (
            set(self.cut.outputs) != set(wanted)
            or value in routes.wiring.uncut
            or not golden.ports.keys() >= set(names)
        ):
            raise EngineError(f"the model cannot be cut at {value!r}")
        feeds = {name: feed_of(golden.ports[name]) for name in names}
        part = extract(routes.wiring, self.cut.nodes, feeds, self.cut.outputs)
        self.cost_bytes = part.size_bytes
        self._session = engine.prepare_part(part.data, part.stored)
        self._together = golden.fits and golden.size >= _ROWS

    def scores(self, sample: int, strike: Strike | None = None) -> Array:
        """The scored output of one sample ([1, …]), its value struck."""
        [found] = self.shared([(sample, strike)])
        return found

    def shared(self, asked: Sequence[tuple[int, Strike | None]]) -> list[Array]:
        """The same for samples with what strikes each, in as few runs as can be."""
        found: dict[int, Array] = {}
        running: list[tuple[int, Feeds]] = []
        for number, (sample, strike) in enumerate(asked):
            if strike is None:
                found[number] = self._golden(sample)
                continue
            feeds = self._feeds(sample)
            struck = strike(feeds[self.value])
            if same_bytes(struck, feeds[self.value]):
                found[number] = self._golden(sample)
            else:
                running.append((number, {**feeds, self.value: struck}))
        for (number, _), row in zip(running, self._in_runs([feeds for _, feeds in running]), strict=True):
            found[number] = row
        return [found[number] for number in range(len(asked))]

    def prepare(self, samples: Sequence[int]) -> None:
        """Run these samples without faults, several at a time, where that was not done yet."""
        missing = [s for s in dict.fromkeys(samples) if not self.golden.has(self._batch(s), self._named(s))]
        for sample, row in zip(missing, self._in_runs([self._feeds(s) for s in missing]), strict=True):
            self.golden.derived(self._batch(sample), self._named(sample), lambda row=row: row)  # type: ignore[misc]

    def _golden(self, sample: int) -> Array:
        return self.golden.derived(
            self._batch(sample), self._named(sample), lambda: self._run([self._feeds(sample)])[0]
        )

    def _named(self, sample: int) -> str:
        return f"sample {sample} from {self.value}"

    def _batch(self, sample: int) -> int:
        return next(k for k, p in self.golden.pieces() if p.start <= sample < p.start + p.valid)

    def _feeds(self, sample: int) -> Feeds:
        """What one sample is fed, each value with one row."""
        k, feeds = self._batch(sample), {}
        piece = self.golden.piece(k)
        assert piece is not None
        row = sample - piece.start
        for name, array in self.golden.values(k, [*self.cut.crossings, self.value]).items():
            if not array.ndim or len(array) != piece.size:
                raise EngineError(f"{name!r} has no row for each sample")
            feeds[name] = array[row : row + 1]
        return feeds

    def _in_runs(self, every: Sequence[Feeds]) -> list[Array]:
        """The scores of each, several to a run where that pays and has the same bits."""
        found: list[Array] = []
        for first in range(0, len(every), _ROWS - 1):
            some = list(every[first : first + _ROWS - 1])
            shared = self._shared(some) if self._together and len(some) >= _ROWS // 2 else None
            found += [self._run([one])[0] for one in some] if shared is None else shared
        return found

    def _shared(self, some: list[Feeds]) -> list[Array] | None:
        """The scores of some samples from one run; None where they are not what they would be alone."""
        *found, witness = self._run([*some, self._feeds(0)])
        self._together = same_bytes(witness, self._golden(0))
        return found if self._together else None

    def _run(self, rows: Sequence[Feeds]) -> list[Array]:
        """One run of these samples, one row each."""
        feeds = {
            name: np.concatenate([row[name] for row in rows]) if len(rows) > 1 else rows[0][name] for name in rows[0]
        }
        batch = Batch(0, {}, None, len(rows), len(rows))
        found = scored(batch, self._session.run(feeds), self.golden.axes, self.output)
        if not found.ndim or len(found) != len(rows):
            raise EngineError("the scores of one sample are not one row")
        return [found[k : k + 1] for k in range(len(rows))]
