"""`onnxfi protect` as a user meets it: a table, a document, and one line for what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator
from small_pipelines import cascade

ROOT = Path(__file__).parents[2]
CNN, TEST = str(ROOT / "models/fashion_cnn.onnx"), str(ROOT / "models/fashion_test.npz")
Run = Callable[..., Any]
ON = ("--data", TEST, "--samples", "60", "--provider", "cpu")


def schema(verb: str) -> Any:
    texts = re.findall(r"```json\n(.*?)\n```", (ROOT / "docs/reference/json.md").read_text(), re.S)
    return next(found for found in map(json.loads, texts) if found["title"] == f"onnxfi {verb}")


def test_the_document_fits_its_schema(run: Run, here: Path) -> None:
    found = run("protect", CNN, *ON, "--with", "range:clip", "--with", "nan-filter", "-o", "p.onnx", "--json").json
    Draft202012Validator(schema("protect")).validate(found)
    assert [row["protection"] for row in found["protections"]] == ["range:clip", "nan-filter"]
    assert found["fault_free"] == {"samples": 60, "changed": 0, "largest": 0.0, "rounding": False}
    assert [p.name for p in here.iterdir()] == ["p.onnx"]


def test_what_is_covered_and_what_it_costs_is_printed(run: Run, here: Path) -> None:
    ran = run("protect", CNN, *ON, "--with", "range:zero", "--exclude", "relu_2", "-o", "p.onnx")
    assert ran.code == 0, ran.err
    assert re.search(r"range:zero +5 tensors +relu, relu_1, max_pool2d", ran.out)
    assert re.search(r"nodes +10 +\d\d", ran.out) and re.search(r"size, bytes +427,790 +\d{3},\d{3}", ran.out)
    assert "byte for byte on 60 samples" in ran.out and "calibrated on 60 labelled samples" in ran.out


def test_what_is_refused_is_one_line(run: Run, here: Path) -> None:
    images = np.load(TEST)["image"][:9].copy()
    images[3, 0, 5, 5] = np.nan
    np.savez(here / "nan.npz", image=images)
    random = '<ir_version: 8, opset_import: ["": 18]> g (float[N,3] x) => (float[N,3] y) { y = RandomNormalLike(x) }'
    onnx.save(onnx.parser.parse_model(random), here / "random.onnx")
    ran = run("protect", "random.onnx", "--with", "duplicate", "--include", "=y", "-o", "p.onnx")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "'y' cannot be computed again: RandomNormalLike draws random numbers; leave it out" in ran.err
    for words, message in (
        (("--with", "range:clip", "--data", "nan.npz"), "'relu' is not finite on the calibration data"),
        (
            ("--with", "clip-weights", "--include", "=conv9.weight"),
            "matches no weight of this model; closest: 'conv",
        ),
        (("--with", "range:clip"), "give --data"),
        (("--with", "range:clip", *ON, "--include", "=rleu"), "matches no activation of this model"),
        (
            ("--with", "range:clip", *ON, "--exclude", "rleu"),
            "--exclude 'rleu' matches no activation of this model; cl",
        ),
        (("--with", "clip-weights", "--exclude", "relu"), "--exclude 'relu' matches no weight of this model"),
        (("--with", "range:clip", *ON, "--task", "deviation"), "--task has no effect as nothing is scored here"),
        (("--with", "range:clip", "--samples", "3"), "--samples has no effect without --data"),
    ):
        ran = run("protect", CNN, *words, "-o", "p.onnx")
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1) and message in ran.err, ran.err
    assert sorted(p.name for p in here.iterdir()) == ["nan.npz", "random.onnx"]


@pytest.mark.slow
def test_a_paired_comparison_prints_tables_and_a_document(run: Run, here: Path) -> None:
    images = np.load(TEST)
    np.savez("score.npz", image=images["image"][1000:1020], labels=images["labels"][1000:1020])
    run("protect", CNN, *ON, "--with", "range:clip", "-o", "p.onnx")
    words = ("compare", CNN, "p.onnx", "--data", "score.npz", "--provider", "cpu", "--paired", "--workers", "0")
    found = run(*words, "--trials", "8", "--json").json
    Draft202012Validator(schema("compare --paired")).validate(found)
    assert [m["store"] for m in found["models"]] == [None, None]
    ran = run(*words, "--ber", "1e-5", "--repeat", "2")
    assert ran.code == 0, ran.err
    assert "The same faults on both" in ran.out and re.search(r"nodes +10 +28 +\+18", ran.out)
    assert "of its own the second model has 384 of" in ran.out


@pytest.mark.slow
def test_a_stage_of_a_pipeline_is_protected_and_its_alarms_count(run: Run, here: Path) -> None:
    file = cascade(here, 20)
    on = ("--data", "d.npz", "--provider", "cpu", "--allow-code", "--stage", "reader")
    found = run("protect", file, *on, "--with", "duplicate", "-o", "doubled.onnx", "--json").json
    assert found["calibration"].startswith("stage 'reader' of a pipeline on 20 labelled samples")
    assert found["fault_free"]["changed"] == 0 and found["protections"][0]["tensors"] == ["c"]
    other = here / "other.yaml"
    other.write_text(file.read_text().replace("reader.onnx", "doubled.onnx"))
    single = ("--trials", "12", "--target", "activations", "--include", "=c", "--bits", "exponent")
    refused = run("compare", file, other, "--paired", *on, *single, "--workers", "0")
    assert (refused.code, refused.err.count("\n")) == (2, 1) and "was calibrated on samples of this data" in refused.err
    words = ("compare", file, other, "--paired", *on, *single, "--allow-calibration-data", "--workers", "0")
    rows = {row["metric"]: row for row in run(*words, "--json").json["rows"]}
    assert (rows["due"]["first"], rows["sdc"]["first"], rows["due"]["second"]) == (0, 1, 1), "each changes its answer"


@pytest.mark.slow
def test_pipelines_are_protected_compared_and_checked(run: Run, here: Path) -> None:
    file = cascade(here)
    on = ("--data", "d.npz", "--provider", "cpu", "--allow-code", "--stage", "finder")
    run("protect", file, *on, "--with", "clip-weights", "-o", "clipped.onnx")
    other = here / "other.yaml"
    other.write_text(file.read_text().replace("finder.onnx", "clipped.onnx"))
    swept = run("compare", file, other, *on, "--ber", "1e-2", "--repeat", "4", "--workers", "0", "--json")
    assert [len(row["by_rate"]) for row in swept.json["models"]] == [1, 1]
    paired = run(
        "compare", file, other, *on, "--paired", "--trials", "40", "--allow-calibration-data", "--workers", "0"
    )
    assert paired.code == 0, paired.err
    assert "set together, changed no answer, so no single faults were drawn there" in paired.out
    assert "nan" not in paired.out
    words = ("check", file, "--budget", "b.yaml", *on)
    assert (run(*words, "--write-budget").code, run(*words).code) == (0, 0)


def test_a_stage_that_runs_in_a_loop_is_refused(run: Run, here: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[N,3] x, float[N,3] h) => (float[N,3] y, float[N,3] n) '
        "{ n = Add(x, h)  y = Relu(n) }"
    )
    onnx.save(proto, here / "cell.onnx")
    (here / "p.yaml").write_text(
        "version: 1\nstages:\n- name: cell\n  model: cell.onnx\n  inputs: {x: data.x, h: 0}\n"
        "  loop: {axis: 1, over: x, carry: {h: n}}\nanswer: cell.y\n"
    )
    ran = run("protect", "p.yaml", "--with", "duplicate", "--op", "Add", "-o", "q.onnx")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1) and "protect cell.onnx alone" in ran.err
    assert not (here / "q.onnx").exists()


@pytest.mark.slow
def test_a_budget_demands_a_rate_below_that_of_the_unprotected_model(run: Run, here: Path) -> None:
    run("protect", CNN, "--with", "clip-weights", "--provider", "cpu", "-o", "clipped.onnx")
    campaign = {"data": TEST, "samples": 20, "ber": 1e-4, "repeat": 40, "provider": "cpu"}
    limits = [{"rate": "sdc1", "ber": 1e-4, "times_below": 3}, {"rate": "due", "max": 0.5}]
    (here / "b.yaml").write_text(json.dumps({"version": 1, "campaign": campaign, "limits": limits}))
    bare = run("check", CNN, "--budget", "b.yaml", "-o", "bare.db")
    assert bare.code == 3 and "no baseline was given" in bare.out, bare.err
    found = run("check", "clipped.onnx", "--budget", "b.yaml", "--baseline", "bare.db", "--json").json
    Draft202012Validator(schema("check")).validate(found)
    below = found["limits"][0]
    assert (found["verdict"], below["verdict"], below["bound"]) == ("pass", "pass", "times_below") and below["low"] >= 3
    assert run("check", CNN, "--budget", "b.yaml", "--baseline", "bare.db").code == 1, "no model is 3 × below itself"


def test_flags_of_a_paired_comparison_go_together(run: Run, here: Path) -> None:
    for words, message in (
        ((CNN, CNN, "--paired"), "takes either --ber RATES or --trials N"),
        ((CNN, CNN, "--paired", "--ber", "1e-3", "--trials", "3"), "takes either --ber RATES or --trials N"),
        ((CNN, CNN, CNN, "--paired", "--trials", "3"), "--paired compares two models, given 3"),
        ((CNN, CNN, "--trials", "3", "--ber", "1e-3"), "--trials has no effect without --paired"),
        ((CNN, CNN), "give the rates of the sweep with --ber"),
        ((CNN, CNN, "--paired", "--trials", "3", "--repeat", "3"), "--repeat has no effect with --trials"),
    ):
        ran = run("compare", *words, *ON)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1) and message in ran.err, ran.err


@pytest.mark.slow
def test_a_memory_code_says_what_became_of_its_blocks(run: Run, here: Path) -> None:
    words = (
        "run",
        CNN,
        *ON,
        "--ber",
        "1e-3",
        "--repeat",
        "1",
        "--workers",
        "0",
        "--memory-code",
        "secded",
        "-o",
        "s.db",
    )
    ran = run(*words)
    assert ran.code == 0, ran.err
    assert "DUE trials by cause: memory-code 1" in ran.out
    assert re.search(
        r"memory code secded: blocks with errors: [\d,]+ corrected, [\d,]+ detected, [\d,]+ missed", ran.out
    )
    for code, message in (
        ("secded:bits=16", "a block of 16 bits holds no word of 'conv1.weight' (float32); give bits=32"),
        ("cep:chunk=32", "memory code cep:chunk=32 is wider than the words of 'conv1.weight'"),
    ):
        wide = run("run", CNN, *ON, "--ber", "1e-3", "--memory-code", code, "-o", "u.db")
        assert (wide.code, wide.err.count("\n")) == (2, 1) and message in wide.err
    assert not (here / "u.db").exists()
    refused = run("run", CNN, *ON, "--single", "--trials", "3", "--memory-code", "secded", "-o", "t.db")
    assert (refused.code, refused.err.count("\n")) == (2, 1) and "alone, not with single" in refused.err
