"""The plan: numbers, strata, sizes and words of the trials; the same from its file; streamed."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_campaigns import mlp, ran, tables

from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.plan import Plan, PlannedTrial, make_plan, write_plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import FaultListError, InputError, OutputError, SelectorError, SpecError
from onnxfi.faults.faultlist import FaultList
from onnxfi.graph.model.loading import load

SIZES = {"w1": 20, "b1": 5, "w2": 15, "b2": 3}
SITES = 43 * 32


def planned(model: str = "m.onnx", **fields: Any) -> Plan:
    return make_plan(Campaign(model, **fields), FaultTargets.of(load(model)))


def faults(trial: PlannedTrial) -> list[tuple[str, int, int | None, str]]:
    """The sites and faults of a trial, in order."""
    rows = [json.loads(line) for line in trial.lines.splitlines()]
    assert all(row["trial"] == trial.trial for row in rows)
    return [(r["target"], r["index"], (r["bits"] or [None])[0], r["fault"]) for r in rows if "target" in r]


def by_number(plan: Plan) -> dict[int, PlannedTrial]:
    rows = list(plan.trials())
    assert [row.trial for row in rows] == sorted({row.trial for row in rows}), "in order, each once"
    assert len(rows) == len(plan)
    return {row.trial: row for row in rows}


# Numbers


@pytest.mark.parametrize(
    "fields",
    [
        {"ber": (1e-3, 1e-2, 0.1), "repeat": 4},
        {"single": True, "margin": 0.3, "per": "layer"},
        {"single": True, "margin": 0.3, "per": "layer-bit", "bits": "exponent"},
        {"mix": (dict(count=2), dict(ber=1e-2)), "repeat": 5},
        {"single": True, "trials": 9},
        {"exhaustive": True, "bits": "31"},
    ],
)
def test_trial_j_of_stratum_s_has_its_number(here: Path, fields: dict[str, Any]) -> None:
    plan = planned(**fields)
    strata = len(plan.strata)
    counts: Counter[int] = Counter()
    for row in by_number(plan).values():
        assert (row.trial - 1) % strata == row.stratum
        assert (row.trial - 1) // strata < plan.strata[row.stratum].trials
        assert row.faults == len(faults(row))
        counts[row.stratum] += 1
    assert counts == {s: group.trials for s, group in enumerate(plan.strata)}


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"ber": (1e-3, 1e-2), "repeat": 2}, {"ber": (1e-3, 1e-2), "repeat": 5}),
        ({"single": True, "trials": 3}, {"single": True, "trials": 50}),
        ({"single": True, "margin": 0.4}, {"single": True, "margin": 0.2}),
        ({"single": True, "margin": 0.4, "per": "layer"}, {"single": True, "margin": 0.2, "per": "layer"}),
        (
            {"single": True, "margin": 0.4, "confidence": 0.9, "per": "data-aware"},
            {"single": True, "margin": 0.4, "confidence": 0.99, "per": "data-aware"},
        ),
        ({"mix": (dict(count=2),), "repeat": 2}, {"mix": (dict(count=2),), "repeat": 6}),
        ({"single": True, "trials": 3, "fault": "random-word"}, {"single": True, "trials": 43, "fault": "random-word"}),
    ],
)
def test_a_longer_campaign_keeps_the_trials_of_a_shorter_one(
    here: Path, short: dict[str, Any], long: dict[str, Any]
) -> None:
    few, many = by_number(planned(**short)), by_number(planned(**long))
    assert len(few) < len(many)
    assert few == {trial: many[trial] for trial in few}


def test_another_seed_gives_other_faults(here: Path) -> None:
    one, other = (by_number(planned(ber=(1e-2,), repeat=5, seed=seed)) for seed in (0, 1))
    assert [faults(row) for row in one.values()] != [faults(row) for row in other.values()]


# Single faults


@pytest.mark.parametrize("per", ["network", "layer", "layer-bit", "data-aware"])
def test_single_faults_never_repeat_and_stay_in_their_stratum(here: Path, per: str) -> None:
    plan = planned(single=True, margin=0.15, per=per)
    seen: set[Any] = set()
    for row in plan.trials():
        (fault,) = faults(row)
        group = plan.strata[row.stratum]
        layer = "fc1" if fault[0] in ("w1", "b1") else "fc2"
        assert (row.layer, row.bit) == (layer, fault[2])
        assert group.layer in (None, layer) and group.bit in (None, fault[2])
        seen.add(fault)
    assert len(seen) == len(plan)


@pytest.mark.parametrize(
    "fields", [{}, {"bits": "exponent,sign", "include": "fc2"}, {"elements": "0:2", "op": "MatMul"}]
)
def test_exhaustive_faults_cover_every_site_once(here: Path, fields: dict[str, Any]) -> None:
    plan = planned(exhaustive=True, seed=3, **fields)
    injected = [(target, index, bit) for row in plan.trials() for target, index, bit, _ in faults(row)]
    bits = [*range(23, 31), 31] if "bits" in fields else [*range(32)]
    elements = {"w1": 20, "b1": 5, "w2": 15, "b2": 3}
    if "include" in fields:
        elements = {"w2": 15, "b2": 3}
    if "op" in fields:
        elements = {"w1": 10, "w2": 6}
    assert sorted(injected) == sorted((name, i, bit) for name, n in elements.items() for i in range(n) for bit in bits)
    assert injected != sorted(injected), "in random order, so that what is done when it stops is a fair sample"


def test_single_trials_of_whole_words_go_to_the_last_word(here: Path) -> None:
    plan = planned(single=True, trials=1000, fault="zero")
    assert len(plan) == 43
    assert sorted(f for row in plan.trials() for f in faults(row)) == sorted(
        (name, i, None, "zero") for name, n in SIZES.items() for i in range(n)
    )


# Words


def words(model: str) -> dict[str, list[int]]:
    """The stored words, as the onnx package reads them."""
    return {
        t.name: numpy_helper.to_array(t).ravel().view(np.uint32).tolist() for t in onnx.load(model).graph.initializer
    }


@pytest.mark.parametrize("fault", ["flip", "stuck-at-1", "burst:k=3", "set-word:word=0x7fc00000", "sign-flip"])
@pytest.mark.parametrize("way", [{"single": True, "trials": 30}, {"ber": (0.05,), "repeat": 3}])
def test_the_words_before_and_after_are_those_of_the_file(here: Path, fault: str, way: dict[str, Any]) -> None:
    stored = words("m.onnx")
    plan = planned(fault=fault, **way)
    assert len(plan) == way.get("trials", 3)
    for row in plan.trials():
        held = {name: list(column) for name, column in stored.items()}
        for line in map(json.loads, row.lines.splitlines()):
            before = held[line["target"]][line["index"]]
            bit = (line["bits"] or [0])[0]
            after = {
                "flip": before ^ 1 << bit,
                "stuck-at-1": before | 1 << bit,
                "burst:k=3": before ^ 7 << bit,
                "set-word:word=0x7fc00000": 0x7FC00000,
                "sign-flip": before ^ 1 << 31,
            }[fault]
            assert (int(line["before"], 16), int(line["after"], 16)) == (before, after)
            assert line["changed"] == (before != after)
            value = struct.unpack("<f", struct.pack("<I", before))[0]
            assert line["before_value"] == pytest.approx(value, rel=1e-6)
            held[line["target"]][line["index"]] = after


def test_of_single_faults_none_sees_another(here: Path) -> None:
    stored = words("m.onnx")
    for row in planned(exhaustive=True, fault="stuck-at-0").trials():
        line = json.loads(row.lines)
        assert int(line["before"], 16) == stored[line["target"]][line["index"]]


# Mixes


def test_mixed_trials_hold_all_parts_in_order(here: Path) -> None:
    parts = (
        dict(fault="stuck-at-1", count=3, include=("fc1",)),
        dict(fault="zero", count=2, include=("fc2",)),
        dict(ber=0.02),
    )
    for row in planned(mix=parts, repeat=8).trials():
        found = faults(row)
        assert [f[3] for f in found[:5]] == ["stuck-at-1"] * 3 + ["zero"] * 2
        assert {f[0] for f in found[:3]} <= {"w1", "b1"} and {f[0] for f in found[3:5]} <= {"w2", "b2"}
        assert {f[3] for f in found[5:]} <= {"flip"}


def test_parts_draw_independently(here: Path) -> None:
    twice = planned(mix=(dict(count=8), dict(count=8)), repeat=60)
    pairs = [({f[:3] for f in faults(row)[:8]}, {f[:3] for f in faults(row)[8:]}) for row in twice.trials()]
    common = sum(len(one & other) for one, other in pairs)
    # 60 trials of 8 · 8 / 1,376 expected coincidences: 2.8; the same draw would give 480.
    assert common < 12
    alone = planned(mix=(dict(count=8),), repeat=60)
    assert [{f[:3] for f in faults(row)} for row in alone.trials()] == [one for one, _ in pairs]


def test_faults_of_one_trial_act_one_after_the_other(here: Path) -> None:
    parts = (dict(fault="zero", count=43), dict(fault="set-word:word=0x3f800000", count=43))
    (row,) = planned(mix=parts, repeat=1).trials()
    lines = [json.loads(line) for line in row.lines.splitlines()]
    assert all(line["after"] == "0x00000000" for line in lines[:43])
    assert all((line["before"], line["after"]) == ("0x00000000", "0x3f800000") for line in lines[43:])


# As a file


WAYS: list[dict[str, Any]] = [
    {"ber": (1e-4, 0.02, 1.0), "repeat": 3},  # none, some, and all 1,376 sites: a recipe
    {"single": True, "trials": 40},
    {"single": True, "margin": 0.35, "per": "layer"},
    {"single": True, "margin": 0.45, "per": "layer-bit", "bits": "29-31"},
    {"exhaustive": True, "bits": "30"},
    {"mix": (dict(fault="stuck-at-1", count=2), dict(ber=1e-3)), "repeat": 4},
    {"ber": (0.01,), "repeat": 2, "fault": "random-word"},
]


@pytest.mark.slow
@pytest.mark.parametrize("fields", WAYS, ids=[next(iter(w)) + str(k) for k, w in enumerate(WAYS)])
def test_a_written_plan_replays_as_itself(here: Path, fields: dict[str, Any]) -> None:
    plan = planned(**fields)
    write_plan(plan, "p.jsonl")
    again = planned(faults="p.jsonl")
    assert by_number(again) == by_number(plan)
    assert [(g.row(), g.population, g.trials) for g in again.strata] == [
        (g.row(), g.population, g.trials) for g in plan.strata
    ]
    assert (again.cells(), again.of_singles, again.margin) == (plan.cells(), plan.of_singles, plan.margin)
    campaign = Campaign("m.onnx", "d.npz", samples=4, **fields)
    ran(campaign, here / "1.db")
    ran(Campaign("m.onnx", "d.npz", samples=4, faults="p.jsonl"), here / "2.db")
    one, other = tables(here / "1.db"), tables(here / "2.db")
    for name in ("strata", "plan", "results"):
        assert one[name] == other[name]


def test_the_file_has_a_header_and_every_trial(here: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_plan(planned(ber=(1e-4, 0.02), repeat=5), "p.jsonl", progress=lambda done, total: calls.append((done, total)))
    header, *lines = map(json.loads, Path("p.jsonl").read_text().splitlines())
    assert (header["file"], header["population"], header["unit"]) == ("m.onnx", SITES, "bit")
    assert [s["ber"] for s in header["strata"]] == [1e-4, 0.02]
    assert {line["trial"] for line in lines} == set(range(1, 11)), "trials that drew no fault are there too"
    assert calls == [(k, 10) for k in range(1, 11)]
    trials = list(FaultList.open("p.jsonl").trials(load("m.onnx").targets))
    assert [trial for trial, _ in trials] == list(range(1, 11))
    assert min(len(rows) for _, rows in trials) == 0


def test_a_list_written_by_hand_gets_its_words(here: Path) -> None:
    write_plan(planned(single=True, trials=3), "p.jsonl")
    header, *lines = Path("p.jsonl").read_text().splitlines()
    blank = [json.dumps(json.loads(line) | {"before": None, "after": None}) for line in lines]
    Path("q.jsonl").write_text("\n".join([header, *blank]) + "\n")
    assert [row.lines for row in planned(faults="q.jsonl").trials()] == lines


def test_a_list_of_other_words_is_refused(here: Path) -> None:
    write_plan(planned(single=True, trials=3), "p.jsonl")
    header, first, *rest = Path("p.jsonl").read_text().splitlines()
    changed = json.dumps(json.loads(first) | {"before": "0x00000001"})
    Path("q.jsonl").write_text("\n".join([header, changed, *rest]) + "\n")
    with pytest.raises(FaultListError, match="trial 1 records other words than the model holds"):
        list(planned(faults="q.jsonl").trials())


def test_bad_lists(here: Path) -> None:
    write_plan(planned(single=True, trials=3), "p.jsonl")
    header, first, second, third = Path("p.jsonl").read_text().splitlines()
    for lines, message in (
        ([header], "holds no trial; there is nothing to run"),
        ([header, second, first], "trial 1 comes after trial 2"),
        ([header, first, third, second], "trial 2 comes after trial 3"),
        ([first], "is not a fault list"),
    ):
        Path("q.jsonl").write_text("\n".join(lines) + "\n")
        with pytest.raises(InputError, match=message):
            list(planned(faults="q.jsonl").trials())
    mlp(here, name="other.onnx", seed=7)
    with pytest.raises(FaultListError, match="belongs to the model"):
        planned("other.onnx", faults="p.jsonl")
    with pytest.raises(FaultListError, match=r"no fault list 'none\.jsonl'"):
        planned(faults="none.jsonl")


# What cannot be planned


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"ber": (1e-3,), "include": "conv"}, SelectorError, "'conv' matches nothing"),
        ({"mix": (dict(count=1), dict(count=1, include="conv"))}, SelectorError, "'conv' matches nothing"),
        ({"mix": (dict(count=9999),)}, InputError, "9999 is out of range"),
        (
            {"single": True, "margin": 0.1, "per": "layer-bit", "fault": "zero"},
            SpecError,
            "changes whole words; use per",
        ),
        ({"single": True, "margin": 0.1, "per": "data-aware", "fault": "zero"}, SpecError, "changes whole words"),
        ({"exhaustive": True, "fault": "zero", "bits": "3"}, SelectorError, "has no effect on zero"),
    ],
)
def test_what_cannot_be_planned(here: Path, fields: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        list(planned(**fields).trials())


def test_more_trials_than_there_are_sites_are_said(here: Path) -> None:
    made = planned(single=True, trials=SITES + 1)
    assert len(made) == SITES
    assert (
        f"{SITES + 1:,} trials were asked for; there are {SITES:,} sites, each of which has one trial"
        in made.describe()
    )
    assert not any("asked for" in line for line in planned(single=True, trials=SITES).describe())


def test_places_that_cannot_be_written(here: Path) -> None:
    plan = planned(single=True, trials=3)
    for place, message in (("no/p.jsonl", "no folder"), ("m.onnx", "the input itself"), (str(here), "is a directory")):
        with pytest.raises(OutputError, match=message):
            write_plan(plan, place)
    assert {file.name for file in here.iterdir()} == {"m.onnx", "d.npz"}


# Size


@pytest.mark.slow
def test_a_plan_is_a_stream(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxfi.campaign.plan.plan.BLOCK", 512)
    mlp(here, name="large.onnx", hidden=2000)

    def peak(trials: int) -> int:
        rows = planned("large.onnx", single=True, trials=trials).trials()
        next(rows)
        tracemalloc.start()
        count = sum(1 for _ in rows)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == trials - 1
        return held

    few, many = peak(1500), peak(4500)
    assert many < 1.2 * few, "three times the trials take the memory of one block"
    assert many / 512 * (1 << 14) < 100_000_000, "and a real block is 16,384 of them"


def test_a_sweep_is_planned_trial_by_trial(here: Path) -> None:
    rows: Iterator[PlannedTrial] = planned(ber=(1e-3,), repeat=10**9).trials()
    assert next(rows).trial == 1 and next(rows).trial == 2
    assert planned(single=True, trials=10**7).strata[0].trials == SITES


def test_activations_in_a_memory_below_its_voltage_fail_in_the_same_cells_of_every_inference(tmp_path: Path) -> None:
    points = [{"at": 0.8, "p01": 0.02, "p10": 0.02}, {"at": 0.7, "p01": 0.1, "p10": 0.1}]
    (tmp_path / "map.json").write_text(json.dumps({"version": 1, "axis": "voltage", "statistics": points}))
    where = dict(target=("activations",), persistence="permanent", fault=f"fault-map:file={tmp_path / 'map.json'}")
    campaign = Campaign(mlp(tmp_path), include=("=a", "=c"), voltage=(0.8, 0.7), repeat=2, **where)
    trials = by_number(make_plan(campaign, FaultTargets.of(load(tmp_path / "m.onnx"), campaign.scopes)))
    cells = {number: {row[:3] for row in faults(trial)} for number, trial in trials.items()}
    assert cells[1] < cells[2] and cells[3] < cells[4] and cells[1] != cells[3]
    assert {target for one in cells.values() for target, *_ in one} == {"a", "c"}
    assert "sample" not in trials[4].lines
