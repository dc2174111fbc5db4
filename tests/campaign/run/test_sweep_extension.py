"""A rate that is added to a sweep extends its store: what is there stays, and only the new trials run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_campaigns import mlp, samples

import onnxfi
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import SpecError, StoreError
from onnxfi.faults.faultlist import ADDED, Header


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder with m.onnx and d.npz."""
    monkeypatch.chdir(tmp_path)
    mlp(tmp_path)
    samples(tmp_path)


def run(store: str = "s.db", **fields: Any) -> tuple[onnxfi.Report, list[int]]:
    ran: list[int] = []
    how = {"provider": "cpu", "on_result": lambda result: ran.append(result.trial)}
    return onnxfi.run("m.onnx", "d.npz", store, **how, **fields), ran


def rows(found: onnxfi.Report) -> dict[int, tuple[Any, ...]]:
    return {row["trial"]: (row["ber"], row["outcome"], row["top1"]) for row in found.details()}


def test_a_rate_is_added_and_the_others_stay() -> None:
    kept = rows(run(ber=[1e-2, 1e-1], repeat=3)[0])
    after, ran = run(ber=[1e-3, 1e-2, 1e-1], repeat=3)
    assert {trial: rows(after)[trial] for trial in kept} == kept
    assert ran == [3 * ADDED + 1 + j for j in range(3)] and {rows(after)[trial][0] for trial in ran} == {1e-3}
    assert [(fold.key, fold.trials) for fold in after.by_rate] == [("0.001", 3), ("0.01", 3), ("0.1", 3)]
    assert (after.everything.trials, after.planned) == (9, 9)
    assert after.campaign["added"] == [1e-3] and after.campaign["ber"] == [1e-3, 1e-2, 1e-1]
    _, nothing = run(ber=[1e-3, 1e-2, 1e-1], repeat=3)
    assert nothing == []


def test_a_shorter_run_of_an_old_and_a_new_rate_adds_the_new_one() -> None:
    run(ber=[1e-2, 1e-1], repeat=4)
    found, ran = run(ber=[1e-2, 0.5], repeat=2)  # no more trials than the store plans already
    assert len(ran) == 2 and [fold.trials for fold in found.by_rate] == [4, 4, 2]
    assert run(ber=0.5, repeat=2)[1] == []


@pytest.mark.slow
def test_one_rate_alone_is_added_and_asked_for_again() -> None:
    run(ber=[1e-2, 1e-1], repeat=2)
    found, ran = run(ber=0.5, repeat=3)
    assert len(ran) == 3 and [fold.trials for fold in found.by_rate] == [2, 2, 3] and found.planned == 7
    found, ran = run(ber=[0.3, 0.5], repeat=4)
    assert [fold.trials for fold in found.by_rate] == [2, 2, 4, 4] and len(ran) == 5
    found, ran = run(ber=[1e-2], repeat=3)
    assert [fold.trials for fold in found.by_rate] == [3, 2, 4, 4] and len(ran) == 1
    fresh, _ = run("t.db", ber=[1e-2, 1e-1], repeat=3)
    first = {trial: row for trial, row in rows(found).items() if row[0] == 1e-2}
    assert first == {trial: row for trial, row in rows(fresh).items() if row[0] == 1e-2}, (
        "a longer one extends a shorter"
    )


def test_the_campaign_of_such_a_store_repeats_it() -> None:
    run(ber=[1e-2, 1e-1], repeat=2)
    found, _ = run(ber=[1e-3, 1e-2, 1e-1], repeat=2)
    again, ran = run("t.db", ber=[1e-3, 1e-2, 1e-1], added=[1e-3], repeat=2, workers=1)
    assert rows(again) == rows(found) and len(ran) == 6
    onnxfi.merge("u.db", ["s.db", "t.db"])
    assert rows(onnxfi.report("u.db")) == rows(found)


def test_anything_else_is_another_campaign() -> None:
    run(ber=[1e-2], repeat=2)
    before = Path("s.db").read_bytes()
    for other in (
        {"ber": [1e-3, 1e-2], "seed": 1},
        {"ber": [1e-3], "fault": "stuck-at-1"},
        {"single": True, "trials": 2},
    ):
        with pytest.raises(StoreError, match="holds another campaign"):
            run(**other)
    with Store.open("s.db") as opened:
        assert opened.get("identity")["ber"] == [1e-2] and "added" not in opened.get("identity")
    assert len(before) > 0


@pytest.mark.parametrize("added", [[1e-2], [1e-3, 1e-3], [0.5]])
def test_what_was_added_is_part_of_the_sweep(added: list[float]) -> None:
    with pytest.raises(SpecError, match="added names rates of the sweep"):
        Campaign("m.onnx", ber=[1e-2] if added == [1e-2] else [1e-3, 1e-2], added=added)


@pytest.mark.parametrize("added", [0, 1, 2])
def test_numbers_and_places_are_inverse(added: int) -> None:
    header = Header("m", strata=({},) * 4, added=added)
    places = [(j, s) for j in (0, 1, 7, 10**6) for s in range(4)]
    numbers = [header.number(*place) for place in places]
    assert [header.place(number) for number in numbers] == places and len(set(numbers)) == len(numbers)
