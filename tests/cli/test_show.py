"""onnxfi show: a trial described, and its model exported."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
from campaign_commands import DATA, Run, checked
from onnx import numpy_helper

from onnxfi.campaign.results.store import Store


def test_show_describes_a_trial_and_exports_its_model(run: Run, tiny: Path) -> None:
    run("run", "m.onnx", *DATA, "--ber", "1e-4,2e-3,1", "--repeat", 4, "-o", "s.db")
    with Store.open("s.db") as opened:
        trials = {row.trial: row for row in opened.rows()}
    none = next(t for t, row in trials.items() if row.faults == 0)
    some = next(t for t, row in trials.items() if 1 < row.faults < 20)
    every = next(t for t, row in trials.items() if row.faults == 1376)
    assert f"trial {none} of s.db: 0 faults; MASKED" in run("show", "s.db", none).out
    shown = run("show", "s.db", some, "--export", "faulty.onnx")
    assert f"trial {some} of s.db: {trials[some].faults} faults; {trials[some].outcome.upper()}" in shown.out
    assert shown.out.endswith("wrote faulty.onnx\n")
    stored = [numpy_helper.to_array(t) for t in onnx.load("faulty.onnx").graph.initializer]
    names = [t.name for t in onnx.load("faulty.onnx").graph.initializer]
    places = re.findall(r"(\w+)\[(\d+)\] +(\d+) +flip +(\S+) → (\S+) +(0x\w+) → (0x\w+)", shown.out)
    assert len(places) == trials[some].faults
    for name, index, _, _, _, before, after in places:
        held = int(stored[names.index(name)].ravel()[int(index)].view(np.uint32))
        assert held == int(after, 16) or sum(p[:2] == (name, index) for p in places) > 1
        assert bin(int(before, 16) ^ int(after, 16)).count("1") == 1
    recipe = run("show", "s.db", every).out
    assert f"1,376 faults; {trials[every].outcome.upper()}" in recipe
    assert "Recipe" in recipe and re.search(r"^ n +1376 *$", recipe, re.M)
    missing = run("show", "s.db", 99)
    assert (missing.code, missing.out) == (2, "")
    assert "s.db has no trial 99; its trials lie between 1 and 12" in missing.err


def test_a_trial_with_a_fault_in_an_activation_shows_the_words_that_were_there(run: Run, tiny: Path) -> None:
    run("run", "m.onnx", *DATA, "--target", "activations", "--single", "--trials", 2, "--bits", "31", "-o", "s.db")
    [word] = checked(run("show", "s.db", 1, "--json"), "show")["result"]["words"]
    assert int(word["before"], 16) ^ int(word["after"], 16) == 1 << 31
    assert word["before_value"] == -word["after_value"]
    shown = run("show", "s.db", 1).out
    assert "Words as they were injected" in shown and f"{word['before']} → {word['after']}" in shown


def test_a_trial_of_a_quantised_model_shows_the_real_numbers(run: Run, tiny: Path, models: Path) -> None:
    model, data = models / "fashion_cnn_int8_qdq.onnx", models / "fashion_test.npz"
    words = ("--samples", 20, "--role", "weight", "--single", "--trials", 3, "-o", "q.db", "--provider", "cpu")
    assert run("run", model, "--data", data, *words, "--workers", 0).code == 0
    (row,) = checked(run("show", "q.db", 1, "--json"), "show")["rows"]
    assert row["before_real"] != row["after_real"] and row["before_value"] != row["after_value"]
