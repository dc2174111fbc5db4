"""`onnxfi inspect`, and what all commands share: help, tables, names from strangers, standard output."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

Run = Callable[..., Any]
MATMUL = "g (float[N,3] x) => (float[N,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,9}> { y = MatMul(x, w) }"


# What inspect says


def test_a_shipped_model_has_the_targets_that_onnx_reads(run: Run, models: Path) -> None:
    path = models / "fashion_cnn.onnx"
    found = run("inspect", path, "--json").json
    stored = {t.name: t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert {t["target"]: t["shape"] for t in found["targets"]} == {n: list(t.dims) for n, t in stored.items()}
    assert found["totals"]["elements"] == sum(numpy_helper.to_array(t).size for t in stored.values()) == 105_866
    assert found["totals"]["bits"] == 32 * 105_866
    assert found["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [t["layer"] for t in found["targets"][::2]] == ["conv1", "conv2", "fc1", "fc2"]


@pytest.mark.parametrize("name", ["fashion_cnn", "fashion_attention", "fashion_gru"])
def test_the_table_says_what_the_document_says(run: Run, models: Path, name: str) -> None:
    found = run("inspect", models / f"{name}.onnx", "--json").json
    ran = run("inspect", models / f"{name}.onnx")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    for target in found["targets"]:
        cells = [target[key] for key in ("layer", "target", "op", "dtype")]
        cells += ["×".join(map(str, target["shape"])) or "scalar", f"{target['elements']:,}", f"{target['bits']:,}"]
        assert any(line.split() == " ".join(cells).split() for line in lines), cells
    assert f"{found['totals']['bits']:,}" in ran.out
    assert found["digest"] in ran.out


@pytest.mark.parametrize(
    ("flags", "targets", "bits"),
    [
        (["--include", "conv1"], ["conv1.weight", "conv1.bias"], 160 * 32),
        (["--include", "=conv1.bias"], ["conv1.bias"], 16 * 32),
        (["--op", "Gemm", "--exclude", "bias"], ["fc1.weight", "fc2.weight"], (100_352 + 640) * 32),
        (["--include", "re:^fc2", "--bits", "exponent"], ["fc2.weight", "fc2.bias"], 650 * 8),
        (["--include", "conv1.weight", "--elements", "0:2,:,1,1", "--bits", "sign"], ["conv1.weight"], 2),
    ],
)
def test_a_selection_can_be_tried(run: Run, models: Path, flags: list[str], targets: list[str], bits: int) -> None:
    found = run("inspect", models / "fashion_cnn.onnx", *flags, "--json").json
    assert [t["target"] for t in found["targets"]] == targets
    assert found["totals"]["bits"] == sum(t["bits"] for t in found["targets"]) == bits
    faulty = run("inject", models / "fashion_cnn.onnx", *flags, "--count", 1, "--json").json
    assert faulty["population"] == bits


def test_shapes_and_indices_are_left_out_unless_named(run: Run, save: Callable[..., str]) -> None:
    graph = """g (float[N,3] x) => (float[N,3] y) <int64[2] to = {-1, 3}, float[1] w = {2.0}>
        { z = Reshape(x, to) y = Mul(z, w) }"""
    name = save("m.onnx", graph)
    assert run("inspect", name, "--json").json["left_out"] == 1
    assert "1 integer tensor left out" in run("inspect", name).out
    named = run("inspect", name, "--include", "=to", "--json").json
    assert [t["target"] for t in named["targets"]] == ["to"]
    assert named["left_out"] == 0


def test_a_model_without_weights_can_be_inspected(run: Run, save: Callable[..., str]) -> None:
    found = run("inspect", save("m.onnx", "g (float[N] x) => (float[N] y) { y = Relu(x) }"), "--json").json
    assert found["totals"] == {"targets": 0, "elements": 0, "bits": 0}
    assert "0 targets" in run("inspect", "m.onnx").out


def test_notes_are_in_the_document_and_on_standard_error(run: Run, save: Callable[..., str]) -> None:
    model = onnx.load(save("m.onnx", MATMUL))
    model.opset_import.add(domain="", version=20)
    onnx.save(model, "two.onnx")
    assert run("inspect", "two.onnx", "--json").json["notes"] == ["the default opset is imported 2 times: 21, 20"]
    for words in (["inspect", "two.onnx"], ["inject", "two.onnx", "--count", 1], ["eval", "two.onnx"]):
        ran = run(*words)
        assert (ran.code, ran.err) == (0, "onnxfi: the default opset is imported 2 times: 21, 20\n")


@pytest.mark.fetched
@pytest.mark.parametrize("name", ["ddddocr_int8", "magika", "rapidocr_cls", "silero_vad"])
def test_fetched_models_are_inspected_with_their_whole_names(run: Run, fetched: Path, name: str) -> None:
    path = fetched / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no {path.name}; python scripts/fetch_models.py brings it")
    found = run("inspect", path, "--json").json
    out = run("inspect", path).out
    assert found["totals"]["targets"] == len(found["targets"]) > 10
    assert found["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(t["target"] in out for t in found["targets"])  # no name is folded in a log


# Help


# Names from strangers


# Tables, on terminals and elsewhere


# Standard output


# Spiking networks


def test_neurons_are_listed_with_their_parameters(run: Run, models: Path) -> None:
    found = run("inspect", models / "fashion_snn.onnx", "--json").json["spiking"]
    assert [(row["layer"], row["neurons"], row["steps"]) for row in found["layers"]] == [
        ("lif1", 1568, 8),
        ("lif2", 784, 8),
        ("lif3", 10, 8),
    ]
    ran = run("inspect", models / "fashion_snn_scan.onnx")
    assert (ran.code, ran.err) == (0, "")
    assert [line.split() for line in ran.out.splitlines() if line.strip().startswith("lif3  ")][-1] == (
        ["lif3", "integrate-and-fire", "10", "10", "8", "1", "0.9", "subtract"]
    )
    assert "time is axis 0 of spikes (inside)" in ran.out


def test_neurons_get_words_of_their_own(run: Run, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "snn.onnx"
    ran = run("instrument", models / "fashion_snn.onnx", "--target", "neurons", "-o", out)
    assert (ran.code, ran.err) == (0, "")
    assert "lif3/threshold, lif3/leak, lif3/reset, lif3/spike" in ran.out
    found = run("inspect", out, "--role", "spike", "--json").json
    assert [(t["target"], t["role"], t["elements"]) for t in found["targets"]][-1] == ("lif3/spike", "spike", 10)
    assert all(row["exposed"] for row in found["spiking"]["layers"])
    faulty = run("inject", out, "--site", "lif3/spike[3]", "--fault", "saturated", "-o", tmp_path / "f.onnx", "--json")
    assert faulty.json["faults"][0]["after_value"] == 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["instrument", "{cnn}", "--target", "neurons"], "has no spiking layer: no graph has"),
        (
            ["instrument", "{snn}", "--target", "neurons", "--include", "x"],
            "--include has no effect with --target neurons",
        ),
        (["instrument", "{snn}", "--neurons", "none.yaml"], "--neurons has no effect without --target neurons"),
        (["inspect", "{snn}", "--neurons", "none.yaml"], "cannot read 'none.yaml'"),
        (["inspect", "{snn}", "--neurons", "{map}"], "spike names 'spikes', which is not in this model"),
    ],
)
def test_flags_without_effect_on_neurons_are_refused(
    run: Run, models: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "map.yaml").write_text("layers: [{name: a, spike: spikes}]")
    places = {"cnn": models / "fashion_cnn.onnx", "snn": models / "fashion_snn.onnx", "map": tmp_path / "map.yaml"}
    ran = run(*(word.format(**places) for word in words))
    assert ran.code == 2
    assert message in " ".join(ran.err.split())
    assert [file.name for file in tmp_path.iterdir()] == ["map.yaml"]


# Activations


def test_the_table_of_activations_says_what_the_document_says(run: Run, models: Path) -> None:
    for words in (["fashion_cnn.onnx"], ["fashion_snn_scan.onnx", "--all"], ["fashion_cnn.onnx", "--target", "inputs"]):
        flags = ["--target", "activations", *words[1:]]
        found = run("inspect", models / words[0], *flags, "--json").json
        ran = run("inspect", models / words[0], *flags)
        assert (ran.code, ran.err) == (0, "")
        for row in found["activations"]:
            line = next(line for line in ran.out.splitlines() if f" {row['target']} " in line)
            assert line.split()[-2:] == [f"{row['elements']:,}", f"{row['bits']:,}"] and row["dtype"] in line
        for layer in found["spiking"]:
            assert any(
                line.split()[:1] == [layer["layer"]] and layer["spike"][0] in line for line in ran.out.splitlines()
            )
        assert ("not selected: 7" in ran.out) == (words == ["fashion_cnn.onnx"])


@pytest.mark.parametrize(
    ("flags", "texts"),
    {
        "--all": ("--all has no effect without --target activations or inputs",),
        "--data synthetic": ("--data has no effect",),
        "--target activations --role bias": ("--role has no effect", "which have none"),
        "--target activations --include nothing": ("'nothing' matches no activation",),
        "--target activations --data gone.npz": ("gone.npz",),
        "--target outputs": ("outputs", "inputs"),
    }.items(),
)
def test_wrong_flags_for_activations_are_refused(run: Run, models: Path, flags: str, texts: tuple[str, ...]) -> None:
    ran = run("inspect", models / "fashion_cnn.onnx", *flags.split())
    assert ran.code == 2 and ran.out == ""
    for text in texts:
        assert text in ran.err


@pytest.mark.slow
def test_a_model_comes_from_standard_input(here: Path) -> None:
    model = (Path(__file__).parents[2] / "models" / "fashion_cnn.onnx").read_bytes()
    command = [sys.executable, "-m", "onnxfi"]
    piped = subprocess.run([*command, "inspect", "-", "--json"], input=model, capture_output=True, check=False)
    assert piped.returncode == 0 and json.loads(piped.stdout)["totals"]["bits"] == 3_387_712
    made = subprocess.run([*command, "inject", "-", "--count", "1"], input=model, capture_output=True, check=False)
    assert made.returncode == 0 and [path.name for path in here.glob("*.onnx")] == ["stdin.faulty.onnx"]
    damaged = subprocess.run([*command, "inspect", "-"], input=b"no model", capture_output=True, check=False)
    assert damaged.returncode == 2 and damaged.stderr.count(b"\n") == 1
