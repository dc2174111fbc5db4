"""The pipelines of examples/pipelines on real models: what they answer without faults, and one stage each with some."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import onnxfi
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.pipeline_file import load_pipeline
from onnxfi.runtime.pipeline.open_pipeline import open_pipeline
from onnxfi.tasks.evaluation import evaluate_pipeline

ROOT = Path(__file__).parents[3]
#: Data, task, a stage, and golden metrics.
PIPELINES: dict[str, tuple[str, str, str, dict[str, float]]] = {
    "ocr": ("pages", "sequence", "recogniser", {"exact": 1.0}),
    "faces": ("views", "detection:format=rows", "decide", {"detections": 0.75}),
    "speech": ("recordings", "auto", "vad", {"top1": 1.0}),
    "file_types": ("files", "auto", "magika", {"top1": 1.0}),
    "sentences": ("sentences", "embedding", "encoder", {"nonfinite": 0.0}),
}


@pytest.mark.fetched
@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_a_real_pipeline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    data, task, stage, expected = PIPELINES[name]
    found = load_pipeline(f"examples.pipelines.{name}:pipeline")
    if missing := [s.model for s in found.stages if s.model and not Path(s.model).is_file()]:
        pytest.skip(f"no {missing[0]}; python scripts/fetch_models.py brings it")
    made: dict[str, Any] = {**getattr(sys.modules[f"examples.pipelines.{name}"], data)()}
    if not len(next(iter(made.values()))):
        pytest.skip("no recordings; apt-get install alsa-utils")
    opened = open_pipeline(found)
    evaluated = evaluate_pipeline(opened, opened.open_data(made), task=task)
    assert {key: evaluated.metrics[key] for key in expected} == expected
    campaign = onnxfi.Campaign(
        f"examples.pipelines.{name}:pipeline", f"examples.pipelines.{name}:{data}", stage=stage, task=task, samples=2,
        single=True, trials=2, provider="cpu",
    )  # fmt: skip
    for result in run(campaign, tmp_path / "s.db"):
        assert result.error is None
