"""The store of a campaign: one SQLite file. The format, version 4, is in docs/reference/store.md.

Written in batches, in WAL mode, so that a kill loses at most the last batch and never the file; a completed run leaves
one plain file. Results are keyed by trial and stores by campaign, so that merging is an idempotent set union.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnxfi.campaign.plan.plan import PlannedTrial
from onnxfi.campaign.plan.strata import PlannedStratum
from onnxfi.campaign.results.checksums import STORE
from onnxfi.campaign.results.rows import Result, Row
from onnxfi.errors import InputError, OutputError, StoreError
from onnxfi.faults.faultlist import Header
from onnxfi.graph.write.output_file import check_output_files
from onnxfi.tasks.task import Task

VERSION = 4
_APPLICATION_ID = 0x6F6E6678  # "onfx"
STRATA = "stratum, label, population, trials, layer, bit, ber"
_OTHER_PLAN = "take stores of one version of onnxfi, or run the campaign again with --fresh"
_BATCH = 2000
#: Seconds to wait for another run that writes the same store.
_WAIT_S = 60.0


def _extends(now: Mapping[str, Any], kept: Mapping[str, Any], grows: Sequence[str]) -> bool:
    """Return whether a campaign is that of a store with more strata behind its own."""
    same = all(now.get(name) == kept.get(name) for name in {*now, *kept} - {*grows})
    before = kept.get("strata") or []
    return bool(grows) and same and len(now["strata"]) > len(before) > 0 and now["strata"][: len(before)] == before


def digest_of(identity: Mapping[str, Any]) -> str:
    """Return the digest of a campaign: SHA-256 over all that fixes its answers."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@lru_cache(1 << 15)
def _metrics(text: str) -> Mapping[str, Any]:
    """Return the metrics of a trial, which a page reads some ten times."""
    return MappingProxyType(json.loads(text))


class Store:
    """An open store; use `Store.open` in a `with`."""

    def __init__(self, path: Path, db: sqlite3.Connection, *, draft: bool = False) -> None:
        self.path, self.db, self.is_draft = path, db, draft
        status = None if draft else path.stat()
        self._stamp = None if status is None else (status.st_dev, status.st_ino)

    @classmethod
    @contextmanager
    def open(cls, path: str | Path, *, create: bool = False, checked: bool = False) -> Iterator[Store]:
        """Open a store; with `create` make one where there is none. StoreError or OutputError if that cannot be.

        All of it is held against its checksums, unless this program has `checked` it just now.
        """
        place = Path(path)
        if not place.is_file():
            if not create:
                raise StoreError(_no_store(place))
            check_output_files(None, [place], copy=False)
        db, ours = None, False
        try:
            where = place if create else f"{place.absolute().as_uri()}?mode=ro"
            db = sqlite3.connect(where, uri=not create, timeout=_WAIT_S)
            if not cls._begun(db, place):
                if not create:
                    raise StoreError(f"{str(place)!r} holds no campaign yet; onnxfi run fills it")
            elif not checked and (found := STORE.damage(db)) is not None:
                raise StoreError(
                    f"the store {str(place)!r} is damaged: {found}; take a copy that is whole, or run the campaign "
                    f"again (onnxfi run --fresh moves this one aside)"
                )
            if create:
                cls._prepare(db, place)
            ours = create
            yield cls(place, db)
        except sqlite3.DatabaseError as error:
            raise _explain(error, place, create) from None
        finally:
            if db is not None:
                _close(db, ours)

    @classmethod
    @contextmanager
    def draft(cls, path: str | Path) -> Iterator[Store]:
        """Open a store that has no file yet, and ends with the context; `take` writes it to the one at `path`.

        SQLite keeps it in memory, and what is too large for that in a file that nobody sees.
        """
        db = sqlite3.connect("")
        try:
            with db:
                STORE.make(db)
            STORE.count_changes(db)
            yield cls(Path(path), db, draft=True)
        except sqlite3.DatabaseError as error:
            raise OutputError(f"the plan of {str(path)!r} cannot be kept: {error}; make room for it") from None
        finally:
            db.close()

    def take(self, draft: Store) -> None:
        """Write the campaign and the plan of a draft; StoreError if another run has begun another campaign here."""
        self.check_place()
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            kept, now = self.get("identity"), draft.get("identity")
            if kept not in (None, now):
                raise self._of_another(kept, now)
            self.copy("meta", draft.db.execute("SELECT * FROM meta"), "IGNORE")
            self.strata_of(draft.db.execute(f"SELECT {STRATA} FROM strata"))
            self.trials_of(draft.db.execute("SELECT * FROM plan"))

    @staticmethod
    def _begun(db: sqlite3.Connection, place: Path) -> bool:
        """Return true for a file with content; StoreError if that is not a store of this version."""
        empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        mark = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if empty and mark == version == 0:  # no file yet, or a run was killed before its first transaction
            return False
        if mark != _APPLICATION_ID:
            raise StoreError(f"{str(place)!r} is SQLite, but no store of onnxfi; give one that onnxfi run made")
        if version > VERSION:
            raise StoreError(
                f"{str(place)!r} has version {version} of the store, this onnxfi reads {VERSION}; update it"
            )
        if version < VERSION:
            raise StoreError(
                f"{str(place)!r} has version {version} of the store, which no release wrote; "
                f"run the campaign again, into another file"
            )
        return True

    @classmethod
    def _prepare(cls, db: sqlite3.Connection, place: Path) -> None:
        """Make ready to write, and the tables where there are none."""
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("BEGIN IMMEDIATE")  # another run may be about to make the same store
        if not cls._begun(db, place):
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {VERSION}")
            STORE.make(db)
        db.commit()
        STORE.count_changes(db)

    def get(self, key: str) -> Any:
        """Return a value kept about the campaign; None if there is none."""
        row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def header(self) -> Header:
        """Return the header of the fault list."""
        return Header.parse(self.get("header"), str(self.path))

    def put(self, **values: Any) -> None:
        """Keep values about the campaign."""
        self.check_place()
        with self.db:
            self.insert("meta", ((k, json.dumps(value, sort_keys=True)) for k, value in values.items()), "REPLACE")

    def insert(self, table: str, rows: Iterable[Sequence[Any]], conflict: str = "ABORT") -> None:
        """Write rows with their checksums, within a transaction of the caller."""
        self.copy(table, STORE.summed(table, rows), conflict)

    def copy(self, table: str, rows: Iterable[Sequence[Any]], conflict: str = "ABORT") -> None:
        """Write rows that have their checksums already, within a transaction of the caller."""
        marks = ", ".join("?" * (len(STORE.kinds[table]) + 1))
        self.db.executemany(f"INSERT OR {conflict} INTO {table} VALUES ({marks})", rows)

    def check_place(self) -> None:
        """Refuse to go on where the file was moved, deleted or replaced: what is written would be lost."""
        if self._stamp is None:
            return
        try:
            status = self.path.stat()
        except FileNotFoundError:
            status = None
        if status is None or (status.st_dev, status.st_ino) != self._stamp:
            raise OutputError(
                f"the store {str(self.path)!r} no longer exists: it was moved, deleted or replaced while it was "
                f"written; put it back and go on with the same command, or run the campaign again"
            )

    def bind(self, identity: Mapping[str, Any], grows: Sequence[str] = ()) -> None:
        """Take the campaign's identity, or refuse one that is not this store's, naming the fields that differ.

        The fields in `grows` are lists, to which a campaign may add: its strata begin with those of the store.
        """
        kept, now = self.get("identity"), json.loads(json.dumps(identity))
        if kept is None or _extends(now, kept, grows):
            self.put(identity=identity, campaign=digest_of(identity))
            return
        if kept != now:
            raise self._of_another(kept, now)

    def _of_another(self, kept: Mapping[str, Any], now: Mapping[str, Any]) -> StoreError:
        changes = identity_differences(kept, now, "{} in the store, now {}")
        hint = "name another store with -o, or use --fresh"
        return StoreError(f"{self.path} holds another campaign: {changes}; {hint}")

    def plan(self, groups: Sequence[PlannedStratum], planned: Iterable[PlannedTrial]) -> None:
        """Write the strata and the trials that are not in the store yet, in one transaction.

        StoreError if one that is there was planned otherwise.
        """
        with self.db:
            self.strata_of(
                (n, g.label, str(g.population), g.trials, g.layer, g.bit, g.ber) for n, g in enumerate(groups)
            )
            rows = ((p.trial, p.stratum, p.faults, p.layer, p.bit, p.lines) for p in planned)
            self.trials_of(STORE.summed("plan", rows))

    def strata_of(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Write strata, the longer of each; StoreError if one that is there is another one."""
        held = {row[0]: row for row in self.db.execute(f"SELECT {STRATA} FROM strata")}
        new = []
        for row in rows:
            number, *_, trials, layer, bit, ber = row
            old = held.get(number, row)
            if (*old[1:3], *old[4:]) != (*row[1:3], layer, bit, ber):
                raise StoreError(f"stratum {number} is another one than in {str(self.path)!r}; {_OTHER_PLAN}")
            new.append((*row[:3], max(trials, old[3]), layer, bit, ber))
        self.insert("strata", new, "REPLACE")

    def trials_of(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Write planned trials with their checksums; StoreError if one that is there was planned otherwise."""
        last = None

        def noted() -> Iterator[tuple[Any, ...]]:
            nonlocal last
            for row in rows:
                last = row[0]
                yield row

        # Where the checksum is another one, the row is set to what it cannot be, and SQLite refuses.
        asked = "INSERT INTO plan VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (trial) DO UPDATE SET lines = NULL "
        try:
            self.db.executemany(asked + "WHERE checksum <> excluded.checksum", noted())
        except sqlite3.IntegrityError:
            raise StoreError(f"trial {last} is planned otherwise in {str(self.path)!r}; {_OTHER_PLAN}") from None

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
        """Return the numbers of the trials that are planned, in order."""
        return (trial for (trial,) in self.db.execute("SELECT trial FROM plan ORDER BY trial"))

    def done(self) -> Iterator[tuple[int, str]]:
        """Trials with a result, in order, each with its outcome."""
        yield from self.db.execute("SELECT trial, outcome FROM results ORDER BY trial")

    def times(self) -> list[float]:
        """Return the seconds that each trial with a result took."""
        return [seconds for (seconds,) in self.db.execute("SELECT time_s FROM results ORDER BY trial")]

    def add(self, results: Iterable[Result]) -> None:
        """Write results in one transaction; those that are there stay. A harness error is kept apart."""
        self.check_place()
        done, wrong = list[tuple[Any, ...]](), list[tuple[int, str]]()
        text_of: tuple[Any, str] = None, ""
        for r in results:
            if r.error is not None:
                wrong.append((r.trial, r.error))
                continue
            if r.metrics is not text_of[0]:  # trials that are judged alike share theirs
                text_of = r.metrics, json.dumps(r.metrics, sort_keys=True, allow_nan=False)
            words = json.dumps(r.words, allow_nan=False) if r.words else None
            done.append((r.trial, r.outcome, r.cause, text_of[1], r.changed, r.time_s, words, r.route))
        with self.db:
            self.insert("errors", wrong, "REPLACE")
            self.insert("results", done, "IGNORE")
            if self.count("errors"):
                self.db.executemany("DELETE FROM errors WHERE trial = ?", ((row[0],) for row in done))
        _settle(self.db)

    def ran(self) -> dict[int, int]:
        """Count the trials of each stratum that have a result."""
        return dict(self.db.execute("SELECT stratum, count(*) FROM results JOIN plan USING (trial) GROUP BY stratum"))

    def count(self, table: str) -> int:
        """Rows of plan, results or errors."""
        assert table in ("plan", "results", "errors")
        return int(self.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def results(self, number: int) -> int:
        """Count the trials of a round that have a result."""
        asked = "SELECT count(*) FROM results WHERE trial IN (SELECT trial FROM draws WHERE round = ?)"
        return int(self.db.execute(asked, (number,)).fetchone()[0])

    def lines(self, trial: int) -> str:
        """Return the lines of a planned trial in the fault list."""
        return str(self.db.execute("SELECT lines FROM plan WHERE trial = ?", (trial,)).fetchone()[0])

    def words(self, trial: int) -> list[dict[str, Any]]:
        """Return the words of activations before and after the faults of a trial, as they were injected."""
        row = self.db.execute("SELECT words FROM results WHERE trial = ?", (trial,)).fetchone()
        return [] if row is None or row[0] is None else json.loads(row[0])

    def rows(self, number: int | None = None) -> Iterator[Row]:
        """Results in the order of their trials, all or those of a round."""
        of_round = "" if number is None else "WHERE trial IN (SELECT trial FROM draws WHERE round = ?)"
        cursor = self.db.execute(
            "SELECT trial, stratum, plan.faults, plan.layer, plan.bit, outcome, cause, changed, metrics "
            f"FROM results JOIN plan USING (trial) {of_round} ORDER BY trial",
            () if number is None else (number,),
        )
        for trial, stratum, faults, layer, bit, outcome, cause, changed, metrics in cursor:
            yield Row(trial, stratum, faults, layer, bit, outcome, cause, changed, dict(_metrics(metrics)))

    def causes(self) -> Counter[str]:
        """Return the number of DUE trials by cause, in the order in which the causes came first."""
        cursor = self.db.execute(
            "SELECT cause, COUNT(*) FROM results WHERE outcome = 'due' AND cause <> '' "
            "GROUP BY cause ORDER BY MIN(trial)"
        )
        return Counter(dict(cursor))

    def planned_rows(self) -> Iterator[tuple[str, Row]]:
        """Results in the order of their trials, each behind the lines of its faults."""
        lines = self.db.execute("SELECT lines FROM results JOIN plan USING (trial) ORDER BY trial")
        for (text,), row in zip(lines, self.rows(), strict=True):
            yield text, row

    def strata(self) -> list[dict[str, Any]]:
        """Return the strata in order, as plain values."""
        cursor = self.db.execute(f"SELECT {STRATA} FROM strata ORDER BY stratum")
        names = STRATA.split(", ")
        return [{**dict(zip(names, row, strict=True)), "population": int(row[2])} for row in cursor]

    def trial(self, number: int) -> dict[str, Any]:
        """Everything about one trial; StoreError if it is not in the plan."""
        row = self.db.execute(
            "SELECT stratum, faults, layer, bit, lines FROM plan WHERE trial = ?", (number,)
        ).fetchone()
        if row is None:
            first, last = self.db.execute("SELECT min(trial), max(trial) FROM plan").fetchone()
            raise StoreError(f"{self.path} has no trial {number}; its trials lie between {first} and {last}")
        found = dict(zip(("stratum", "faults", "layer", "bit", "lines"), row, strict=True))
        query = "SELECT outcome, cause, metrics, route, words FROM results WHERE trial = ?"
        done = self.db.execute(query, (number,)).fetchone()
        error = self.db.execute("SELECT error FROM errors WHERE trial = ?", (number,)).fetchone()
        found["result"] = None
        if done:
            found["result"] = {
                "outcome": done[0], "cause": done[1], "metrics": json.loads(done[2]), "route": done[3],
                "words": json.loads(done[4] or "[]"),
            }  # fmt: skip
        return found | {"trial": number, "error": error[0] if error else None}


def declared_task(store: Store) -> Task:
    """Return the task of a campaign as its store declares it; no code of a task runs."""
    return Task.declared(store.get("golden")["task"])


def set_aside(path: Path) -> Path | None:
    """Move a store to STORE.old, for a fresh start, be it damaged; None if there is none. What is not a store stays."""
    if not path.exists():
        return None
    if not path.is_file():
        check_output_files(None, [path], copy=False)
    with path.open("rb") as stream:
        head = stream.read(72)
    if head and head[68:] != _APPLICATION_ID.to_bytes(4, "big"):  # a damaged one may go, and one of another version
        with Store.open(path, checked=True):
            pass
    old = path.with_name(path.name + ".old")
    remove(old)
    for tail in _TAILS:
        if (source := path.with_name(path.name + tail)).exists():
            os.replace(source, old.with_name(old.name + tail))
    return old


_TAILS = ("", "-wal", "-shm")


def remove(path: Path) -> None:
    """Remove a store, and what SQLite keeps beside it."""
    for tail in _TAILS:
        path.with_name(path.name + tail).unlink(missing_ok=True)


def _close(db: sqlite3.Connection, written: bool) -> None:
    """Close the database; if it is not open elsewhere, its log is merged into one plain file."""
    if written:
        with suppress(sqlite3.Error):
            db.execute("PRAGMA busy_timeout = 0")
            db.execute("PRAGMA journal_mode = DELETE")
    db.close()


def _settle(db: sqlite3.Connection) -> None:
    """Bring what was written from the log into the file itself, unless somebody reads it just now."""
    with suppress(sqlite3.OperationalError):
        db.execute("PRAGMA busy_timeout = 0")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    db.execute(f"PRAGMA busy_timeout = {int(1000 * _WAIT_S)}")


def identity_differences(one: Mapping[str, Any], other: Mapping[str, Any], said: str) -> str:
    """Return the fields in which two campaigns differ, up to four by name; empty if they are the same."""
    names = [k for k in sorted({*one, *other}) if one.get(k) != other.get(k)]
    return "; ".join(f"{n}: {said.format(_short(one.get(n)), _short(other.get(n)))}" for n in names[:4])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:12] + "…" + text[-6:]


def _no_store(place: Path) -> str:
    if place.is_dir():
        return f"{str(place)!r} is a folder, no store; give the file that onnxfi run made"
    if place.exists():
        return f"{str(place)!r} is a device or pipe, no store; give the file that onnxfi run made"
    return f"no store {str(place)!r}; onnxfi run makes one"


def _explain(error: sqlite3.DatabaseError, place: Path, create: bool) -> InputError:
    text = str(error)
    if "not a database" in text or "malformed" in text:
        what = "is not a store" if "not a database" in text else "is damaged"
        return StoreError(f"{str(place)!r} {what}: {text}; give one that onnxfi run made")
    if "locked" in text:
        return OutputError(f"{str(place)!r} is in use by another run; wait for it, or name another store with -o")
    if not create:
        return StoreError(f"{str(place)!r} cannot be read: {text}")
    if "readonly" in text or "unable to open" in text:
        return OutputError(f"cannot write {str(place)!r}: {text}; choose another place with -o, or copy it to one")
    if "full" in text or "disk I/O" in text:
        return OutputError(f"the disk is full; {str(place)!r} holds what was done, the same command goes on from there")
    return StoreError(f"{str(place)!r}: {text}")
