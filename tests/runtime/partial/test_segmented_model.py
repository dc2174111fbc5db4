"""Models in segments: the bits of the whole model, and an early stop where samples are masked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
from campaign_networks import Net, flips, nets
from hypothesis import given, settings
from hypothesis import strategies as st
from routed_trials import bench_of, injectable, routed

from onnxfi.runtime.data.sample_outputs import stacked
from onnxfi.runtime.partial.reexecution import golden_outputs
from onnxfi.runtime.partial.segmented_model import SampleRows, SegmentedModel


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(model=nets(), outputs=st.booleans())
def test_the_segments_give_the_bits_of_the_whole_model(
    model: onnx.ModelProto, outputs: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bench = bench_of(model, tmp_path_factory.mktemp("net"), output=None if outputs else model.graph.output[0].name)
    assert bench.weights is not None
    own = [golden_outputs(bench.weights.segmented, k) for k, _ in bench.weights.segmented.golden.batches()]
    assert stacked(own).tobytes() == bench.golden_runs.run()[0].scores.tobytes()


@pytest.mark.slow
def test_samples_that_are_masked_stop_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    for kind in ("conv", "relu", "conv", "skip", "conv"):
        net.step(kind, len(net.values) - 1, 1)
    bench = bench_of(net.model([]), tmp_path, samples=16, batch=16)
    first = next(t for t in injectable(bench) if len(t.shape) == 4)
    sizes, run = Counter[int](), SegmentedModel.run_segment

    def counted(self: SegmentedModel, number: int, rows: SampleRows, differing: Any) -> Any:
        sizes[self.size(rows)] += 1
        return run(self, number, rows, differing)

    monkeypatch.setattr(SegmentedModel, "run_segment", counted)
    for bit in range(12):
        for element in range(0, first.size, 97):
            faults = flips([first], [(element, bit)])
            _, found = routed(bench, faults)
            assert found is not None
            assert found.tobytes() == stacked(bench.opened.run(bench.opened.faulty_session(faults))).tobytes()
    assert sizes[16] > 3 < sum(n for size, n in sizes.items() if size <= 8), "some trials change few samples, some many"
    assert all(size <= 8 or size == 16 for size in sizes)
