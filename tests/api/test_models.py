"""Evaluation, quantisation and protection take the fields that their flags set, and refuse what has no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from small_pipelines import cascade
from tiny_campaigns import mlp, samples

import onnxfi
from onnxfi.cli.commands import group
from onnxfi.errors import InputError


@pytest.fixture
def here(here: Path) -> Path:
    """The empty folder, with m.onnx and d.npz."""
    mlp(here)
    samples(here)
    return here


def test_an_evaluation_reads_its_data_as_the_flags_say(here: Path) -> None:
    with np.load("d.npz") as archive:
        arrays = dict(archive)
    few = {name: array[:5] for name, array in arrays.items()}
    np.savetxt("labels.csv", np.roll(arrays["labels"], 1), fmt="%d")
    found = onnxfi.evaluate("m.onnx", few, provider="cpu")
    asked: dict[str, Any] = {"samples": "5", "batch": np.int64(2), "provider": "cpu", "threads": "1"}
    assert onnxfi.evaluate("m.onnx", "d.npz", **asked).metrics == found.metrics
    assert onnxfi.evaluate("m.onnx", arrays, golden=found, engine="reference", samples=5).metrics["sdc1"] == 0
    other = onnxfi.evaluate("m.onnx", "d.npz", labels="labels.csv", provider="cpu")
    assert other.metrics["top1"] != onnxfi.evaluate("m.onnx", "d.npz", provider="cpu").metrics["top1"]


def test_a_pipeline_is_evaluated_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, data = cascade(tmp_path), "d.npz"
    assert 0 <= onnxfi.evaluate(file, data, samples=2, provider="cpu", allow_code=True).metrics["top1"] <= 1
    with pytest.raises(InputError, match="batch has no effect of a pipeline"):
        onnxfi.evaluate(file, data, batch=2, allow_code=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: onnxfi.evaluate("m.onnx", "d.npz", sample=3), "unknown field 'sample'; closest: 'samples'"),
        (lambda: onnxfi.evaluate("m.onnx", "d.npz", samples="x"), "samples must be a whole number"),
        (lambda: onnxfi.evaluate("m.onnx", engine=onnxfi.engine_of(), threads=2), "the engine has its threads already"),
        (lambda: onnxfi.quantize("m.onnx", "fp16", "o.onnx", samples=3), "samples has no effect without data"),
        (lambda: onnxfi.protect("m.onnx", "range:clip", "o.onnx", samples=3), "samples has no effect without data"),
        (lambda: onnxfi.inspect("m.onnx", incl="w"), "unknown argument 'incl'; closest: 'include'"),
        (lambda: onnxfi.census("m.onnx", onnxfi.Selector(bits="sign"), include="w"), "the selector has its include"),
    ],
)
def test_what_has_no_effect_is_refused(here: Path, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
    assert not Path("o.onnx").exists()


def test_a_recipe_and_a_selection_are_given_by_their_fields(here: Path) -> None:
    with pytest.raises(InputError, match="a recipe is a QuantisationRecipe or its text, as 'static', not a ndarray"):
        onnxfi.quantize("m.onnx", np.zeros(3), "none.onnx")  # type: ignore[arg-type]
    recipe = onnxfi.QuantisationRecipe("static", per_channel=True, calibration_samples=4)
    one = onnxfi.quantize("m.onnx", recipe, "one.onnx", data="d.npz").out.read_bytes()
    done = onnxfi.quantize("m.onnx", "static", "two.onnx", data="d.npz", per_channel=True, calibration_samples=4)
    assert done.out.read_bytes() == one
    held = onnxfi.protect("m.onnx", "range:clip", "three.onnx", data="d.npz", samples=4, include="=b", provider="cpu")
    assert held.fault_free.samples == 4
    chosen = onnxfi.inspect("m.onnx", onnxfi.Selector(bits="sign"))
    assert onnxfi.inspect("m.onnx", bits="sign")["totals"] == chosen["totals"]
    assert onnxfi.census("m.onnx", bits="sign").whole.bits == chosen["totals"]["bits"]


SCORING = {"output", "task", "metric", "time_axis"}
#: Of each verb a call, and its flags that are given otherwise or have no effect there.
CALLS: dict[str, tuple[Any, set[str]]] = {
    "eval": (onnxfi.evaluate, {"model", "data"}),
    "quantize": (lambda model, **given: onnxfi.quantize(model, "static", "o.onnx", **given), {"model", "mode", "out", *SCORING}),
    "protect": (lambda model, **given: onnxfi.protect(model, "range:clip", "o.onnx", **given), {"model", "protections", "out", *SCORING}),
}  # fmt: skip


@pytest.mark.parametrize("verb", CALLS)
def test_what_flags_take_their_fields_take(here: Path, verb: str) -> None:
    call, otherwise = CALLS[verb]
    context = click.Context(group)
    command = group.get_command(context, verb)
    assert command is not None
    flags = {param.name or "": param.get_default(context) for param in command.params}
    for name in flags.keys() - otherwise - {"as_json"}:
        try:
            call("none.onnx", **{name: flags[name]})
        except InputError as error:
            assert "unknown" not in str(error), f"{verb} takes --{name}, and its twin no {name}"


def test_a_stage_of_a_pipeline_is_protected_as_on_the_command_line(tmp_path: Path, monkeypatch: Any, run: Any) -> None:
    monkeypatch.chdir(tmp_path)
    file = cascade(tmp_path)
    on = ("--stage", "reader", "--data", "d.npz", "--samples", "4", "--provider", "cpu", "--allow-code")
    printed = run("protect", file, *on, "--with", "range:clip", "--include", "=c", "-o", "one.onnx", "--json").json
    fields: dict[str, Any] = {"stage": "reader", "data": "d.npz", "samples": 4, "include": "=c", "provider": "cpu"}
    done = onnxfi.protect(file, "range:clip", "two.onnx", allow_code=True, **fields)
    assert Path("two.onnx").read_bytes() == Path("one.onnx").read_bytes()
    assert (done.digest, done.fault_free.samples) == (printed["output_digest"], printed["fault_free"]["samples"])
    bare = {"stage": "reader"}
    for given, message in (
        ({}, "faults go into one stage of a pipeline; name it with --stage: finder, reader"),
        ({"stage": "crops"}, "crops"),
        ({**bare, "samples": 4}, "samples has no effect without data"),
        ({**fields, "allow_code": True, "batch": 2}, "batch has no effect of a pipeline"),
        (fields, "allow"),
    ):
        with pytest.raises(InputError, match=message):
            onnxfi.protect(file, "range:clip", "three.onnx", **given)
    with pytest.raises(InputError, match="is no pipeline; leave stage out"):
        onnxfi.protect("reader.onnx", "range:clip", "three.onnx", stage="reader")
    assert not Path("three.onnx").exists()


def test_a_plan_is_given_as_its_file(here: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml"):
        onnxfi.protect("m.onnx", (), "o.onnx", plan="none.yaml")
