"""A task in whose place another one stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from onnxfi.tasks.kinds.classification import CLASSIFICATION


def replace_metric(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[[Any], float]) -> None:
    """Measure a metric of the classification task with another function."""
    metrics = tuple(replace(m, function=function) if m.name == name else m for m in CLASSIFICATION.metrics)
    task = replace(CLASSIFICATION, metrics=metrics)
    monkeypatch.setattr("onnxfi.tasks.kinds.classification.CLASSIFICATION", task)
