"""`onnxfi plan`, `run`, `report`, `show` and `merge`: what they print, their documents, and bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from metric_replacement import replace_metric
from onnx import numpy_helper
from tiny_campaigns import altered, chance, mlp, samples, save, tables

from onnxfi.campaign.plan.plan import write_plan
from onnxfi.campaign.report.report import report
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.flat_fields import flat_fields
from onnxfi.cli import run as run_module
from onnxfi.cli.campaign_options import campaign_options
from onnxfi.cli.commands import COMMANDS
from onnxfi.errors import OnnxfiError

Run = Callable[..., Any]
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "json.md"
SCHEMAS = {
    schema["title"].removeprefix("onnxfi "): schema
    for schema in map(json.loads, re.findall(r"```json\n(.*?)\n```", DOCUMENT.read_text(encoding="utf-8"), re.S))
}
DATA = ("--data", "d.npz", "--provider", "cpu", "--workers", 0)
SINGLE = ("--single", "--trials", 25)


@pytest.fixture
def tiny(here: Path) -> Path:
    """An empty folder with m.onnx and d.npz."""
    mlp(here)
    samples(here)
    return here


def checked(ran: Any, verb: str) -> Any:
    """The document of a command, held against its schema."""
    Draft202012Validator(SCHEMAS[verb]).validate(ran.json)
    return ran.json


# The commands from plan to report


def test_a_campaign_stops_when_its_time_is_over_and_goes_on(run: Run, models: Path, here: Path) -> None:
    words = ["run", models / "fashion_cnn.onnx", "--data", models / "fashion_test.npz", "--samples", 20]
    words += ["--provider", "cpu", "--workers", 0, "--single", "--trials", 60, "-o", "s.db"]
    ran = run(*words, "--time", "0.001")
    assert (ran.code, ran.out) == (2, "") and "--time 0.001 s is too short" in ran.err
    assert re.search(r"give --time \d+ or more", ran.err)
    assert run(*words).code == 0
    again = run(*words[:-4], "--trials", 20_000, "-o", "s.db", "--time", "1s")
    assert again.code == 0 and "the time is over; finished trials are in s.db" in again.err
    for wrong in ("0", "-1", "soon", "nan", "5y"):
        ran = run(*words, "--time", wrong)
        assert ran.code == 2 and "is no duration above 0; write seconds, or 90s, 10m, 2h" in ran.err


def test_from_the_plan_to_the_report(run: Run, tiny: Path) -> None:
    planned = run("plan", "m.onnx", "--single", "--margin", 0.2, "--per", "layer", "-o", "p.jsonl")
    assert (planned.code, planned.err) == (0, "")
    assert planned.out.splitlines() == [
        "one fault per trial, drawn per layer: n = 79 trials",
        "population N = 1,376 bits, confidence 0.99",
        "margin ±20 % in each of 2 strata",
        "with --data one trial is timed, and the cost of all is estimated",
        "wrote p.jsonl",
    ]
    ran = run("run", "p.jsonl", *DATA, "-o", "p.db")
    assert ran.code == 0
    notes = ran.err.splitlines()
    assert notes[0] == "onnxfi: replay of p.jsonl: n = 79 trials"
    assert "12 labelled samples of 'd.npz'; CPUExecutionProvider" in ran.err
    assert re.search(
        r"one trial takes about \S+ s, the remaining 79 about \d+ s on 1 core, or less by partial execution$",
        ran.err,
        re.M,
    )
    direct = run("run", "m.onnx", *DATA, "--single", "--margin", 0.2, "--per", "layer")
    assert Path("m.onnxfi.db").is_file()
    assert direct.out.replace("m.onnxfi.db", "p.db") == ran.out == run("report", "p.db").out
    for title in ("All trials, intervals at 99 %", "By layer, intervals at 99 %", "By bit", "Classes by layer"):
        assert title in ran.out
    assert "golden run: top1 " in ran.out


def test_every_number_of_the_tables_is_the_reports(run: Run, tiny: Path) -> None:
    ran = run("run", "m.onnx", *DATA, *SINGLE, "-o", "s.db")
    found = report("s.db")
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    for rate in found.everything.rates:
        i = rate.interval
        ends = " ".join(f"{100 * end:.3f} %" for end in (i.estimate, i.low, i.high))
        assert (f"{rate.name} {rate.of} {ends}" in lines) != rate.name.startswith("class_")
    for fold in (*found.by_layer, *(f for f in found.by_bit if f.trials)):
        line = next(line for line in lines if line.startswith(f"{fold.key} {fold.trials} "))
        for name in ("top1", "sdc1", "any_sdc1", "sdc", "due"):
            interval = fold.rate(name)
            assert interval is not None
            said = f"{100 * interval.estimate:.2f} % [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
            assert said in line


ADAPTIVE = ("--single", "--adaptive", "--margin", 0.1)


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


def test_a_sweep_is_reported_by_rate(run: Run, tiny: Path) -> None:
    ran = run("run", "m.onnx", *DATA, "--ber", "1e-3:1e-1", "--repeat", 3)
    assert "onnxfi: sweep, 3 trials at each of 3 rates per bit: n = 9 trials" in ran.err
    rows = re.findall(r"^ +(0\.001|0\.01|0\.1) +3 ", ran.out, re.M)
    assert rows == ["0.001", "0.01", "0.1"] and "All trials" not in ran.out
    one = run("run", "m.onnx", *DATA, "--ber", "1e-3", "--repeat", 3, "-o", "1.db")
    assert "All trials" in one.out and "By bit error rate" not in one.out


def test_a_spec_and_its_flags_are_the_same_campaign(run: Run, tiny: Path) -> None:
    words = ("m.onnx", *DATA[:4], "--single", "--margin", 0.3, "--include", "fc1", "--seed", 4)
    spec = run("plan", *words, "--print-spec")
    assert (spec.code, spec.err) == (0, "")
    Path("c.yaml").write_text(spec.out)
    run("run", "c.yaml", "--workers", 0, "-o", "1.db")
    run("run", *words, "--workers", 0, "-o", "2.db")
    assert tables(Path("1.db")) == tables(Path("2.db"))
    assert run("plan", "c.yaml", "--print-spec").out == spec.out


def test_a_mix_by_flags_and_by_spec(run: Run, tiny: Path) -> None:
    parts = ("--mix", "fault: stuck-at-1, count: 2, include: fc1", "--mix", "ber: 1e-2")
    assert run("run", "m.onnx", *DATA, *parts, "--repeat", 4, "-o", "1.db").code == 0
    Path("c.yaml").write_text(
        "model: m.onnx\ndata: d.npz\nprovider: cpu\nrepeat: 4\nmix:\n"
        "- {fault: stuck-at-1, count: 2, include: fc1}\n- ber: 1e-2\n"
    )
    assert run("run", "c.yaml", "--workers", 0, "-o", "2.db").code == 0
    assert tables(Path("1.db")) == tables(Path("2.db"))
    assert "stuck-at-1" in run("show", "1.db", 1).out


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


def test_shards_and_merge(run: Run, tiny: Path) -> None:
    for k in (1, 2):
        ran = run("run", "m.onnx", *DATA, *SINGLE, "-o", f"{k}.db", "--shard", f"{k}/2")
        assert f"{k}.db: {13 if k == 1 else 12} of 25 trials" in ran.out
    merged = run("merge", "all.db", "1.db", "2.db")
    assert (merged.code, merged.out, merged.err) == (0, "all.db: 25 of 25 trials, from 2 stores\n", "")
    run("run", "m.onnx", *DATA, *SINGLE, "-o", "whole.db")
    assert tables(Path("all.db")) == tables(Path("whole.db"))


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


def test_csv_files(run: Run, tiny: Path) -> None:
    run("run", "m.onnx", *DATA, *SINGLE, "-o", "s.db")
    ran = run("report", "s.db", "--csv", "out")
    names = ["detail.csv", "summary.csv", "layers.csv", "bits.csv", "classes.csv"]
    assert ran.out.splitlines()[-5:] == [f"wrote out/{name}" for name in names]
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(names)
    quiet = run("report", "s.db", "--csv", "out", "--json")
    assert quiet.json["trials"] == 25
    ran = run("report", "s.db", "--csv", "named", "--csv-by-model")
    assert [line for line in ran.out.splitlines() if "/m.csv" in line] == ["wrote named/m.csv"]
    assert {path.name for path in Path("named").iterdir()} == {"m.csv", *(n.replace(".", "-m.") for n in names)} - {
        "summary-m.csv"
    }
    assert "--csv-by-model requires --csv" in run("report", "s.db", "--csv-by-model").err
    assert "--elements requires --figures" in run("report", "s.db", "--elements", "w").err
    assert "'fc1' is no target" in run("report", "s.db", "--figures", "f", "--elements", "fc1").err


# Documents


def test_documents(run: Run, tiny: Path) -> None:
    words: tuple[Any, ...]
    for words in (
        ("--ber", "1e-3:1e-1", "--repeat", 2),
        ("--single", "--margin", 0.3, "--per", "layer-bit", "--bits", "30,31"),
        ("--exhaustive", "--fault", "zero"),
        ("--mix", "count: 1", "--mix", "ber: 0.5", "--repeat", 2),
    ):
        plan = checked(run("plan", "m.onnx", *words, "--json"), "plan")
        assert plan["trials"] == sum(s["trials"] for s in plan["strata"]) and plan["trial_s"] is None
        ran = checked(run("run", "m.onnx", *DATA, *words, "-o", f"{words[0][2:]}.db", "--json"), "run")
        found = checked(run("report", f"{words[0][2:]}.db", "--json"), "report")
        assert ran == {key: found[key] for key in ran}
        assert ran["trials"] == ran["planned"] == plan["trials"] == sum(ran["outcomes"].values())
        for trial in (1, plan["trials"]):
            shown = checked(run("show", f"{words[0][2:]}.db", trial, "--json"), "show")
            assert shown["trial"] == trial and shown["rows"][0]["trial"] == trial
    exported = checked(run("show", "ber.db", 2, "--export", "f.onnx", "--json"), "show")
    assert exported["output"] == "f.onnx" and Path("f.onnx").is_file()
    cost = checked(run("plan", "m.onnx", *DATA[:4], *SINGLE, "-o", "p.jsonl", "--json"), "plan")
    assert 0 < cost["trial_s"] < 10 and cost["output"] == "p.jsonl" and 0 < cost["margin"] < 0.3
    merged = checked(run("merge", "all.db", "exhaustive.db", "--json"), "merge")
    assert merged == {"store": "all.db", "trials": 43, "planned": 43, "merged": 1}


def test_documents_of_a_detector_and_of_trials_that_do_not_run(run: Run, tiny: Path) -> None:
    save(
        tiny,
        """net (float[N,4] x) => (float[N,3] y) <int64[2] index = {0, 1}, float[2,3] w = {1,2,3,4,5,6}>
        { a = Gather<axis = 1>(x, index) y = MatMul(a, w) }""",
    )
    words = ("--include", "=index", "--single", "--trials", 20, "-o", "s.db")
    checked(run("run", "g.onnx", *DATA, *words, "--json"), "run")
    found = checked(run("report", "s.db", "--json"), "report")
    assert found["outcomes"]["due"] > 10
    trial = next(t for t in range(1, 21) if run("show", "s.db", t, "--json").json["result"]["cause"] == "error")
    checked(run("show", "s.db", trial, "--json"), "show")
    assert "DUE (error)" in run("show", "s.db", trial).out
    save(
        tiny,
        "g (float[N,4] x) => (float[N,4] a, float[N,4] b) <float[4] w = {1,2,3,4}> { a = Mul(x, w) b = Add(a, w) }",
    )
    unlabelled = ("--data", "synthetic", *DATA[2:])
    checked(run("run", "g.onnx", *unlabelled, "--output", "b", *SINGLE, "-o", "t.db", "--json"), "run")
    text = run("report", "t.db").out
    assert "golden run: no labels, so rates count changed answers, not wrong ones" in text
    assert "synthetic inputs: rates on real inputs may differ" in text


def test_a_trial_of_a_quantised_model_shows_the_real_numbers(run: Run, tiny: Path, models: Path) -> None:
    model, data = models / "fashion_cnn_int8_qdq.onnx", models / "fashion_test.npz"
    words = ("--samples", 20, "--role", "weight", "--single", "--trials", 3, "-o", "q.db", "--provider", "cpu")
    assert run("run", model, "--data", data, *words, "--workers", 0).code == 0
    (row,) = checked(run("show", "q.db", 1, "--json"), "show")["rows"]
    assert row["before_real"] != row["after_real"] and row["before_value"] != row["after_value"]


@pytest.mark.parametrize("verb", ["plan", "run", "report", "show", "merge"])
def test_a_schema_refuses_what_is_not_described(run: Run, tiny: Path, verb: str) -> None:
    run("run", "m.onnx", *DATA, *SINGLE, "-o", "s.db")
    words: dict[str, tuple[Any, ...]] = {
        "plan": ("m.onnx", *SINGLE), "run": ("m.onnx", *DATA, *SINGLE, "-o", "s.db"), "report": ("s.db",),
        "show": ("s.db", 1), "merge": ("a.db", "s.db"),
    }  # fmt: skip
    found = checked(run(verb, *words[verb], "--json"), verb)
    validator = Draft202012Validator(SCHEMAS[verb])
    assert set(found) == set(SCHEMAS[verb]["properties"])
    assert not validator.is_valid(found | {"more": 1})
    for key in found:
        assert not validator.is_valid({k: v for k, v in found.items() if k != key})
        assert not validator.is_valid(found | {key: {"a": 1}})


# Errors of the harness, a stop by hand, no terminal


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
        r"onnxfi: 25 of 25  \S+/s  0 s left  masked \S+ % \[\S+, \S+\]  sdc \S+ % \[\S+, \S+\]  due \S+ % \[\S+, \S+\]  "
        r"SDC-1 \(silent\) \S+ %",
        lines[-1],
    )
    found = report("s.db").everything
    silent = np.mean([float(row["sdc1"]) for row in report("s.db").details()])
    assert lines[-1].endswith(f"  SDC-1 (silent) {100 * silent:.2f} %")
    more = run("run", "m.onnx", *DATA, *SINGLE, "--trials", 27, "-o", "s.db")
    silent = np.mean([float(row["sdc1"]) for row in report("s.db").details()])
    assert more.err.splitlines()[-1].endswith(f"  SDC-1 (silent) {100 * silent:.2f} %"), "those before it count too"
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


# Bad input


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data, a spec that is none, a plan, and one whose model is not here; to be copied."""
    folder = tmp_path_factory.mktemp("listed")
    mlp(folder)
    samples(folder)
    (folder / "bad.yaml").write_text("model: m.onnx\nbrr: 1e-3\n")
    made, _ = plan(Campaign(str(folder / "m.onnx"), single=True, trials=25))
    write_plan(made, folder / "p.jsonl")
    header, *lines = (folder / "p.jsonl").read_text().splitlines()
    lost = json.dumps(json.loads(header) | {"file": "gone.onnx"})
    (folder / "lost.jsonl").write_text("\n".join([lost, *lines]) + "\n")
    return folder


@pytest.fixture
def planned(here: Path, listed: Path) -> dict[Path, bytes]:
    """Put the files of a plan into the current folder."""
    shutil.copytree(listed, here, dirs_exist_ok=True)
    return {path: path.read_bytes() for path in Path().iterdir()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "run m.onnx",
            "the campaign has no trials; give --ber RATES, --per-sample RATES, --single with --trials or --margin, --adaptive, --exhaustive, --mix PART",
        ),
        ("run m.onnx --ber 1e-3:1e-6", "ber '1e-3:1e-6': decades run from a smaller rate above 0 to a larger one"),
        ("run m.onnx --ber 1e-3,1e-4", "ber 0.001, 0.0001 is out of order; give rising rates, each once"),
        ("run m.onnx --ber x", "ber 'x' is not a rate; write 1e-6, a list 1e-6,1e-5 or decades 1e-7:1e-3"),
        ("run m.onnx --ber 1e-3 --repeat 0", "repeat 0 is out of range; give 1 to"),
        ("run m.onnx --single --margin 0", "margin 0.0 is out of range; give a share between 0 and 1, as 0.01"),
        ("run m.onnx --single --margin -1", "margin -1.0 is out of range"),
        ("run m.onnx --single --margin 0.1 --confidence 1", "confidence 1.0 is out of range"),
        ("run m.onnx --single --margin 0.1 --confidence 99", "confidence 99.0 is out of range"),
        ("run m.onnx --single --trials 3 --margin 0.1", "single takes trials or margin: how many, or how narrow"),
        ("run m.onnx --single --trials 3 -o /proc/s.db", "cannot write '/proc/s.db': unable to open database file"),
        ("run m.onnx --single --trials 0", "trials 0 is out of range"),
        ("run m.onnx --single --margin 0.1 --per layers", "'layers' is not one of 'network', 'layer'"),
        (
            "run m.onnx --ber 1e-3 --margin 0.1",
            "margin has no effect with ber, only with single, adaptive; leave it out",
        ),
        (
            "run m.onnx --ber 1e-3 --exhaustive",
            "exactly one of ber, per_sample, single, adaptive, exhaustive, faults, mix",
        ),
        ("run m.onnx --ber 1e-3 --seed -1", "seed -1 is out of range; give a whole number from 0 to 2**64 - 1"),
        ("run m.onnx --ber 1e-3 --due crahs", "due 'crahs' is unknown; closest: 'crash'"),
        ("run m.onnx --ber 1e-3 --fault filp", "unknown fault 'filp'; closest: 'flip'"),
        ("run m.onnx --ber 1e-3 --include conv", "--include 'conv' matches nothing in this model"),
        ("run m.onnx --ber 1e-3 --shard 3/2", "--shard must be of the form I/N with I from 1 to N, as 1/3, got '3/2'"),
        ("run m.onnx --ber 1e-3 --provider-option x", "provider_option must be of the form KEY=VALUE, got 'x'"),
        ("run m.onnx --mix cuont:1", "unknown field 'cuont:1'"),
        ("run m.onnx --ber 1e-3 --data none.npz", "no data at 'none.npz'"),
        ("run m.onnx --ber 1e-3 -o none/s.db", "no folder 'none' to write 's.db' into; make it first"),
        ("run m.onnx --ber 1e-3 -o .", "is a directory; give a file name"),
        ("run m.onnx --ber 1e-3 -o m.onnx", "'m.onnx' is not a store: file is not a database"),
        ("run m.onnx --ber 1e-3 -o m.onnx --fresh", "'m.onnx' is not a store: file is not a database"),
        ("run none.onnx --ber 1e-3", "none.onnx"),
        ("run none.yaml", "cannot read 'none.yaml'"),
        ("run none.jsonl", "no fault list 'none.jsonl'"),
        ("run bad.yaml", "bad.yaml, line 2, column 1: unknown field 'brr'; closest: 'ber'"),
        (
            "run lost.jsonl",
            "lost.jsonl names the model 'gone.onnx', which does not exist; use onnxfi run MODEL --faults",
        ),
        ("run p.jsonl --faults p.jsonl", "p.jsonl is a fault list already; leave --faults out"),
        ("run p.jsonl --seed 3", "seed has no effect with faults"),
        ("plan m.onnx --ber 1e-3 -o none/p.jsonl", "no folder 'none'"),
        ("plan m.onnx --ber 1e-3 --print-spec --json", "--print-spec cannot be combined with --out, --times or --json"),
        (
            "run m.onnx --ber 1e-3 --worker-memory lots",
            "--worker-memory: invalid size 'lots'; write 800MB, 4GB or 4GiB",
        ),
        ("run m.onnx --ber 1e-3 --worker-memory 0", "a worker's memory of 0 bytes is out of range"),
        ("run m.onnx --ber 1e-3 --timeout -3", "timeout -3 is out of range; give seconds above 0"),
        ("run m.onnx --ber 1e-3 --timeout 9 --workers 0", "--timeout and --worker-memory require local worker"),
        ("run m.onnx --ber 1e-3 --local-cluster 2 --workers 2", "each choose where trials run; give only one of them"),
        ("run m.onnx --ber 1e-3 --local-cluster 0", "0 is not in the range x>=1"),
        ("run m.onnx --ber 1e-3 --scheduler nowhere", "no scheduler answers at 'nowhere' within"),
        ("report none.db --html p.html", "no store 'none.db'"),
        ("report none.db --html none/p.html", "no folder 'none' to write 'p.html' into"),
        ("report m.onnx --html m.onnx", "the output 'm.onnx' is an input as well"),
        ("report", "Missing argument 'STORE"),
        ("report none.db", "no store 'none.db'; onnxfi run makes one"),
        ("report m.onnx", "'m.onnx' is not a store: file is not a database; give one that onnxfi run made"),
        ("show none.db 1", "no store 'none.db'"),
        ("show none.db 0", "0 is not in the range x>=1"),
        ("merge out.db", "Missing argument 'IN"),
        ("merge out.db none.db", "no store 'none.db'"),
    ],
)
def test_bad_input(run: Run, planned: dict[Path, bytes], words: str, message: str) -> None:
    ran = run(*words.split())
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.startswith("onnxfi: error: ") and ran.err.count("\n") == 1
    assert {path: path.read_bytes() for path in Path().iterdir()} == planned


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


def test_labels_beyond_the_classes_are_refused(run: Run, tiny: Path) -> None:
    np.savez("d.npz", x=chance(5, 4), labels=[0, 1, 2, 3, 9])
    ran = run("run", "m.onnx", *DATA, "--ber", "1e-3", "-o", "s.db")
    assert ran.code == 2 and "labels go from 0 to 9, but the model scores 3 classes" in ran.err


def test_two_runtimes_side_by_side_are_pointed_out(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "onnxfi.runtime.engine.onnx_runtime.both_runtimes_warning", lambda: "both are installed; remove one"
    )
    assert "onnxfi: both are installed; remove one" in run("plan", "m.onnx", *SINGLE).err


def test_a_plan_finds_its_model_beside_it(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny / "sub").mkdir()
    shutil.copy("m.onnx", "sub/m.onnx")
    run("plan", "sub/m.onnx", *SINGLE, "-o", "sub/p.jsonl")
    (tiny / "m.onnx").unlink()
    monkeypatch.chdir(tiny)
    (tiny / "sub").rename(tiny / "moved")
    assert run("run", "moved/p.jsonl", *DATA, "-o", "s.db").code == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [("800MB", 800_000_000), ("1.5g", 1_500_000_000), ("4GiB", 1 << 32), ("4096", 4096), ("2 kb", 2000)],
)
def test_sizes(text: str, size: int) -> None:
    assert run_module.parse_size(text) == size and run_module.parse_size(None) is None


# Several stores, a page, figures


def test_several_stores_a_page_and_figures(run: Run, tiny: Path) -> None:
    run("run", "m.onnx", *DATA, *SINGLE, "-o", "a.db")
    run("run", "m.onnx", *DATA, "--ber", "1e-3:1e-2", "--repeat", 2, "-o", "b.db")
    one = run("report", "b.db", "--html", "p.html", "--figures", "f", "--csv", "c")
    assert one.out.splitlines()[-9:] == [
        "No rates by layer here: a trial of many faults lies in no one layer. Run single faults with --single.",
        "No rates by bit here: a trial of many faults lies in no one bit. Run single faults with --single.",
        "No map of layers and bits here: a trial of many faults lies in no one cell. Run single faults of bits with --single.",
        "wrote c/detail.csv", "wrote c/summary.csv", "wrote c/rates.csv", "wrote f/accuracy.svg", "wrote f/accuracy.png",
        "wrote p.html",
    ]  # fmt: skip
    both = run("report", "a.db", "b.db", "--json").json
    assert list(both) == ["stores"] and [doc["store"] for doc in both["stores"]] == ["a.db", "b.db"]
    for document in both["stores"]:
        Draft202012Validator(SCHEMAS["report"]).validate(document)
    lines = [" ".join(line.split()[:3]) for line in run("report", "a.db", "b.db").out.splitlines()]
    assert {"a - 25", "b 0.001 2", "b 0.01 2"} <= set(lines)


# Help


def test_help_lists_every_field_and_verb(run: Run) -> None:
    texts = run("run", "--help").out
    for word in ("--ber", "--single", "--margin", "--per", "--mix", "--shard", "--fresh", "--workers", "--due"):
        assert word in texts
    assert texts.index("--ber") < texts.index("--include") < texts.index("--workers"), (
        "what is asked first stands first"
    )
    whole = run("--help").out
    for verb in COMMANDS:
        assert re.search(rf"^  {verb} +\S", whole, re.M)


def test_flags_have_the_defaults_of_the_fields() -> None:
    @click.command()
    @campaign_options
    def command(**given: Any) -> None:
        found.update(given)

    found: dict[str, Any] = {}
    assert CliRunner().invoke(command, []).exit_code == 0
    known = {name: field.default for name, field in flat_fields(Campaign).items()}
    words = {name: ",".join(known[name]) for name in ("due", "target")}
    # --allow-code is of the command alone: no file can allow itself to run code.
    base = known | {"ber": None, "per_sample": None, "mix": (), "faults": None, "allow_code": False} | words
    assert found == {name: base[name] for name in found}
    assert set(known) - set(found) == {"model"}


def test_a_table_by_tensor_of_a_network_whose_neurons_are_exposed(run: Run, models: Path, tmp_path: Path) -> None:
    store = tmp_path / "snn.db"
    words = ["run", models / "fashion_snn.onnx", "--data", models / "fashion_test.npz", "--samples", "16"]
    words += [
        "--expose",
        "--layers",
        "tensors",
        "--role",
        "threshold",
        "--role",
        "weight",
        "--single",
        "--trials",
        "20",
    ]
    ran = run(*words, "--workers", "0", "-o", store)
    assert ran.code == 0, ran.err
    assert any(line.split()[:1] == ["fc.weight"] for line in ran.out.splitlines())
    found = run("report", store, "--json").json
    assert {fold["key"] for fold in found["by_layer"]} == {
        *(f"{name}.weight" for name in ("conv1", "conv2", "fc")),
        *(f"lif{k}/threshold" for k in (1, 2, 3)),
    }
    shown = run("show", store, "1", "--export", tmp_path / "one.onnx")
    assert shown.code == 0, shown.err
    again = run(*words, "--workers", "0", "-o", store)
    assert again.code == 0 and "20 of 20 trials are in" in again.err


def test_membrane_potentials_are_faulty_from_a_step_on(run: Run, models: Path, tmp_path: Path) -> None:
    words = ["run", models / "fashion_snn_scan.onnx", "--data", models / "fashion_test.npz", "--samples", "8"]
    words += ["--expose", "--target", "activations", "--include", "*/membrane", "--bits", "30", "--persistence", "from"]
    ran = run(*words, "--single", "--trials", "12", "--workers", "0", "-o", tmp_path / "snn.db")
    assert ran.code == 0, ran.err
    assert "population N = 18,896 bits" in ran.err  # 1,568 + 784 + 10 neurons in 8 steps
    found = run("report", tmp_path / "snn.db", "--json").json
    assert {fold["key"] for fold in found["by_layer"]} == {f"lif{k}/membrane" for k in (1, 2, 3)}
    assert found["outcomes"]["sdc"] > 2


def test_compare_runs_in_its_own_process_too(run: Run, tiny: Path) -> None:
    mlp(tiny, name="other.onnx", seed=3)
    words = ["compare", "m.onnx", "other.onnx", *DATA, "--ber", "1e-2", "--repeat", 2, "--json"]
    alone, pooled = run(*words, "--workers", 0), run(*words, "--workers", 1)
    assert alone.code == 0 and alone.json == pooled.json
    assert {path.name for path in tiny.iterdir()} == {"m.onnx", "other.onnx", "d.npz"}, (
        "no store where none was asked for"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--dtype", "int8"), "--dtype 'int8' matches no activation of this model; known: float32"),
        (("--exclude", "x"), "no activation matches all selectors together; each matches some"),
    ],
)
def test_a_selection_of_inputs_that_is_empty_says_what_there_is(run: Run, tiny: Path, words: Any, says: str) -> None:
    found = run("run", "m.onnx", *DATA, "--single", "--trials", 2, "--target", "inputs", *words, "-o", "s.db")
    assert found.code == 2 and says in found.err and "--all" not in found.err


def test_every_name_is_the_same_on_the_terminal_the_page_and_in_json(run: Run, tiny: Path) -> None:
    text = run("run", "m.onnx", *DATA, "--single", "--trials", 60, "--bits", "exponent", "-o", "s.db").out
    assert "SDC-1 (silent)" in text and not re.search(r"SDC-1(?! \(silent\)| between)", text.replace("any SDC-1", ""))
    page = run("report", "s.db", "--html", "p.html", "--json")
    names = [rate["name"] for rate in page.json["rates"]]
    text = (tiny / "p.html").read_text()
    assert {"sdc1", "top1_changed", "critical"} <= set(names) and "SDC-1 (silent)" in text and "top-1 changed" in text
    assert "count trials by the gravest of their 12 samples" in text and page.json["judged"] == 12
