"""One sample alone: a fault that strikes a value in flight of one sample runs again what that value reaches, for it."""

from __future__ import annotations

from collections.abc import Callable

from onnxfi.errors import EngineError
from onnxfi.graph.downstream import cut
from onnxfi.graph.parts import extract
from onnxfi.graph.routes import Routes
from onnxfi.runtime.batches import Batch
from onnxfi.runtime.engines import OrtEngine
from onnxfi.runtime.evaluation import scored
from onnxfi.runtime.golden import GoldenValues
from onnxfi.runtime.ports import Array, same_bytes
from onnxfi.runtime.rerun import feed_of


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

    def scores(self, sample: int, strike: Callable[[Array], Array] | None = None) -> Array:
        """The scored output of one sample ([1, …]), its value struck."""
        k, piece = next((k, p) for k, p in self.golden.pieces() if p.start <= sample < p.start + p.valid)
        if strike is None:
            return self.golden.derived(
                k, f"sample {sample} from {self.value}", lambda: self._run(k, piece, sample, None)
            )
        return self._run(k, piece, sample, strike)

    def _run(self, k: int, piece: Batch, sample: int, strike: Callable[[Array], Array] | None) -> Array:
        row = sample - piece.start
        feeds = {}
        for name, array in self.golden.values(k, [*self.cut.crossings, self.value]).items():
            if not array.ndim or len(array) != piece.size:
                raise EngineError(f"{name!r} has no row for each sample")
            feeds[name] = array[row : row + 1]
        if strike is not None:
            struck = strike(feeds[self.value])
            if same_bytes(struck, feeds[self.value]):
                return self.scores(sample)
            feeds[self.value] = struck
        found = scored(Batch(sample, {}, None, 1, 1), self._session.run(feeds), self.golden.axes, self.output)
        if not found.ndim or len(found) != 1:
            raise EngineError("the scores of one sample are not one row")
        return found
