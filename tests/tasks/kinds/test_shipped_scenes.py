"""The shipped segmenter and detector: their golden figures, and campaigns that agree by every route."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.registry import engine_of
from onnxfi.tasks.evaluation import evaluate

MODELS = Path(__file__).parents[3] / "models"
SEGMENTER, DETECTOR = str(MODELS / "scenes_segmenter.onnx"), str(MODELS / "scenes_detector.onnx")
SCENES, BOXES = str(MODELS / "scenes_test.npz"), str(MODELS / "scenes_test.json")
TASKS = {
    "segmentation": ({"model": SEGMENTER, "data": SCENES, "task": "segmentation"}, "miou", "changed_pixels"),
    "detection": ({"model": DETECTOR, "data": SCENES, "labels": BOXES, "task": "detection"}, "ap50", "lost_boxes"),
}
DESIGNS = {
    "single": {"single": True, "trials": 24, "bits": "28-30"},
    "sweep": {"ber": 1e-4, "repeat": 6},
    "activations": {"target": "activations", "single": True, "trials": 24, "bits": "28-30"},
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("design", [pytest.param(d, marks=() if d == "single" else pytest.mark.slow) for d in DESIGNS])
def test_campaigns_agree_by_every_route(name: str, design: str, tmp_path: Path) -> None:
    fields, of_labels, of_golden = TASKS[name]
    found = []
    for route in ("auto", "full"):
        asked = Campaign(**fields, **DESIGNS[design], samples=6, batch=3, route=route)
        results = run(asked, tmp_path / f"{route}.db").results
        found.append([(one.outcome, one.metrics.get(of_labels), one.metrics[of_golden]) for one in results])
    assert found[0] == found[1]
    assert len({outcome for outcome, _, _ in found[0]}) > 1, "some trials do harm, and some do not"


@pytest.mark.parametrize("name", TASKS)
def test_golden_figures_are_those_of_the_card(name: str) -> None:
    fields, of_labels, _ = TASKS[name]
    ports = engine_of(provider="cpu").prepare(fields["model"]).inputs
    data = open_data(fields["data"], ports, labels=fields.get("labels"))
    metrics = evaluate(fields["model"], data, engine=engine_of(provider="cpu"), task=fields["task"]).metrics
    card = Path(fields["model"]).with_suffix(".md").read_text(encoding="utf-8")
    assert f"**{100 * metrics[of_labels]:.2f} %**" in card
