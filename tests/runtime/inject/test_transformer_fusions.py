"""Models that onnxruntime.transformers fuses, or that ONNX Runtime saves optimised: inspected, injected into, run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser
from onnxruntime.transformers import optimizer

from onnxfi.campaign.execute.export_trial import export_trial
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.activations import inject_activations
from onnxfi.runtime.inject.inspection import inspect_activations
from onnxfi.runtime.inject.weights import inject, inspect, sample

MODELS = Path(__file__).parents[3] / "models"
#: A transformer block as exporters write it, behind a normalisation: attention of four heads, and a GELU from Erf.
BLOCK = """g (float[N,8,32] x) => (float[N,4] y)
  <int64[4] heads = {0,0,4,8}, int64[3] whole = {0,0,32}, float scale = {2.828427}, int64[1] axis = {1},
   float root = {1.4142135}, float one = {1}, float half = {0.5}>
  { n = LayerNormalization<axis = -1>(x, g0, b0)
    qm = MatMul(n, wq) qa = Add(bq, qm) qr = Reshape(qa, heads) q = Transpose<perm = [0,2,1,3]>(qr)
    km = MatMul(n, wk) ka = Add(bk, km) kr = Reshape(ka, heads) k = Transpose<perm = [0,2,3,1]>(kr)
    vm = MatMul(n, wv) va = Add(bv, vm) vr = Reshape(va, heads) v = Transpose<perm = [0,2,1,3]>(vr)
    s = MatMul(q, k) d = Div(s, scale) p = Softmax<axis = -1>(d) c = MatMul(p, v)
    ct = Transpose<perm = [0,2,1,3]>(c) cr = Reshape(ct, whole) om = MatMul(cr, wo) oa = Add(bo, om)
    r1 = Add(oa, n) l1 = LayerNormalization<axis = -1>(r1, g1, b1)
    fm = MatMul(l1, w1) fa = Add(bw1, fm) e1 = Div(fa, root) e2 = Erf(e1) e3 = Add(e2, one) e4 = Mul(fa, e3)
    ge = Mul(e4, half) hm = MatMul(ge, w2) ha = Add(bw2, hm) r2 = Add(ha, l1)
    l2 = LayerNormalization<axis = -1>(r2, g2, b2)
    pool = ReduceMean<keepdims = 0>(l2, axis) ym = MatMul(pool, w3) y = Add(ym, b3) }"""
SHAPES = {
    **dict.fromkeys(("wq", "wk", "wv", "wo"), (32, 32)), "w1": (32, 64), "w2": (64, 32), "w3": (32, 4), "b3": (4,),
    **dict.fromkeys(("bq", "bk", "bv", "bo", "b0", "b1", "b2", "g0", "g1", "g2", "bw2"), (32,)), "bw1": (64,),
}  # fmt: skip


@pytest.fixture(scope="module", params=["float32", "float16"])
def fused(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The block, fused by onnxruntime.transformers, and converted to float16 by it."""
    folder = tmp_path_factory.mktemp("fused")
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]>{BLOCK}')
    chance = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        array = chance.normal(0, 0.3, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, folder / "plain.onnx")
    made = optimizer.optimize_model(
        str(folder / "plain.onnx"), model_type="bert", num_heads=4, hidden_size=32, opt_level=0
    )
    if request.param == "float16":
        made.convert_float_to_float16(keep_io_types=True)
    made.save_model_to_file(str(folder / f"{request.param}.onnx"))
    counts = Counter(node.op_type for node in made.model.graph.node)
    assert (counts["Attention"], counts["SkipLayerNormalization"], counts["BiasGelu"]) == (1, 2, 1)
    return folder / f"{request.param}.onnx"


def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(6, 8, 32)).astype(np.float32)


def answers(model: Path | bytes, **feeds: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    out: np.ndarray = session.run(["y"], {"x": images(), **feeds})[0]
    return out


def test_roles_layers_and_outputs_of_fused_operators(fused: Path) -> None:
    dtype = fused.stem
    rows = {row["target"]: row for row in inspect(load(fused))["targets"]}
    assert {row["dtype"] for row in rows.values()} == {dtype}
    roles = {name: row["role"] for name, row in rows.items()}
    assert roles["Attention_0_qkv_weight"] == "weight" and roles["Attention_0_qkv_bias"] == "bias"
    assert {roles[name] for name in ("bw1", "bo", "b1", "b2", "b0")} == {"bias"}
    assert {roles[name] for name in ("w1", "wo", "g0", "g1", "g2")} == {"weight"}
    found = {row["target"]: row for row in inspect_activations(load(fused))["activations"]}
    assert [found[name]["op"] for name in ("cr", "l1", "ge")] == ["Attention", "SkipLayerNormalization", "BiasGelu"]
    assert "fm" not in found, "the product before the GELU, which a fault meets behind both"
    assert [part["op"] for part in found["ge"]["outputs_of"]] == ["MatMul", "BiasGelu"]
    assert found["cr"]["sample_shape"] == [8, 32] and found["cr"]["dtype"] == dtype


@pytest.mark.parametrize("target", ["Attention_0_qkv_weight", "bw1", "g1"])
def test_a_bit_in_a_fused_weight_is_the_only_difference(fused: Path, tmp_path: Path, target: str) -> None:
    drawn = sample(load(fused), count=1, seed=3, selector=Selector(include=(f"={target}",), bits="exponent"))
    done = inject(load(fused), drawn, tmp_path / "faulty.onnx")
    proto, faulty = (onnx.load(path) for path in (fused, done.out))
    (fault,) = done.sample.faults
    for one, other in zip(proto.graph.initializer, faulty.graph.initializer, strict=True):
        words = np.frombuffer(one.raw_data, f"u{numpy_helper.to_array(one).itemsize}").copy()
        if one.name == target:
            words[fault.index] ^= 1 << fault.bits[0]
            one.raw_data = words.tobytes()
        assert words.tobytes() == other.raw_data
    np.testing.assert_array_equal(answers(done.out), answers(proto.SerializeToString()))
    assert not np.array_equal(answers(done.out), answers(fused))


def context(model: Path | bytes, name: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Return an activation of a model."""
    proto = onnx.load(model) if isinstance(model, Path) else onnx.ModelProto.FromString(model)
    if name not in [value.name for value in proto.graph.output]:
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run([name], feeds)[0]
    return found


@pytest.mark.parametrize("head", [0, 3])
@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_a_head_of_a_fused_attention_is_a_slice_of_its_weight(fused: Path, part: str, head: int) -> None:
    first = 32 * "qkv".index(part) + 8 * head
    only = Selector(include=("=Attention_0_qkv_weight",), elements=f":,{first}:{first + 8}", bits="exponent")
    done = inject(load(fused), sample(load(fused), count=40, seed=3, selector=only))
    assert done.data is not None
    feeds = {"x": images()}
    with np.errstate(all="ignore"):
        differ = np.nan_to_num(context(done.data, "cr", feeds)) != np.nan_to_num(context(fused, "cr", feeds))
    columns = np.flatnonzero(differ.any(axis=(0, 1)))
    assert columns.size and set(columns // 8) == {head}


#: A layer as onnxruntime-genai's builder writes it: four heads of queries on two of keys and values, packed.
GROUPED = """g (float[N,T,16] x, float[N,2,P,8] past_key, float[N,2,P,8] past_value, int32[N] seen, int32 total)
  => (float[N,T,32] c, float[N,2,S,8] present_key, float[N,2,S,8] present_value)
  { qkv = MatMul(x, w) a, present_key, present_value =
      com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(qkv, , , past_key, past_value, seen, total)
    c = MatMul(a, wo) }"""


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grouped") / "grouped.onnx"
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>{GROUPED}')
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, ["N", "T", 32]))
    chance = np.random.default_rng(0)
    for name, shape in {"w": (16, 64), "wo": (32, 32)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(chance.normal(0, 0.3, shape).astype(np.float32), name))
    onnx.save(proto, path)
    return path


def decoding() -> dict[str, np.ndarray]:
    cache = np.zeros((3, 2, 0, 8), np.float32)
    x = np.random.default_rng(2).normal(size=(3, 5, 16)).astype(np.float32)
    total = np.int32(5)
    return {"x": x, "past_key": cache, "past_value": cache, "seen": np.full(3, 4, np.int32), "total": np.array(total)}


@pytest.mark.parametrize(("first", "heads"), [(8, {1}), (32, {0, 1}), (40, {2, 3}), (56, {2, 3})])
def test_heads_of_a_grouped_attention_are_slices_too(grouped: Path, first: int, heads: set[int]) -> None:
    only = Selector(include=("=w",), elements=f":,{first}:{first + 8}", bits="20-25")
    done = inject(load(grouped), sample(load(grouped), count=60, seed=3, selector=only))
    assert done.data is not None
    differ = context(done.data, "a", decoding()) != context(grouped, "a", decoding())
    assert set(np.flatnonzero(differ.any(axis=(0, 1))) // 8) == heads


def test_a_grouped_attention_is_inspected_and_instrumented(grouped: Path) -> None:
    found = {row["target"]: row for row in inspect_activations(load(grouped))["activations"]}
    assert {name: found[name]["op"] for name in ("qkv", "a", "c")} == {
        "qkv": "MatMul", "a": "GroupQueryAttention", "c": "MatMul",
    }  # fmt: skip
    done = inject_activations(load(grouped), sites=["a[7]@sample=1:30"])
    assert done.data is not None
    whole, faulty = (context(model, "c", decoding()) for model in (grouped, done.data))
    rows = np.argwhere(whole != faulty)
    assert {tuple(row[:2]) for row in rows.tolist()} == {(1, 0)}, "element 7 is in the first position of sample 1"


@pytest.mark.parametrize(("name", "index"), [("cr", 37), ("l1", 100), ("ge", 17)])
def test_a_fault_behind_a_fused_operator_is_one_in_what_it_puts_out(fused: Path, name: str, index: int) -> None:
    bit = 14 if fused.stem == "float16" else 30
    done = inject_activations(load(fused), sites=[f"{name}[{index}]@sample=2:{bit}"])
    proto = onnx.load(fused)
    shown = onnx.ModelProto.FromString(proto.SerializeToString())
    shown.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    value = session.run([name], {"x": images()})[0].copy()
    words = value.reshape(6, -1).view(f"u{value.itemsize}")
    words[2, index] ^= 1 << bit
    for node in proto.graph.node:  # what follows reads the changed tensor, fed from outside
        node.output[:] = [f"{o}.before" if o == name else o for o in node.output]
    number = onnx.TensorProto.FLOAT16 if value.dtype == np.float16 else onnx.TensorProto.FLOAT
    proto.graph.input.append(onnx.helper.make_tensor_value_info(name, number, ["N", *value.shape[1:]]))
    expected = answers(proto.SerializeToString(), **{name: value})
    # ONNX Runtime keeps 16-bit tensors between two operators in 32 bits, unless something else reads them.
    np.testing.assert_allclose(answers(done.data), expected, atol=1e-2 if fused.stem == "float16" else 0)
    assert np.abs(expected[2] - answers(fused)[2]).max() > 0.03


def test_a_campaign_on_a_fused_model_writes_the_model_of_a_trial(fused: Path, tmp_path: Path) -> None:
    labels = answers(fused).argmax(1)
    np.savez(tmp_path / "data.npz", x=images(), labels=labels)
    campaign = Campaign(
        str(fused), str(tmp_path / "data.npz"), single=True, trials=12, provider="cpu", optimization="off",
        target=("weights", "activations"), bits="exponent", persistence="permanent", seed=2,
    )  # fmt: skip
    for _ in run(campaign, tmp_path / "s.db"):
        pass
    with Store.open(tmp_path / "s.db") as opened:
        rows = list(opened.rows())
    assert len(rows) == 12
    for row in (row for row in rows if row.outcome != "due"):
        export_trial(tmp_path / "s.db", row.trial, tmp_path / f"{row.trial}.onnx")
        faulty = answers(tmp_path / f"{row.trial}.onnx")
        assert row.metrics["top1"] == pytest.approx((faulty.argmax(1) == labels).mean()), row


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "level"),
    [
        (name, level)
        for name in ("fashion_cnn", "fashion_attention", "fashion_gru", "fashion_cnn_fp16", "fashion_cnn_int8_qdq")
        for level in ("BASIC", "EXTENDED", "LAYOUT", "ALL")
    ],
)  # fmt: skip
def test_models_that_the_runtime_saves_optimised(tmp_path: Path, name: str, level: str) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "saved.onnx"), 3
    session = onnxruntime.InferenceSession(MODELS / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    with np.load(MODELS / "fashion_test.npz") as data:
        feeds = {"image": data["image"][:8]}
    golden = session.run(None, feeds)[0]
    model = load(tmp_path / "saved.onnx")
    done = inject(model, sample(model, count=1, seed=1), tmp_path / "faulty.onnx")
    differ = [
        one.name
        for one, other in zip(*(onnx.load(p).graph.initializer for p in (model.path or "", done.out)), strict=True)
        if numpy_helper.to_array(one).tobytes() != numpy_helper.to_array(other).tobytes()
    ]
    assert differ == [done.sample.faults[0].target]
    last = inspect_activations(model)["activations"][-1]
    bit = {"float16": 14, "float32": 30}.get(last["dtype"], 7)
    inject_activations(model, tmp_path / "active.onnx", sites=[f"{last['target']}[0]@sample=1:{bit}"])
    found = onnxruntime.InferenceSession(tmp_path / "active.onnx", options, providers=["CPUExecutionProvider"])
    faulty = found.run(None, feeds)[0]
    # Float16 that the runtime computes in float32 is rounded at the faulty tensor, as by any reader of it.
    atol = 1e-4 if name.endswith("fp16") else 0
    np.testing.assert_allclose(np.delete(faulty, 1, 0), np.delete(golden, 1, 0), rtol=0, atol=atol)
    assert np.abs(faulty[1] - golden[1]).max() > atol
