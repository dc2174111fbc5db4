"""`--engine`: every verb that runs a model runs it on the named runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from offered_engines import needs_openvino

Run = Callable[..., Any]
MODELS = Path(__file__).parents[2] / "models"
CNN, DATA = str(MODELS / "fashion_cnn.onnx"), ("--data", str(MODELS / "fashion_test.npz"), "--samples", "20")


@pytest.mark.slow
def test_every_verb_runs_openvino(run: Run, here: Path) -> None:
    needs_openvino()
    on = (*DATA, "--engine", "openvino")
    assert run("eval", CNN, *on, "--json").json["provider"] == "CPU"
    injected = run("inject", CNN, *on, "--site", "conv1.weight[0]:30", "-o", "bad.onnx", "--json").json
    assert injected["provider"] == "CPU" and injected["faulty"]["sdc1"] > 0
    faulty = run(
        "inject", CNN, *on, "--target", "activations", "--site", "relu[3]@sample=0:30", "-o", "a.onnx", "--json"
    )
    assert faulty.json["provider"] == "CPU"
    sweep = ("--ber", "1e-4", "--repeat", "2")
    assert run("run", CNN, *on, *sweep, "-o", "s.db").code == 0
    (here / "budget.yaml").write_text(
        f"version: 1\ncampaign: {{data: '{DATA[1]}', samples: 20, ber: 1e-6, repeat: 2, engine: openvino}}\n"
        "limits:\n- {rate: top1, golden: true, min: 0.5}\n"
    )
    assert run("check", CNN, "--budget", "budget.yaml", "--workers", "0").code == 0
    compared = run("compare", CNN, str(MODELS / "fashion_cnn_int8_qdq.onnx"), *on, *sweep, "--workers", "0")
    assert compared.code == 0, compared.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--engine", "opnvino"), "no engine 'opnvino'; closest: 'openvino'"),
        (("--engine", "reference", "--threads", "2"), "--threads has no effect with --engine reference; leave it out"),
        (
            ("--engine", "openvino", "--provider", "cpu"),
            "--provider has no effect with --engine openvino; leave it out",
        ),
        (("--engine", "openvino", "--optimization", "off"), "--optimization has no effect with --engine openvino"),
    ],
)
def test_what_an_engine_does_not_take_is_refused(run: Run, words: tuple[str, ...], message: str) -> None:
    ran = run("eval", CNN, *DATA, *words)
    assert ran.code == 2 and message in ran.err and ran.err.count("\n") <= 3


@pytest.mark.slow
def test_a_missing_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxfi.runtime.engine.openvino.is_installed", lambda: False)
    for verb in (("eval", CNN), ("run", CNN, "--single", "--trials", "2")):
        ran = run(*verb, *DATA, "--engine", "openvino")
        assert (ran.code, ran.err) == (2, "onnxfi: error: openvino is not installed; pip install 'onnxfi[openvino]'\n")
