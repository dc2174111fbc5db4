"""The tables of a store, with checksums: one in each row, and for each table a count of rows and the sum of theirs.

SQLite's own `integrity_check` checks the structure of pages; it does not detect a changed bit inside a number, or
missing rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from zlib import crc32

_OBJECTS = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"


def _real(value: Any) -> float:
    return float(value) + 0.0  # SQLite keeps -0.0 as 0.0


_KINDS: dict[str, Callable[[Any], Any]] = {"INTEGER": int, "REAL": _real, "TEXT": str, "BLOB": bytes}


@dataclass(frozen=True)
class Schema:
    """The statements that make an empty store, what SQLite keeps of them, and the types of each table's columns.

    Each table but `totals` has a column `checksum`, its last.
    """

    sql: str
    objects: frozenset[tuple[str, ...]]
    kinds: Mapping[str, tuple[Callable[[Any], Any], ...]]

    @classmethod
    def of(cls, sql: str) -> Schema:
        """Return the tables that the statements make."""
        with closing(sqlite3.connect(":memory:")) as db:
            db.executescript(sql)
            objects = frozenset(db.execute(_OBJECTS))
            tables = [name for kind, name, *_ in objects if kind == "table" and name != "totals"]
            columns = {name: [row[2] for row in db.execute(f"PRAGMA table_info({name})")] for name in sorted(tables)}
        return cls(
            sql, objects, MappingProxyType({t: tuple(_KINDS[kind] for kind in c[:-1]) for t, c in columns.items()})
        )

    def summed(self, table: str, rows: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
        """Rows of a table with their checksums, each value as its column keeps it."""
        kinds = self.kinds[table]
        for row in rows:
            kept = tuple(None if value is None else kind(value) for kind, value in zip(kinds, row, strict=True))
            yield (*kept, checksum(kept))

    def make(self, db: sqlite3.Connection) -> None:
        """Make the tables, within a transaction of the caller."""
        for statement in filter(str.strip, self.sql.split(";")):
            db.execute(statement)
        db.executemany("INSERT INTO totals VALUES (?, 0, 0)", [(name,) for name in self.kinds])

    def count_changes(self, db: sqlite3.Connection) -> None:
        """Keep the totals true whatever this connection does; what others do to a table shows as damage."""
        db.execute("PRAGMA recursive_triggers = ON")  # a row that is replaced counts as deleted
        for name in self.kinds:
            for event, sign, row in (("INSERT", "+", "new"), ("DELETE", "-", "old")):
                db.execute(
                    f"CREATE TEMP TRIGGER {event}_{name} AFTER {event} ON main.{name} BEGIN UPDATE totals SET "
                    f"rows = rows {sign} 1, checksum = checksum {sign} {row}.checksum WHERE name = '{name}'; END"
                )

    def damage(self, db: sqlite3.Connection) -> str | None:
        """Return the damage in a store; None if everything is as it was written."""
        try:
            db.execute("BEGIN")  # one state of the store, also while a run writes it
            return self._damage(db)
        except (sqlite3.DatabaseError, MemoryError) as error:
            if "locked" in str(error):
                raise
            return str(error) or "a row of impossible length"
        finally:
            db.rollback()

    def _damage(self, db: sqlite3.Connection) -> str | None:
        if lost := self.objects - set(db.execute(_OBJECTS)):
            return f"the {min(lost)[0]} {min(lost)[1]!r} is missing, or another one"
        [(found,)] = db.execute("PRAGMA integrity_check(1)")
        if found != "ok":
            return " ".join(str(found).split())
        totals = {name: (rows, total) for name, rows, total in db.execute("SELECT * FROM totals")}
        for name in self.kinds:
            rows = total = 0
            for row in db.execute(f"SELECT * FROM {name}"):
                kept = row[-1]
                if crc32(ascii(row[:-1]).encode()) != kept:  # `checksum` of it, without a call for each row
                    return f"row {row[0]!r} of {name} is not as it was written"
                rows += 1
                total += kept
            written = totals.get(name)
            if written != (rows, total):
                many = f"; {rows:,} are there, {written[0]!r} were written" if written else ""
                return f"rows of {name} are missing, or others{many}"
        return None


def checksum(row: Sequence[Any]) -> int:
    """Return the checksum of a row as SQLite returns it: CRC-32 of `ascii` of the tuple of its other columns.

    >>> checksum((1, "sdc", None, 0.5)) == crc32(b"(1, 'sdc', None, 0.5)")
    True
    """
    return crc32(ascii(tuple(row)).encode())


#: The tables of a store, as docs/reference/store.md has them.
STORE = Schema.of("""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE strata (
  stratum INTEGER PRIMARY KEY, label TEXT NOT NULL, population TEXT NOT NULL, trials INTEGER NOT NULL,
  layer TEXT, bit INTEGER, ber REAL, checksum INTEGER NOT NULL);
CREATE TABLE plan (
  trial INTEGER PRIMARY KEY, stratum INTEGER NOT NULL, faults INTEGER NOT NULL, layer TEXT, bit INTEGER,
  lines TEXT NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE results (
  trial INTEGER PRIMARY KEY, outcome TEXT NOT NULL, cause TEXT, metrics TEXT NOT NULL, changed BLOB,
  time_s REAL NOT NULL, words TEXT, route TEXT NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE errors (trial INTEGER PRIMARY KEY, error TEXT NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE rounds (
  round INTEGER PRIMARY KEY, draws INTEGER NOT NULL, aim REAL NOT NULL, variance REAL NOT NULL, weight REAL NOT NULL,
  below REAL NOT NULL, above REAL NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE allocations (
  round INTEGER, stratum INTEGER, population INTEGER NOT NULL, probability REAL NOT NULL, checksum INTEGER NOT NULL,
  PRIMARY KEY (round, stratum)) WITHOUT ROWID;
CREATE TABLE draws (
  trial INTEGER PRIMARY KEY, draw INTEGER NOT NULL UNIQUE, round INTEGER NOT NULL, stratum_population INTEGER NOT NULL,
  population INTEGER NOT NULL, probability REAL NOT NULL, expected REAL NOT NULL, base REAL NOT NULL,
  checksum INTEGER NOT NULL);
CREATE INDEX draws_of_a_round ON draws (round);
CREATE TABLE totals (name TEXT PRIMARY KEY, rows INTEGER NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
""")
