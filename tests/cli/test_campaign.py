"""`onnxfi plan`, `run`, `report`, `show` and `merge`: what they print, their documents, and bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign_commands import DATA, SCHEMAS, SINGLE, Run, checked
from jsonschema import Draft202012Validator
from tiny_campaigns import chance, mlp, samples, save

from onnxfi.campaign.plan.plan import write_plan
from onnxfi.campaign.run.runner import plan
from onnxfi.campaign.spec.campaign import Campaign

# The commands from plan to report


@pytest.mark.slow
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


# Documents


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "run m.onnx",
            "the campaign has no trials; give --ber RATES, --per-sample RATES, --voltage V,V, --single with --trials or --margin, --adaptive, --exhaustive, --mix PART",
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
            "exactly one of ber, per_sample, voltage, temperature, single, adaptive, exhaustive, faults, mix",
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


def test_labels_beyond_the_classes_are_refused(run: Run, tiny: Path) -> None:
    np.savez("d.npz", x=chance(5, 4), labels=[0, 1, 2, 3, 9])
    ran = run("run", "m.onnx", *DATA, "--ber", "1e-3", "-o", "s.db")
    assert ran.code == 2 and "labels go from 0 to 9, but the model scores 3 classes" in ran.err


def test_two_runtimes_side_by_side_are_pointed_out(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "onnxfi.runtime.engine.installed_runtime.both_runtimes_warning", lambda: "both are installed; remove one"
    )
    assert "onnxfi: both are installed; remove one" in run("plan", "m.onnx", *SINGLE).err


# Several stores, a page, figures


# Help


def test_membrane_potentials_are_faulty_from_a_step_on(run: Run, models: Path, tmp_path: Path) -> None:
    words = ["run", models / "fashion_snn_scan.onnx", "--data", models / "fashion_test.npz", "--samples", "8"]
    words += ["--expose", "--target", "activations", "--include", "*/membrane", "--bits", "30", "--persistence", "from"]
    ran = run(*words, "--single", "--trials", "12", "--workers", "0", "-o", tmp_path / "snn.db")
    assert ran.code == 0, ran.err
    assert "population N = 18,896 bits" in ran.err  # 1,568 + 784 + 10 neurons in 8 steps
    found = run("report", tmp_path / "snn.db", "--json").json
    assert {fold["key"] for fold in found["by_layer"]} == {f"lif{k}/membrane" for k in (1, 2, 3)}
    assert found["outcomes"]["sdc"] > 2


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
