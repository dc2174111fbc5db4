"""onnxfi instrument: a model whose faults are inputs, and what to feed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from campaign_commands import Run, checked

from onnxfi.runtime.engine.onnx_runtime import OrtEngine

Save = Callable[..., str]
ROOT = Path(__file__).parents[2]
CPU = OrtEngine(provider="cpu")


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
