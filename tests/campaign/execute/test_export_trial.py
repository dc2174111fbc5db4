"""Exported trials: the model of a trial as a file, of the same model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from activation_campaigns import activation_campaign, fault_lines
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tiny_campaigns import campaign, mlp, ran

from onnxfi.campaign.execute.export_trial import export_trial
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.results.store import Store
from onnxfi.errors import StoreError
from onnxfi.faults.faultlist import LineReader
from onnxfi.runtime.data.sample_outputs import stacked
from onnxfi.runtime.engine.onnx_runtime import OrtEngine


def test_an_export_needs_the_model_as_it_was(here: Path) -> None:
    ran(campaign(ber=(0.02, 1.0), repeat=1), here / "s.db")
    export_trial(here / "s.db", 2, here / "all.onnx")
    words = [
        numpy_helper.to_array(t).view(np.uint32)
        for name in ("m.onnx", "all.onnx")
        for t in onnx.load(name).graph.initializer
    ]
    assert all(
        np.array_equal(one ^ np.uint32(0xFFFFFFFF), other) for one, other in zip(words[:4], words[4:], strict=True)
    )
    mlp(here, seed=4)
    with pytest.raises(StoreError, match=r"s.db is of the model [0-9a-f]{64}, m.onnx is [0-9a-f]{64} now"):
        export_trial(here / "s.db", 1, here / "out.onnx")


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"target": ["weights", "activations"]}, {"per_sample": 0.5, "repeat": 6}, {"persistence": "permanent"},
        *(pytest.param(more, marks=pytest.mark.slow) for more in (
            {"target": "inputs"}, {"fault": "scale:factor=-3"}, {"fault": "random-word"}, {"ber": 0.01, "repeat": 6},
            {"op": "Add"},
        )),
    ],
    ids=str,
)  # fmt: skip
def test_each_trial_is_the_model_that_it_exports(here: Path, fields: dict[str, Any]) -> None:
    """Differential: cut, patched and resumed, against operators baked into the graph, fed all samples at once."""
    few = {} if "repeat" in fields else {"trials": 10}
    asked = activation_campaign(optimization="off", batch=32, **few, **fields)
    ran(asked, here / "s.db")
    bench = TrialExecutor.open(asked)
    header = make_plan(asked, bench.opened.fault_targets).header
    x = np.load(here / "d.npz")["x"]
    changed = 0
    with Store.open(here / "s.db") as opened:
        for trial, lines in [(t, opened.trial(t)["lines"]) for t in opened.trials()]:
            reader = LineReader(header, bench.opened.fault_targets.targets, "the store")
            [(_, faults)] = reader.trials(enumerate(lines.splitlines(), 1))
            active = bench.opened.fault_targets.in_activations(faults)
            if not active.any():
                continue
            golden, got = map(stacked, bench.longest(bench.prepare(header, faults)))
            export_trial(here / "s.db", trial, here / "f.onnx")
            baked = OrtEngine("cpu", optimization="off").prepare(here / "f.onnx").run({"x": x})["y"]
            # What is NaN has another payload where the portable body makes it.
            assert np.where(np.isnan(got), 0, got).tobytes() == np.where(np.isnan(baked), 0, baked).tobytes()
            assert np.array_equal(np.isnan(got), np.isnan(baked))
            with np.errstate(all="ignore"):
                reference = ReferenceEvaluator(str(here / "f.onnx")).run(None, {"x": x})[0]
            assert np.allclose(got, reference, rtol=1e-5, atol=1e-5, equal_nan=True)
            changed += got.tobytes() != golden.tobytes()
    assert changed


def test_trials_are_exported_from_models_whose_types_only_a_run_finds(here: Path) -> None:
    """As the runtime's optimisers write them: operators of com.microsoft, and no value_info behind those."""
    proto = onnx.load("m.onnx")
    proto.opset_import.add(domain="com.microsoft", version=1)
    made = proto.graph.node[0]
    made.op_type, made.domain = "FusedMatMul", "com.microsoft"
    del proto.graph.value_info[:]
    onnx.save(proto, here / "m.onnx")
    results = ran(activation_campaign(all=True), here / "s.db")
    targets = {row["target"] for row in fault_lines(here / "s.db")}
    assert {"a", "b"} <= targets
    for trial in range(1, len(results) + 1):
        export_trial(here / "s.db", trial, here / "f.onnx")
    ran(activation_campaign(all=True, trials=26), here / "s.db")
