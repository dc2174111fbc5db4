"""Tiny models and data, so that a trial takes a millisecond, and what the tests of campaigns ask of a store."""

from __future__ import annotations

import sqlite3
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from onnxfi.campaign.results.checksums import checksum
from onnxfi.campaign.results.rows import Result
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
MLP = """net (float[N,4] x) => (float[N,3] y)
    { a = MatMul(x, w1) b = Add(a, b1) c = Relu(b) d = MatMul(c, w2) y = Add(d, b2) }"""
NODES = ("/fc1/MatMul", "/fc1/Add", "/act/Relu", "/fc2/MatMul", "/fc2/Add")


def chance(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Numbers between −2 and 2, the same everywhere."""
    count = int(np.prod(shape))
    return (
        ((np.random.Philox(seed).random_raw(count) >> 40).astype(np.float64) / 2**22 - 2)
        .astype(np.float32)
        .reshape(shape)
    )


def mlp(folder: Path, *, name: str = "m.onnx", hidden: int = 5, seed: int = 0) -> str:
    """A classifier of 4 numbers into 3 classes: two layers, hidden · 8 + 3 float32 parameters."""
    model = parser.parse_model(HEAD + MLP)
    shapes = {"w1": (4, hidden), "b1": (hidden,), "w2": (hidden, 3), "b2": (3,)}
    for k, (tensor, shape) in enumerate(shapes.items()):
        model.graph.initializer.append(numpy_helper.from_array(chance(*shape, seed=seed + k), tensor))
    for node, label in zip(model.graph.node, NODES, strict=True):
        node.name = label
    onnx.save(model, folder / name)
    return str(folder / name)


def samples(folder: Path, n: int = 12, *, name: str = "d.npz", labels: bool = True) -> str:
    """Inputs for `mlp`, labelled with no thought."""
    arrays: dict[str, Any] = {"x": chance(n, 4, seed=99)}
    if labels:
        arrays["labels"] = np.arange(n) % 3
    np.savez(folder / name, **arrays)
    return str(folder / name)


def overflowing(folder: Path, n: int = 12) -> tuple[str, str]:
    """Return `mlp` and `samples` with numbers so large that a fault makes scores infinite, which still rank classes."""
    model = onnx.load(mlp(folder))
    [held] = [tensor for tensor in model.graph.initializer if tensor.name == "w1"]
    held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) * np.float32(50), "w1"))
    onnx.save(model, folder / "m.onnx")
    np.savez(folder / "d.npz", x=chance(n, 4, seed=99) * np.float32(10), labels=np.arange(n) % 3)
    return str(folder / "m.onnx"), str(folder / "d.npz")


def save(folder: Path, graph: str, name: str = "g.onnx") -> str:
    """A model in ONNX's text form, as a file."""
    onnx.save(parser.parse_model(HEAD + graph), folder / name)
    return str(folder / name)


def ran(campaign: Campaign, store: Path, **how: Any) -> list[Result]:
    """Run a campaign to its end."""
    return list(run(campaign, store, **how))


def dying(rows: float, words: list[str]) -> list[str]:
    """A command line that runs onnxfi with these words until its store has so many results, and is then killed."""
    program = f"""
import os, signal
from onnxfi.campaign.run import runner
from onnxfi.campaign.results.store import Store
from onnxfi.cli import main

def dies(self, results, add=Store.add):
    add(self, results)
    if self.count("results") >= {rows}:
        os.kill(os.getpid(), signal.SIGKILL)

assert hasattr(runner, "WRITE_EVERY")
Store.add, runner.WRITE_EVERY = dies, 5
main()
"""
    return [sys.executable, "-c", program, *words]


def tables(store: Path) -> dict[str, list[Any]]:
    """All that a store holds but what its format excepts: columns and keys that end in `_s`, and where it was made."""
    db = sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True)
    found = {}
    for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        kept = ", ".join(c for c in columns if not c.endswith("_s") and c != "checksum")
        found[table] = db.execute(f"SELECT {kept} FROM {table} ORDER BY 1").fetchall()
    db.close()
    found["meta"] = [
        (k, v) for k, v in found["meta"] if not k.endswith("_s") and k not in ("environment", "memory_bytes")
    ]
    return found


@contextmanager
def altered(store: str | Path) -> Iterator[sqlite3.Connection]:
    """A store's database, to be changed by hand; its checksums are made again, as if a run had written it so."""
    db = sqlite3.connect(store)
    with db:
        yield db
        tables = [name for (name,) in db.execute("SELECT name FROM totals").fetchall()]
        for table in tables:
            rows = [(*row[:-1], checksum(row[:-1])) for row in db.execute(f"SELECT * FROM {table}").fetchall()]
            db.execute(f"DELETE FROM {table}")
            for row in rows:
                db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
            total = sum(row[-1] for row in rows)
            db.execute("UPDATE totals SET rows = ?, checksum = ? WHERE name = ?", (len(rows), total, table))
    db.close()


def campaign(**fields: Any) -> Campaign:
    way = {} if {"ber", "single", "exhaustive", "mix", "faults"} & set(fields) else {"single": True, "trials": 24}
    return Campaign(**{"model": "m.onnx", "data": "d.npz", "provider": "cpu", **way, **fields})


def counted(store: Path, table: str) -> int:
    """Rows of a table of a store that another process may be writing; 0 where it does not exist yet."""
    try:
        with closing(sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as db:
            return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    except sqlite3.Error:
        return 0


def outcomes(store: Path) -> dict[int, tuple[str, str | None]]:
    with Store.open(store) as opened:
        return {row.trial: (row.outcome, row.cause) for row in opened.rows()}


DEADLY = """
import multiprocessing, os, signal, time
from pathlib import Path
import numpy as np
from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.errors import EngineError
from onnxfi.runtime.engine.worker_thread_lock import released

def data():
    with np.load("d.npz") as held:
        arrays = dict(held)
    if multiprocessing.parent_process() is not None:
        begin(arrays)
        TrialExecutor.trial, TrialExecutor.together = trial, lambda *_: {}
    return arrays

def begin(arrays):
    BEGIN

whole = TrialExecutor.trial

def again(trial):
    place = Path(f"seen-{trial}")
    with place.open("a") as stream:
        stream.write("x")
    return place.stat().st_size

def trial(self, header, golden, lines):
    number = next(n for n in range(1, 25) if f'"trial": {n},' in lines[0])
    TRIAL
    return whole(self, header, golden, lines)
"""


def deadly(trial: str = "pass", begin: str = "pass") -> Campaign:
    """A campaign whose data, when a worker opens it, changes what that worker does."""
    text = DEADLY.replace("BEGIN", textwrap.indent(begin, "    ").strip())
    Path("deadly.py").write_text(text.replace("TRIAL", textwrap.indent(trial, "    ").strip()))
    return campaign(data="deadly:data")


def same_but(store: Path, whole: Path, but: dict[int, tuple[str, str | None]]) -> None:
    """All results but those of some trials are those of an undisturbed run."""
    found, expected = outcomes(store), outcomes(whole)
    assert {trial: found[trial] for trial in but} == but
    assert {t: o for t, o in found.items() if t not in but} == {t: o for t, o in expected.items() if t not in but}
    held = [{row[0]: row for row in tables(one)["results"] if row[0] not in but} for one in (store, whole)]
    assert held[0] == held[1]
