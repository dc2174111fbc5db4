"""The same faults on two versions: the mapped list, its results, and versions that do not pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxfi import Campaign, FaultList, load, open_data, protect
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.mapped_list import map_list
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.report.paired_comparison import compare_paired
from onnxfi.errors import DataError, SpecError
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

ROOT = Path(__file__).parents[3]
CNN, TEST = str(ROOT / "models/fashion_cnn.onnx"), ROOT / "models/fashion_test.npz"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A protected CNN, with the data that it was calibrated on and other data."""
    folder = tmp_path_factory.mktemp("paired")
    images, labels = (np.load(TEST)[name] for name in ("image", "labels"))
    np.savez(folder / "calibration.npz", image=images[:200])
    np.savez(folder / "score.npz", image=images[1000:1040], labels=labels[1000:1040])
    data = open_data(folder / "calibration.npz", OrtEngine(provider="cpu").prepare(CNN).inputs)
    protect(load(CNN), ["range:clip"], folder / "protected.onnx", data=data)
    return folder


def campaign(work: Path, **fields: Any) -> Campaign:
    return Campaign(CNN, work / "score.npz", **fields)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def mapped(work: Path, out: Path, second: str, **fields: Any) -> Any:
    one = TrialExecutor.open(campaign(work, **fields)).opened
    two = TrialExecutor.open(Campaign(second, work / "score.npz", **fields)).opened
    made = make_plan(one.campaign, one.fault_targets)
    found = map_list(made, two.fault_targets, second, out)
    wanted = [json.loads(line) for planned in made.trials() for line in planned.lines.splitlines()]
    return found, wanted, lines(out)


def test_single_faults_are_the_same_word_for_word(work: Path, tmp_path: Path) -> None:
    found, wanted, there = mapped(work, tmp_path / "b.jsonl", str(work / "protected.onnx"), single=True, trials=30)
    assert there == wanted
    assert found.own_sites == 12 * 32 and all("onnxfi" not in t.id for t in found.own)
    header = FaultList.open(tmp_path / "b.jsonl").header
    assert header.model == load(work / "protected.onnx").digest and header.population == 105866 * 32 + 12 * 32


def test_activation_faults_land_before_the_protection(work: Path, tmp_path: Path) -> None:
    fields = {"single": True, "trials": 30, "target": "activations"}
    _, wanted, there = mapped(work, tmp_path / "b.jsonl", str(work / "protected.onnx"), **fields)
    assert there == wanted and {"relu", "relu_1"} <= {row["target"] for row in there}


def test_a_sweep_adds_faults_in_what_the_second_has_alone(work: Path, tmp_path: Path) -> None:
    fields = {"ber": (1e-2,), "repeat": 2, "include": ("conv1.bias", "restricted", "range")}
    found, wanted, there = mapped(work, tmp_path / "b.jsonl", str(work / "protected.onnx"), **fields)
    shared = [row for row in there if row["target"] == "conv1.bias"]
    assert shared == wanted and {row["target"] for row in there} - {"conv1.bias"} <= {t.id for t in found.own}
    assert len(there) > len(shared)


def test_a_graph_output_has_its_faults_before_the_protection(work: Path, tmp_path: Path) -> None:
    proto = onnx.load(work / "protected.onnx")
    nodes = {node.output[0]: node for node in proto.graph.node}
    nodes["logits"].output[0] = "logits.unrestricted"
    proto.graph.node.append(onnx.helper.make_node("Identity", ["logits.unrestricted"], ["logits"]))
    onnx.save(proto, tmp_path / "c.onnx")
    fields = {"single": True, "trials": 5, "target": "activations", "include": ("=logits",)}
    _, _, there = mapped(work, tmp_path / "b.jsonl", str(tmp_path / "c.onnx"), **fields)
    assert {row["target"] for row in there} == {"logits.unrestricted"}


def test_versions_that_do_not_share_their_words_are_refused(work: Path, tmp_path: Path) -> None:
    proto = onnx.load(CNN)
    weight = proto.graph.initializer[0]
    weight.raw_data = bytes(len(weight.raw_data))
    onnx.save(proto, tmp_path / "other.onnx")
    for second, message in (
        (ROOT / "models/fashion_cnn_fp16.onnx", "'conv1.weight' is float32 .* and float16 .* in the second"),
        (ROOT / "models/fashion_gru.onnx", "'conv1.weight' is missing in the second model"),
        (tmp_path / "other.onnx", "holds other numbers in"),
    ):
        with pytest.raises(SpecError, match=message):
            mapped(work, tmp_path / "b.jsonl", str(second), single=True, trials=60, include=("conv",))
        assert not (tmp_path / "b.jsonl").exists()
    with pytest.raises(SpecError, match="takes a sweep over bit error rates, or single faults"):
        mapped(work, tmp_path / "b.jsonl", CNN, exhaustive=True, include=("conv1.bias",))


def test_a_protected_model_is_better_on_the_same_faults(work: Path, tmp_path: Path) -> None:
    single = campaign(work, single=True, trials=60, bits="30")
    found = compare_paired(CNN, str(work / "protected.onnx"), single, tmp_path)
    rows = {row.metric.name: row for row in found.rows}
    assert rows["top1"].found.second > rows["top1"].found.first and rows["sdc1"].found.p_value < 0.01
    assert rows["sdc1"].found.only_second == 0 < rows["sdc1"].found.only_first
    assert rows["any_sdc1"].ratio is not None and rows["any_sdc1"].ratio.estimate >= 1
    assert found.own.sites == 12 and found.own.trials == 12 and found.own.together is not None
    assert found.second.nodes > found.first.nodes and found.golden()[0][1] == found.golden()[0][2]
    assert json.dumps(found.document(), allow_nan=False)


def test_calibration_data_is_no_test_data(work: Path, tmp_path: Path) -> None:
    on = Campaign(CNN, work / "calibration.npz", single=True, trials=2, samples=150)
    with pytest.raises(DataError, match=r"was calibrated on samples of this data \(24 of the 32 marked ones"):
        compare_paired(CNN, str(work / "protected.onnx"), on, tmp_path)
    found = compare_paired(CNN, str(work / "protected.onnx"), on, tmp_path, allow_calibration_data=True)
    assert found.rows


@pytest.mark.slow
def test_an_alarm_makes_an_outcome_detected(work: Path, tmp_path: Path) -> None:
    protect(load(CNN), ["duplicate"], tmp_path / "d.onnx")
    single = campaign(work, single=True, trials=60, bits="exponent", target="activations", include="conv2d")
    found = compare_paired(CNN, str(tmp_path / "d.onnx"), single, tmp_path / "stores")
    rows = {row.metric.name: row.found for row in found.rows}
    assert rows["sdc"].first > 0.1 and rows["sdc"].second == 0, "every change of a doubled layer is seen"
    assert found.detection is not None and found.detection.coverage.estimate == 1
    assert found.detection.false_alarms.estimate == 0 and found.document()["detection"]["critical"]["value"] == 1
    assert found.second.found.causes() == {"alarm": round(60 * rows["due"].second)}
