"""`--json`: what each command prints fits the schema of docs/reference/json.md, is strict JSON, and is all."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator
from onnx import parser

from onnxfi.cli.commands import COMMANDS
from onnxfi.tasks.kinds.classification import CLASSIFICATION

Run = Callable[..., Any]
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "json.md"
SCHEMAS: dict[str, Any] = {
    schema["title"].removeprefix("onnxfi "): schema
    for schema in map(json.loads, re.findall(r"```json\n(.*?)\n```", DOCUMENT.read_text(encoding="utf-8"), re.S))
}
MODELS = ("fashion_cnn", "fashion_attention", "fashion_gru")
INT8 = """g (float[N,4] x) => (float[N,4] y)
    <int8[2,4] w = {1,2,3,4,5,6,7,-8}, float16[4] h = {1,2,3,4}, bool[4] mask = {1,0,1,0}, int64[4] big = {1,2,3,4},
     double[4] d = {1,2,3,4}, uint8 zero = {0}>
    { a = Cast<to = 1>(w) b = ReduceSum(a) c = Cast<to = 1>(h) e = Where(mask, c, b) f = Cast<to = 1>(big)
      k = Cast<to = 1>(d) m = Add(e, f) n = Mul(m, k) o = Cast<to = 1>(zero)
      p = Add(x, n) y = Add(p, o) }"""
DETECTOR = """g (float[N,3,8,8] image) => (float[N,4,8,8] boxes, float[N,8,8] scores, int64[N] count)
    <float[4,3,1,1] w = {1,2,3,4,5,6,7,8,9,10,11,12}, int64[3] shape = {-1,8,8}, float[1] half = {0.5}>
    { boxes = Conv(image, w) s = ReduceMax<keepdims = 0>(boxes, axes) axes = Constant<value_ints = [1]>()
      scores = Reshape(s, shape) above = Greater(scores, half) n = Cast<to = 7>(above)
      rest = Constant<value_ints = [1, 2]>() count = ReduceSum<keepdims = 0>(n, rest) }"""


def checked(ran: Any, verb: str) -> Any:
    """The document of a command, held against its schema."""
    found = ran.json
    Draft202012Validator(SCHEMAS[verb]).validate(found)
    assert ran.out.isascii() and ran.out.endswith("}\n")
    return found


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """All schemas of objects inside a schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from objects(value)
    if isinstance(schema, list):
        for value in schema:
            yield from objects(value)


# The document itself


def test_there_is_one_schema_for_each_command_and_a_sentence_before_it() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert {"inspect", "inject", "eval"} <= set(SCHEMAS)
    assert {title.partition(" --")[0] for title in SCHEMAS} <= set(COMMANDS)
    for title in SCHEMAS:
        verb = title.partition(" --")[0]
        assert re.search(rf"^## {title}\n\n`onnxfi {verb} [A-Z](?:.|\n(?!\n))*\.\n\n```json\n", text, re.M)


@pytest.mark.parametrize("verb", SCHEMAS)
def test_the_schemas_are_closed_and_complete(verb: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[verb])
    for schema in objects(SCHEMAS[verb]):
        if "properties" not in schema:  # a table whose keys are data
            assert isinstance(schema["additionalProperties"], dict)
            continue
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) <= set(schema["properties"])


def test_the_metrics_are_those_there_are() -> None:
    assert list(SCHEMAS["inject"]["$defs"]["metrics"]["properties"]) == list(CLASSIFICATION.evaluated)
    alone = [metric.name for metric in CLASSIFICATION.view(CLASSIFICATION.evaluated) if metric.golden]
    assert list(SCHEMAS["eval"]["properties"]["golden"]["properties"]) == alone


def test_a_schema_refuses_what_is_not_described(run: Run, models: Path) -> None:
    found = checked(run("inject", models / "fashion_cnn.onnx", "--count", 1, "--json"), "inject")
    validator = Draft202012Validator(SCHEMAS["inject"])
    wrong: list[dict[str, Any]] = [{"more": 1}, {"faults": [{}]}, {"unit": "byte"}, {"golden": {}}, {"drawn": None}]
    for change in wrong:
        assert not validator.is_valid(found | change)


# assess


@pytest.mark.slow
def test_assess(run: Run, models: Path, here: Path) -> None:
    words = ("--data", models / "fashion_test.npz", "--samples", 10, "--workers", 0, "--provider", "cpu", "--time", 12)
    found = checked(run("assess", models / "fashion_cnn.onnx", *words, "-o", "a", "--json"), "assess")
    assert found["ranking"]["trials"] > 0 and found["seconds"] < 60 and not found["stopped"]
    assert (here / "a" / "ranking.db").is_file()


# census


@pytest.mark.parametrize("name", MODELS)
def test_census(run: Run, models: Path, name: str) -> None:
    found = checked(run("census", models / f"{name}.onnx", "--json"), "census")
    assert sum(found["flips"].values()) == found["bits"]


def test_census_of_every_number_format(run: Run, save: Callable[..., str]) -> None:
    found = checked(run("census", save("m.onnx", INT8), "--json"), "census")
    assert sum(sum(row["flips"].values()) for row in found["targets"]) == found["bits"]


# fit


def test_fit(run: Run, models: Path, here: Path) -> None:
    words = ("--data", models / "fashion_test.npz", "--samples", 10, "--workers", 0, "--provider", "cpu")
    assert run("run", models / "fashion_cnn.onnx", *words, "--single", "--trials", 9, "-o", "s.db").code == 0
    environment = models.parent / "examples" / "environment.yaml"
    found = checked(run("fit", "s.db", "--environment", environment, "--json"), "fit")
    assert found["mission"]["hours"] == 43830 and sum(part["bits"] for part in found["parts"]) == 3_387_712
    ran = run("fit", "s.db", "--environment", environment)
    assert ran.code == 0 and max(map(len, ran.out.splitlines())) <= 100 and "expected accuracy" in ran.out
    bad = run("fit", "s.db", "--environment", "none.yaml")
    assert bad.code == 2 and "cannot read 'none.yaml'" in bad.err


# inspect


@pytest.mark.parametrize("flags", ["", "--include conv1 --bits sign", "--op Gemm --elements 0:3"])
def test_inspect(run: Run, models: Path, flags: str) -> None:
    checked(run("inspect", models / "fashion_cnn.onnx", *flags.split(), "--json"), "inspect")


def test_inspect_of_every_number_format_and_hiding_place(run: Run, save: Callable[..., str]) -> None:
    found = checked(run("inspect", save("m.onnx", INT8), "--json"), "inspect")
    assert {t["dtype"] for t in found["targets"]} == {"int8", "float16", "bool", "int64", "float64", "uint8"}
    scalar = next(t for t in found["targets"] if t["target"] == "zero")
    assert (scalar["shape"], scalar["elements"], scalar["bits"]) == ([], 1, 8)


@pytest.mark.slow
@pytest.mark.fetched
def test_inspect_of_fetched_models(run: Run, fetched: Path) -> None:
    for path in sorted(fetched.glob("*.onnx")):
        checked(run("inspect", path, "--json"), "inspect")


@pytest.mark.parametrize("flags", ["", "--all", "--include conv2", "--target inputs", "--bits sign --elements 0:3"])
@pytest.mark.parametrize("name", ["fashion_cnn", "fashion_snn_scan"])
def test_inspect_of_activations(run: Run, models: Path, name: str, flags: str) -> None:
    words = ["--target", "activations", *flags.split()]
    found = checked(run("inspect", models / f"{name}.onnx", *words, "--json"), "inspect --target activations")
    assert found["totals"]["activations"] == len(found["activations"]) > 0


# inject


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "flags",
    [
        "--ber 1e-5",
        "--ber 0",
        "--count 3 --seed 18446744073709551615",
        "--count 1 --per-tensor",
        "--count 2 --fault random-word",
        "--count 2 --fault set:value=nan",
        "--count 2 --fault set:value=-inf",
        "--count 2 --fault burst:k=3",
        "--count 2 --fault stuck-at-1",
        "--count 2 --fault noise:sigma=0.5",
        "--count 3 --fault set-word:word=0x7fc00001 --data synthetic --samples 2",
    ],
)
def test_inject(run: Run, models: Path, name: str, flags: str) -> None:
    words = flags.split()
    found = checked(run("inject", models / f"{name}.onnx", *words, "--json"), "inject")
    fault = words[words.index("--fault") + 1] if "--fault" in words else "flip"
    assert found["fault"] == fault
    assert found["unit"] == ("bit" if fault.startswith(("flip", "burst", "stuck")) else "word")
    assert all((f["bits"] is None) == (found["unit"] == "word") for f in found["faults"])
    assert len(found["faults"]) == found["drawn"] == found["faults_total"]
    if "nan" in fault:
        assert {f["after_value"] for f in found["faults"]} == {"NaN"}
    if "inf" in fault:
        assert {f["after_value"] for f in found["faults"]} == {"-Infinity"}


def test_the_document_says_what_was_written(run: Run, here: Path, models: Path) -> None:
    path = models / "fashion_cnn.onnx"
    found = checked(run("inject", path, "--ber", "1e-5", "--seed", 3, "--json"), "inject")
    assert found["model"] == str(path) and found["output"] == "fashion_cnn.faulty.onnx"
    assert found["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["faulty_digest"] == hashlib.sha256((here / found["output"]).read_bytes()).hexdigest()
    assert found["expected"] == pytest.approx(33.87712) and found["population"] == 3_387_712
    before, after = (
        {t.name: np.frombuffer(t.raw_data, np.uint32) for t in onnx.load(p).graph.initializer if t.data_type == 1}
        for p in (path, found["output"])
    )
    for fault in found["faults"]:
        assert before[fault["target"]][fault["index"]] == int(fault["before"], 16)
        assert after[fault["target"]][fault["index"]] == int(fault["after"], 16)
        assert np.uint32(int(fault["after"], 16)).view(np.float32) == np.float32(fault["after_value"])
        assert int(fault["before"], 16) ^ int(fault["after"], 16) == sum(1 << bit for bit in fault["bits"])


@pytest.mark.slow
def test_at_most_ten_thousand_faults_are_listed(run: Run, models: Path) -> None:
    found = run("inject", models / "fashion_cnn.onnx", "--count", 10_001, "--json").json
    assert (len(found["faults"]), found["faults_total"]) == (10_000, 10_001)
    Draft202012Validator(SCHEMAS["inject"]).validate(found | {"faults": found["faults"][-100:]})


def test_every_number_format(run: Run, save: Callable[..., str]) -> None:
    save("m.onnx", INT8)
    found = checked(run("inject", "m.onnx", "--count", 1, "--per-tensor", "--json"), "inject")
    assert {type(f["after_value"]) for f in found["faults"]} >= {int, float, bool}
    assert found["population"] == found["population_bits"]
    words = checked(run("inject", "m.onnx", "--count", 1, "--per-tensor", "--fault", "zero", "--json"), "inject")
    assert words["unit"] == "word" and words["population"] < words["population_bits"]
    big = checked(run("inject", "m.onnx", "--site", "big[0]:62", "--json"), "inject")
    assert big["faults"][0]["after_value"] == (1 << 62) + 1  # exact, beyond what a float holds
    assert big["resized"] is False or big["resized"] is True


def test_sites_replay_and_undo(run: Run, models: Path) -> None:
    path = models / "fashion_cnn.onnx"
    words = [
        "--site",
        "conv1.weight[3,0,1,2]:30",
        "--site",
        "fc2.bias[9]:31",
        "-o",
        "f.onnx",
        "--save-faults",
        "l.jsonl",
    ]
    drawn = checked(run("inject", path, *words, "--json"), "inject")
    again = checked(run("inject", path, "--faults", "l.jsonl", "--json"), "inject")
    assert again == drawn | {"output": "fashion_cnn.faulty.onnx"}
    undone = checked(run("inject", "f.onnx", "--faults", "l.jsonl", "--undo", "--json"), "inject")
    assert undone["output"] == "f.restored.onnx"
    assert (undone["digest"], undone["faulty_digest"]) == (drawn["faulty_digest"], drawn["digest"])
    assert undone["drawn"] == 2


def test_golden_against_faulty(run: Run, models: Path) -> None:
    words = ["--data", models / "fashion_test.npz", "--samples", 100, "--json"]
    found = checked(run("inject", models / "fashion_gru.onnx", "--ber", "1e-4", *words), "inject")
    assert list(found["golden"]) == ["top1", "top5", "nonfinite"]
    assert list(found["faulty"]) == list(CLASSIFICATION.evaluated)
    alone = checked(run("eval", models / "fashion_gru.onnx", *words), "eval")
    assert (found["golden"], found["scored"]) == (alone["golden"], alone["output"])
    assert [found[key] for key in ("samples", "data", "provider")] == [
        alone[key] for key in ("samples", "data", "provider")
    ]


def test_infinite_deviations_are_strings(run: Run, models: Path) -> None:
    words = ["--data", "synthetic", "--samples", 4, "--fault", "set:value=nan", "--include", "fc2.bias", "--json"]
    found = checked(run("inject", models / "fashion_cnn.onnx", "--count", 10, *words), "inject")
    assert found["faulty"]["nonfinite"] == 1.0
    assert found["faulty"]["max_abs"] == found["faulty"]["rel_l2"] == "Infinity"
    assert found["faulty"]["top1_changed"] == 1.0 and "top1" not in found["faulty"]
    assert found["faulty"]["sdc1"] == 0.0  # it shows


def test_a_detector(run: Run, save: Callable[..., str]) -> None:
    save("m.onnx", DETECTOR)
    found = checked(run("inject", "m.onnx", "--site", "w[0]:30", "--data", "synthetic", "--json"), "inject")
    assert list(found["golden"]) == ["nonfinite"]
    assert {"changed", "max_abs", "cosine"} <= set(found["faulty"]) and "sdc1" not in found["faulty"]
    alone = checked(run("eval", "m.onnx", "--json"), "eval")
    assert alone["output"] is None and alone["golden"] == found["golden"]


def test_a_faulty_model_that_does_not_run_is_an_answer(run: Run, save: Callable[..., str], here: Path) -> None:
    graph = """g (float[N,3] x) => (float[N,3] y) <int64[2] to = {-1, 3}, float[1] w = {2.0}>
        { z = Reshape(x, to) y = Mul(z, w) }"""
    words = ["inject", save("m.onnx", graph), "--site", "to[1]:2", "--data", "synthetic"]
    found = checked(run(*words, "--json"), "inject")
    assert found["golden"] == {"nonfinite": 0.0}
    assert list(found["faulty"]) == ["error"] and "ONNX Runtime" in found["faulty"]["error"]
    assert (found["samples"], found["scored"]) == (8, "y") and "synthetic" in found["data"]
    assert (here / "m.faulty.onnx").is_file()
    ran = run(*words)
    assert (ran.code, ran.err) == (0, "")
    assert "the faulty model does not run: ONNX Runtime" in ran.out


@pytest.mark.slow
@pytest.mark.fetched
@pytest.mark.parametrize("name", ["ddddocr_int8", "magika", "rapidocr_cls", "silero_vad"])
def test_fetched_models(run: Run, fetched: Path, name: str) -> None:
    path = fetched / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no {path.name}; python scripts/fetch_models.py brings it")
    words = [] if name == "silero_vad" else ["--data", "synthetic", "--samples", 2]
    found = checked(run("inject", path, "--ber", "1e-6", *words, "--json"), "inject")
    assert found["drawn"] == len(found["faults"]) > 0
    if words:
        assert found["faulty"]["changed"] > 0


# eval


@pytest.mark.parametrize("name", MODELS)
def test_eval(run: Run, models: Path, name: str) -> None:
    words = ["--data", models / "fashion_test.npz", "--samples", 64, "--json"]
    found = checked(run("eval", models / f"{name}.onnx", *words), "eval")
    assert (found["samples"], found["output"]) == (64, "logits")
    assert 0.8 < found["golden"]["top1"] <= found["golden"]["top5"] <= 1
    unlabelled = checked(run("eval", models / f"{name}.onnx", "--json"), "eval")
    assert list(unlabelled["golden"]) == ["nonfinite"] and "synthetic" in unlabelled["data"]


# Standard output holds the document alone


def test_libraries_say_nothing_beside_the_document(models: Path, tmp_path: Path) -> None:
    """As a process of its own, where the runtime's own output would be seen too."""
    words = ["inject", models / "fashion_cnn.onnx", "--ber", "1e-4", "--data", "synthetic", "--json"]
    line = [sys.executable, "-m", "onnxfi", *map(str, words)]
    ran = subprocess.run(line, capture_output=True, check=True, cwd=tmp_path)
    assert ran.stderr == b""
    Draft202012Validator(SCHEMAS["inject"]).validate(json.loads(ran.stdout))


def test_notes_go_to_standard_error(run: Run, here: Path) -> None:
    head = '<ir_version: 10, opset_import: ["": 21, "": 20]>'
    onnx.save(
        parser.parse_model(head + "g (float[N] x) => (float[N] y) <float[1] w = {1}> { y = Add(x, w) }"), "m.onnx"
    )
    for words in (["inject", "m.onnx", "--count", 1], ["eval", "m.onnx"]):
        ran = run(*words, "--json")
        Draft202012Validator(SCHEMAS[words[0]]).validate(json.loads(ran.out))
        assert ran.err.startswith("onnxfi: the default opset is imported 2 times")


def test_instrument_of_neurons(run: Run, models: Path, tmp_path: Path) -> None:
    words = ("instrument", models / "fashion_snn_scan.onnx", "--target", "neurons", "-o", tmp_path / "m.onnx", "--json")
    found = checked(run(*words), "instrument --target neurons")
    assert found["layers"][0]["words"]["threshold"] == "lif1/threshold"
    checked(run("inspect", tmp_path / "m.onnx", "--json"), "inspect")
    checked(run("inspect", models / "fashion_snn.onnx", "--json"), "inspect")
