"""Damage of a store is named and refused, wherever it is: never other numbers, never a traceback."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tiny_campaigns import altered, mlp, ran, samples

from onnxfi.campaign.results.store import Store, set_aside
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError, StoreError

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data, and a store of each kind of campaign."""
    place = tmp_path_factory.mktemp("stores")
    common: dict[str, Any] = {"model": mlp(place), "data": samples(place)}
    ran(Campaign(**common, single=True, trials=60), place / "fixed.db")
    ran(Campaign(**common, single=True, adaptive=True, margin=0.3), place / "adaptive.db")
    return place


def content(store: Path) -> list[Any]:
    """Every row of a store, as those who read it see them."""
    tables = ("meta", "strata", "plan", "results", "errors", "rounds", "allocations", "draws")
    with Store.open(store) as opened:
        by_round = [row for number in range(1, 4) for row in opened.rows(number)]
        return [list(opened.rows()), by_round, *(opened.db.execute(f"SELECT * FROM {t}").fetchall() for t in tables)]


def refused(store: Path) -> str:
    """Return the message about a store; '' where it is read."""
    try:
        content(store)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fixed", "adaptive"])
def test_a_bit_that_is_another_is_refused_or_changes_nothing(folder: Path, tmp_path: Path, kind: str) -> None:
    whole, store = (folder / f"{kind}.db").read_bytes(), tmp_path / "s.db"
    right, rng, found = content(folder / f"{kind}.db"), random.Random(1), 0
    places = [
        *range(100),
        *(page + at for page in range(0, len(whole), 4096) for at in (*range(12), rng.randrange(4096))),
    ]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << rng.randrange(8)
        store.write_bytes(data)
        if refused(store):
            found += 1
        else:
            assert content(store) == right, place
    assert found > len(places) / 2


def test_every_bit_of_a_result_counts(folder: Path, tmp_path: Path) -> None:
    whole, store = (folder / "fixed.db").read_bytes(), tmp_path / "s.db"
    with Store.open(folder / "fixed.db") as opened:
        metrics = opened.db.execute("SELECT metrics FROM results WHERE trial = 7").fetchone()[0].encode()
    start = whole.rindex(metrics)
    for place in range(start - 8, start + len(metrics), 5):
        data = bytearray(whole)
        data[place] ^= 4
        store.write_bytes(data)
        assert "is damaged: " in refused(store), place


@pytest.mark.parametrize("kind", ["fixed", "adaptive"])
def test_a_store_whose_end_is_missing_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    whole, store = (folder / f"{kind}.db").read_bytes(), tmp_path / "s.db"
    for left in (*range(4096, len(whole), 4096), len(whole) - 1, len(whole) - 100, 5000, 512, 100, 99, 16, 1):
        store.write_bytes(whole[:left])
        assert refused(store), left
        store.write_bytes(whole[:left].ljust(len(whole), b"\0"))
        assert refused(store) or not any(whole[left:]), left
    store.write_bytes(b"")
    assert "holds no campaign yet" in refused(store)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM results WHERE trial = 60", "rows of results are missing, or others; 59 are there, 60 were written"),
        ("DELETE FROM results", "0 are there, 60 were written"),
        ("DELETE FROM plan WHERE trial = 3", "rows of plan are missing"),
        ("DELETE FROM meta WHERE key = 'golden'", "rows of meta are missing"),
        ("UPDATE results SET outcome = 'due' WHERE trial = 2", "row 2 of results is not as it was written"),
        ("UPDATE results SET time_s = time_s + 1 WHERE trial = 2", "row 2 of results"),
        ("UPDATE meta SET value = json_set(value, '$.samples', 7) WHERE key = 'golden'", "row 'golden' of meta"),
        ("UPDATE strata SET population = '1'", "row 0 of strata"),
        ("INSERT INTO errors VALUES (3, 'x', 0)", "row 3 of errors"),
        ("UPDATE totals SET rows = 61 WHERE name = 'results'", "60 are there, 61 were written"),
        ("DELETE FROM totals", "rows of allocations are missing, or others"),
        ("DROP TABLE errors", "the table 'errors' is missing, or another one"),
        ("DROP INDEX draws_of_a_round", "the index 'draws_of_a_round' is missing"),
        ("ALTER TABLE results RENAME COLUMN cause TO why", "the table 'results' is missing, or another one"),
    ],
)  # fmt: skip
def test_what_was_changed_by_hand_is_named(folder: Path, tmp_path: Path, statement: str, message: str) -> None:
    store = tmp_path / "s.db"
    store.write_bytes((folder / "fixed.db").read_bytes())
    with sqlite3.connect(store) as db:
        db.execute(statement)
    db.close()
    assert message in refused(store)


def test_every_verb_refuses_a_damaged_store(folder: Path, tmp_path: Path, run: Run) -> None:
    store, whole = tmp_path / "s.db", folder / "fixed.db"
    model, data = folder / "m.onnx", ("--data", folder / "d.npz")
    store.write_bytes(whole.read_bytes())
    with sqlite3.connect(store) as db:
        db.execute("UPDATE results SET outcome = 'masked', metrics = '{}' WHERE trial = 9")
    db.close()
    bad = store.read_bytes()
    budget = tmp_path / "b.yaml"
    budget.write_text(
        f"version: 1\ncampaign: {{data: {folder / 'd.npz'}, single: true, trials: 60}}\nlimits:\n"
        "- {rate: sdc, max: 0.99}\n- {rate: sdc, max_rise: 0.5}\n"
    )
    for words in (
        ("report", store), ("report", whole, store), ("report", store, "--json"), ("show", store, 9),
        ("merge", tmp_path / "out.db", whole, store), ("merge", store, whole),
        ("run", model, *data, "--single", "--trials", 60, "--workers", 0, "-o", store),
        ("run", model, *data, "--single", "--trials", 90, "--workers", 0, "-o", store),
        ("check", model, "--budget", budget, "--workers", 0, "--baseline", store),
        ("check", model, "--budget", budget, "--workers", 0, "--baseline", whole, "-o", store),
        ("plan", model, "--single", "--trials", 100, "--times", store),
    ):  # fmt: skip
        done = run(*words)
        assert (done.code, done.out) == (2, ""), words
        assert "s.db' is damaged: row 9 of results is not as it was written; take a copy" in done.err, words
        assert len(done.err.splitlines()) == 1, words
        assert store.read_bytes() == bad and not (tmp_path / "out.db").exists(), words


def test_a_damaged_store_can_be_set_aside(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    store.write_bytes((folder / "fixed.db").read_bytes()[:-4096])
    assert "is damaged" in refused(store)
    bad = store.read_bytes()
    moved = set_aside(store)
    assert moved is not None and moved.read_bytes() == bad and not store.exists()


def test_numbers_that_the_file_keeps_otherwise_are_no_damage(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    store.write_bytes((folder / "fixed.db").read_bytes())
    with Store.open(store, create=True) as opened, opened.db:
        opened.insert("rounds", [(1, True, 1, -0.0, 2**60, float("inf"), 1e-320)])
        opened.insert("errors", [(8, "é \udce9".encode("utf-8", "replace").decode() + "\0 \n")])
    assert refused(store) == ""


def test_a_store_may_be_changed_with_its_checksums(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    store.write_bytes((folder / "fixed.db").read_bytes())
    with altered(store) as db:
        db.execute("DELETE FROM results WHERE trial > 50")
    with suppress(StoreError), Store.open(store) as opened:
        assert opened.count("results") == 50
    assert refused(store) == ""
