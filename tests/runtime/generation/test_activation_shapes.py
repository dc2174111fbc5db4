"""Shapes of activations in a loop: the axis of tokens, and the phases in which they are computed."""

from __future__ import annotations

import tiny_decoders as tiny
from tiny_decoders import opened

from onnxfi import load
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.runtime.generation.activation_shapes import LoopShape, loop_shapes


def shapes(model: object) -> dict[str, LoopShape]:
    found = load(model.SerializeToString())  # type: ignore[attr-defined]
    return loop_shapes(found, opened(model), activations(found), tiny.prompts()[0])


def test_tokens_lie_along_an_axis_that_runs_show() -> None:
    found = shapes(tiny.decoder())
    assert found["h.0.active"] == LoopShape((1, 16), 0, True, True)
    assert found["h.1.q.heads"] == LoopShape((2, 1, 4), 1, True, True)
    assert "h.0.self.qk" not in found and "h.0.keys" not in found, "their shape depends on the step"


def test_branches_are_computed_in_one_phase_each() -> None:
    found = shapes(tiny.merged())
    phases = {name.rsplit(".", 1)[-1]: (one.prefill, one.decode) for name, one in found.items() if ".active" in name}
    assert phases == {"none": (True, False), "past": (False, True)}
