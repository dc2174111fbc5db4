"""Proofs of a campaign: which tensors have some, and within which memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_campaigns import mlp, samples

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.proved.campaign_proofs import CampaignProofs, agree, as_numbers, flip
from onnxfi.campaign.proved.proof_executor import ProofExecutor, open_executor
from onnxfi.campaign.proved.unproved_runs import BatchOutcome
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import CampaignError, EngineError

ROOT = Path(__file__).parents[3]


def test_proofs_are_of_weights_that_fit(tmp_path: Path) -> None:
    given = Campaign(mlp(tmp_path), samples(tmp_path), single=True, trials=1, outcomes="class", provider="cpu")
    executor = open_executor(given)
    assert type(executor) is ProofExecutor and type(open_executor(given.with_fields(outcomes="bits"))) is TrialExecutor
    golden, _ = executor.golden_runs.run()
    assert golden.task.name == "classification" and "sdc5" not in golden.task.by_name
    targets = {target.id: target for target in executor.opened.fault_targets.targets}
    proofs = CampaignProofs(executor, golden)
    found = {name: proofs.of(target) for name, target in targets.items()}
    assert found["w2"] is not None and found["w2"].cheap and found["w2"].cost_bytes > 0
    assert found["b1"] is None  # an Add reads it
    assert CampaignProofs(executor, golden, most_bytes=10).of(targets["w2"]) is None
    [before, after] = as_numbers(targets["w2"], np.array([0x3F800000], np.uint64), np.array([0x40000000], np.uint64))
    assert before.tolist() == [1.0] and after.tolist() == [2.0]
    assert str(flip(targets["w2"], 3, 30)[0].site) == "w2[3]:30"


def test_a_layer_that_the_engine_does_not_run_alone_is_not_taken_for_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> bool:
        raise EngineError("no kernel")

    monkeypatch.setattr("onnxfi.campaign.proved.campaign_proofs.adds_exactly", refused)
    file = ROOT / "models" / "fashion_cnn_int8_qdq.onnx"
    data = ROOT / "models" / "fashion_test.npz"
    executor = open_executor(Campaign(file, data, samples=4, single=True, trials=1, outcomes="class", provider="cpu"))
    golden, _ = executor.golden_runs.run()
    [target] = [t for t in executor.opened.fault_targets.targets if t.id == "fc1.weight_quantized"]
    assert CampaignProofs(executor, golden).of(target) is None


def test_a_run_that_contradicts_a_proof_is_an_error() -> None:
    none = np.zeros(2, np.bool_)
    ran = BatchOutcome(np.array([0, 2]), np.array([1, 2]), none, none, none)
    agree(ran, np.array([1, 0, -1], np.int16), "w[0]:0")
    for classes, due in (([1, 0, 1], none), ([1, 0, 2], ~none)):
        with pytest.raises(CampaignError, match=r"w.0.:0: a run gives another class"):
            agree(BatchOutcome(ran.samples, ran.top, none, due, none), np.array(classes, np.int16), "w[0]:0")
