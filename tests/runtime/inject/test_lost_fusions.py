"""Fusions that a faulty file loses."""

from __future__ import annotations

from typing import Any

from onnxfi.graph.model.loading import load, parse
from onnxfi.runtime.inject.activations import instrument
from onnxfi.runtime.inject.lost_fusions import fused, fusions_lost, fusions_note

CNN = "models/fashion_cnn.onnx"


def model_bytes(model: Any) -> bytes:
    return bytes(parse(model).SerializeToString())


def test_fusions_that_are_lost_are_counted() -> None:
    plain = model_bytes(load(CNN))
    before = fused(plain)
    assert before["Conv+Relu"] == 2
    kept, lost = instrument(load(CNN)), instrument(load(CNN), all=True)
    assert fusions_lost(plain, kept.data) == {}
    assert fusions_lost(plain, lost.data)["Conv+Relu"] == (2, 0)
    [note] = fusions_note(plain, lost.data, 12)
    assert note.startswith("fusions of the runtime that are lost: Conv+Relu 2 to 0")
    assert fusions_note(plain, kept.data, 4) == ()
    assert "up to 300 sites" in fusions_note(plain, lost.data, 301)[0]
