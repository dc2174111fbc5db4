"""onnxfi report: every number of the tables is the report's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
from campaign_commands import DATA, SCHEMAS, SINGLE, Run
from jsonschema import Draft202012Validator

from onnxfi.api.models import evaluate
from onnxfi.campaign.report.findings import turned_into_due
from onnxfi.campaign.report.report import report


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


def test_a_sweep_is_reported_by_rate(run: Run, tiny: Path) -> None:
    ran = run("run", "m.onnx", *DATA, "--ber", "1e-3:1e-1", "--repeat", 3)
    assert "onnxfi: sweep, 3 trials at each of 3 rates per bit: n = 9 trials" in ran.err
    rows = re.findall(r"^ +(0\.001|0\.01|0\.1) +3 ", ran.out, re.M)
    assert rows == ["0.001", "0.01", "0.1"] and "All trials" not in ran.out
    falls = list(turned_into_due(report("m.onnxfi.db")))
    assert falls and all(line in ran.out.splitlines() for line in falls), "a terminal may have no room for DUE"
    beside = run("report", "m.onnxfi.db", "m.onnxfi.db").out.splitlines()
    assert len([line for line in beside if line.endswith(falls[0])]) == 2
    one = run("run", "m.onnx", *DATA, "--ber", "1e-3", "--repeat", 3, "-o", "1.db")
    assert "All trials" in one.out and "By bit error rate" not in one.out


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


def test_several_stores_a_page_and_figures(run: Run, tiny: Path) -> None:
    run("run", "m.onnx", *DATA, *SINGLE, "-o", "a.db")
    run("run", "m.onnx", *DATA, "--ber", "1e-3:1e-2", "--repeat", 2, "-o", "b.db")
    one = run("report", "b.db", "--html", "p.html", "--figures", "f", "--csv", "c")
    assert one.out.splitlines()[-11:] == [
        "No rates by layer here: a trial of many faults lies in no one layer. Run single faults with --single.",
        "No rates by bit here: a trial of many faults lies in no one bit. Run single faults with --single.",
        "No map of layers and bits here: a trial of many faults lies in no one cell. Run single faults of bits with --single.",
        "wrote c/detail.csv", "wrote c/summary.csv", "wrote c/rates.csv", "wrote f/accuracy.svg", "wrote f/accuracy.png",
        "wrote f/outcomes.svg", "wrote f/outcomes.png", "wrote p.html",
    ]  # fmt: skip
    both = run("report", "a.db", "b.db", "--json").json
    assert list(both) == ["stores"] and [doc["store"] for doc in both["stores"]] == ["a.db", "b.db"]
    for document in both["stores"]:
        Draft202012Validator(SCHEMAS["report"]).validate(document)
    lines = [" ".join(line.split()[:3]) for line in run("report", "a.db", "b.db").out.splitlines()]
    assert {"a - 25", "b 0.001 2", "b 0.01 2"} <= set(lines)


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


def test_every_name_is_the_same_on_the_terminal_the_page_and_in_json(run: Run, tiny: Path) -> None:
    text = run("run", "m.onnx", *DATA, "--single", "--trials", 60, "--bits", "exponent", "-o", "s.db").out
    assert "SDC-1 (silent)" in text and not re.search(r"SDC-1(?! \(silent\)| between)", text.replace("any SDC-1", ""))
    page = run("report", "s.db", "--html", "p.html", "--json")
    names = [rate["name"] for rate in page.json["rates"]]
    text = (tiny / "p.html").read_text()
    assert {"sdc1", "top1_changed", "critical"} <= set(names) and "SDC-1 (silent)" in text and "top-1 changed" in text
    assert "count trials by the gravest of their 12 samples" in text and page.json["judged"] == 12


def test_no_table_is_printed_of_folds_that_no_trial_lies_in(run: Run, tiny: Path) -> None:
    layout = Path(__file__).parents[2] / "examples" / "hardware" / "dimm.json"
    words = ("--memory-layout", f"{layout},part=lane,effect=stuck-at-1", "--single", "--trials", 2, "-o", "s.db")
    ran = run("run", "m.onnx", *DATA, *words)
    assert ran.code == 0 and "All trials" in ran.out, ran.err
    assert "By layer" not in ran.out and "By bit" not in ran.out


def test_a_metric_with_a_unit_is_nowhere_a_percentage(run: Run, tiny: Path) -> None:
    """Its golden value stands in five tables: of eval, inject, run, reports side by side, and compare."""
    shape = evaluate("m.onnx", "d.npz", samples=8, provider="cpu").scores.shape
    np.save("l.npy", np.full(shape, 2.0))
    data = (*DATA[:4], "--samples", 8, "--labels", "l.npy", "--task", "regression:unit=m")
    golden = f"{run('eval', 'm.onnx', *data, '--json').json['golden']['mae']:.4g} m"
    assert re.search(rf"mae +{golden}\n", run("eval", "m.onnx", *data).out)
    assert re.search(rf"mae +{golden} +", run("inject", "m.onnx", *data, "--count", 1, "-o", "f.onnx").out)
    sweep = (*data, "--ber", "1e-3", "--repeat", 2, "--workers", 0)
    assert f"golden run: mae {golden}, " in run("run", "m.onnx", *sweep, "-o", "s.db").out
    shutil.copy("s.db", "t.db")
    assert golden in run("report", "s.db", "t.db").out
    assert re.search(rf"golden run +{golden} ", run("compare", "m.onnx", "f.onnx", *sweep).out)
