"""`onnxfi instrument`, and `onnxfi inject --target activations`."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator

from onnxfi.runtime.engine.onnx_runtime import OrtEngine

Run = Callable[..., Any]
Save = Callable[..., str]
ROOT = Path(__file__).parents[2]
CPU = OrtEngine(provider="cpu")
SCHEMAS = {
    schema["title"].removeprefix("onnxfi "): schema
    for schema in map(
        json.loads, re.findall(r"```json\n(.*?)\n```", (ROOT / "docs" / "reference" / "json.md").read_text(), re.S)
    )
}


def checked(ran: Any, verb: str) -> Any:
    """The document of a command, held against its schema."""
    Draft202012Validator(SCHEMAS[verb]).validate(ran.json)
    return ran.json


def test_instrument_says_what_to_feed_and_the_example_feeds_it(run: Run, models: Path, here: Path) -> None:
    ran = run("instrument", models / "fashion_cnn.onnx")
    assert ran.code == 0
    for text in ("4 sites armed", "relu_2", "onnxfi.element", "[S,F]", "wrote fashion_cnn.armed.onnx"):
        assert text in ran.out
    spec = importlib.util.spec_from_file_location("armed_file", ROOT / "examples" / "armed_file.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(str(here / "fashion_cnn.armed.onnx"))
    assert "onnxfi" not in [
        line.split()[1] for line in Path(spec.origin or "").read_text().splitlines() if "import " in line[:7]
    ]


def test_instrument_as_json(run: Run, models: Path) -> None:
    found = checked(run("instrument", models / "fashion_gru.onnx", "--all", "-o", "armed.onnx", "--json"), "instrument")
    assert found["inputs"] == [f"onnxfi.{c}" for c in ("site", "element", "keep", "flip")]
    assert [row["site"] for row in found["sites"]] == list(range(31))
    gru = next(row for row in found["sites"] if row["op"] == "GRU")
    assert gru["batch_axis"] == 2


def test_an_armed_file_whose_numbers_change(run: Run, save: Save, here: Path) -> None:
    save("m.onnx", "g (float[N,3] x) => (float[N,3] y) { t = Relu(x)  i = Cast<to=9>(t)  y = Add(t, t) }")
    ran = run("instrument", "m.onnx", "--values", "--all", "-o", "a.onnx")
    assert (
        "onnxfi.scale" in ran.out
        and "float64 [S,F]" in ran.out
        and "1 activation left out: a value fault on bool" in ran.out
    )
    found = checked(run("instrument", "m.onnx", "--values", "--include", "t", "-o", "a.onnx", "--json"), "instrument")
    assert found["inputs"] == [f"onnxfi.{c}" for c in ("site", "element", "scale", "shift")]
    fed = {"onnxfi.site": np.array([0]), "onnxfi.element": np.array([[1], [2]])}  # a row per sample
    fed |= {"onnxfi.scale": np.array([[3.0], [1.0]]), "onnxfi.shift": np.array([[-0.0], [0.5]])}
    session = CPU.prepare(here / "a.onnx")
    assert session.run({"x": np.ones((2, 3), np.float32)} | fed)["y"].tolist() == [[2, 6, 2], [2, 2, 3]]
    assert session.run({"x": np.ones((2, 3), np.float32)})["y"].tolist() == [[2, 2, 2]] * 2


def test_a_raise_is_proven_on_the_data_that_is_given(run: Run, here: Path) -> None:
    text = '<float[4] s = {1, 1, 1.5, 1.5}> { t = Resize<mode="linear">(x, s)  y = Relu(t) }'
    head = '<ir_version: 5, opset_import: ["": 10]> g (float[N,1,4,4] x) => (float[N,1,6,6] y) '
    onnx.save(onnx.parser.parse_model(head + text), here / "m.onnx")
    np.savez("flat.npz", x=np.ones((2, 1, 4, 4), np.float32))
    np.savez("steep.npz", x=np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4))
    kept = run("instrument", "m.onnx", "--data", "flat.npz", "-o", "out.onnx")
    assert kept.code == 0 and "opset raised from 10 to 13" in kept.err
    (here / "out.onnx").unlink()
    for words in (("--data", "steep.npz"), ()):  # else on made-up inputs
        refused = run("instrument", "m.onnx", *words, "-o", "out.onnx")
        assert refused.code == 2 and "output 'y' differs then; onnxfi run needs no raise" in refused.err
        assert not (here / "out.onnx").exists()


def test_nothing_to_arm_is_an_error_only_with_a_selection(run: Run, save: Save, here: Path) -> None:
    save("m.onnx", "g (float[N] x) => (float[N] y) { y = Add(x, x) }")
    ran = run("instrument", "m.onnx", "-o", "out.onnx")
    assert ran.code == 0 and "nothing to arm" in ran.out
    assert onnx.load(here / "out.onnx") == onnx.load(here / "m.onnx")
    ran = run("instrument", "m.onnx", "--include", "=z")
    assert ran.code == 2 and "closest" in ran.err + "closest" and "matches no activation" in ran.err
    assert run("instrument", "m.onnx", "--bits", "3").code == 2
    assert run("instrument", "m.onnx", "-o", "m.onnx").code == 2


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
