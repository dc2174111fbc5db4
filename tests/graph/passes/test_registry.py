"""Registry of model passes: each is exercised, and those of other packages join."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
from pass_contract import MODELS, Source, check

from onnxfi.errors import ModelError
from onnxfi.graph.model.loading import load
from onnxfi.graph.passes import registry
from onnxfi.graph.passes.registry import model_passes


def offered(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    points = [EntryPoint(f"p{k}", value, registry.ENTRY_POINTS) for k, value in enumerate(values)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.ENTRY_POINTS else [])
    monkeypatch.setattr(registry, "model_passes", model_passes.__wrapped__)


def test_passes_of_other_packages_join_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    known = model_passes().keys()  # read, and kept, before others are offered
    offered(monkeypatch, "own_model_pass:LimitOutputs")
    assert registry.model_passes().keys() - known == {"limit-outputs"}
    assert check(registry.model_passes()["limit-outputs"], Source.of(load(MODELS / "fashion_cnn.onnx")))
    for value, why in {
        "own_model_pass:nothing": "does not load",
        "pathlib:Path": "is not a frozen dataclass derived from onnxfi.ModelPass",
        "onnxfi.graph.passes.instrument:ArmFaults": "has the name 'arm-faults'",
    }.items():
        offered(monkeypatch, value)
        with pytest.raises(ModelError, match=why):
            registry.model_passes()
