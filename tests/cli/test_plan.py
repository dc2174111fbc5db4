"""onnxfi plan: the model beside a plan, and a large campaign reckoned from a small one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from campaign_commands import DATA, SINGLE, Run, checked
from tiny_campaigns import altered, mlp


def test_a_large_campaign_is_reckoned_from_a_small_one(run: Run, tiny: Path) -> None:
    million = ("plan", "m.onnx", "--single", "--trials", 1376, "--times", "s.db")
    assert run("run", "m.onnx", *DATA, *SINGLE, "--trials", 5, "--workers", 0, "-o", "s.db").code == 0
    with altered("s.db") as db:
        db.execute("UPDATE results SET time_s = trial")  # 1, 2, 3, 4, 5 s: 3 s, and Student's t is 4.604 at 99 %
    last = run(*million).out.splitlines()[-1]
    assert last == "5 trials of s.db on 12 samples took 3 s each [0, 6.26], all trials about 1.1 hours on one core"
    document = checked(run(*million, "--json"), "plan")
    assert (document["trial_s"], document["times"]["trials"], document["times"]["samples"]) == (3.0, 5, 12)
    mlp(tiny, name="n.onnx", seed=9)
    refused = run("plan", "n.onnx", *million[2:])
    assert (refused.code, refused.out) == (2, "")
    assert "the times in s.db are of another model, 'm.onnx'; give a store of this one" in refused.err
    with altered("s.db") as db:
        db.execute("DELETE FROM results WHERE trial > 1")
    assert "too few results in s.db (1) for the time of a trial; run 2 trials or more" in run(*million).err
    assert "no store 'none.db'" in run(*million[:-1], "none.db").err


def test_a_plan_finds_its_model_beside_it(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny / "sub").mkdir()
    shutil.copy("m.onnx", "sub/m.onnx")
    run("plan", "sub/m.onnx", *SINGLE, "-o", "sub/p.jsonl")
    (tiny / "m.onnx").unlink()
    monkeypatch.chdir(tiny)
    (tiny / "sub").rename(tiny / "moved")
    assert run("run", "moved/p.jsonl", *DATA, "-o", "s.db").code == 0
