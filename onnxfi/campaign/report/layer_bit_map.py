"""Layer by bit: what single faults did in each bit position of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxfi.campaign.results.store import Store, declared_task


@dataclass(frozen=True)
class Cell:
    """The trials in one bit position of one layer: how many, and means by name, of the panels of the task."""

    layer: str
    bit: int
    trials: int
    means: dict[str, float]


def grid(store: str | Path) -> tuple[Cell, ...]:
    """Return the cells of a store of single faults that have run; none where a trial has many faults.

    All sites of a cell are drawn alike, so its mean needs no weights.

    >>> import tempfile
    >>> from onnxfi.campaign.run.runner import run
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> campaign = Campaign("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=50, single=True, trials=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = list(run(campaign, folder + "/store.db"))
    ...     [(cell.layer, cell.bit, cell.trials) for cell in grid(folder + "/store.db")]
    [('fc1', 9, 1), ('fc1', 26, 1)]
    """
    sums: dict[tuple[str, int], dict[str, float]] = {}
    counts: dict[tuple[str, int], int] = {}
    with Store.open(store) as opened:
        if not opened.get("cells"):
            return ()
        task = declared_task(opened)
        shown = task.view(task.panels)
        for row in opened.rows():
            if row.layer is None or row.bit is None:
                continue
            key = row.layer, row.bit
            counts[key] = counts.get(key, 0) + 1
            told = sums.setdefault(key, {})
            for metric in shown:
                if (value := metric.value(row.outcome, row.metrics)) is not None:
                    told[metric.name] = told.get(metric.name, 0.0) + value
    return tuple(Cell(*key, n, {name: x / n for name, x in sums[key].items()}) for key, n in sorted(counts.items()))
