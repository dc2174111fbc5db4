"""Reports as Python shows them: a short text, a table in a notebook, figures, files."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_campaigns import ran

from onnxfi.campaign.report.rates import Fold, MetricEstimate
from onnxfi.campaign.report.report import Report, report
from onnxfi.campaign.report.tables import by_harm
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError, OutputError
from onnxfi.statistics.intervals import Interval
from onnxfi.tasks.kinds.classification import CLASSIFICATION


@pytest.fixture
def sweep(here: Path) -> Report:
    ran(Campaign("m.onnx", "d.npz", provider="cpu", ber=(1e-4, 1e-2), repeat=4), here / "s.db")
    return report(here / "s.db")


def test_the_short_text_has_a_line_for_each_rate_and_fits_a_screen(sweep: Report) -> None:
    text = repr(sweep)
    lines = text.splitlines()
    assert len(text) < 2000 and lines[0].startswith(str(sweep.store)) and "8 of 8 trials" in lines[0]
    assert lines[1].startswith("golden run: top-1 ")
    assert [line.split()[0] for line in lines[3:]] == ["0.0001", "0.01"]
    accuracy = sweep.by_rate[0].rate("top1")
    assert accuracy is not None and sweep.task.metric("top1").interval(accuracy) in lines[3]


def test_many_rates_are_cut_and_counted(sweep: Report) -> None:
    many = replace(sweep, by_rate=sweep.by_rate * 15)
    assert len(repr(many).splitlines()) == 24 and repr(many).endswith("and 10 rates more; .by_rate has all")


def test_a_table_in_a_notebook_escapes_names(sweep: Report) -> None:
    hostile = replace(sweep, golden=sweep.golden | {"data": "<script>alert(1)</script>"})
    text = hostile._repr_html_()
    assert "<script>" not in text and text.count("<tr>") == 3 and "&lt;script&gt;" in text


def test_trials_without_a_sweep_are_one_line(here: Path) -> None:
    ran(Campaign("m.onnx", "d.npz", provider="cpu", single=True, trials=10), here / "s.db")
    assert repr(report(here / "s.db")).splitlines()[-1].split()[0] == "10"


def test_figures_tables_and_the_page_are_written(sweep: Report, here: Path) -> None:
    pytest.importorskip("matplotlib")
    assert sweep.figure().axes[0].get_xlabel() == sweep.plot("accuracy").axes[0].get_xlabel()
    assert {path.suffix for path in sweep.figures(here / "figures")} == {".svg", ".png"}
    assert sweep.html(here / "s.html").read_text("utf-8").startswith("<!doctype html>")
    assert all(path.is_file() for path in sweep.csv(here / "csv"))
    with pytest.raises(InputError, match="there is no figure 'layer'; closest: 'layers'"):
        sweep.figure("layer")
    with pytest.raises(InputError, match="No rates by layer here"):
        sweep.figure("layers")


def test_one_row_a_trial_in_pandas(sweep: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    table = sweep.to_pandas()
    assert len(table) == 8 and sorted(set(table["ber"])) == [1e-4, 1e-2]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(OutputError, match=r"pip install pandas, or use \.csv"):
        sweep.to_pandas()


def test_layers_come_by_their_harm() -> None:
    def fold(key: str, estimate: float, low: float = 0.0) -> Fold:
        return Fold(key, 10, None, {}, (MetricEstimate("sdc1", "samples", Interval(low, 1.0, estimate, 10, "m")),))

    folds = [fold("a", 0.1), fold("b", math.nan), fold("c", 0.4), fold("d", 0.1, 0.05), fold("e", 0.1)]
    metric = CLASSIFICATION.metric("sdc1")
    assert [one.key for one in by_harm(folds, metric)] == ["c", "d", "a", "e", "b"]
    assert [one.key for one in by_harm(folds, replace(metric, better="higher"))][-2:] == ["c", "b"]


def test_the_terminal_shows_the_worst_layers_and_says_what_is_left_out(here: Path, run: Callable[..., Any]) -> None:
    ran(Campaign("m.onnx", "d.npz", provider="cpu", single=True, trials=30), here / "s.db")
    found = report(here / "s.db")
    worst = by_harm(found.by_layer, found.task.metric("sdc1"))[0].key
    result = run("report", "s.db", "--top", "1")
    assert f"the 1 of {len(found.by_layer)} layers with the highest SDC-1" in result.out
    table = result.out[result.out.index("By layer") :].splitlines()
    assert [line.split()[0] for line in table[4:5]] == [worst]
    assert "layers with the highest" not in run("report", "s.db", "--top", "0").out
    refused = run("report", "s.db", "--sort", "sdc9")
    assert (refused.code, refused.out) == (
        2,
        "",
    ) and "--sort: the store has no rate 'sdc9'; closest: 'sdc'" in refused.err
