""""""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from campaign_commands import DATA, SCHEMAS, Run
from jsonschema import Draft202012Validator
from tiny_campaigns import mlp


@pytest.mark.slow
def test_compare_runs_in_its_own_process_too(run: Run, tiny: Path) -> None:
    mlp(tiny, name="other.onnx", seed=3)
    words = ["compare", "m.onnx", "other.onnx", *DATA, "--ber", "1e-2", "--repeat", 2, "--json"]
    alone, pooled = run(*words, "--workers", 0), run(*words, "--workers", 1)
    assert alone.code == 0 and alone.json == pooled.json
    assert {path.name for path in tiny.iterdir()} == {"m.onnx", "other.onnx", "d.npz"}, (
        "no store where none was asked for"
    )


ROOT = Path(__file__).parents[2]
CNN, TEST = str(ROOT / "models/fashion_cnn.onnx"), str(ROOT / "models/fashion_test.npz")
ON = ("--data", TEST, "--samples", "60", "--provider", "cpu")


def versions() -> list[str]:
    return [str(ROOT / f"models/fashion_cnn{tail}.onnx") for tail in ("", "_fp16", "_int8_qdq")]


@pytest.mark.slow
def test_compare_prints_one_table_and_one_document(run: Run, here: Path) -> None:
    words = ("compare", *versions(), *ON, "--ber", "1e-6:1e-4", "--repeat", "2", "--workers", "0", "-o", "stores")
    ran = run(*words)
    assert ran.code == 0
    found = run(*words, "--json").json  # of what is in the stores
    Draft202012Validator(SCHEMAS["compare"]).validate(found)
    assert [row["ber"] for row in found["models"][2]["by_rate"]] == [1e-6, 1e-5, 1e-4]
    assert re.search(r"Rate +fashion_cnn +fashion_cnn_fp16 +fashion_cnn_int8_qdq", ran.out)
    for row in found["models"]:
        for cell in row["by_rate"]:
            assert f"{cell['value']:.2%} [{cell['low']:.2%}, {cell['high']:.2%}]" in ran.out
    assert {p.name for p in (here / "stores").glob("*.db")} == {f"{Path(v).stem}.onnxfi.db" for v in versions()}


@pytest.mark.slow
def test_compare_draws_two_figures_for_all(run: Run, here: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra report")
    words = ("compare", *versions(), *ON, "--ber", "1e-6:1e-4", "--repeat", "2", "--workers", "1")
    ran = run(*words, "--figures", "figures")
    assert ran.code == 0 and "wrote figures/accuracy.svg" in ran.out
    drawn = [f"{name}.{kind}" for name in ("accuracy", "outcomes") for kind in ("png", "svg")]
    assert sorted(p.name for p in (here / "figures").iterdir()) == drawn
    svg = (here / "figures/accuracy.svg").read_text(encoding="utf-8")
    found = run(*words, "--json").json
    for version, row in zip(versions(), found["models"], strict=True):  # its description says what it shows
        assert f"{Path(version).stem}: " in svg
        for cell in row["by_rate"]:
            ends = f"[{100 * cell['low']:.2f}, {100 * cell['high']:.2f}]"
            assert f"{cell['ber']:g}: {100 * cell['value']:.2f} % {ends}" in svg
    assert not [path for path in here.iterdir() if path.name != "figures"]


def test_compare_without_matplotlib_says_what_to_install_before_anything_runs(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: (name != "matplotlib" and found(name, *rest)) or None
    )
    ran = run("compare", *versions(), *ON, "--ber", "1e-5", "--figures", "figures")
    assert (ran.code, ran.out) == (2, "") and not [*here.iterdir()]
    assert ran.err == "onnxfi: error: matplotlib is not installed; pip install 'onnxfi[report]'\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((CNN,), "two models or more"),
        ((CNN, "no.onnx"), "no.onnx"),
        ((CNN, CNN), "the same name"),
        ((*versions(), "--role", "scale"), "--role 'scale' matches nothing"),
    ],
)
def test_bad_comparisons_are_refused_in_one_line(run: Run, words: tuple[str, ...], message: str) -> None:
    ran = run("compare", *words, *ON, "--ber", "1e-5", "--json")
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err.splitlines()[-1] and len(ran.err.splitlines()) == 1
