"""The store: killed, resumed, extended, sharded and merged it holds the same rows; what is not its own it refuses."""

from __future__ import annotations

import itertools
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_campaigns import altered, counted, dying, mlp, ran, samples, tables

from onnxfi.campaign.report.report import report
from onnxfi.campaign.results.store import Store, set_aside
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import CampaignError, OutputError, SpecError, StoreError

TABLES = {"totals", "meta", "strata", "plan", "results", "errors", "rounds", "allocations", "draws"}


def campaign(**fields: Any) -> Campaign:
    way = {} if {"ber", "single", "exhaustive", "mix", "faults"} & set(fields) else {"single": True, "trials": 60}
    return Campaign(**{"model": "m.onnx", "data": "d.npz", "provider": "cpu", **way, **fields})


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "onnxfi", "run", *map(str, words), "--provider", "cpu"]


def written_by(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let results be written so many at a time, however long they take."""
    monkeypatch.setattr("onnxfi.campaign.run.runner.WRITE_EVERY", many)
    monkeypatch.setattr("onnxfi.campaign.run.runner.WRITE_EVERY_S", float("inf"))


# Killed


LAYERS: dict[str, Any] = {"single": True, "margin": 0.09, "per": "layer"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with m.onnx, d.npz, and the store of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    ran(campaign(model=mlp(folder), data=samples(folder), **LAYERS), folder / "whole.db")
    return folder


@pytest.mark.parametrize(
    ("share", "workers"), [(0.5, 2), *(pytest.param(*more, marks=pytest.mark.slow) for more in ((0.25, 1), (0.75, 0)))]
)
def test_killed_and_started_again_it_holds_the_same_rows(whole: Path, share: float, workers: int) -> None:
    store = whole / f"killed-{workers}.db"
    words = command(whole / "m.onnx", "--data", whole / "d.npz", *["--single", "--margin", "0.09", "--per", "layer"])
    words += ["--workers", str(workers), "-o", str(store)]
    total = counted(whole / "whole.db", "results")
    assert total > 300
    process = subprocess.run(dying(share * total, words[3:]), capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    done = counted(store, "results")
    assert share * total <= done < total
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert f"{done:,} of {total:,} trials are in {store} already" in again.stderr
    assert tables(store) == tables(whole / "whole.db")
    assert not [file for file in whole.iterdir() if file.name.startswith(f"{store.name}-")], "one plain file is left"


KILLED_WHILE_PLANNING = """
import itertools, os, signal
from onnxfi.campaign.results.store import Store
from onnxfi.cli import main

trials_of = Store.trials_of

def half(self, rows):
    def some():
        yield from itertools.islice(rows, 30)
        os.kill(os.getpid(), signal.SIGKILL)
    trials_of(self, rows if self.is_draft else some())

Store.trials_of = half
main()
"""


@pytest.mark.slow
def test_killed_while_the_plan_is_written_there_is_no_plan(here: Path) -> None:
    ran(campaign(), here / "whole.db")
    words = command("m.onnx", "--data", "d.npz", "--single", "--trials", 60, "-o", "killed.db")
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_PLANNING, *words[3:]], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert counted(here / "killed.db", "plan") == 0 == counted(here / "killed.db", "meta")
    ran(campaign(), here / "killed.db")
    assert tables(here / "killed.db") == tables(here / "whole.db")


def test_killed_before_the_first_transaction_the_file_is_used(here: Path) -> None:
    for name in ("empty.db", "header.db"):
        (here / name).touch()
    with sqlite3.connect(here / "header.db") as db:
        db.execute("PRAGMA journal_mode = WAL")
    db.close()
    assert (here / "header.db").stat().st_size > 0
    for name in ("empty.db", "header.db"):
        with pytest.raises(StoreError, match="holds no campaign yet"), Store.open(here / name):
            pass
        assert len(ran(campaign(), here / name)) == 60


def test_stopped_by_hand_and_by_an_error_it_keeps_what_was_done(here: Path) -> None:
    ran(campaign(), here / "whole.db")
    running = run(campaign(), here / "part.db")
    seen = list(itertools.islice(running, 7))
    running.close()
    assert counted(here / "part.db", "results") == 7
    running = run(campaign(), here / "part.db")
    assert running.outcomes.total() == 7

    def interrupted() -> None:
        for k, result in enumerate(running):
            seen.append(result)
            if k == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    running.close()
    assert counted(here / "part.db", "results") == 12
    rest = ran(campaign(), here / "part.db")
    assert sorted(r.trial for r in [*seen, *rest]) == list(range(1, 61))
    assert tables(here / "part.db") == tables(here / "whole.db")


# Workers and shards


@pytest.mark.parametrize(
    "fields", [{}, pytest.param({"mix": (dict(count=3), dict(ber=0.01)), "repeat": 40}, marks=pytest.mark.slow)]
)
def test_one_worker_or_three_give_the_same_rows(here: Path, fields: dict[str, Any]) -> None:
    for workers in (0, 1, 3):
        ran(campaign(**fields), here / f"{workers}.db", workers=workers)
    assert tables(here / "0.db") == tables(here / "1.db") == tables(here / "3.db")


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["deleted", "moved", "replaced"])
def test_a_store_that_goes_away_under_a_run_ends_it_at_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    written_by(5, monkeypatch)
    running, came = run(campaign(single=True, trials=200), here / "s.db"), 0
    with pytest.raises(OutputError, match=r"the store '.*s.db' no longer exists: it was moved, deleted"):
        for _ in running:
            came += 1
            if came == 20:
                (here / "s.db").rename(here / "t.db") if gone == "moved" else (here / "s.db").unlink()
                if gone == "replaced":
                    ran(campaign(single=True, trials=3), here / "s.db")
    assert came < 30, "it is noticed when results are written next"
    if gone == "moved":
        assert (held := counted(here / "t.db", "results")) >= 15
        assert len(ran(campaign(single=True, trials=200), here / "t.db")) == 200 - held
    assert (here / "s.db").exists() == (gone == "replaced")


def test_a_run_that_is_killed_leaves_all_that_it_wrote_in_the_file_itself(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_by(5, monkeypatch)
    running = run(campaign(single=True, trials=50), here / "s.db")
    for _, result in zip(range(21), running, strict=False):
        assert result.error is None
    shutil.copy(here / "s.db", here / "copy.db")  # without its journal
    with Store.open(here / "copy.db") as opened:
        assert opened.count("results") == 20
    running.close()


# Longer and shorter


@pytest.mark.slow
@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"single": True, "trials": 10}, {"single": True, "trials": 25}),
        ({"ber": (1e-3, 1e-2), "repeat": 2}, {"ber": (1e-3, 1e-2), "repeat": 5}),
        (
            {"single": True, "margin": 0.4, "confidence": 0.9, "per": "layer"},
            {"single": True, "margin": 0.3, "confidence": 0.99, "per": "layer"},
        ),
        ({"mix": (dict(count=1),), "repeat": 3}, {"mix": (dict(count=1),), "repeat": 6}),
    ],
)
def test_more_trials_extend_a_store(here: Path, short: dict[str, Any], long: dict[str, Any]) -> None:
    first = ran(campaign(**short), here / "s.db")
    more = ran(campaign(**long), here / "s.db")
    assert first and more and not {r.trial for r in first} & {r.trial for r in more}
    ran(campaign(**long), here / "whole.db")
    assert tables(here / "s.db") == tables(here / "whole.db")
    running = run(campaign(**short), here / "s.db")
    assert (running.total, list(running)) == (len(first), []), "a shorter one asks for no more than it did"


def test_a_shorter_campaign_runs_its_own_trials_only(here: Path) -> None:
    run(campaign(ber=(1e-3, 1e-2), repeat=10), here / "s.db").close()
    running = run(campaign(ber=(1e-3, 1e-2), repeat=3), here / "s.db")
    assert [r.trial for r in running] == [1, 2, 3, 4, 5, 6] and running.total == 6
    assert (counted(here / "s.db", "plan"), counted(here / "s.db", "results")) == (20, 6)


# Another campaign


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of five trials of `campaign`, to be copied."""
    folder = tmp_path_factory.mktemp("five")
    ran(campaign(model=mlp(folder), data=samples(folder), trials=5, single=True), folder / "s.db")
    return folder / "s.db"


def other_model(here: Path) -> None:
    mlp(here, seed=5)


def other_data(here: Path) -> None:
    np.savez(here / "d.npz", x=np.ones((12, 4), np.float32), labels=np.zeros(12, np.int64))


def other_labels(here: Path) -> None:
    with np.load(here / "d.npz") as held:
        np.savez(here / "d.npz", x=held["x"], labels=np.zeros(12, np.int64))


CHANGES: list[tuple[dict[str, Any], Callable[[Path], None] | None, str]] = [
    ({}, other_model, "model: "),
    ({}, other_data, "data: "),
    ({}, other_labels, "data: "),
    ({"samples": 5}, None, "data: .*samples: null in the store, now 5"),
    ({"include": ("fc1",)}, None, r"include: \[\] in the store, now \[\"fc1\"\]"),
    ({"bits": "sign"}, None, 'bits: "" in the store, now "sign"'),
    ({"fault": "stuck-at-1"}, None, 'fault: "flip" in the store, now "stuck-at-1"'),
    ({"seed": 3}, None, "seed: 0 in the store, now 3"),
    ({"batch": 5}, None, "batch: 32 in the store, now 5"),
    ({"threads": 2}, None, "threads: 1 in the store, now 2"),
    ({"optimization": "off"}, None, 'optimization: "all" in the store, now "off"'),
    ({"tolerance": 0.5}, None, "tolerance: 0.0 in the store, now 0.5"),
    ({"due": ("error",)}, None, "due: "),
    ({"scores": "logits"}, None, 'scores: "auto" in the store, now "logits"'),
    ({"ber": (1e-3,), "repeat": 5}, None, r"ber: null in the store, now \[0.001\]"),
    ({"exhaustive": True, "bits": "31"}, None, 'design: "single" in the store, now "exhaustive"'),
    ({"single": True, "margin": 0.3, "per": "layer"}, None, 'per: "network" in the store, now "layer"'),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "change", "message"), CHANGES, ids=[m for _, _, m in CHANGES])
def test_another_campaign_is_refused_and_the_field_named(
    here: Path, five: Path, fields: dict[str, Any], change: Callable[[Path], None] | None, message: str
) -> None:
    shutil.copy(five, here / "s.db")
    before = tables(here / "s.db")
    if change is not None:
        change(here)
    way = {} if {"ber", "exhaustive", "single"} & set(fields) else {"single": True, "trials": 5}
    with pytest.raises(StoreError, match=message) as raised:
        run(campaign(**way, **fields), here / "s.db")
    assert str(raised.value).endswith("name another store with -o, or use --fresh")
    assert tables(here / "s.db") == before


def test_other_places_and_lengths_are_the_same_campaign(here: Path) -> None:
    ran(campaign(single=True, trials=5), here / "s.db")
    (here / "sub").mkdir()
    for name in ("m.onnx", "d.npz"):
        (here / name).rename(here / "sub" / name)
    again = campaign(single=True, trials=9, model="sub/m.onnx", data="sub/d.npz", confidence=0.9, allow_links=True)
    assert len(ran(again, here / "s.db")) == 4


def test_another_golden_is_refused(here: Path) -> None:
    ran(campaign(single=True, trials=5), here / "s.db")
    with altered(here / "s.db") as db:
        db.execute("UPDATE meta SET value = json_set(value, '$.scores', 'other') WHERE key = 'golden'")
    with pytest.raises(CampaignError, match=r"the golden run differs from the one in .*s.db"):
        run(campaign(single=True, trials=5), here / "s.db")


# Files that are none


def test_files_that_are_no_stores(here: Path) -> None:
    (here / "text.db").write_text("no database, but long enough to have been one " * 20)
    with sqlite3.connect(here / "other.db") as db:
        db.execute("CREATE TABLE mine (a)")
        db.execute("INSERT INTO mine VALUES (1)")
        db.execute("PRAGMA journal_mode = WAL")
    db.close()
    (here / "folder.db").mkdir()
    for name, message in (
        ("text.db", "is not a store: file is not a database"),
        ("other.db", "is SQLite, but no store of onnxfi"),
        ("m.onnx", "is not a store: file is not a database"),
    ):
        before = (here / name).read_bytes()
        for create in (True, False):
            with pytest.raises(StoreError, match=message), Store.open(here / name, create=create):
                pass
        with pytest.raises(StoreError, match=message):
            set_aside(here / name)
        assert (here / name).read_bytes() == before
    with pytest.raises(OutputError, match="is a directory; give a file name"):
        run(campaign(), here / "folder.db")
    with pytest.raises(OutputError, match=r"no folder .* to write 's.db' into; make it first"):
        run(campaign(), here / "none" / "s.db")
    with pytest.raises(StoreError, match=r"no store .*; onnxfi run makes one"), Store.open(here / "none.db"):
        pass


def test_a_newer_store_is_refused(here: Path) -> None:
    ran(campaign(single=True, trials=3), here / "s.db")
    with sqlite3.connect(here / "s.db") as db:
        assert db.execute("PRAGMA application_id").fetchone()[0] == int.from_bytes(b"onfx", "big")
        assert db.execute("PRAGMA user_version").fetchone()[0] == 4
        db.execute("PRAGMA user_version = 5")
    db.close()
    with pytest.raises(StoreError, match="has version 5 of the store, this onnxfi reads 4; update it"):
        run(campaign(single=True, trials=3), here / "s.db")


def test_a_store_from_before_the_first_release_is_refused(here: Path) -> None:
    ran(campaign(single=True, trials=5), here / "s.db")
    with sqlite3.connect(here / "s.db") as db:
        db.execute("PRAGMA user_version = 1")
    db.close()
    for use in (lambda: report(here / "s.db"), lambda: ran(campaign(single=True, trials=8), here / "s.db")):
        with pytest.raises(
            StoreError, match=r"has version 1 of the store, which no release wrote; .* into another file"
        ):
            use()


def test_a_store_that_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(campaign(single=True, trials=3), here / "s.db")
    connect = sqlite3.connect

    def read_only(place: Any, *args: Any, **how: Any) -> sqlite3.Connection:
        return connect(f"{Path(here / 's.db').as_uri()}?mode=ro", uri=True)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(OutputError, match=r"cannot write .*s.db': attempt to write a readonly database"):
        ran(campaign(single=True, trials=5), here / "s.db")


def test_a_full_disk_loses_nothing_that_was_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(campaign(single=True, trials=120), here / "whole.db")
    connect = sqlite3.connect

    def small(*given: Any, **how: Any) -> sqlite3.Connection:
        db = connect(*given, **how)
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages + 8}")
        return db

    run(campaign(single=True, trials=120), here / "s.db").close()
    monkeypatch.setattr(sqlite3, "connect", small)
    written_by(20, monkeypatch)
    with pytest.raises(OutputError, match=r"the disk is full; .* holds what was done, the same command goes on"):
        ran(campaign(single=True, trials=120), here / "s.db")
    monkeypatch.undo()
    monkeypatch.chdir(here)
    done = counted(here / "s.db", "results")
    assert 0 < done < 120 and done % 20 == 0
    assert len(ran(campaign(single=True, trials=120), here / "s.db")) == 120 - done
    assert tables(here / "s.db") == tables(here / "whole.db")


def test_a_locked_store_is_reported(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(campaign(single=True, trials=3), here / "s.db")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "timeout": 0.1}))
    holder = sqlite3.connect(here / "s.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OutputError, match="is in use by another run; wait for it"):
        ran(campaign(single=True, trials=5), here / "s.db")
    holder.close()


def test_it_can_be_read_while_a_run_writes_it(here: Path) -> None:
    running = run(campaign(), here / "s.db")
    next(iter(running))
    with Store.open(here / "s.db") as opened:
        assert opened.count("plan") == 60
    assert len(list(running)) == 59
    assert not (here / "s.db-wal").exists()


# Fresh


def test_fresh_moves_the_old_store_aside(here: Path) -> None:
    ran(campaign(single=True, trials=3), here / "s.db")
    old = tables(here / "s.db")
    (here / "s.db.old").write_text("an older one")
    (here / "s.db.old-wal").write_text("its journal")
    ran(campaign(single=True, trials=4, seed=1), here / "s.db", fresh=True)
    assert tables(here / "s.db.old") == old
    assert not (here / "s.db.old-wal").exists(), "a journal of an older store is no part of this one"
    assert counted(here / "s.db", "results") == 4
    assert set_aside(here / "none.db") is None


def test_fresh_moves_nothing_where_the_campaign_cannot_be(here: Path) -> None:
    ran(campaign(single=True, trials=3), here / "s.db")
    with pytest.raises(Exception, match="'conv' matches nothing"):
        run(campaign(single=True, trials=4, include="conv"), here / "s.db", fresh=True)
    assert not (here / "s.db.old").exists()
    with pytest.raises(StoreError, match="is not a store"):
        run(campaign(), here / "m.onnx", fresh=True)
    assert (here / "m.onnx").exists()


# The format


def test_the_format_is_that_of_its_document(here: Path) -> None:
    document = (Path(__file__).parents[3] / "docs" / "reference" / "store.md").read_text(encoding="utf-8")
    ran(campaign(single=True, trials=3), here / "s.db")
    with sqlite3.connect(here / "s.db") as db:
        names = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        columns = {name: [row[1] for row in db.execute(f"PRAGMA table_info({name})")] for name in names}
        keys = {row[0] for row in db.execute("SELECT key FROM meta")}
    db.close()
    assert names == TABLES
    for name, found in columns.items():
        line = next(line for line in document.splitlines() if line.startswith(f"| `{name}` |"))
        assert [c for c in found if f"`{c}`" in line.split("|")[2]] == found
    documented = {
        line.split("`")[1] for line in document.partition("| key in `meta`")[2].splitlines() if line.startswith("| `")
    }
    assert documented == keys


def test_a_bad_campaign_makes_no_store(here: Path) -> None:
    with pytest.raises(SpecError):
        run(campaign(single=True, margin=0.1, per="layer-bit", fault="zero"), here / "s.db")
    assert not (here / "s.db").exists()


def test_samples_without_labels_make_the_same_store_twice(here: Path) -> None:
    samples(here, labels=False)
    ran(campaign(), here / "1.db")
    ran(campaign(), here / "2.db")
    assert tables(here / "1.db") == tables(here / "2.db")


def test_a_store_that_went_on_elsewhere_names_all_that_it_ran_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = Campaign("m.onnx", "d.npz", provider="cpu", single=True, trials=4)
    ran(campaign, here / "s.db")
    with Store.open(here / "s.db") as opened:
        before = opened.get("environment")
    other = {**before, "runtime": "onnxruntime 9.9"}
    kept = {name: before[name] for name in ("onnxfi", "runtime", "numpy", "python")}
    monkeypatch.setattr(
        "onnxfi.campaign.run.campaign_record.versions", lambda engine: {**kept, "runtime": other["runtime"]}
    )
    for trials in (6, 8):
        ran(replace(campaign, trials=trials), here / "s.db")
        with Store.open(here / "s.db") as opened:
            assert opened.get("environment") == {**before, "runtime": f"{before['runtime']} and onnxruntime 9.9"}
