"""Fault targets of a campaign: what is left out is said, and what shares bytes is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_campaigns import save

from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.plan import Plan, make_plan
from onnxfi.campaign.run.runner import plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import SelectorError
from onnxfi.graph.model.loading import load

SITES = 43 * 32


def planned(model: str = "m.onnx", **fields: Any) -> Plan:
    return make_plan(Campaign(model, **fields), FaultTargets.of(load(model)))


def test_a_plan_says_what_is_left_out_of_its_population(here: Path) -> None:
    held = onnx.load("m.onnx")
    held.graph.initializer.append(numpy_helper.from_array(np.ones(500, np.float32), "aux"))
    onnx.save(held, "aux.onnx")
    made = planned("aux.onnx", single=True, trials=9)
    assert made.header.population == SITES
    assert any("1 tensor is unused (500 words)" in line and "'aux'" in line for line in made.describe())
    with pytest.raises(SelectorError, match="every selected target is unused"):
        planned("aux.onnx", single=True, trials=9, include="aux")


def test_parts_of_a_mix_that_share_bytes_are_refused(here: Path) -> None:
    held = onnx.load("m.onnx")
    for at, tensor in enumerate(held.graph.initializer[:2]):
        tensor.data_location, size = onnx.TensorProto.EXTERNAL, len(tensor.raw_data)  # type: ignore[assignment]
        tensor.ClearField("raw_data")
        for key, value in (("location", "w.bin"), ("offset", str(4 * at)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
    Path("crossed.onnx").write_bytes(held.SerializeToString())
    Path("w.bin").write_bytes(bytes(100))
    one, other = (dict(count=1, include=f"={t.name}") for t in held.graph.initializer[:2])
    assert planned("crossed.onnx", mix=(one,))
    with pytest.raises(SelectorError, match="share some of their bytes"):
        planned("crossed.onnx", mix=(one, other))


def test_a_model_without_weights_has_no_plan(here: Path) -> None:
    save(here, "g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    with pytest.raises(SelectorError, match="no tensor that faults can be injected into"):
        planned("g.onnx", ber=(1e-3,))


@pytest.mark.parametrize("fields", [{"op": ("Relu",)}, {"include": ("then",)}, {}])
def test_activations_in_a_branch_that_take_no_faults_are_named(here: Path, fields: dict[str, Any]) -> None:
    relu, none = "then_branch = g1 () => (r) { r = Relu(u) }", "else_branch = g2 () => (i) { i = Identity(u) }"
    save(
        here,
        "g (float[N,4] x) => (float y) <bool t = {1}, float w = {2}> "
        f"{{ n = NonZero(x) c = Cast <to = 1> (n) u = Mul(c, w) y = If (t) <{relu}, {none}> }}",
        "b.onnx",
    )
    np.savez("d.npz", x=np.ones((2, 4), np.float32))
    made = Campaign("b.onnx", data="d.npz", target=("activations",), single=True, trials=2, **fields)
    with pytest.raises(SelectorError, match=r"::r' .* cannot be injected into: the graph selects rows there"):
        plan(made)


@pytest.mark.parametrize(
    ("route", "include", "left"),
    [("auto", (), 4 * 2 * 32), ("auto", ("y",), "int64 need opset 11"), ("full", (), "float32 need opset 11")],
)
def test_faults_that_need_operators_of_a_later_opset_are_not_drawn(
    here: Path, route: str, include: tuple[str, ...], left: int | str
) -> None:
    held = onnx.parser.parse_model(
        '<ir_version: 5, opset_import: ["": 10]> g (float[N,4] x) => (int64[N] y, float[N,2] s) '
        "<float[4,2] w = {1,0, 0,1, 1,0, 0,1}> { s = MatMul(x, w) y = ArgMax <axis = 1, keepdims = 0> (s) }"
    )
    onnx.save(held, "old.onnx")
    np.savez("d.npz", x=np.eye(4, dtype=np.float32), labels=np.arange(4) % 2)
    made = Campaign(
        "old.onnx", "d.npz", target=("activations",), all=True, single=True, trials=9, route=route, include=include
    )
    if isinstance(left, str):
        with pytest.raises(SelectorError, match=left):
            plan(made)
    else:
        assert plan(made)[0].header.population == left
