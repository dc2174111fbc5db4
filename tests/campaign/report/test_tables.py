"""Tables as CSV and for pandas: every number of the report, and names that are no formulas."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reported_campaigns import campaign, rows_of
from tiny_campaigns import mlp, ran, samples, save

from onnxfi.campaign.report.report import Report, report
from onnxfi.campaign.report.tables import classes, values_by_rate, write_csv, write_csv_of_all
from onnxfi.errors import OutputError
from onnxfi.tasks.kinds.classification import CLASSES


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_average_and_the_detail_of_a_sweep_as_csv(here: Path) -> None:
    ran(campaign(ber=(1e-3, 1e-2), repeat=6), here / "s.db")
    found = report(here / "s.db")
    written = write_csv(found, here / "out" / "csv")
    assert [path.name for path in written] == ["detail.csv", "summary.csv", "rates.csv"]
    rates, detail = read(here / "out" / "csv" / "rates.csv"), read(here / "out" / "csv" / "detail.csv")
    assert [row["ber"] for row in rates] == ["0.001", "0.01"]
    assert [row["trial"] for row in detail] == [str(k) for k in range(1, 13)]
    for row in rates:
        mine = [one for one in detail if one["ber"] == row["ber"]]
        assert len(mine) == int(row["trials"]) == 6
        for name in ("top1", "top5", "sdc1"):
            assert float(row[name]) == pytest.approx(np.mean([float(one[name]) for one in mine]))
            assert float(row[f"{name}_low"]) <= float(row[name]) <= float(row[f"{name}_high"])
        assert float(row["golden_top1"]) == pytest.approx(found.golden["metrics"]["top1"])
    assert {"trial", "ber", "faults", "outcome", "top1", "top5", *CLASSES} <= set(detail[0])


def test_csv_files_named_by_the_model_hold_the_same(here: Path) -> None:
    ran(campaign(ber=(1e-3, 1e-2), repeat=3), here / "s.db")
    ran(campaign(single=True, trials=3), here / "t.db")
    for store, names in (("s.db", ["detail", "summary", "rates"]), ("t.db", ["detail", "summary", "layers", "bits"])):
        found = report(here / store)
        main = "rates" if "rates" in names else "summary"
        plain = {path.stem: path.read_bytes() for path in write_csv(found, here / store.replace(".", "-"))}
        named = {path.stem: path.read_bytes() for path in found.csv(here / "named", by_model=True)}
        assert named == {"m" if n == main else f"{n}-m": plain[n] for n in plain} and set(names) <= set(plain)
    joined = [path.name for path in write_csv_of_all([report(here / "s.db")] * 2, here / "both", by_model=True)]
    assert joined == ["detail-m.csv", "summary-m.csv", "m.csv"]


@pytest.mark.skipif(os.name == "nt", reason="this system has no limit of open files")
def test_many_stores_are_written_one_after_the_other(here: Path) -> None:
    ran(campaign(single=True, trials=3), here / "t.db")
    program = (
        "import resource\n"
        "from onnxfi.campaign.report.report import report\n"
        "from onnxfi.campaign.report.tables import write_csv_of_all\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "write_csv_of_all([report('t.db')] * 100, 'out')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=here)
    assert len(read(here / "out" / "detail.csv")) == 300


def test_rates_that_print_alike_keep_all_their_trials(here: Path) -> None:
    ran(campaign(ber=(1e-2, 1.00000001e-2), repeat=3), here / "s.db")
    found = report(here / "s.db")
    assert {key: len(values) for key, values in values_by_rate(found, found.task.metric("top1")).items()} == {"0.01": 6}


def test_the_table_of_classes_by_layer_as_csv(here: Path) -> None:
    ran(campaign(single=True, margin=0.1, per="layer"), here / "s.db")
    found = report(here / "s.db")
    names = [path.name for path in write_csv(found, here)]
    assert names == ["detail.csv", "summary.csv", "layers.csv", "bits.csv", "classes.csv"]
    table = read(here / "classes.csv")
    assert [row["layer"] for row in table] == ["fc1", "fc2"]
    shares = [name.removeprefix("class_") for name in CLASSES]
    assert list(table[0]) == [
        "layer",
        "faults",
        "injections",
        "batch_runs",
        *shares,
        "faulty_accuracy",
        "golden_accuracy",
    ]
    rows = rows_of(here / "s.db")
    for line in table:
        mine = [row for row in rows if row["layer"] == line["layer"]]
        assert (int(line["faults"]), int(line["injections"])) == (len(mine), 12 * len(mine))
        assert int(line["batch_runs"]) == len(mine)  # the 12 samples fit into one batch
        assert sum(float(line[name]) for name in shares) == pytest.approx(1)
        for name in shares:
            assert float(line[name]) == pytest.approx(np.mean([row[f"class_{name}"] for row in mine]))
        assert float(line["faulty_accuracy"]) == pytest.approx(np.mean([row["top1"] for row in mine]))
        assert float(line["golden_accuracy"]) == pytest.approx(found.golden["metrics"]["top1"])
    layers = read(here / "layers.csv")
    assert [(row["layer"], row["population"]) for row in layers] == [("fc1", "800"), ("fc2", "576")]
    assert all(float(row["class_sdc_1_low"]) <= float(row["class_sdc_1"]) for row in layers)
    assert len(read(here / "bits.csv")) == 32


def test_files_of_models_without_classes(here: Path) -> None:
    save(
        here,
        """g (float[N,4] x) => (float[N,4,1] y) <float[4] w = {1,2,3,4}>
        { two = Constant<value_ints = [2]>() a = Mul(x, w) y = Unsqueeze(a, two) }""",
    )
    ran(campaign(model="g.onnx", data=None, single=True, trials=20), here / "s.db")
    found = report(here / "s.db")
    assert classes(found) == [] and found.samples is None
    assert {rate.name for rate in found.everything.rates} == {
        "masked", "sdc", "due", "nonfinite", "masked_samples", "sdc_samples", "due_samples",
        "changed", "changed_samples", "max_abs", "rel_l2", "cosine",
    }  # fmt: skip
    assert "classes.csv" not in [path.name for path in write_csv(found, here)]
    assert "top1" not in read(here / "summary.csv")[0], "a task's columns are the metrics that it declares"


def test_a_folder_that_cannot_be_written(here: Path) -> None:
    ran(campaign(single=True, trials=3), here / "s.db")
    (here / "file").touch()
    with pytest.raises(OutputError, match=r"the output folder .*file' cannot be made"):
        write_csv(report(here / "s.db"), here / "file")


def test_a_file_that_cannot_be_finished_is_not_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(campaign(single=True, trials=3), here / "s.db")
    (here / "csv").mkdir()
    (here / "csv" / "detail.csv").write_text("an older one")
    details = Report.details

    def full(self: Report) -> Iterator[dict[str, Any]]:
        yield next(details(self))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Report, "details", full)
    with pytest.raises(OutputError, match=r"cannot write .*detail\.csv': No space left on device; nothing was written"):
        write_csv(report(here / "s.db"), here / "csv")
    assert [(p.name, p.read_text()) for p in (here / "csv").iterdir()] == [("detail.csv", "an older one")]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ('a,"b\n', 'a,"b\n'),
        ("=cmd|' calc'!A0", "'=cmd|' calc'!A0"),
        (" +1+1", "' +1+1"),
        ("＠SUM(1)", "'＠SUM(1)"),
        ("-\x1b]0;x\x07\x9b31m\u202e", "'-\\x1b]0;x\\x07\\x9b31m\\u202e"),
    ],
    ids=["quotes", "formula", "space", "wide", "escapes"],
)
def test_names_that_need_quotes_or_would_be_formulas(name: str, cell: str, here: Path) -> None:
    samples(here)
    mlp(here)
    import onnx

    model = onnx.load("m.onnx")
    for node in model.graph.node:
        node.name = node.name.replace("fc1", name)
    onnx.save(model, "m.onnx")
    ran(campaign(single=True, trials=4), here / "s.db")
    write_csv(report(here / "s.db"), here)
    assert read(here / "layers.csv")[0]["layer"] == cell
