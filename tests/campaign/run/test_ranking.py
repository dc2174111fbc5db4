"""Campaigns that rank parts of a network: the order against every fault, stops and resumptions, and the report."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from tiny_campaigns import mlp, ran, samples, tables

from onnxfi.campaign.report.ranking_text import ranking_sentences
from onnxfi.campaign.report.report import report
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.adaptive_rounds import Ranking, look_at
from onnxfi.campaign.run.runner import plan, run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import SpecError


def campaign(rank: str, **fields: Any) -> Campaign:
    given = {"model": "m.onnx", "data": "d.npz", "provider": "cpu", "rank": rank, "top": 1, "margin": 0.1}
    return Campaign(**{**given, **fields})


def ranking(store: Path) -> Ranking:
    with Store.open(store) as opened:
        found = look_at(opened).ranking
    assert found is not None
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with m.onnx, d.npz, a ranking of tensors, and every fault in exhaustive.db."""
    folder = tmp_path_factory.mktemp("ranking")
    mlp(folder, hidden=3)
    samples(folder, 24)
    with chdir(folder):
        ran(campaign("tensor", bits="26-31"), folder / "tensor.db")
        ran(Campaign("m.onnx", "d.npz", exhaustive=True, provider="cpu", bits="28-31"), folder / "exhaustive.db")
    return folder


@pytest.mark.slow
def test_the_intervals_hold_the_true_rates(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    ran(campaign("tensor", bits="28-31"), place / "high.db")
    truth: dict[str, list[float]] = {}
    with Store.open(place / "exhaustive.db") as store:
        lines = dict(store.pending(lambda _: True)) or dict(store.db.execute("SELECT trial, lines FROM plan"))
        for row in store.rows():
            name = lines[row.trial].partition('"target"')[2].split('"')[1]
            truth.setdefault(name, []).append(row.metrics["sdc1"])
    found = ranking(place / "high.db")
    assert found.standing.settled and set(found.names) == set(truth)
    for row in found.rows():
        mean = sum(truth[row.name]) / len(truth[row.name])
        assert row.interval.low - 1e-9 <= mean <= row.interval.high + 1e-9, row
    first, *rest = found.rows()
    means = {name: sum(values) / len(values) for name, values in truth.items()}
    assert all(means[first.name] >= means[one.name] - 0.1 for one in rest)


@pytest.mark.slow
def test_stopped_anywhere_it_goes_on_to_the_same_rows(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for n in (1, 70, 100):
        running = run(campaign("tensor", bits="26-31"), place / "stopped.db")
        for _ in zip(range(n), running, strict=False):
            pass
        running.close()
    ran(campaign("tensor", bits="26-31"), place / "stopped.db")
    assert tables(place / "stopped.db") == tables(place / "tensor.db")


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["layer", "bit", "channel"])
def test_layers_bits_and_channels_are_parts_too(place: Path, rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    made = plan(campaign(rank, bits="28-31"))[0]
    assert sum(stratum.population for stratum in made.strata) == made.header.population
    ran(campaign(rank, bits="28-31"), place / f"{rank}.db")
    found = ranking(place / f"{rank}.db")
    assert (found.by, found.standing.settled) == (rank, True)
    assert sum(found.trials) == len(tables(place / f"{rank}.db")["results"])
    made = report(place / f"{rank}.db")
    assert made.look is not None and made.look.ranking is not None and made.look.ranking.names == found.names
    said = {row.name: (row.interval.low, row.interval.high) for row in found.rows() if row.trials}
    folds = {fold.key: fold.rate(made.look.rate) for fold in (made.by_bit if rank == "bit" else made.by_layer)}
    assert said == {name: (i.low, i.high) for name, i in folds.items() if name in said and i is not None}


def test_the_report_says_what_is_settled_and_what_ties(place: Path) -> None:
    found = ranking(place / "tensor.db")
    text = list(ranking_sentences(found))
    first = next(found.rows()).name
    assert f"the first tensor of {len(found.names)} is settled: {first}" in text
    document = found.document()
    assert document["order"][0]["rank"] == 1 and document["settled"]


def test_a_rate_that_never_occurs_ties_and_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    ran(campaign("layer", bits="0-3", rate="due"), place / "never.db")
    (line,) = ranking_sentences(ranking(place / "never.db"))
    assert line.startswith("no layer has a rate that is surely above 0: all are below")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rank": "bit", "fault": "zero"}, "rank bit goes by bits, but zero changes whole words"),
        ({"rank": "channel", "elements": "0"}, "elements has no effect with rank channel"),
    ],
)
def test_bad_rankings(place: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], message: str) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(SpecError, match=message):
        plan(campaign(**fields))
