"""Spike counts: an output of counts over time, the numbers that numpy counts, or a line that says why there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

from onnxfi.errors import ModelError
from onnxfi.graph.model.loading import load, parse
from onnxfi.graph.passes.scored_outputs import CountSpikes, spike_count_output, with_spike_counts

TEXT = "g (bool[T,N,3] s, float[N,3] v) => (bool[T,N,3] spikes, float[N,3] volts) {{ spikes = Not(s) volts = Neg(v) }}"
SPIKES = np.arange(24).reshape(4, 2, 3) % 5 == 0


def model(opset: int = 21, text: str = TEXT) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> ' + text.format())


@pytest.mark.parametrize("opset", [11, 21])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("output", [None, "spikes"])
def test_counts_are_what_numpy_counts(opset: int, axis: int, output: str | None) -> None:
    made, name = CountSpikes(output, axis).run(model(opset))
    assert name == spike_count_output(made) == "spikes/counts"
    spikes, volts, counts = ReferenceEvaluator(made).run(None, {"s": ~SPIKES, "v": np.ones((2, 3), np.float32)})
    assert (spikes == SPIKES).all() and (volts == -1).all(), "the other outputs stay"
    np.testing.assert_array_equal(counts, SPIKES.sum(axis, dtype=np.float32))


@pytest.mark.parametrize(
    ("given", "text", "says"),
    [
        (("spike", 0), TEXT, "the model has no output 'spike'; closest: 'spikes'"),
        (("spikes", 3), TEXT, "time axis 3 is beyond output 'spikes' of 3 dimensions: axes are 0 to 2"),
        (("volts", 2), TEXT, "time axis 2 is beyond output 'volts' of 2 dimensions: axes are 0 to 1"),
        ((None, 0), "g (float[N] x) => (float[N] y) {{ y = Neg(x) }}", "no output is sure to be spikes over time"),
        (
            (None, 0),
            "g (float[N,2,2] x) => (float[N,2,2] y, float[N,2,2] z) {{ y = Neg(x) z = Abs(x) }}",
            "several outputs could be spikes over time; name one with --output: y, z",
        ),
    ],
)
def test_outputs_that_cannot_be_counted(given: tuple[str | None, int], text: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        CountSpikes(*given).run(model(text=text))


def test_spikes_are_counted_once() -> None:
    counted, _ = CountSpikes("spikes").run(model())
    with pytest.raises(
        ModelError, match="the spikes of 'spikes' are counted already; score the output 'spikes/counts'"
    ):
        CountSpikes("spikes").run(counted)


def test_a_model_with_counts_is_still_the_model_to_which_its_faults_belong(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    onnx.save(model(), file)
    plain = load(file)
    counted = with_spike_counts(plain, "spikes", 0)
    assert counted.origin == plain.digest and spike_count_output(parse(counted)) == "spikes/counts"
    assert [t.id for t in counted.targets][: len(plain.targets)] == [t.id for t in plain.targets]
    big = model()
    big.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(9, np.float32), "w"))
    onnx.save(big, file, save_as_external_data=True, location="m.data", size_threshold=0)
    with pytest.raises(
        ModelError, match="has external data, so spikes cannot be counted in it; write it as one file first"
    ):
        with_spike_counts(load(file), "spikes", 0)
