"""The pass on whole models: bodies, steps, batch axes, quantised groups, names, opsets; by operator and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from armed_models import OFF, armed_and_baked, named, parsed, run
from google.protobuf import text_format
from offered_engines import needs_openvino
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxfi.errors import InputError, ModelError, SelectorError
from onnxfi.faults.space import Selector
from onnxfi.faults.words import Mask
from onnxfi.graph.dataflow.batch_layout import SampleAxis
from onnxfi.graph.model.loading import load
from onnxfi.graph.passes.fault_inputs import columns
from onnxfi.graph.passes.instrument import ActivationFault, arm, bake
from onnxfi.runtime.engine.registry import engine_of
from onnxfi.runtime.inject.activations import inject_activations, instrument

MODELS = Path(__file__).parents[3] / "models"
FULL = 0xFFFFFFFF
NEGATE = Mask(FULL, 1 << 31)


def test_outputs_inputs_and_captured_tensors() -> None:
    plain = parsed("""
    g (float[N,2] x, bool c) => (float[N,2] y, float[N,2] z) {
      y = Identity(x)
      z = If(c) <then_branch = a () => (float[N,2] p) { p = Add(y, x) },
                 else_branch = b () => (float[N,2] q) { q = Abs(y) }>
    }""")
    x = np.array([[1, 2], [3, 4]], np.float32)
    feeds = {"x": x, "c": np.array(True)}
    y = named(plain, "y")
    armed = arm(plain, [y])
    assert [o.name for o in armed.proto.graph.output] == ["y", "z"]
    found = armed_and_baked(plain, armed, [ActivationFault(y, 1, NEGATE, sample=1)], feeds, batch=2)
    assert found["y"].tolist() == [[1, 2], [3, -4]] and found["z"].tolist() == [[2, 4], [6, 0]]
    given = named(plain, "x")
    assert given.target.kind == "input"
    found = armed_and_baked(plain, arm(plain, [given]), [ActivationFault(given, 0, NEGATE)], feeds)
    assert found["z"].tolist() == [[-2, 4], [-6, 8]]


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_recurrent_outputs_have_their_batch_inside(op: str) -> None:
    gates = 4 if op == "LSTM" else 3
    rng = np.random.default_rng(0)
    stored = [
        onnx.numpy_helper.from_array(rng.normal(size=(1, gates * 4, 3)).astype("f4"), "w"),
        onnx.numpy_helper.from_array(rng.normal(size=(1, gates * 4, 4)).astype("f4"), "r"),
    ]
    info = [
        helper.make_tensor_value_info(n, 1, s)
        for n, s in (("x", [5, "N", 3]), ("y", [5, 1, "N", 4]), ("h", [1, "N", 4]))
    ]
    node = helper.make_node(op, ["x", "w", "r"], ["y", "h"], hidden_size=4)
    graph = helper.make_graph([node], "g", info[:1], info[1:], stored)
    plain = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    feeds = {"x": rng.normal(size=(5, 2, 3)).astype("f4")}
    golden = run(plain, feeds)
    y, h = named(plain, "y"), named(plain, "h")
    assert (y.axis, h.axis, y.target.shape, h.target.shape) == (2, 1, (5, 1, 4), (1, 4))
    index = int(np.ravel_multi_index((3, 0, 2), y.target.shape))
    found = armed_and_baked(
        plain,
        arm(plain, [y, h]),
        [ActivationFault(y, index, NEGATE, sample=1), ActivationFault(h, 3, NEGATE)],
        feeds,
        batch=2,
    )
    golden["y"][3, 0, 1, 2] *= -1
    golden["h"][0, :, 3] *= -1
    assert (found["y"] == golden["y"]).all() and (found["h"] == golden["h"]).all()


CLIP = "lo = Constant<value_float=0.0>() hi = Constant<value_float=6.0>()"


@pytest.mark.parametrize("form", ["armed", "baked", "inlined"])
@pytest.mark.parametrize("function", ["", "r = Relu(a)"], ids=["relu6", "protected"])
def test_a_range_restriction_holds_what_a_fault_before_it_makes_large(function: str, form: str) -> None:
    plain = parsed(f"""g (float[N,1,4,4] x, float[2,1,3,3] w) => (float[N,2,2,2] y)
        {{ {CLIP} a = Conv(x, w) {function} y = Clip({"r" if function else "a"}, lo, hi) }}""")
    feeds = {"x": np.ones((3, 1, 4, 4), "f4"), "w": np.full((2, 1, 3, 3), 0.1, "f4")}
    large = "set:value=1000"
    if form == "armed":
        armed = instrument(load(plain), body="portable").armed
        fault = ActivationFault(armed.sites[0], 1, Mask(0, int(np.float32(1000).view(np.uint32))))
        faulty = run(armed.proto, feeds | columns(armed, [fault]))["y"]
    else:
        faulty = run(inject_activations(load(plain), count=1, fault=large, inline=form == "inlined").data, feeds)["y"]
    changed = faulty != run(plain, feeds)["y"]
    assert changed.sum() == 3 and (faulty[changed] == 6).all()


def test_armed_again_without_a_clash() -> None:
    plain = parsed("g (float[N,2] x) => (float[N,2] y) { t = Relu(x)  y = Identity(t) }")
    first = arm(plain, [named(plain, "t")])
    second = arm(first.proto, [named(first.proto, "y")])
    onnx.checker.check_model(second.proto)
    assert (first.prefix, second.prefix) == ("onnxfi", "onnxfi2")
    assert len(second.proto.functions) == 1
    fed = columns(first, [ActivationFault(first.sites[0], 0, NEGATE)]) | columns(
        second, [ActivationFault(second.sites[0], 1, NEGATE)]
    )
    assert run(second.proto, {"x": np.ones((1, 2), "f4")} | fed)["y"].tolist() == [[-1, -1]]
    table = {entry.key: json.loads(entry.value) for entry in second.proto.metadata_props}
    assert table["onnxfi.sites"][0]["tensor"] == "t" and table["onnxfi2.sites"][0]["tensor"] == "y"


@pytest.mark.parametrize(
    "graph",
    [
        "g (float[N,2] x) => (float[N,2] y) { onnxfi__flip = Neg(x)  t = Relu(onnxfi__flip)  y = Neg(t) }",
        "g (float[N,2] onnxfi__element) => (float[N,2] y) { t = Relu(onnxfi__element)  y = Neg(t) }",
        "g (float[N,2] x) => (float[N,2] y) <float[2] onnxfi__checked = {1.0, 2.0}>"
        " { t = Relu(x)  y = Mul(t, onnxfi__checked) }",
        "g (float[N,2] x) => (float[N,2] y) { t = Relu(x)  t__golden = Neg(t)  t__onnxfi__reshape_0 = Neg(t__golden)"
        " onnxfi__check_constant_0 = Neg(t__onnxfi__reshape_0)  y = Neg(onnxfi__check_constant_0) }",
        "g (float[N,2] x) => (float[N,2] y) { t = Relu(x)  c = Constant<value_int=1>()  b = Cast<to=9>(c)"
        " y = If(b) <then_branch = th () => (o) { onnxfi__site = Neg(t) o = Neg(onnxfi__site) },"
        " else_branch = el () => (o) { o = Neg(t) }> }",
        "g (float[N,2] x) => (float[N,2] onnxfi__keep) { t = Relu(x)  onnxfi__keep = Neg(t) }",
        "g (float[N,2] x) => (float[N,2] onnxfi) { t = Relu(x)  onnxfi = Neg(t) }",
    ],
)
def test_names_like_those_that_arming_makes_do_not_clash(graph: str) -> None:
    said = text_format.MessageToString(parsed(graph)).replace("__", ".")  # the parser takes no name with a dot
    plain = text_format.Parse(said, onnx.ModelProto())
    [fed], [out] = plain.graph.input, plain.graph.output
    x = np.array([[1, -2], [-3, 4]], "f4")
    golden = run(plain, {fed.name: x})[out.name]
    armed = arm(plain, [named(plain, "t")])
    onnx.checker.check_model(armed.proto)
    assert run(armed.proto, {fed.name: x})[out.name].tobytes() == golden.tobytes()
    fault = ActivationFault(armed.sites[0], 0, NEGATE)
    faulty = run(armed.proto, {fed.name: x} | columns(armed, [fault]))[out.name]
    baked = run(bake(plain, [fault]), {fed.name: x})[out.name]
    assert (faulty != golden).any() and faulty.tobytes() == baked.tobytes()


def test_the_model_given_is_not_changed_and_nothing_to_arm_is_a_copy() -> None:
    plain = parsed("g (float[N,2] x) => (float[N,2] y) { y = Add(x, x) }")
    before = plain.SerializeToString(deterministic=True)
    arm(plain, [named(plain, "y")])
    bake(plain, [ActivationFault(named(plain, "y"), 0, NEGATE)])
    assert plain.SerializeToString(deterministic=True) == before
    done = instrument(load(plain))
    assert done.armed.sites == () and done.data == before
    with pytest.raises(SelectorError, match="closest: 'y'"):
        instrument(load(plain), Selector(include=("=yy",)))


def test_old_files_are_raised_and_their_weights_leave_the_inputs() -> None:
    plain = parsed("g (float[N,2] x, float[2] w) => (float[N,2] y) { t = Add(x, w)  y = Relu(t) }", opset=9, ir=3)
    plain.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    done = instrument(load(plain))
    assert [o.version for o in done.armed.proto.opset_import if o.domain == ""] == [13]
    assert done.armed.proto.ir_version >= 8 and "w" not in [i.name for i in done.armed.proto.graph.input]
    assert any("opset raised from 9 to 13" in n for n in done.notes)
    kept = instrument(load(parsed("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }", opset=11)))
    assert [o.version for o in kept.armed.proto.opset_import if o.domain == ""] == [11]
    native = instrument(load(parsed("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }")), body="native")
    assert any(
        n.op_type == "BitCast"
        for f in native.armed.proto.functions
        for b in f.node
        for a in b.attribute
        for n in a.g.node
    )
    with pytest.raises(InputError, match="below the model's own 17"):
        instrument(load(parsed("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }")), opset=13)
    with pytest.raises(SelectorError, match="opset 13"):
        half = parsed("g (bfloat16[N,2] x) => (bfloat16[N,2] y) { y = Identity(x) }", opset=14)
        half.opset_import[0].version = 11
        instrument(load(half), Selector(include=("=y",)), opset="keep")


@pytest.mark.parametrize("name", ["fashion_cnn", "fashion_gru", "fashion_attention"])
def test_by_operator_and_by_split_and_patch(name: str) -> None:
    """Every default site: the operator gives what cutting the model and patching the tensor with numpy gives."""
    path = MODELS / f"{name}.onnx"
    plain, armed = onnx.load(path), instrument(load(path)).armed
    session = OFF.prepare(armed.proto.SerializeToString())
    x = np.random.default_rng(0).random((2, *_sample(plain)), dtype=np.float32)
    feeds = {plain.graph.input[0].name: x}
    for k, site in enumerate(armed.sites):
        golden = run(_also(plain, site.name), feeds)[site.name]
        rows = np.moveaxis(golden, site.axis or 0, 0).copy()
        element = (k * 7919) % int(np.prod(rows.shape[1:]))
        flat = rows.reshape(2, -1)
        flat.view(np.uint32)[1, element] ^= np.uint32(1 << 30)
        patched = np.moveaxis(rows, 0, site.axis or 0)
        expected = run(_cut(plain, site.name), feeds | {site.name: np.ascontiguousarray(patched)})
        fed = columns(armed, [ActivationFault(site, element, Mask(FULL, 1 << 30), sample=1)], batch=2)
        found = session.run(feeds | fed)
        for n, array in expected.items():  # NaN is NaN: the portable body keeps no payload
            assert np.array_equal(found[n.removesuffix(".out")], array, equal_nan=True), site.target.id


def _sample(proto: onnx.ModelProto) -> list[int]:
    return [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]


def _also(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    if name not in [o.name for o in made.graph.output]:
        made.graph.output.append(onnx.ValueInfoProto(name=name))
    return made


def _cut(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model in which a tensor is an input instead of what its node puts out."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    for node in made.graph.node:
        for k, output in enumerate(node.output):
            if output == name:
                node.output[k] = f"{name}.unused"
    outputs = [o for o in made.graph.output if o.name != name]
    if len(outputs) < len(made.graph.output):
        made.graph.node.append(helper.make_node("Identity", [name], [f"{name}.out"]))
        for o in made.graph.output:
            o.name = f"{name}.out" if o.name == name else o.name
    made.graph.input.append(helper.make_tensor_value_info(name, 1, None))
    return made


def test_a_faulty_file_is_the_same_in_the_reference_evaluator_and_without_functions() -> None:
    sites = ["relu[3]:30", "relu_1[100]@sample=1:31", "logits[2]:22"]
    plain = load(MODELS / "fashion_cnn.onnx")
    done, inlined = inject_activations(plain, sites=sites), inject_activations(plain, sites=sites, inline=True)
    assert len(done.proto.functions) == 2 and not inlined.proto.functions
    assert {o.domain for o in inlined.proto.opset_import} == {""}
    x = np.random.default_rng(0).random((2, 1, 28, 28), dtype=np.float32)
    feeds = {plain.proto.graph.input[0].name: x}
    found = run(done.data, feeds)["logits"]
    assert found.tobytes() == run(inlined.data, feeds)["logits"].tobytes()
    with np.errstate(all="ignore"):
        reference = ReferenceEvaluator(done.proto).run(None, feeds)[0]
    np.testing.assert_allclose(reference, found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inline", [True, False])
def test_openvino_runs_the_faulty_file(inline: bool) -> None:
    needs_openvino()
    plain = load(MODELS / "fashion_cnn.onnx")
    faulty = inject_activations(plain, sites=["relu[3]:30", "logits[2]:31"], inline=inline)
    feeds = {plain.proto.graph.input[0].name: np.random.default_rng(0).random((2, 1, 28, 28), dtype=np.float32)}
    found = engine_of("openvino").prepare(faulty.data).run(feeds)["logits"]
    np.testing.assert_allclose(found, run(faulty.data, feeds)["logits"], rtol=1e-3)


def test_a_value_without_faults_says_why() -> None:
    plain = parsed(
        "g (seq(float[N]) s, int64 i) => (float[N] y, seq(float[N]) t) { y = SequenceAt(s, i)  t = Identity(s) }"
    )
    with pytest.raises(SelectorError, match="sequence, no tensor"):
        instrument(load(plain), Selector(include=("=t",)))
    with pytest.raises(ModelError, match="an input and an output of the graph at once"):
        same = parsed("g (float[N] x) => (float[N] x, float[N] y) { y = Neg(x) }")
        arm(same, [named(same, "x")])


FLAT = """net (float[N,5,4] x) => (float[N,20] y) <int64[2] rows = {-1,4}, int64[2] back = {-1,20}> {
    t = Reshape(x, rows) r = Abs(t) y = Reshape(r, back) }"""


@pytest.mark.parametrize("opset", [13, 21])
def test_rows_of_a_sample_that_are_flattened_into_the_batch(opset: int) -> None:
    plain = parsed(FLAT, opset)
    a = named(plain, "r")
    assert (a.target.shape, a.place) == ((5, 4), SampleAxis(0, inner=5))
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 5, 4)).astype("f4")}
    golden = run(plain, feeds)["y"]
    for faults, places in (
        ([ActivationFault(a, 7, NEGATE, sample=2), ActivationFault(a, 19, NEGATE, sample=0)], [[0, 19], [2, 7]]),
        ([ActivationFault(a, 7, NEGATE)], [[0, 7], [1, 7], [2, 7]]),
    ):
        found = armed_and_baked(plain, arm(plain, [a]), faults, feeds, batch=3)["y"]
        assert np.argwhere(found != golden).tolist() == places
