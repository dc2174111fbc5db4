"""Tied embeddings: faults in rows that the data reads, and in rows that it does not, give the bits of the faulty file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from routed_trials import routed
from tiny_campaigns import chance

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.space import Sites
from onnxfi.faults.trials import Faults
from onnxfi.runtime.data.sample_outputs import stacked
from onnxfi.runtime.partial.golden_cache import GoldenCache
from onnxfi.runtime.partial.reexecution import FaultyWords

WORDS, WIDTH = 64, 32
HEADS = {
    "transposed": "t = Transpose(E) y = MatMul(f, t)",
    "Gemm": "g = Reshape(f, flat) y = Gemm<transB = 1>(g, E)",
}
BODY = "a = MatMul(r, w0) b = Relu(a) c = MatMul(b, w1) d = Add(c, r) e = MatMul(d, w2) f = Tanh(e)"


@pytest.fixture
def tied(tmp_path: Path) -> Callable[..., TrialExecutor]:
    """A network of tied embeddings on texts of the first 20 words."""

    def make(head: str, lookup: str = "r = Gather(E, ids)") -> TrialExecutor:
        graph = f"g (int64[N,5] ids) => (float y) {{ {lookup} {BODY} {HEADS[head]} }}"
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {graph}')
        dims = ["N", 5, WORDS] if head == "transposed" else [None, WORDS]
        model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, dims))
        stored = {"E": chance(WORDS, WIDTH, seed=1), "flat": np.array([-1, WIDTH]), "one": np.array(1)}
        stored |= {f"w{k}": chance(WIDTH, WIDTH, seed=2 + k) / np.float32(6) for k in range(3)}
        model.graph.initializer.extend(
            numpy_helper.from_array(array, name) for name, array in stored.items() if f"{name}" in graph
        )
        onnx.save(model, tmp_path / "net.onnx")
        np.savez(tmp_path / "x.npz", ids=np.random.default_rng(0).integers(0, 20, (5, 5)))
        files = (str(tmp_path / "net.onnx"), str(tmp_path / "x.npz"))
        return TrialExecutor.open(Campaign(*files, single=True, trials=1, batch=5 if head == "Gemm" else 2))

    return make


def in_embedding(bench: TrialExecutor, *picks: tuple[int, int]) -> Faults:
    """Flips in elements of the embedding."""
    [target] = [t for t in bench.opened.model.targets if t.id == "E"]
    index, bits = np.array(picks).T
    sites = Sites(np.zeros(len(index), np.int64), index.astype(np.int64), bits.astype(np.int16))
    return Faults((target,), sites, (parse_fault("flip"),))


@pytest.mark.parametrize("head", HEADS)
def test_a_fault_in_a_tied_embedding_has_the_bits_of_the_faulty_file(
    head: str, tied: Callable[..., TrialExecutor]
) -> None:
    bench = tied(head)
    for picks in (
        [(3 * WIDTH + 4, 30)],
        [(50 * WIDTH + 4, 24)],
        [(3 * WIDTH, 22), (50 * WIDTH + 1, 3), (60 * WIDTH, 31)],
    ):
        faults = in_embedding(bench, *picks)
        route, found = routed(bench, faults)
        assert found is not None and route == "channel-delta"
        assert found.tobytes() == stacked(bench.opened.run(bench.opened.faulty_session(faults))).tobytes()


def test_rows_by_computed_indices_and_by_two_lookups(tied: Callable[..., TrialExecutor]) -> None:
    twice = "j = Sub(ids, one) p = Gather(E, ids) q = Gather(E, j) r = Add(p, q)"
    bench = tied("transposed", twice)
    for row in (3, 50, WORDS - 1):  # -1 reads the last row
        faults = in_embedding(bench, (row * WIDTH + 4, 24))
        route, found = routed(bench, faults)
        assert found is not None and route == "channel-delta"
        assert found.tobytes() == stacked(bench.opened.run(bench.opened.faulty_session(faults))).tobytes()


def test_rows_by_an_index_that_a_fault_can_change(tied: Callable[..., TrialExecutor]) -> None:
    chained = (
        "r0 = Gather(E, ids) x0 = MatMul(r0, w0) x1 = Relu(x0) i = ArgMax<axis = 2, keepdims = 0>(x1) r = Gather(E, i)"
    )
    bench = tied("transposed", chained)
    for row in range(12):
        faults = in_embedding(bench, (row * WIDTH + 25, 31))
        route, found = routed(bench, faults)
        assert found is not None and route == "partial"
        assert found.tobytes() == stacked(bench.opened.run(bench.opened.faulty_session(faults))).tobytes()


def test_no_session_runs_for_golden_values_while_a_tensor_is_faulty(
    tied: Callable[..., TrialExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, faulty, values = tied("transposed", "j = Sub(ids, one) r = Gather(E, j)"), list[object](), GoldenCache.values
    enter, leave = FaultyWords.__enter__, FaultyWords.__exit__

    def entered(words: FaultyWords) -> np.ndarray:
        faulty.append(words)
        return enter(words)

    def left(words: FaultyWords, *error: object) -> None:
        leave(words, *error)
        faulty.remove(words)

    def asked(golden: GoldenCache, *names: object) -> object:
        assert not faulty
        return values(golden, *names)

    monkeypatch.setattr(FaultyWords, "__enter__", entered)
    monkeypatch.setattr(FaultyWords, "__exit__", left)
    monkeypatch.setattr(GoldenCache, "values", asked)
    for row in (3, 50):
        assert routed(bench, in_embedding(bench, (row * WIDTH + 4, 24)))[0] == "channel-delta"
