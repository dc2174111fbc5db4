"""A loop over an axis, against the same model run step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser
from tiny_campaigns import HEAD, chance

from onnxfi.errors import ModelError
from onnxfi.graph.model.loading import load
from onnxfi.graph.passes.loop_over_axis import loop_over_axis

CELL = """cell (float[N,3] x, float[2,N,4] h, float gain) => (float[N,4] y, float[2,N,4] n) {
    zero = Constant<value_int = 0>()
    a = MatMul(x, w) b = Mul(a, gain) first = Gather<axis = 0>(h, zero) c = Add(b, first)
    still = Constant<value_int = 1>() go = Cast<to = 9>(still)
    y = If(go) <then_branch = yes () => (float[N,4] t) { t = Tanh(c) },
                else_branch = no () => (float[N,4] e) { e = Add(c, first) }>
    axes = Constant<value_ints = [0]>() up = Unsqueeze(y, axes) n = Concat<axis = 0>(up, up) }"""


def cell() -> onnx.ModelProto:
    model = parser.parse_model(HEAD + CELL)
    model.graph.initializer.append(numpy_helper.from_array(chance(3, 4), "w"))
    return model


def session(model: onnx.ModelProto) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("axis", [1, 2])
def test_a_loop_is_what_its_steps_are(axis: int) -> None:
    model = cell()
    looped = loop_over_axis(model, axis, ["x"], {"h": "n"})
    onnx.checker.check_model(looped, full_check=True)
    x, state, gain = chance(5, 7, 3, seed=1), chance(2, 5, 4, seed=2), np.array(0.5, np.float32)
    one, steps, h = session(model), [], state
    for step in range(7):
        y, h = one.run(["y", "n"], {"x": x[:, step], "h": h, "gain": gain})
        steps.append(y)
    fed = {"x": np.moveaxis(x, 1, axis), "h": state, "gain": gain}
    found, last = session(looped).run(["y", "n"], fed)
    assert np.array_equal(np.moveaxis(found, axis, 1), np.stack(steps, 1)) and np.array_equal(last, h)
    assert [target.id for target in load(looped).targets if target.id == "w"] == ["w"]
    assert model == cell()


@pytest.mark.parametrize(
    ("axis", "over", "carry", "says"),
    [
        (1, ["z"], {"h": "n"}, "the loop names input 'z', which the model does not have"),
        (1, ["x"], {"g": "n"}, "the loop names input 'g'"),
        (1, ["x"], {"h": "m"}, "the loop carries output 'm'"),
        (0, ["x"], {"h": "n"}, "axis 0 counts the samples"),
        (3, ["x"], {"h": "n"}, "input 'x' of 2 dimensions has no axis 3 in a loop"),
    ],
)
def test_what_cannot_be_a_loop_is_refused(axis: int, over: list[str], carry: dict[str, str], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        loop_over_axis(cell(), axis, over, carry)


def test_an_old_opset_is_refused() -> None:
    model = cell()
    model.opset_import[0].version = 8
    with pytest.raises(ModelError, match="opset 8, and a loop needs 9"):
        loop_over_axis(model, 1, ["x"], {"h": "n"})


def test_a_stage_in_a_loop_keeps_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxfi.campaign.run.runner import run
    from onnxfi.campaign.spec.campaign import Campaign

    monkeypatch.chdir(tmp_path)
    onnx.save(cell(), "cell.onnx")
    np.savez("d.npz", x=chance(4, 6, 3, seed=1))
    Path("pipeline.yaml").write_text(
        "stages:\n- name: cell\n  model: cell.onnx\n  inputs: {x: data.x, h: 0, gain: 0.5}\n"
        "  loop: {axis: 1, over: x, carry: {h: n}}\nanswer: cell.y\n"
    )
    h, outputs, one = np.zeros((2, 4, 4), np.float32), [], session(cell())
    for step in range(6):
        y, h = one.run(["y", "n"], {"x": chance(4, 6, 3, seed=1)[:, step], "h": h, "gain": np.array(0.5, np.float32)})
        outputs.append(y)
    for route in ("auto", "full"):
        for target in ("weights", "activations"):
            given = Campaign(
                "pipeline.yaml",
                "d.npz",
                single=True,
                trials=6,
                provider="cpu",
                route=route,
                target=target,
                all=target != "weights",
            )
            running = run(given, f"{route}-{target}.db")
            assert not [r.error for r in running if r.error]
    from onnxfi.campaign.spec.pipeline_file import load_pipeline
    from onnxfi.runtime.pipeline.open_pipeline import open_pipeline
    from onnxfi.runtime.pipeline.pipeline import Source

    opened = open_pipeline(load_pipeline("pipeline.yaml"))
    found = [values[Source("cell", "y")] for values in opened.front(opened.open_data("d.npz"))]
    np.testing.assert_allclose(np.concatenate(found), np.stack(outputs, 1), rtol=1e-5, atol=1e-6)
