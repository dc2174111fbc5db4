"""Bodies of loops and branches: protected like the main graph, on what their iterations have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pass_contract import BRANCHES, LOOPS, OFF, SCAN, text

from onnxfi import load, protect
from onnxfi.errors import InputError
from onnxfi.faults.space import Selector
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.dataflow.batch_layout import BatchLayout
from onnxfi.graph.model.graph_index import GraphIndex
from onnxfi.graph.model.loading import parse
from onnxfi.graph.passes.instrument import ActivationFault, bake
from onnxfi.graph.protection.loop_and_branch_bodies import carry_out
from onnxfi.protection.protection import Setting
from onnxfi.protection.protections import parse_protection
from onnxfi.runtime.data.batches import Data

X = np.array([[0.5, -1, 2], [-0.25, 3, 1]], np.float32)
FEEDS: dict[str, tuple[str, dict[str, Any]]] = {
    "loops": (LOOPS, {"x": X, "n": np.array(3), "c": np.array(True)}),
    "scan": (SCAN, {"x": X, "h": np.zeros(3, np.float32)}),
    "branches": (BRANCHES, {"x": X, "c": np.array(False)}),
}


def setting(name: str, selector: Selector | None = None, feeds: dict[str, Any] | None = None) -> Setting:
    graph, fed = FEEDS[name]
    data = Data.of_arrays(feeds or fed, None, BatchLayout(0, (), None), "the test's own")
    return Setting(load(text(graph)), selector or Selector(), data, OFF)


def test_bounds_are_those_of_all_iterations() -> None:
    """The inner loop multiplies with the number of the outer iteration, so that u grows as the outer one goes on."""
    found: Any = parse_protection("range:clip").passes(setting("loops", Selector(include=("*",))))
    bounds = {one.id: one.bounds for one in found.tensors}
    s, states, rows = X, [], []
    for i in range(3):
        inner = s
        for _ in range(i):
            inner = inner * np.float32(i)
            states.append(inner)
        s = (inner if i else s) + s
        rows.append(np.maximum(s, 0))
    for name, arrays in (("Loop#0.body::row", rows), ("Loop#0.body::Loop#2.body::w", states)):
        low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
        margin = 2.0**-10
        assert bounds[name].high == pytest.approx((high * (1 + margin),)), name
        assert bounds[name].low == pytest.approx((low - margin * abs(low),)), name


@pytest.mark.parametrize("name", FEEDS)
@pytest.mark.parametrize("what", ["range:clip", "range:zero", "range:average", "nan-filter"])
def test_outputs_stay_and_a_fault_in_a_body_is_held(name: str, what: str) -> None:
    here = setting(name, Selector(include=("*",)))
    edit: Any = parse_protection(what).passes(here)
    made, _ = edit.run(parse(here.model))
    onnx.checker.check_model(made)
    feeds = FEEDS[name][1]
    before, after = (OFF.prepare(proto.SerializeToString()).run(feeds) for proto in (parse(here.model), made))
    assert all(before[port].tobytes() == after[port].tobytes() for port in before)
    wild = dict(feeds, x=np.full_like(X, np.inf))
    assert all(np.isfinite(array).all() for array in OFF.prepare(made.SerializeToString()).run(wild).values())


def test_a_branch_that_no_sample_takes_stays_and_is_named() -> None:
    here = setting("branches", Selector(include=("=If#1.then_branch::a", "=If#1.else_branch::e")))
    edit: Any = parse_protection("range:clip:per=channel").passes(here)
    assert [one.id for one in edit.tensors] == ["If#1.else_branch::e"]
    idle, whole = here.notes
    assert idle == "'If#1.then_branch::a' stays without protection: no sample of the calibration data runs its body"
    assert whole == "1 activations in bodies have the range of their whole tensors"
    other = setting("branches", Selector(include=("=If#1.then_branch::a",)))
    with pytest.raises(InputError, match=r"no sample of the calibration data runs its body; give data that does"):
        parse_protection("range:clip").passes(other)


def test_weights_of_bodies_are_clipped(tmp_path: Path) -> None:
    made = text(
        "g (float[N,3] x, bool c) => (float[N,3] y) { y = If(c)<then_branch = p () => (float[N,3] a) "
        "<float[3,3] w = {0.5, -1, 0.25, 0, 0, 0, 0, 0, 0}> { a = MatMul(x, w) }, else_branch = q () => (float[N,3] b) { b = Neg(x) }> }"
    )
    del made.graph.input[1]
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "c"))
    done = protect(made, ["clip-weights"], tmp_path / "p.onnx")
    assert done.tensors["clip-weights"] == ("If#0.then_branch::w",) and done.fault_free.changed == 0
    written = onnx.load(tmp_path / "p.onnx")
    branch = GraphIndex.of(written).by_path["If#0.then_branch::"].graph
    (weight,) = branch.initializer
    weight.CopyFrom(
        onnx.numpy_helper.from_array(np.array([[0.5, 1.75, np.nan], [0, 0, 0], [0, 0, 0]], np.float32), "w")
    )
    (y,) = OFF.prepare(written.SerializeToString()).run({"x": np.ones((1, 3), np.float32)}).values()
    assert y.tolist() == [[0.5, 0.5, 0]]


def test_a_value_is_carried_out_of_loops_in_branches() -> None:
    made = text(
        """g (int64 n, bool c) => (float[1] y) { y = If(c)<then_branch = p () => (float[1] a) {
        zero = Constant<value = float[1] {0}>()  yes = Constant<value = bool {1}>()
        a = Loop(n, yes, zero)<body = b (int64 i, bool go, float[1] s) => (bool on, float[1] t) {
          on = Identity(go)  f = Cast<to=1>(i)  one = Constant<value = float[1] {1}>()  g1 = Add(f, one)
          t = Add(s, g1) }> }, else_branch = q () => (float[1] b) { b = Constant<value = float[1] {7}>() }> }"""
    )
    name = carry_out(made, "If#0.then_branch::Loop#2.body::", "g1", np.zeros(1, np.float32), "ReduceSum")
    made.graph.output.add().name = name
    session = OFF.prepare(made.SerializeToString())
    for n, c, total in ((4, True, 10), (0, True, 0), (3, False, 0)):
        assert session.run({"n": np.array(n), "c": np.array(c)}, [name])[name].tolist() == [total], (n, c)


NESTED = """g (float[N,3] x, int64 n, bool c) => (float[N,3] y) <float[3,3] v = {1, 0, 0, 0, 2, 0, 0, 0, 1}> {
  y = If(c)<then_branch = p () => (float[N,3] a) {
    yes = Constant<value = bool {1}>()
    a = Loop(n, yes, x)<body = b (int64 i, bool go, float[N,3] s) => (bool on, float[N,3] t)
      <float[3,3] w = {0.5, 0, 0, 0, 0.25, 0, 0, 0, 1}> { on = Identity(go)  u = MatMul(s, w)  t = MatMul(u, v) }> },
  else_branch = q () => (float[N,3] b) { b = MatMul(x, v) }> }"""


@pytest.mark.parametrize("what", ["duplicate", "triplicate", "checksum"])
def test_detectors_go_into_bodies_and_their_alarms_come_out(what: str) -> None:
    model = load(text(NESTED))
    feeds = {"x": X, "n": np.array(3), "c": np.array(True)}
    edit: Any = parse_protection(what).passes(Setting(model, Selector(), None, OFF))
    made, names = edit.run(parse(model))
    onnx.checker.check_model(made)
    loop = "If#0.then_branch::Loop#1.body::"
    assert set(names) == {f"{loop}u", f"{loop}t", "If#0.else_branch::b"}
    before = OFF.prepare(model.source.data or b"").run(feeds)["y"]
    found = OFF.prepare(made.SerializeToString()).run(feeds)
    assert found["y"].tobytes() == before.tobytes() and not found.get("onnxfi.alarm", np.zeros(1)).any()
    # A fault in the second iteration alone: the result of a layer in the loop is wrong there.
    site = next(a for a in activations(load(made)) if a.target.id == f"{loop}t" or a.target.id.endswith("t.unvoted"))
    faulty = bake(made, [ActivationFault(site, 1, scale=8.0, first=1, last=1)])
    found = OFF.prepare(faulty.SerializeToString()).run(feeds)
    if what == "triplicate":
        assert found["y"].tobytes() == before.tobytes()
    else:
        assert found["y"].tobytes() != before.tobytes() and found["onnxfi.alarm"].tolist() == [1]
    for c, n in ((True, 0), (False, 3)):  # no iteration, and the other branch
        assert (
            not OFF.prepare(made.SerializeToString())
            .run(dict(feeds, n=np.array(n), c=np.array(c)))
            .get("onnxfi.alarm", np.zeros(1))
            .any()
        )
