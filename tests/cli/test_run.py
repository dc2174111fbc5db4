"""onnxfi run: what it goes on with, counts and keeps."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign_commands import DATA, SINGLE, Run, checked
from metric_replacement import replace_metric

from onnxfi.campaign.report.report import report
from onnxfi.campaign.results.store import Store
from onnxfi.cli import run as run_module
from onnxfi.errors import OnnxfiError

ADAPTIVE = ("--single", "--adaptive", "--margin", 0.1)


@pytest.mark.slow
def test_an_adaptive_campaign_says_what_it_measures_and_what_it_took(run: Run, tiny: Path) -> None:
    planned = run("plan", "m.onnx", *ADAPTIVE)
    assert planned.out.splitlines()[:3] == [
        "one fault per trial, in rounds over 28 strata, until sdc1 is known to ±10 %",
        "population N = 1,376 bits, confidence 0.99, guaranteed (betting confidence sequence)",
        "at least 33 trials; of fixed size, for ±10 % at p = 0.5, it would be 149",
    ]
    made = checked(run("plan", "m.onnx", "--data", "d.npz", *ADAPTIVE, "--rate", "any", "--json"), "plan")
    assert made["trials"] is None and made["adaptive"]["rate"] == "any_sdc1" and made["adaptive"]["min_trials"] == 33
    assert "the minimum of trials" in run("plan", "m.onnx", "--data", "d.npz", *ADAPTIVE).out
    relative = checked(run("plan", "m.onnx", "--single", "--adaptive", "--relative-margin", 0.2, "--json"), "plan")
    assert relative["adaptive"]["fixed_size"] is None and relative["margin"] == 1e-4
    assert (
        "to ±20 % of it, or ±0.01 % where that is more"
        in run("plan", "m.onnx", "--single", "--adaptive", "--relative-margin", 0.2).out
    )
    ran = run("run", "m.onnx", *DATA, *ADAPTIVE, "-o", "a.db")
    assert (ran.code, ran.out) == (0, run("report", "a.db").out)
    assert re.search(r"^adaptive, guaranteed \(betting confidence sequence\), at 99 %: sdc1 \S+ % \[", ran.out, re.M)
    assert re.search(r"^  \d+ of 1,376 faults in \d+ rounds, 28 strata$", ran.out, re.M)
    assert re.search(r"^  the half width is \S+ points, \S+ % of the rate; the margin is 10$", ran.out, re.M)
    assert "  the choice of these 12 samples adds ±" in ran.out and "Classes by layer" not in ran.out
    found = checked(run("report", "a.db", "--json"), "report")
    again = checked(run("run", "m.onnx", *DATA, *ADAPTIVE, "-o", "a.db", "--json"), "run")
    assert found["adaptive"] == again["adaptive"] and found["adaptive"]["reached"]
    assert found["adaptive"]["trials"] == found["trials"] == again["trials"] < 1376
    assert [fold["key"] for fold in found["by_bit"]][:3] == ["0-15", "16-19", "20"]
    assert run("run", "m.onnx", *DATA, *ADAPTIVE, "-o", "a.db").err.count("trials are in a.db already") == 1


@pytest.mark.slow
def test_an_adaptive_campaign_says_what_it_does_not_know(run: Run, tiny: Path) -> None:
    wide = ("--single", "--adaptive", "--margin", 0.15)
    found = run("run", "m.onnx", *DATA, *wide, "--rate", "any", "-o", "any.db").out
    assert "any_sdc1 depends on the number of samples, 12 here, and grows with it" in found
    found = run("run", "m.onnx", *DATA, *wide, "--bits", "0-3", "-o", "quiet.db").out
    assert re.search(r"no trial had this outcome: the rate is below \S+ %, and may be 0", found)
    found = run("run", "m.onnx", *DATA, *wide, "--bits", "30", "--margin", 1e-6, "-o", "all.db").out
    assert "43 of 43 faults in" in found
    assert "the whole population was run, so the rate is exact; no sample reaches the margin" in found
    simple = run("run", "m.onnx", *DATA, *wide, "--method", "simple", "-o", "simple.db").out
    assert "simple (Wilson with design effect)" in simple and "rounds, drawn evenly" in simple
    for words, message in (
        (("--shard", "1/2"), "it has no shards; use workers"),
        (("--trials", 9), "trials has no effect with adaptive"),
        (("--per", "layer"), "per has no effect with adaptive"),
        (("--rate", "sdc2"), "rate 'sdc2' is unknown"),
    ):
        refused = run("run", "m.onnx", *DATA, *wide, *words, "-o", "no.db")
        assert refused.code == 2 and message in refused.err and not Path("no.db").exists()
    listed = run("plan", "m.onnx", *ADAPTIVE, "-o", "p.jsonl")
    assert listed.code == 2 and "there is no list to write" in listed.err and not Path("p.jsonl").exists()


def test_it_goes_on_extends_and_starts_anew(run: Run, tiny: Path) -> None:
    run("run", "m.onnx", *DATA, *SINGLE, "-o", "s.db")
    again = run("run", "m.onnx", *DATA, *SINGLE, "-o", "s.db")
    assert "25 of 25 trials are in s.db already" in again.err and "one trial takes" not in again.err
    more = run("run", "m.onnx", *DATA, "--single", "--trials", 30, "-o", "s.db")
    assert "25 of 30 trials are in s.db already" in more.err and "s.db: 30 of 30 trials" in more.out
    other = run("run", "m.onnx", *DATA, *SINGLE, "-o", "s.db", "--seed", 1)
    assert (other.code, other.out) == (2, "")
    assert (
        "s.db holds another campaign: seed: 0 in the store, now 1; name another store with -o, or use --fresh"
        in other.err
    )
    fresh = run("run", "m.onnx", *DATA, *SINGLE, "-o", "s.db", "--seed", 1, "--fresh")
    assert fresh.code == 0 and "s.db: 25 of 25 trials" in fresh.out
    assert "s.db.old: 30 of 30 trials" in run("report", "s.db.old").out


def test_errors_of_the_harness_are_counted(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(pair: Any) -> float:
        if pair.changed.size:
            raise ValueError("this metric raises")
        return 0.0

    replace_metric(monkeypatch, "changed", breaks)
    ran = run("run", "m.onnx", *DATA, "--ber", "1e-4,1e-2", "--repeat", 10, "-o", "s.db")
    assert ran.code == 3
    (line,) = (line for line in ran.err.splitlines() if "harness, not in an outcome" in line)
    count = int(re.findall(r"(\d+) trials ended in an error", line)[0])
    assert 9 < count < 20 and "onnxfi show s.db TRIAL prints it, the same command repeats these trials" in line
    assert f"s.db: {20 - count} of 20 trials" in ran.out
    assert (
        f"{count} trials ended in an error of the harness and are excluded from all rates; run again to repeat them"
        in ran.err
    )
    shown = run("show", "s.db", 2).out
    assert (
        "not run yet" in shown
        and "the harness failed on this trial:" in shown
        and "ValueError: this metric raises" in shown
    )
    alone = run("run", "m.onnx", *DATA, "--ber", "1", "--repeat", 3, "-o", "t.db")
    assert (alone.code, alone.out) == (3, "") and "3 trials ended in an error of the harness" in alone.err
    monkeypatch.undo()
    monkeypatch.chdir(tiny)
    assert run("run", "m.onnx", *DATA, "--ber", "1", "--repeat", 3, "-o", "t.db").code == 0


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_done(tiny: Path) -> None:
    words = ["m.onnx", "--data", "d.npz", "--provider", "cpu", "--exhaustive", "--workers", "2", "-o", "s.db"]
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxfi", "run", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    done = 0
    while done <= 20:
        time.sleep(0.02)
        with suppress(OnnxfiError), Store.open("s.db") as opened:  # it may not be there yet
            done = opened.count("results")
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, said = process.communicate()
    assert process.returncode == 130
    assert "onnxfi: interrupted; finished trials are in s.db, the same command resumes" in said
    assert "Traceback" not in said
    with Store.open("s.db") as opened:
        assert 20 < opened.count("results") < 1376
    assert not Path("s.db-wal").exists()


def test_a_line_now_and_then_where_there_is_no_terminal(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "LINE_S", 0.0)
    ran = run("run", "m.onnx", *DATA, *SINGLE, "-o", "s.db")
    lines = [line for line in ran.err.splitlines() if "/s  " in line]
    assert len(lines) == 25
    assert re.fullmatch(
        r"onnxfi: 25 of 25  \S+/s  0 s left  SDC-1 \(silent\) \S+ %  masked \S+ % \[\S+, \S+\]  sdc \S+ % \[\S+, \S+\]  "
        r"due \S+ % \[\S+, \S+\]",
        lines[-1],
    )
    found = report("s.db").everything
    silent = np.mean([float(row["sdc1"]) for row in report("s.db").details()])
    assert f"  SDC-1 (silent) {100 * silent:.2f} %  " in lines[-1]
    assert len(lines[-1].partition("  masked")[0]) < 60, "the rate of the task is not what 80 columns cut"
    more = run("run", "m.onnx", *DATA, *SINGLE, "--trials", 27, "-o", "s.db")
    silent = np.mean([float(row["sdc1"]) for row in report("s.db").details()])
    assert f"  SDC-1 (silent) {100 * silent:.2f} %  " in more.err.splitlines()[-1], "those before it count too"
    assert f"due {100 * found.outcomes['due'] / 25:.1f} % [" in lines[-1]


@pytest.mark.slow
def test_a_bar_on_a_terminal(tiny: Path) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    words = ["m.onnx", "--data", "d.npz", "--provider", "cpu", "--single", "--trials", "400", "--workers", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxfi", "run", *words, "-o", "s.db"], stdout=subprocess.DEVNULL, stderr=slave
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    os.close(master)
    assert process.wait() == 0
    assert re.search(rb"of 400  \S+/s  \S+ s left", shown), shown[-2000:]


def test_exhaustive_outcomes_are_printed_written_and_read_again(run: Run, tiny: Path) -> None:
    words = (
        "run",
        "m.onnx",
        "--data",
        "d.npz",
        "--exhaustive",
        "--outcomes",
        "class",
        "--bits",
        "30,31",
        "--include",
        "=w2",
    )
    found = checked(run(*words, "--provider", "cpu", "--json"), "run --outcomes class")
    assert found["faults"] * found["samples"] == found["pairs"] >= found["ran"]
    assert [row["bit"] for row in found["by_bit"]] == [30, 31] and found["table"] == "m.classes.npz"
    again = run(*words, "--provider", "cpu").out
    assert "class outcomes by layer" in again and "wrote m.classes.npz" in again and "% of" in again
    for more, why in (("--shard", "1/2"), "one process"), (("--elements", "0"), "whole tensors"):
        refused = run(*words, *more)
        assert refused.code == 2 and why in refused.err


@pytest.mark.slow
def test_a_model_or_a_spec_comes_from_standard_input(tiny: Path) -> None:
    command = [sys.executable, "-m", "onnxfi"]

    def piped(given: bytes, *words: str) -> str:
        ran = subprocess.run([*command, *words], input=given, capture_output=True, check=False)
        return (ran.stdout + ran.stderr).decode()

    model, how = Path("m.onnx").read_bytes(), ("--single", "--provider", "cpu", "--workers", "0")
    assert "name that with -o STORE" in piped(model, "run", "-", *how, "--trials", "5")
    assert "5 of 5 trials" in piped(model, "run", "-", *how, "--trials", "5", "-o", "s.db")
    assert Path("s.db.onnx").read_bytes() == model
    assert "5 of 7 trials are in s.db" in piped(model, "run", "-", *how, "--trials", "7", "-o", "s.db")
    spec = piped(b"", "plan", "m.onnx", "--single", "--trials", "5", "--provider", "cpu", "--print-spec")
    assert "5 of 5 trials" in piped(spec.encode(), "run", "-", "-o", "t.db", "--workers", "0")
    assert "n = 5 trials" in piped(model, "plan", "-", "--single", "--trials", "5")
