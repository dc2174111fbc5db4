"""Campaigns whose reports are tested, and their results read by SQL alone."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from tiny_campaigns import ran

from onnxfi.campaign.report.report import Report, report
from onnxfi.campaign.spec.campaign import Campaign


def campaign(**fields: Any) -> Campaign:
    return Campaign(**{"model": "m.onnx", "data": "d.npz", "provider": "cpu", **fields})


def singles(here: Path, name: str = "s.db", **fields: Any) -> Report:
    ran(campaign(**{"single": True, "margin": 0.2, **fields}), here / name)
    return report(here / name)


def sweep(here: Path, name: str = "sweep.db", **fields: Any) -> Report:
    ran(campaign(**{"ber": (1e-4, 1e-3, 1e-2), "repeat": 5, **fields}), here / name)
    return report(here / name)


def rows_of(store: Path) -> list[dict[str, Any]]:
    """The results, read by SQL alone."""
    with sqlite3.connect(store) as db:
        columns = "trial, stratum, plan.layer, plan.bit, outcome, metrics, changed"
        found = db.execute(f"SELECT {columns} FROM results JOIN plan USING (trial)").fetchall()
    db.close()
    names = ("trial", "stratum", "layer", "bit", "outcome")
    return [{**dict(zip(names, row, strict=False)), **json.loads(row[5]), "flags": row[6]} for row in found]
