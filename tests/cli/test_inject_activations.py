"""`onnxfi instrument`, and `onnxfi inject --target activations`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from campaign_commands import Run, checked

from onnxfi.runtime.engine.onnx_runtime import OrtEngine

Save = Callable[..., str]
ROOT = Path(__file__).parents[2]
CPU = OrtEngine(provider="cpu")


def test_inserted_faults_affect_the_named_sample(run: Run, save: Save, here: Path) -> None:
    save("m.onnx", "g (float[N,3] x) => (float[N,3] y) { t = Relu(x)  y = Add(t, t) }")
    ran = run(
        "inject", "m.onnx", "--target", "activations", "--site", "t[1]@sample=1:31", "--site", "y[0]:31", "-o", "f.onnx"
    )
    assert ran.code == 0 and "t[1]@sample=1" in ran.out
    found = CPU.prepare(here / "f.onnx").run({"x": np.ones((2, 3), np.float32)})["y"]
    assert found.tolist() == [[-2, 2, 2], [-2, -2, 2]]


def test_drawn_faults_are_the_same_again_and_inlined(run: Run, models: Path, here: Path) -> None:
    words = ("inject", models / "fashion_cnn.onnx", "--target", "activations", "--ber", "1e-4", "--seed", 3, "--json")
    first = checked(run(*words, "-o", "a.onnx"), "inject --target activations")
    second = run(*words, "-o", "b.onnx", "--inline").json
    assert first["faults"] == second["faults"] and first["drawn"] == len(first["faults"])
    assert first["population"] == 32 * (16 * 28 * 28 + 32 * 14 * 14 + 64 + 10)
    a, b = onnx.load(here / "a.onnx"), onnx.load(here / "b.onnx")
    assert a.functions and not b.functions
    x = {a.graph.input[0].name: np.random.default_rng(0).random((2, 1, 28, 28), dtype=np.float32)}
    one, other = (CPU.prepare(here / name).run(x)["logits"] for name in ("a.onnx", "b.onnx"))
    assert np.array_equal(one, other, equal_nan=True)


def test_with_data_golden_and_faulty_stand_side_by_side(run: Run, models: Path) -> None:
    ran = run(
        "inject", models / "fashion_cnn.onnx", "--target", "activations", "--count", 1, "--include", "relu_2",
        "--fault", "set:value=1000", "--data", models / "fashion_test.npz", "--samples", 50, "--json",
    )  # fmt: skip
    found = checked(ran, "inject --target activations")
    assert found["golden"]["top1"] >= found["faulty"]["top1"]
    assert (found["samples"], found["scored"]) == (50, "logits") and "fashion_test.npz" in found["data"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--site", "relv[0]:1"), "no target 'relv'"),
        (("--site", "relu[0]@step=1:1"), "lies in no loop"),
        (("--site", "relu[99999]:1"), "beyond"),
        (("--site", "relu[0]:32"), "bits are 0 to 31"),
        (("--count", 1, "--op", "Cnov"), "closest"),
        (("--count", 1, "--opset", 11), "below the model's own 18"),
        (("--count", 1, "--fault", "scale", "--bits", "3"), "whole words"),
        (("--count", 1, "--save-faults", "f.jsonl"), "for faults in weights"),
    ],
)
def test_bad_input_names_the_remedy(run: Run, models: Path, here: Path, words: tuple[object, ...], why: str) -> None:
    ran = run("inject", models / "fashion_cnn.onnx", "--target", "activations", *words)
    assert ran.code == 2 and why in ran.err
    assert not list(here.iterdir())


def test_flags_of_activations_are_refused_for_stored_words(run: Run, models: Path) -> None:
    ran = run("inject", models / "fashion_cnn.onnx", "--count", 1, "--inline")
    assert ran.code == 2 and "without --target activations" in ran.err


def test_external_data_is_copied_untouched(run: Run, here: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.arange(400, dtype=np.float32).reshape(20, 20), "w")
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,20] x) => (float[N,20] y) { y = MatMul(x, w) }'
    )
    proto.graph.initializer.append(weight)
    onnx.save(proto, here / "big.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert run("instrument", "big.onnx", "-o", "out.onnx").code == 0
    assert (here / "out.onnx.data").read_bytes() == (here / "w.bin").read_bytes()
    x = {"x": np.ones((1, 20), np.float32)}
    one, other = (CPU.prepare(here / name).run(x)["y"] for name in ("big.onnx", "out.onnx"))
    assert one.tobytes() == other.tobytes()
    assert "w.bin" not in json.dumps(str(onnx.load(here / "out.onnx", load_external_data=False)))


def test_inject_into_inputs_alone(run: Run, models: Path, here: Path) -> None:
    words = ["--target", "inputs", "--site", "image[5]@sample=1:30", "-o", "f.onnx"]
    found = checked(run("inject", models / "fashion_cnn.onnx", *words, "--json"), "inject --target activations")
    assert [f["target"] for f in found["faults"]] == ["image"] and found["population"] == 784 * 32
    images = np.random.default_rng(1).random((3, 1, 28, 28), np.float32)
    changed = images.copy()
    changed.reshape(3, -1)[1, 5:6].view(np.uint32)[:] ^= np.uint32(1 << 30)
    golden = CPU.prepare(models / "fashion_cnn.onnx").run({"image": changed})
    faulty = CPU.prepare("f.onnx").run({"image": images})
    np.testing.assert_array_equal(faulty["logits"], golden["logits"])
    ran = run("inject", models / "fashion_cnn.onnx", "--target", "inputs", "--count", 2)
    assert "inputs, count 2, seed 0" in ran.out and "image[" in ran.out and "relu" not in ran.out
    ran = run("inject", models / "fashion_cnn.onnx", "--target", "inputs", "--site", "relu[5]:30")
    assert ran.code == 2 and "relu" in ran.err
