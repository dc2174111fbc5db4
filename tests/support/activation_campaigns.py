"""Campaigns of faults in activations of m.onnx and d.npz, and the lines of their fault lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.campaign import Campaign


def activation_campaign(**fields: Any) -> Campaign:
    """A campaign of faults in activations, of 24 single ones if nothing else is said."""
    way = {} if {"ber", "single", "exhaustive", "mix", "faults", "per_sample"} & set(fields) else {"single": True}
    length = {"trials": 24} if way else {}
    aim = {} if {"mix", "faults"} & set(fields) else {"target": "activations"}
    given: dict[str, Any] = {"model": "m.onnx", "data": "d.npz", "provider": "cpu", "batch": 5, **aim, **way, **length}
    return Campaign(**(given | fields))


def fault_lines(store: Path) -> list[dict[str, Any]]:
    """All lines of the trials that a store planned."""
    with Store.open(store) as opened:
        return [json.loads(line) for n in opened.trials() for line in opened.trial(n)["lines"].splitlines()]
