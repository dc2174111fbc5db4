"""The budget as a document: what it reads, what it writes, and what it refuses, with line and column."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from onnxfi.campaign.gate.budget import BOUNDS, Budget, BudgetLimit, load_budget, print_budget
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.flat_fields import flat
from onnxfi.errors import SpecError
from onnxfi.tasks.registry import known_tasks, metric_names

DOCUMENT = (Path(__file__).parents[3] / "docs" / "reference" / "budget.md").read_text(encoding="utf-8")
SWEEP = "campaign: {ber: '1e-5,1e-4', repeat: 3}\n"
SINGLE = "campaign: {single: true, trials: 10}\n"


def budget(text: str, folder: Path) -> Budget:
    (folder / "b.yaml").write_text(text, encoding="utf-8")
    return load_budget(folder / "b.yaml")


def refusal(text: str, folder: Path) -> str:
    with pytest.raises(SpecError) as error:
        budget(text, folder)
    return str(error.value).removeprefix(str(folder / "b.yaml"))


def table(first: str) -> list[list[str]]:
    lines = DOCUMENT[DOCUMENT.index(f"| {first} |") :].partition("\n\n")[0].splitlines()[2:]
    return [[name for cell in line.split(" | ")[:1] for name in re.findall(r"`(\w+)`", cell)] for line in lines]


# The format is the document's


def test_the_budget_in_the_document_is_one(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(version: .*?)```", DOCUMENT, re.S)
    found = budget(shown, tmp_path)
    assert (found.confidence, found.time_s, flat(found.campaign)["repeat"]) == (0.99, 600, 200)
    assert [limit.bound for limit in found.limits] == ["min", "min", "max", "max", "max_drop"]
    assert found.limits[2].ber == 1e-5, "the only rate of a sweep may be left out"


def test_the_document_lists_the_fields_and_the_rates() -> None:
    assert [name for row in table("rate") for name in row] != []
    assert {name for row in table("rate") for name in row} == set(metric_names())
    fields = [name for row in table("field") for name in row]
    assert fields == ["version", "confidence", "time_s", "campaign", "limits"]
    second = DOCUMENT[DOCUMENT.index("A limit names a rate") :]
    listed = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", second.partition("| rate | of |")[0], re.M)
    documented = [name for cell in listed for name in re.findall(r"`(\w+)`", cell)]
    assert documented == ["rate", "ber", "layer", "golden", *BOUNDS]
    assert all(
        f"`{name}`" in DOCUMENT for task in known_tasks() for name, metric in task.by_name.items() if metric.golden
    )


def test_a_budget_is_what_was_written() -> None:
    campaign = Campaign("", data="d.npz", ber=(1e-6, 1e-5), repeat=7, include="conv", seed=3)
    limits = (
        BudgetLimit("top1", ber=1e-6, min=0.9),
        BudgetLimit("due", ber=1e-5, max=0.01),
        BudgetLimit("top5", golden=True, max_drop=0.1),
    )
    whole = Budget(campaign, limits, confidence=0.95, time_s=60)
    text = print_budget(whole)
    assert yaml.safe_load(text)["campaign"] == {
        "data": "d.npz", "ber": [1e-6, 1e-5], "repeat": 7, "include": ["conv"], "seed": 3,
    }  # fmt: skip


@pytest.mark.parametrize("time_s", [None, 0.5])
def test_it_reads_what_it_prints(tmp_path: Path, time_s: float | None) -> None:
    campaign = Campaign("", data="d ä.npz", single=True, margin=0.01, per="layer", due=("error",))
    limits = (
        BudgetLimit("sdc1", layer="re:conv\\d", max=0.25),
        BudgetLimit("sdc1", max_rise=0.1),
        BudgetLimit("top1", golden=True, min=0.5),
    )
    whole = Budget(campaign, limits, time_s=time_s)
    assert budget(print_budget(whole), tmp_path) == whole


def test_its_campaign_goes_on_any_model() -> None:
    whole = Budget(Campaign("", ber=1e-5), (), confidence=0.9)
    assert whole.on(Path("some/m.onnx")) == Campaign("some/m.onnx", ber=1e-5, confidence=0.9)
    other = whole.with_fields({"seed": 7, "data": "e.npz"}, time_s=3)
    assert (flat(other.campaign)["seed"], other.campaign.data.data, other.time_s) == (7, "e.npz", 3)
    assert whole.with_fields({}) == whole
    with pytest.raises(SpecError, match="unknown field 'sample'; closest: 'samples'"):
        whole.with_fields({"sample": 3})
    with pytest.raises(SpecError, match="the campaign of a budget takes no model: the command names it"):
        whole.with_fields({"model": "m.onnx"})


# What it refuses


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", " holds no budget; a budget maps field names to values, as version: 1 (docs/reference/budget.md)"),
        ("- a", " holds no budget"),
        ("version: 1", ", line 1, column 1: a budget names its campaign; add campaign:"),
        (SWEEP, ", line 1, column 1: a budget names its version; add version: 1"),
        ("version: 2\n" + SWEEP, "1, column 10: version 2 of a budget; this onnxfi reads version 1; update onnxfi"),
        ("version: true\n" + SWEEP, ", line 1, column 10: version True of a budget; this onnxfi reads version 1"),
        ("version: 1\nlimit: []\n" + SWEEP, ", line 2, column 1: unknown field 'limit'; closest: 'limits'"),
        ("version: 1\nversion: 1\n" + SWEEP, ", line 2, column 1: version is given twice"),
        ("version: 1\nconfidence: 1\n" + SWEEP, ", line 2, column 13: confidence 1.0 is out of range"),
        ("version: 1\nconfidence: high\n" + SWEEP, ", line 2, column 13: confidence must be a number; given 'high'"),
        ("version: 1\ntime_s: 0\n" + SWEEP, ", line 2, column 9: time_s 0.0 is out of range; give seconds above 0"),
        ("version: 1\ntime_s: .nan\n" + SWEEP, ", line 2, column 9: time_s nan is out of range"),
        ("version: 1\ncampaign: 3", ", line 2, column 11: takes field names and their values"),
        ("version: 1\ncampaign: {bre: 1e-5}", ", line 2, column 12: unknown field 'bre'; closest: 'ber'"),
        ("version: 1\ncampaign: {}", ", line 2, column 11: exactly one of ber, per_sample"),
        ("version: 1\ncampaign: {ber: 7}", ", line 2, column 17: ber"),
        ("version: 1\ncampaign:\n  ber: 1e-5\n  model: m.onnx", "4, column 10: the campaign of a budget takes no m"),
        ("version: 1\ncampaign: {faults: f.jsonl}", ", line 2, column 20: the campaign of a budget takes no faults"),
        ("version: 1\ncampaign: {ber: 1e-5, confidence: 0.9}", "takes no confidence: it stands above"),
    ],
)  # fmt: skip
def test_bad_fields(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(text, tmp_path)


@pytest.mark.parametrize(
    ("campaign", "limit", "said"),
    [
        (SWEEP, "{rate: sdc2, max: 0.1}", "column 10: no rate 'sdc2'; closest: "),
        (SWEEP, "{rate: sdc1}", "column 3: a limit takes exactly one of min, max, max_drop, max_rise, times_below; given: none"),
        (SWEEP, "{rate: sdc1, min: 0, max: 1}", "column 29: a limit takes exactly one of min, max, max_drop, max_rise"),
        (SWEEP, "{max: 0.1}", "column 3: a limit names its rate; add rate: sdc1"),
        (SWEEP, "{rate: sdc1, max: 7}", "column 21: max 7 is out of range; give a share from 0 to 1"),
        (SWEEP, "{rate: sdc1, max_drop: -0.1}", "column 26: max_drop -0.1 is out of range"),
        (SWEEP, "{rate: sdc1, max: .nan}", "column 21: max nan is out of range"),
        (SWEEP, "{rate: sdc1, max: many}", "column 21: max must be a number; given 'many'"),
        (SWEEP, "{rate: sdc1, maximum: 1}", "column 16: unknown field 'maximum'; closest: 'max'"),
        (SWEEP, "{rate: sdc1, golden: 3, max: 1}", "column 24: golden must be true or false"),
        (SWEEP, "{rate: sdc1, golden: true, max: 1}", "column 24: golden sdc1 is the same for every model"),
        (SWEEP, "{rate: top1, golden: true, ber: 1e-5, min: 1}", "column 35: golden and ber exclude each other"),
        (SWEEP, "{rate: top1, min: 0.1}", "column 3: top1: at which rate? give ber, one of 1e-05, 0.0001"),
        (SWEEP, "{rate: top1, min: 0.1, ber: 1e-3}", "column 3: top1 at 0.001: the campaign has no such rate"),
        (SWEEP, "{rate: top1, min: 0.1, layer: conv}", "column 3: top1 in conv: a trial of this campaign"),
        (SINGLE, "{rate: top1, min: 0.1, ber: 1e-3}", "column 3: top1 at 0.001: the campaign has no bit error rates"),
        (SINGLE, "3", "column 3: takes field names and their values"),
    ],
)  # fmt: skip
def test_bad_limits(tmp_path: Path, campaign: str, limit: str, said: str) -> None:
    assert f", line 4, {said}" in refusal(f"version: 1\n{campaign}limits:\n- {limit}\n", tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("rate: sdc1, max: 0.1", "rate: sdc1, min: 0.2", "keep both: sdc1: at least 20 %; sdc1: at most 10 %"),
        ("rate: sdc5, min: 0.2", "rate: sdc1, max: 0.1", "sdc5 is never above sdc1"),
        ("rate: top1, min: 0.9", "rate: top5, max: 0.8", "top1 is never above top5"),
        ("rate: sdc1, min: 0.5", "rate: any_sdc1, max: 0.1", "sdc1 is never above any_sdc1"),
        ("rate: sdc, min: 0.6", "rate: due, min: 0.5", "masked, sdc, due sum to 100 %"),
        ("rate: sdc1, max: 0.1", "rate: sdc1, max: 0.2", "sdc1: at most 20 % is the second max for sdc1"),
        ("rate: top1, golden: true, min: 0.9", "rate: top1, golden: true, max: 0.8", "keep both: golden top1"),
        ("rate: sdc1, layer: conv1, max: 0.1", "rate: sdc1, layer: conv1, min: 0.2", "keep both: sdc1 in conv1"),
    ],
)  # fmt: skip
def test_limits_that_exclude_each_other(tmp_path: Path, one: str, other: str, said: str) -> None:
    found = refusal(f"version: 1\n{SINGLE}limits:\n- {{{one}}}\n- {{{other}}}\n", tmp_path)
    assert said in found
    assert re.match(r", line [45], column 3: ", found)


def test_outcomes_need_room_for_every_trial(tmp_path: Path) -> None:
    head = f"version: 1\n{SINGLE}limits:\n"
    rows = [f"- {{rate: {name}, max: {most}}}\n" for name, most in (("masked", 0.5), ("sdc", 0.3), ("due", 0.1))]
    assert "sum to 100 %" in refusal(head + "".join(rows), tmp_path)
    assert len(budget(head + "".join(rows).replace("0.1", "0.2"), tmp_path).limits) == 3, "exactly enough is enough"
    assert len(budget(head + "".join(rows[:2]), tmp_path).limits) == 2, "DUE may take the rest"


def test_other_places_and_bounds_exclude_nothing(tmp_path: Path) -> None:
    rows = [
        "{rate: sdc1, layer: a, max: 0.1}", "{rate: sdc1, layer: b, min: 0.2}", "{rate: top1, golden: true, min: 0.9}",
        "{rate: top1, max: 0.8}", "{rate: top1, max_drop: 0}", "{rate: top1, max_rise: 0}", "{rate: sdc1, max: 0}",
    ]  # fmt: skip
    text = f"version: 1\n{SINGLE}limits:\n" + "".join(f"- {row}\n" for row in rows)
    assert [str(limit) for limit in budget(text, tmp_path).limits][-1] == "sdc1: at most 0 %"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot read"):
        load_budget(tmp_path)
    with pytest.raises(SpecError, match="cannot read"):
        load_budget(tmp_path / "none.yaml")
    assert "not a readable YAML" in refusal("version: [", tmp_path)
    assert "is not allowed" in refusal(f"version: 1\n{SWEEP}confidence: !!python/name:os.system 1\n", tmp_path)


def test_in_python_as_in_the_file() -> None:
    with pytest.raises(SpecError, match="max must be a number"):
        BudgetLimit("sdc1", max="many")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="a fault list is bound to one model"):
        Budget(Campaign("", faults="list.jsonl"))
    with pytest.raises(SpecError, match="at which rate"):
        Budget(Campaign("", ber=(1e-6, 1e-5)), (BudgetLimit("due", max=0.1),))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": "sdc1", "times_below": 0.5}, "times_below 0.5 is out of range; give a factor from 1, as 10"),
        ({"rate": "top1", "times_below": 10}, "for rates of faulty trials that are better when lower"),
        ({"rate": "max_abs", "times_below": 10}, "for rates of faulty trials that are better when lower"),
        ({"rate": "sdc1", "times_below": 10, "max": 0.1}, "exactly one of min, max"),
    ],
)
def test_a_factor_below_the_baseline_is_of_a_rate_that_is_better_when_lower(fields: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        BudgetLimit(**fields)
    assert str(BudgetLimit("sdc1", ber=1e-5, times_below=10)) == "sdc1 at 1e-05: at least 10 × below the baseline"
