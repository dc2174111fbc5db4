"""Merging stores: the union, in any order and twice, or nothing."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from tiny_campaigns import altered, counted, ran, tables

from onnxfi.campaign.results.merge import merge
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import StoreError


def campaign(**fields: Any) -> Campaign:
    way = {} if {"ber", "single", "exhaustive", "mix", "faults"} & set(fields) else {"single": True, "trials": 60}
    return Campaign(**{"model": "m.onnx", "data": "d.npz", "provider": "cpu", **way, **fields})


@pytest.mark.slow
def test_shards_merge_to_the_whole_in_any_order_and_twice(here: Path) -> None:
    fields: dict[str, Any] = {"single": True, "margin": 0.15, "per": "layer"}
    ran(campaign(**fields), here / "whole.db")
    for k in (1, 2, 3):
        running = run(campaign(**fields), here / f"{k}.db", shard=(k, 3))
        assert len(list(running)) == running.total
    total = counted(here / "whole.db", "results")
    assert sum(counted(here / f"{k}.db", "results") for k in (1, 2, 3)) == total
    shards = [here / f"{k}.db" for k in (1, 2, 3)]
    for number, order in enumerate(itertools.permutations(shards)):
        assert merge(here / f"m{number}.db", order) == total
        assert tables(here / f"m{number}.db") == tables(here / "whole.db")
    assert merge(here / "m0.db", shards) == total, "a second time, into what is there"
    assert merge(here / "pair.db", [shards[0], shards[0]]) == counted(shards[0], "results")
    merge(here / "pair.db", shards[1:])
    merge(here / "all.db", [here / "pair.db", here / "m1.db"])
    for name in ("m0.db", "pair.db", "all.db"):
        assert tables(here / name) == tables(here / "whole.db")
    assert not ran(campaign(**fields), here / "m0.db"), "nothing is left to run"


def test_shards_of_different_lengths_merge_to_the_longer(here: Path) -> None:
    ran(campaign(single=True, trials=10), here / "short.db")
    ran(campaign(single=True, trials=30), here / "long.db", shard=(2, 2))
    ran(campaign(single=True, trials=30), here / "whole.db")
    found = []
    for order in itertools.permutations([here / "short.db", here / "long.db"]):
        out = here / f"{order[0].stem}-first.db"
        assert merge(out, order) == 20
        found.append(tables(out))
        ran(campaign(single=True, trials=30), out)
        assert tables(out) == tables(here / "whole.db")
    assert found[0] == found[1]


def test_what_cannot_be_merged_leaves_nothing_behind(here: Path) -> None:
    ran(campaign(single=True, trials=3), here / "1.db")
    ran(campaign(single=True, trials=3, seed=1), here / "2.db")
    ran(campaign(single=True, trials=3), here / "3.db")
    for statement, message in (
        ("UPDATE results SET outcome = 'due' WHERE trial = 2", "trial 2 has another result in .*3.db"),
        ("UPDATE meta SET value = '{\"scores\": \"x\"}' WHERE key = 'golden'", "3.db' has another golden run"),
        ("DELETE FROM meta", "holds no campaign yet; run it first"),
    ):
        with altered(here / "3.db") as db:
            db.execute(statement)
        with pytest.raises(StoreError, match=message):
            merge(here / "out.db", [here / "1.db", here / "3.db"])
        assert not (here / "out.db").exists()
    with pytest.raises(StoreError, match=r"1.db and .*2.db are of different campaigns: seed: 0 and 1"):
        merge(here / "out.db", [here / "1.db", here / "2.db"])
    with pytest.raises(StoreError, match=r"the output '.*' is one of the inputs"):
        merge(here / "1.db", [here / "1.db"])
    with pytest.raises(StoreError, match=r"no store 'none.db'"):
        merge(here / "out.db", [here / "1.db", "none.db"])
    before = tables(here / "1.db")
    with pytest.raises(StoreError, match="seed: 0"):
        merge(here / "1.db", [here / "2.db"])
    assert tables(here / "1.db") == before


def test_another_plan_for_the_same_trial_is_refused(here: Path) -> None:
    for name in ("1.db", "2.db"):
        ran(campaign(single=True, trials=6), here / name)
    for statement, message in (
        ("UPDATE plan SET lines = replace(lines, 'flip', 'zero') WHERE trial = 4", "trial 4 is planned otherwise"),
        ("UPDATE strata SET population = '7' WHERE stratum = 0", "stratum 0 is another one"),
    ):
        with altered(here / "2.db") as db:
            db.execute(statement)
        before = tables(here / "1.db")
        for out, stores in (("out.db", ["1.db", "2.db"]), ("out.db", ["2.db", "1.db"]), ("1.db", ["2.db"])):
            with pytest.raises(StoreError, match=f"'.*.db' does not go with the others: {message}"):
                merge(here / out, [here / name for name in stores])
        assert not (here / "out.db").exists() and tables(here / "1.db") == before
        with pytest.raises(StoreError, match=f"{message}.*; take stores of one version of onnxfi"):
            run(campaign(single=True, trials=9), here / "2.db")
        assert counted(here / "2.db", "plan") == 6


def test_merge_says_what_to_merge_and_not_what_run_would_do(here: Path) -> None:
    for name, seed in (("a", 0), ("b", 2)):
        ran(Campaign("m.onnx", "d.npz", provider="cpu", single=True, trials=2, seed=seed), here / f"{name}.db")
    for out, stores in (("c.db", ["a.db", "b.db"]), ("a.db", ["b.db"])):
        with pytest.raises(StoreError, match=r"a\.db and b\.db are of different campaigns: seed: 0 and 2") as caught:
            merge(out, stores)
        assert "--fresh" not in str(caught.value)
    assert not (here / "c.db").exists()
