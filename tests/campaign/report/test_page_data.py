"""Plain values that a page shows: every trial with its fault, layers in order of depth, cells with their means."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import onnx
import pytest
from reported_campaigns import rows_of, singles, sweep

from onnxfi.campaign.report.page_data import campaign_data, layer_rows, model_name, packed
from onnxfi.campaign.results.store import Store
from onnxfi.tasks.outcomes import unpacked


def test_trials_have_their_faults_and_the_samples_that_changed(here: Path) -> None:
    found = singles(here)
    data = campaign_data(found, "s")
    columns, texts = data["trials"]["columns"], data["trials"]["texts"]
    with Store.open(here / "s.db") as opened:
        rows = {row.trial: row for row in opened.rows()}
        assert sorted(columns["trial"]) == sorted(rows)
        for k, trial in enumerate(columns["trial"]):
            fault, row = json.loads(opened.lines(trial)), rows[trial]
            [[target, index, when, model, bits, before, after, _, _]] = columns["words"][k]
            assert [texts[target], index, texts[when], texts[model], bits, before, after] == [
                fault["target"], fault["index"], "", fault["fault"], fault["bits"], fault["before"], fault["after"],
            ]  # fmt: skip
            assert data["layers"][columns["layer"][k]]["name"] == row.layer and columns["bit"][k] == row.bit
            assert ("masked", "sdc", "due")[columns["outcome"][k]] == row.outcome
            assert row.changed is not None
            places = [n for n, changed in enumerate(unpacked(row.changed, 12)) if changed]
            assert columns["samples"][k] == (len(places), *places)
    harm = [values[0] for values in columns["values"]]
    assert harm == sorted(harm, reverse=True)


def test_a_fault_in_an_activation_has_the_words_that_its_trial_found(here: Path) -> None:
    columns = campaign_data(singles(here, target=("activations",), trials=4, margin=None), "s")["trials"]["columns"]
    with Store.open(here / "s.db") as opened:
        for trial, [word] in zip(columns["trial"], columns["words"], strict=True):
            [kept] = opened.words(trial)
            assert word[5:7] == [kept["before"], kept["after"]] and word[7] is not None
            assert json.loads(opened.lines(trial))["before"] is None


def test_cells_are_means_of_their_trials(here: Path) -> None:
    data, rows = campaign_data(singles(here), "s"), rows_of(here / "s.db")
    assert sum(cell[2] for cell in data["cells"]) == len(rows)
    for layer, bit, trials, outcomes, (estimate, low, high) in data["cells"]:
        mine = [row for row in rows if (row["layer"], row["bit"]) == (data["layers"][layer]["name"], bit)]
        assert trials == len(mine) == sum(outcomes)
        assert estimate == pytest.approx(sum(row["sdc1"] for row in mine) / trials, rel=1e-5, abs=1e-9)
        assert low <= estimate <= high


def test_layers_stand_in_order_of_depth_and_not_of_the_file(here: Path) -> None:
    model = onnx.load("m.onnx")
    stored = list(model.graph.initializer)[::-1]
    del model.graph.initializer[:]
    model.graph.initializer.extend(stored)
    onnx.save(model, "m.onnx")
    found = singles(here)
    rows = layer_rows(found)
    assert [fold.key for fold in found.by_layer] == ["fc2", "fc1"], "the file has the last layer first"
    assert [row["name"] for row in rows] == ["fc1", "fc2"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["sites"] for row in rows] == [32 * (4 * 5 + 5), 32 * (5 * 3 + 3)]
    swept = layer_rows(sweep(here))
    assert [(row["name"], row["rate"]) for row in swept] == [("fc1", None), ("fc2", None)], "a sweep has shares alone"
    with Store.open(here / "s.db", create=True) as opened:
        opened.put(layers=None)
    assert [row["name"] for row in layer_rows(found)] == ["fc2", "fc1"], "an older store has the order of its file"


def test_a_sweep_has_points_with_intervals_and_outcomes_that_sum_to_one(here: Path) -> None:
    found = sweep(here)
    data = campaign_data(found, "sweep")
    assert [point["x"] for point in data["curve"]] == [1e-4, 1e-3, 1e-2]
    for point in data["stack"]:
        assert point["kept"] + point["sdc"] + point["due"] == pytest.approx(1, abs=1e-5)
    assert data["metric"]["golden"] == pytest.approx(found.golden["metrics"]["top1"], rel=1e-5)
    assert model_name(found) == "m"
    assert packed(data) == packed(data) and json.loads(gzip.decompress(packed(data))) == json.loads(json.dumps(data))
