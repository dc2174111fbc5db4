"""Quantising: every mode on a shipped model, what it reports checked by hand, and everything that is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from single_layers import linear, saved

from onnxfi.campaign.execute.canary import prove
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import DataError, EngineError, InputError, OnnxfiError, OutputError, SelectorError
from onnxfi.graph.model.loading import load
from onnxfi.runtime.data.open_data import Data, open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.quantize.quantize import quantize
from onnxfi.runtime.quantize.recipe import QuantisationRecipe
from onnxfi.tasks.evaluation import evaluate

ROOT = Path(__file__).parents[3]
CNN, TEST = ROOT / "models/fashion_cnn.onnx", ROOT / "models/fashion_test.npz"
ATTENTION, GRU = (ROOT / f"models/fashion_{name}.onnx" for name in ("attention", "gru"))
RECIPES = {
    "static": QuantisationRecipe("static", calibration_samples=40),
    "static per channel": QuantisationRecipe("static", per_channel=True, calibration_samples=40),
    "static qoperator": QuantisationRecipe("static", format="qoperator", calibration_samples=40),
    "static uint8 weights": QuantisationRecipe("static", weights="uint8", calibration_samples=40),
    "static int8 activations": QuantisationRecipe("static", activations="int8", calibration_samples=40),
    "static percentile": QuantisationRecipe("static", calibration="percentile", calibration_samples=40),
    "static entropy": QuantisationRecipe("static", calibration="entropy", calibration_samples=40),
    "static int4": QuantisationRecipe("static", weights="int4", opset=21, calibration_samples=40),
    "dynamic": QuantisationRecipe("dynamic"),
    "dynamic uint8": QuantisationRecipe("dynamic", weights="uint8"),
    "dynamic per channel": QuantisationRecipe("dynamic", per_channel=True),
    "weight-only int4": QuantisationRecipe("weight-only"),
    "weight-only uint4": QuantisationRecipe("weight-only", weights="uint4", block=64),
    "weight-only int8": QuantisationRecipe("weight-only", weights="int8"),
    "weight-only qdq": QuantisationRecipe("weight-only", format="qdq", opset=21),
    "fp16": QuantisationRecipe("fp16"),
    "bf16": QuantisationRecipe("bf16"),
}
#: In the core tests: one of each mode.
CORE = ("static", "static qoperator", "static int4", "dynamic", "weight-only int4", "fp16", "bf16")
#: Number formats of the weights, and the scheme.
FORMATS = {
    "static uint8 weights": ("uint8", "QDQ"), "static qoperator": ("int8", "QOperator"), "static int4": ("int4", "QDQ"),
    "dynamic": ("int8", "dynamic"), "dynamic uint8": ("uint8", "dynamic"), "dynamic per channel": ("int8", "dynamic"),
    "weight-only int4": ("uint4", "MatMulNBits"), "weight-only uint4": ("uint4", "MatMulNBits"),
    "weight-only int8": ("uint8", "MatMulNBits"), "weight-only qdq": ("int4", "QDQ"), "fp16": ("float16", None),
    "bf16": ("bfloat16", None),
}  # fmt: skip


@pytest.fixture(scope="module")
def images() -> Data:
    return open_data(TEST, OrtEngine(provider="cpu").prepare(CNN).inputs, limit=300)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in CORE else pytest.mark.slow) for name in RECIPES]
)
def test_every_mode_makes_a_model_that_runs_and_whose_weights_take_faults(
    name: str, images: Data, tmp_path: Path
) -> None:
    recipe, out = RECIPES[name], tmp_path / "q.onnx"
    before = CNN.read_bytes()
    done = quantize(load(CNN), recipe, out, data=images)
    assert CNN.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["q.onnx"]
    golden, found = (evaluate(p, images, engine=OrtEngine(provider="cpu")) for p in (CNN, out))
    assert found.metrics["top1"] > golden.metrics["top1"] - (0.12 if name == "static int4" else 0.03)
    assert done.size_after_bytes == out.stat().st_size < 0.55 * done.size_before_bytes
    proto, model = onnx.load(out), load(out)
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    used = {node.domain for node in proto.graph.node}
    assert {o.domain for o in proto.opset_import} == used | {""}
    dtype, scheme = FORMATS.get(name, ("int8", "QDQ"))
    weights = [t for t in model.targets if t.role == "weight" and t.dtype != "float32"]
    assert {(t.dtype, t.scheme and t.scheme.name) for t in weights} == {(dtype, scheme)}
    assert {t.layer for t in weights} == ({"fc1", "fc2"} if "only" in name else {"conv1", "conv2", "fc1", "fc2"})
    assert [op for _, op in done.left] == (["Conv", "Conv"] if "only" in name else [])
    assert done.words >= 100_352 + 640 and done.clipped < 0.01 * done.words
    bench = TrialExecutor.open(Campaign(str(out), str(TEST), samples=50, single=True, trials=1, provider="cpu"))
    for target in weights:
        assert prove(bench, [target])["seen"] == target.id


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["static per channel", "static entropy", "dynamic", "weight-only int4", "fp16", "bf16"]
)
def test_the_same_twice_is_the_same_bytes(name: str, images: Data, tmp_path: Path) -> None:
    digests = [quantize(load(CNN), RECIPES[name], tmp_path / f"{k}.onnx", data=images).digest for k in range(2)]
    assert digests[0] == digests[1]


def test_clipped_and_flushed_are_counted(tmp_path: Path) -> None:
    weight = np.full((16, 8), 0.5)
    weight[0, :3] = [1e6, -70000, 65504]  # two beyond float16
    weight[1, :4] = [1e-9, -2e-8, 6e-8, 0.0]  # two below its smallest positive number
    path = saved(tmp_path / "m.onnx", linear(weight))
    with pytest.raises(
        EngineError, match=r"what mode fp16 made lie 93% away from the float model's .* nothing was written"
    ):
        quantize(load(path), QuantisationRecipe("fp16"), tmp_path / "h.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    fed = np.ones((4, 16), np.float32)
    fed[:, :2] = 0  # what is clipped changes no answer here
    data = open_data({"x": fed}, OrtEngine(provider="cpu").prepare(path).inputs)
    half = quantize(load(path), QuantisationRecipe("fp16"), tmp_path / "h.onnx", data=data)
    assert (half.words, half.clipped, half.flushed) == (128, 2, 0)
    stored = numpy_helper.to_array(onnx.load(tmp_path / "h.onnx").graph.initializer[0]).astype(np.float64)
    assert stored[0, :3].tolist() == [65504, -65504, 65504]
    assert stored[1, :4].tolist() == [2**-24, -(2**-24), 2**-24, 0]  # held at the smallest number
    brain = quantize(load(path), QuantisationRecipe("bf16"), tmp_path / "b.onnx")
    assert (brain.clipped, brain.flushed) == (0, 0)
    integers = quantize(load(path), QuantisationRecipe("dynamic"), tmp_path / "i.onnx")
    step = 2 * 1e6 / 254
    assert integers.flushed == int(np.count_nonzero((weight != 0) & (np.abs(weight) < step / 2)))
    assert integers.clipped == 0


@pytest.mark.slow
def test_excluded_nodes_stay_in_float(images: Data, tmp_path: Path) -> None:
    for recipe in (QuantisationRecipe("dynamic", exclude=("fc2",)), QuantisationRecipe("weight-only", exclude=("fc2",)),
                   QuantisationRecipe("bf16", exclude=("fc2",)), QuantisationRecipe("fp16", exclude=("fc2",)),
                   QuantisationRecipe("static", exclude=("=node_linear_1",), calibration_samples=20)):  # fmt: skip
        done = quantize(load(CNN), recipe, tmp_path / "q.onnx", data=images)
        assert done.excluded == ("node_linear_1",)
        weights = {t.layer: t.dtype for t in load(tmp_path / "q.onnx").targets if t.role == "weight"}
        assert weights["fc2"] == "float32" and weights["fc1"] != "float32", recipe
        assert "node_linear_1" not in dict(done.left)


def test_what_cannot_be_quantised_is_named(tmp_path: Path) -> None:
    done = quantize(load(GRU), QuantisationRecipe("dynamic"), tmp_path / "q.onnx")
    assert [op for _, op in done.left] == ["GRU"]
    done = quantize(load(ATTENTION), QuantisationRecipe("weight-only"), tmp_path / "q.onnx")
    assert [op for _, op in done.left] == ["Conv"]


def test_no_temporary_file_is_left_where_shape_inference_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    proto = onnx.load(CNN)
    proto.graph.node.append(helper.make_node("NonZero", ["logits"], ["found"], name="found"))
    proto.graph.node.append(helper.make_node("Reshape", ["found", "four"], ["odd"], name="odd"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([-1, 2, 3]), "four"))
    proto.graph.output.append(helper.make_tensor_value_info("odd", TensorProto.INT64, None))
    done = quantize(load(saved(tmp_path / "m.onnx", proto)), QuantisationRecipe("dynamic"), "q.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "q.onnx"]
    assert done.layers == {"ConvInteger": 2, "MatMulInteger": 2}


def test_weights_in_constants_are_found(tmp_path: Path) -> None:
    for recipe in (
        QuantisationRecipe("weight-only"),
        QuantisationRecipe("dynamic"),
        QuantisationRecipe("bf16"),
        QuantisationRecipe("fp16"),
    ):
        proto = linear(np.linspace(-1, 1, 64 * 8).reshape(64, 8))
        tensor = proto.graph.initializer.pop()
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], name="c", value=tensor))
        done = quantize(load(saved(tmp_path / "m.onnx", proto)), recipe, tmp_path / "q.onnx")
        assert done.words == 512, recipe


def test_on_x86_activations_are_uint8_and_this_is_said(
    images: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for machine, wanted, said in (("x86_64", "uint8", True), ("aarch64", "int8", False)):
        monkeypatch.setattr("platform.machine", lambda name=machine: name)
        done = quantize(
            load(CNN), QuantisationRecipe("static", calibration_samples=20), tmp_path / "q.onnx", data=images
        )
        assert done.recipe.activations == wanted
        assert any("activations are uint8" in note for note in done.notes) is said


@pytest.mark.slow
def test_a_model_with_external_data_keeps_it_outside(images: Data, tmp_path: Path) -> None:
    proto = onnx.load(CNN)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    for recipe in (
        QuantisationRecipe("dynamic"),
        QuantisationRecipe("static", calibration_samples=20),
        QuantisationRecipe("bf16"),
        QuantisationRecipe("fp16"),
    ):
        done = quantize(load(tmp_path / "m.onnx"), recipe, tmp_path / "q.onnx", data=images)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.data", "m.onnx", "q.onnx", "q.onnx.data"]
        assert done.size_after_bytes == sum((tmp_path / n).stat().st_size for n in ("q.onnx", "q.onnx.data"))
        assert evaluate(tmp_path / "q.onnx", images).metrics["top1"] > 0.88


# Refused


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (QuantisationRecipe("static"), "static mode calibrates activations on data; give --data"),
        (
            QuantisationRecipe("static", weights="int4"),
            r"int4 in QDQ form needs opset 21, the model has 18; --opset 21 raises it",
        ),
        (QuantisationRecipe("weight-only", format="qdq"), "needs opset 21, the model has 18"),
        (QuantisationRecipe("bf16", opset=17), "--opset 17 is below the model's 18"),
        (
            QuantisationRecipe("dynamic", exclude=("conv9",)),
            r"--exclude 'conv9' matches no node, layer or weight; closest: 'conv",
        ),
    ],
)
def test_what_does_not_go_with_the_model_is_refused(
    recipe: QuantisationRecipe, message: str, images: Data, tmp_path: Path
) -> None:
    with pytest.raises((InputError, SelectorError), match=message):
        quantize(load(CNN), recipe, tmp_path / "q.onnx", data=None if message.startswith("static") else images)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["int8_qdq", "int8_qoperator", "fp16"])
def test_quantising_twice_prints_a_note(name: str, tmp_path: Path) -> None:
    message = "has no float32 weights" if name == "fp16" else "is quantised already: 8 tensors"
    with pytest.raises(InputError, match=message):
        quantize(load(ROOT / f"models/fashion_cnn_{name}.onnx"), QuantisationRecipe("dynamic"), tmp_path / "q.onnx")


def test_a_model_without_anything_to_quantise_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", linear(np.ones((4, 4)), op="Add"))
    with pytest.raises(InputError, match="no float32 weights to quantise"):
        quantize(load(path), QuantisationRecipe("dynamic"), tmp_path / "q.onnx")
    done = tmp_path / "prelu.onnx"
    saved(done, linear(np.ones((4, 4)), op="PRelu"))
    with pytest.raises(InputError, match="nothing could be quantised in mode dynamic"):
        quantize(load(done), QuantisationRecipe("dynamic"), tmp_path / "q.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "prelu.onnx"]


def test_bf16_below_opset_13_is_refused_and_can_be_raised(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", linear(np.ones((4, 4)), opset=11))
    with pytest.raises(InputError, match=r"bf16 needs opset 13, the model has 11; --opset 13 raises it"):
        quantize(load(path), QuantisationRecipe("bf16"), tmp_path / "q.onnx")
    assert quantize(load(path), QuantisationRecipe("bf16", opset=13), tmp_path / "q.onnx").words == 16


def test_calibration_data_of_a_wrong_shape_is_refused() -> None:
    inputs = OrtEngine(provider="cpu").prepare(CNN).inputs
    with pytest.raises(DataError, match=r"'image' has shape \[4,1,14,14\]"):
        open_data({"image": np.zeros((4, 1, 14, 14), np.float32)}, inputs)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no folder"):
        quantize(load(CNN), QuantisationRecipe("fp16"), tmp_path / "no/q.onnx")
    with pytest.raises(OutputError, match="is the input itself"):
        quantize(load(CNN), QuantisationRecipe("fp16"), CNN)


def test_a_failure_on_the_way_leaves_nothing(images: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the\nquantiser\x1b broke")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", broken)
    out = tmp_path / "q.onnx"
    out.write_text("what was there")
    with pytest.raises(OnnxfiError, match=r"the quantiser refuses the model: the quantiser\\x1b broke"):
        quantize(load(CNN), QuantisationRecipe("static"), out, data=images)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["what was there"]


# Campaigns


@pytest.mark.parametrize(
    "name", ["int8_qoperator", *(pytest.param(some, marks=pytest.mark.slow) for some in ("int8_qdq", "fp16"))]
)
def test_campaigns_run_on_the_shipped_versions(name: str, tmp_path: Path) -> None:
    model = str(ROOT / f"models/fashion_cnn_{name}.onnx")
    campaign = Campaign(model, str(TEST), samples=100, ber=(1e-5, 1e-3), repeat=4, provider="cpu")
    results = list(run(campaign, tmp_path / "s.db"))
    assert len(results) == 8 and not any(r.error for r in results)
    assert {r.outcome for r in results} <= {"masked", "sdc", "due"}
    weights = Campaign(model, str(TEST), samples=100, single=True, trials=20, role=("weight",), provider="cpu")
    assert not any(r.error for r in run(weights, tmp_path / "w.db"))


@pytest.mark.slow
@pytest.mark.fetched
@pytest.mark.parametrize("name", ["smart_turn_int8", "ddddocr_int8", "minilm_int8"])
def test_campaigns_run_on_models_that_ship_quantised(name: str, tmp_path: Path) -> None:
    path = ROOT / f"fetched/{name}.onnx"
    if not path.exists():
        pytest.skip(f"no {name}")
    campaign = Campaign(
        str(path), samples=1, single=True, trials=6, role=("weight",), dtype=("int8", "uint8"), provider="cpu"
    )
    running = run(campaign, tmp_path / "s.db")
    results = list(running)
    assert len(results) == 6 and not any(r.error for r in results)
