"""The store of a campaign: one SQLite file. The format, version 2, is in docs/store.md.

Written in batches, in WAL mode, so that a kill at any moment loses at most the last batch and never the file; a run
that ends leaves one plain file. A result's key is its trial, the store's is the campaign: merging is set union, and
twice is once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxfi.campaign.plan import Planned
from onnxfi.campaign.strata import Group
from onnxfi.errors import InputError, OutputError

VERSION = 2
_APPLICATION_ID = 0x6F6E6678  # "onfx"
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE strata (
  stratum INTEGER PRIMARY KEY, label TEXT NOT NULL, population TEXT NOT NULL, trials INTEGER NOT NULL,
  layer TEXT, bit INTEGER, ber REAL);
CREATE TABLE plan (
  trial INTEGER PRIMARY KEY, stratum INTEGER NOT NULL, faults INTEGER NOT NULL, layer TEXT, bit INTEGER,
  lines TEXT NOT NULL);
CREATE TABLE results (
  trial INTEGER PRIMARY KEY, outcome TEXT NOT NULL, cause TEXT, metrics TEXT NOT NULL, changed BLOB,
  time_s REAL NOT NULL, route TEXT NOT NULL);
CREATE TABLE errors (trial INTEGER PRIMARY KEY, error TEXT NOT NULL);
CREATE TABLE rounds (
  round INTEGER PRIMARY KEY, draws INTEGER NOT NULL, aim REAL NOT NULL, variance REAL NOT NULL, weight REAL NOT NULL,
  below REAL NOT NULL, above REAL NOT NULL);
CREATE TABLE allocations (
  round INTEGER, stratum INTEGER, population INTEGER NOT NULL, probability REAL NOT NULL,
  PRIMARY KEY (round, stratum)) WITHOUT ROWID;
CREATE TABLE draws (
  trial INTEGER PRIMARY KEY, draw INTEGER NOT NULL UNIQUE, round INTEGER NOT NULL, stratum_population INTEGER NOT NULL,
  population INTEGER NOT NULL, probability REAL NOT NULL, expected REAL NOT NULL, base REAL NOT NULL);
CREATE INDEX draws_of_a_round ON draws (round);
"""
_BATCH = 2000


class StoreError(InputError):
    """A file that is no store, of a newer version, or of another campaign."""


@dataclass(frozen=True)
class Result:
    """What one trial did. `error` is the traceback of a harness error: then there is no outcome."""

    trial: int
    outcome: str
    cause: str | None
    metrics: dict[str, Any]
    time_s: float
    changed: bytes | None = None
    error: str | None = None
    route: str = "plain"


@dataclass(frozen=True)
class Row:
    """A result beside what was planned."""

    trial: int
    stratum: int
    faults: int
    layer: str | None
    bit: int | None
    outcome: str
    cause: str | None
    changed: bytes | None
    metrics: dict[str, Any]


def digest_of(identity: Mapping[str, Any]) -> str:
    """The digest of a campaign: SHA-256 over all that fixes its answers."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class Store:
    """An open store; use `Store.open` in a `with`."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path, self.db = path, db

    @classmethod
    @contextmanager
    def open(cls, path: str | Path, *, create: bool = False) -> Iterator[Store]:
        """Open a store; with `create` make one where there is none. StoreError or OutputError where that cannot be."""
        place = Path(path)
        if not place.is_file():
            if not create:
                raise StoreError(f"no store {str(place)!r}; onnxfi run makes one")
            if not place.parent.is_dir():
                raise OutputError(f"no folder {str(place.parent)!r} to write {place.name!r} into; make it first")
            if place.is_dir():
                raise OutputError(f"the store {str(place)!r} is a directory; give a file name")
        db, ours = None, False
        try:
            db = sqlite3.connect(place if create else f"{place.absolute().as_uri()}?mode=ro", uri=not create)
            cls._prepare(db, place, create)
            ours = create
            yield cls(place, db)
        except sqlite3.DatabaseError as error:
            raise _explain(error, place) from None
        finally:
            if db is not None:
                _close(db, ours)

    @staticmethod
    def _prepare(db: sqlite3.Connection, place: Path, create: bool) -> None:
        empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        mark = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if empty and create and mark == version == 0:  # no file yet, or a run was killed before its first transaction
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(
                f"BEGIN; PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {VERSION}; {_SCHEMA} COMMIT;"
            )
        elif empty and mark == version == 0:
            raise StoreError(f"{str(place)!r} holds no campaign yet; onnxfi run fills it")
        elif mark != _APPLICATION_ID:
            raise StoreError(f"{str(place)!r} is SQLite, but no store of onnxfi; give one that onnxfi run made")
        elif version > VERSION:
            raise StoreError(
                f"{str(place)!r} has version {version} of the store, this onnxfi reads {VERSION}; update it"
            )
        elif version < VERSION:
            raise StoreError(
                f"{str(place)!r} has version {version} of the store, which no release wrote; "
                f"run the campaign again, into another file"
            )
        if create:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")

    def get(self, key: str) -> Any:
        """A value kept about the campaign; None where there is none."""
        row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, **values: Any) -> None:
        """Keep values about the campaign."""
        rows = [(key, json.dumps(value, sort_keys=True)) for key, value in values.items()]
        with self.db:
            self.db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def bind(self, identity: Mapping[str, Any]) -> None:
        """Take the campaign's identity, or refuse one that is not this store's, naming the fields that differ."""
        kept = self.get("identity")
        if kept is None:
            self.put(identity=identity, campaign=digest_of(identity))
            return
        given = json.loads(json.dumps(identity))
        names = [k for k in sorted({*kept, *given}) if kept.get(k) != given.get(k)]
        if names:
            changes = "; ".join(
                f"{n}: {_short(kept.get(n))} in the store, now {_short(given.get(n))}" for n in names[:4]
            )
            raise StoreError(
                f"{self.path} holds another campaign: {changes}; name another store with -o, or use --fresh"
            )

    def plan(self, groups: Sequence[Group], planned: Iterable[Planned]) -> None:
        """Write the strata and the trials that are not there yet, in one transaction."""
        with self.db:
            for number, g in enumerate(groups):
                self.db.execute(
                    "INSERT INTO strata VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (stratum) DO UPDATE "
                    "SET trials = max(trials, excluded.trials)",
                    (number, g.label, str(g.population), g.trials, g.layer, g.bit, g.ber),
                )
            rows = ((p.trial, p.stratum, p.faults, p.layer, p.bit, p.lines) for p in planned)
            self.db.executemany("INSERT OR IGNORE INTO plan VALUES (?, ?, ?, ?, ?, ?)", rows)

    def pending(self, wanted: Callable[[int], bool] = lambda trial: True) -> Iterator[tuple[int, str]]:
        """Trials that are wanted and have no result, in order, with their lines."""
        last = 0
        while True:
            rows = self.db.execute(
                "SELECT trial, lines FROM plan WHERE trial > ? AND NOT EXISTS "
                "(SELECT 1 FROM results WHERE results.trial = plan.trial) ORDER BY trial LIMIT ?",
                (last, _BATCH),
            ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield from (row for row in rows if wanted(row[0]))

    def trials(self) -> Iterator[int]:
        """The numbers of the trials that are planned, in order."""
        return (trial for (trial,) in self.db.execute("SELECT trial FROM plan ORDER BY trial"))

    def done(self) -> Iterator[tuple[int, str]]:
        """Trials with a result, in order, each with its outcome."""
        yield from self.db.execute("SELECT trial, outcome FROM results ORDER BY trial")

    def times(self) -> list[float]:
        """The seconds that each trial with a result took."""
        return [seconds for (seconds,) in self.db.execute("SELECT time_s FROM results ORDER BY trial")]

    def add(self, results: Iterable[Result]) -> None:
        """Write results in one transaction; those that are there stay. A harness error is kept apart."""
        with self.db:
            for r in results:
                if r.error is not None:
                    self.db.execute("INSERT OR REPLACE INTO errors VALUES (?, ?)", (r.trial, r.error))
                    continue
                metrics = json.dumps(r.metrics, sort_keys=True, allow_nan=False)
                row = (r.trial, r.outcome, r.cause, metrics, r.changed, r.time_s, r.route)
                self.db.execute("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                self.db.execute("DELETE FROM errors WHERE trial = ?", (r.trial,))

    def ran(self) -> dict[int, int]:
        """How many trials of each stratum have a result."""
        return dict(self.db.execute("SELECT stratum, count(*) FROM results JOIN plan USING (trial) GROUP BY stratum"))

    def count(self, table: str) -> int:
        """Rows of plan, results or errors."""
        assert table in ("plan", "results", "errors")
        return int(self.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def results(self, number: int) -> int:
        """How many trials of a round have a result."""
        asked = "SELECT count(*) FROM results WHERE trial IN (SELECT trial FROM draws WHERE round = ?)"
        return int(self.db.execute(asked, (number,)).fetchone()[0])

    def rows(self, number: int | None = None) -> Iterator[Row]:
        """Results in the order of their trials, all or those of a round."""
        of_round = "" if number is None else "WHERE trial IN (SELECT trial FROM draws WHERE round = ?)"
        cursor = self.db.execute(
            "SELECT trial, stratum, plan.faults, plan.layer, plan.bit, outcome, cause, changed, metrics "
            f"FROM results JOIN plan USING (trial) {of_round} ORDER BY trial",
            () if number is None else (number,),
        )
        for trial, stratum, faults, layer, bit, outcome, cause, changed, metrics in cursor:
            yield Row(trial, stratum, faults, layer, bit, outcome, cause, changed, json.loads(metrics))

    def strata(self) -> list[dict[str, Any]]:
        """The strata in order, as plain values."""
        cursor = self.db.execute(
            "SELECT stratum, label, population, trials, layer, bit, ber FROM strata ORDER BY stratum"
        )
        names = ("stratum", "label", "population", "trials", "layer", "bit", "ber")
        return [{**dict(zip(names, row, strict=True)), "population": int(row[2])} for row in cursor]

    def trial(self, number: int) -> dict[str, Any]:
        """Everything about one trial; StoreError where it is not in the plan."""
        row = self.db.execute(
            "SELECT stratum, faults, layer, bit, lines FROM plan WHERE trial = ?", (number,)
        ).fetchone()
        if row is None:
            first, last = self.db.execute("SELECT min(trial), max(trial) FROM plan").fetchone()
            raise StoreError(f"{self.path} has no trial {number}; its trials lie between {first} and {last}")
        found = dict(zip(("stratum", "faults", "layer", "bit", "lines"), row, strict=True))
        told = "SELECT outcome, cause, metrics, route FROM results WHERE trial = ?"
        done = self.db.execute(told, (number,)).fetchone()
        error = self.db.execute("SELECT error FROM errors WHERE trial = ?", (number,)).fetchone()
        found["result"] = None
        if done:
            found["result"] = {
                "outcome": done[0], "cause": done[1], "metrics": json.loads(done[2]), "route": done[3],
            }  # fmt: skip
        return found | {"trial": number, "error": error[0] if error else None}


def merge(out: str | Path, stores: Sequence[str | Path]) -> int:
    """Put the union of several stores of one campaign into `out`; the number of results there.

    Raises StoreError where they are of different campaigns (the fields named), or differ in a trial's result; `out` is
    then as it was.

    >>> import tempfile
    >>> from onnxfi.campaign.runner import run
    >>> from onnxfi.campaign.spec import Campaign
    >>> campaign = Campaign("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=50, single=True, trials=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     halves = [folder + "/1.db", folder + "/2.db"]
    ...     done = [list(run(campaign, half, shard=(k, 2))) for k, half in enumerate(halves, 1)]
    ...     merge(folder + "/all.db", halves)
    4
    """
    for source in stores:
        if os.path.realpath(source) == os.path.realpath(out):
            raise StoreError(f"the output {str(out)!r} is one of the inputs; give another name")
    with ExitStack() as stack:
        ones = [stack.enter_context(Store.open(source)) for source in stores]
        for one in ones:
            if one.get("identity") is None or one.get("golden") is None:
                raise StoreError(f"{str(one.path)!r} holds no campaign yet; run it first")
            if one.get("identity").get("adaptive"):
                raise StoreError(
                    f"{str(one.path)!r} is of an adaptive campaign, whose rounds rest on those before them: it has one "
                    f"store and no shards; take that with the most trials"
                )
            ones[0].bind(one.get("identity"))
        existed = Path(out).exists()
        try:
            with Store.open(out, create=True) as target:
                target.bind(ones[0].get("identity"))
                with target.db:
                    for one in ones:
                        _copy(one, target)
                return target.count("results")
        except BaseException:
            if not existed:
                _remove(Path(out))
            raise


def _copy(one: Store, target: Store) -> None:
    """Add what one store holds to the other, within a transaction of the caller."""
    kept = target.get("golden")
    if kept is not None and kept["scores"] != one.get("golden")["scores"]:
        raise StoreError(f"{str(one.path)!r} has another golden run than the others; the engines differ")
    # Where two stores tell something else, the one with more trials is right; of equal ones always the same.
    told = "SELECT * FROM meta WHERE key NOT IN ('identity', 'campaign') ORDER BY key"
    given, held = ((s.count("plan"), s.db.execute(told).fetchall()) for s in (one, target))
    if given > held:
        target.db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", given[1])
    for table, columns in (("strata", 7), ("plan", 6), ("results", 7), ("errors", 2)):
        marks = ", ".join("?" * columns)
        target.db.executemany(
            f"INSERT OR IGNORE INTO {table} VALUES ({marks})", one.db.execute(f"SELECT * FROM {table}")
        )
    for row in one.db.execute("SELECT trials, stratum FROM strata"):
        target.db.execute("UPDATE strata SET trials = max(trials, ?) WHERE stratum = ?", row)
    target.db.execute("DELETE FROM errors WHERE trial IN (SELECT trial FROM results)")
    same = "SELECT trial, outcome, cause, metrics, changed, route FROM results"
    for row in one.db.execute(same):
        if target.db.execute(f"{same} WHERE trial = ?", row[:1]).fetchone() != row:
            raise StoreError(f"trial {row[0]} has another result in {one.path} than in the others; the engines differ")


def set_aside(path: Path) -> Path | None:
    """Move a store to STORE.old, for a fresh start; None where there is none. What is no store stays where it is."""
    if not path.exists():
        return None
    if path.is_dir() or path.stat().st_size:
        with Store.open(path):
            pass
    old = path.with_name(path.name + ".old")
    _remove(old)
    for tail in _TAILS:
        if (source := path.with_name(path.name + tail)).exists():
            os.replace(source, old.with_name(old.name + tail))
    return old


_TAILS = ("", "-wal", "-shm")


def _remove(path: Path) -> None:
    for tail in _TAILS:
        path.with_name(path.name + tail).unlink(missing_ok=True)


def _close(db: sqlite3.Connection, written: bool) -> None:
    """Close; where nobody else has it open, what was written becomes one plain file, readable where nothing can be."""
    if written:
        with suppress(sqlite3.Error):
            db.execute("PRAGMA busy_timeout = 0")
            db.execute("PRAGMA journal_mode = DELETE")
    db.close()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:12] + "…" + text[-6:]


def _explain(error: sqlite3.DatabaseError, place: Path) -> InputError:
    text = str(error)
    if "not a database" in text or "malformed" in text:
        return StoreError(f"{str(place)!r} is no store: {text}; give one that onnxfi run made")
    if "readonly" in text or "unable to open" in text:
        return OutputError(f"cannot write {str(place)!r}: {text}; choose another place with -o, or copy it to one")
    if "full" in text or "disk I/O" in text:
        return OutputError(f"the disk is full; {str(place)!r} holds what was done, the same command goes on from there")
    if "locked" in text:
        return OutputError(f"{str(place)!r} is in use by another run; wait for it, or name another store with -o")
    return StoreError(f"{str(place)!r}: {text}")
