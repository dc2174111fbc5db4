"""Recipes: settings that mean nothing are refused, and the others get the defaults of their mode."""

from __future__ import annotations

import pytest

from onnxfi.errors import InputError
from onnxfi.runtime.quantize.recipe import ACTIVATIONS, CALIBRATIONS, FORMATS, MODES, WEIGHTS, QuantisationRecipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "statik"}, "no mode 'statik'; closest: 'static'"),
        ({"mode": "dynamic", "calibration": "entropy"}, "--calibration has no effect in mode dynamic"),
        ({"mode": "dynamic", "format": "qdq"}, "--format has no effect in mode dynamic"),
        ({"mode": "dynamic", "activations": "uint8"}, "--activations has no effect in mode dynamic"),
        ({"mode": "dynamic", "weights": "int4"}, "--weights 'int4' is not for mode dynamic; give int8 or uint8"),
        ({"mode": "fp16", "weights": "int8"}, "--weights has no effect in mode fp16"),
        ({"mode": "bf16", "per_channel": True}, "--per-channel has no effect in mode bf16"),
        ({"mode": "weight-only", "per_channel": True}, "--per-channel has no effect in mode weight-only"),
        ({"mode": "static", "format": "onnx"}, "--format 'onnx' is not for mode static; give qdq or qoperator"),
        ({"mode": "static", "format": "qoperator", "weights": "int4"}, "has no QOperator form"),
        (
            {"mode": "weight-only", "format": "qdq", "weights": "int8"},
            "--weights int8 has no QDQ form in mode weight-only",
        ),
        ({"mode": "weight-only", "format": "qdq", "weights": "uint8"}, "use --format qoperator, or --mode dynamic"),
        ({"mode": "int8", "weights": "uint8"}, "--mode int8 has int8 weights, not uint8; use --mode dynamic"),
        ({"mode": "int4", "per_channel": True}, "--per-channel has no effect in mode weight-only"),
        ({"mode": "static", "block": 64}, "--block has no effect in mode static"),
        ({"mode": "weight-only", "block": 33}, "--block 33 is not for MatMulNBits"),
        ({"mode": "static", "calibration_samples": 0}, "--calibration-samples 0 is out of range"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        QuantisationRecipe(**given)


def test_names_of_number_formats_are_modes_with_their_settings() -> None:
    assert QuantisationRecipe("int8") == QuantisationRecipe("dynamic", weights="int8", per_channel=True)
    assert QuantisationRecipe("int4", block=64) == QuantisationRecipe("weight-only", weights="int4", block=64)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_said_is_filled_in_once(mode: str) -> None:
    settled, notes = QuantisationRecipe(mode).settled()
    assert settled.settled() == (settled, []), "what is filled in is filled in"
    assert all(getattr(settled, name) for name in ("weights", "format", "activations") if mode == "static")
    assert (settled.mode, bool(notes)) == (mode, mode == "static" and settled.activations == "uint8")


@pytest.mark.parametrize(("machine", "activations"), [("x86_64", "uint8"), ("AMD64", "uint8"), ("aarch64", "int8")])
def test_activations_are_what_the_machine_has_kernels_for(
    machine: str, activations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    settled, notes = QuantisationRecipe("static").settled()
    assert (settled.activations, len(notes)) == (activations, int(activations == "uint8"))
    assert QuantisationRecipe("static", activations="int16").settled()[1] == [], "what is said is not remarked on"


def test_every_value_of_a_setting_is_for_some_mode() -> None:
    for name, values in {
        "format": FORMATS,
        "weights": WEIGHTS,
        "activations": ACTIVATIONS,
        "calibration": CALIBRATIONS,
    }.items():
        for value in values:
            assert any(accepted(mode, name, value) for mode in MODES), (name, value)


def accepted(mode: str, name: str, value: str) -> bool:
    try:
        return bool(QuantisationRecipe(mode, **{name: value}))
    except InputError:
        return False
