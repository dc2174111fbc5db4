"""The time of a trial from the recorded times of a store, to estimate a large campaign from a small one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.campaign.results.store import Store
from onnxfi.errors import InputError
from onnxfi.statistics.intervals import Interval, t_interval


@dataclass(frozen=True)
class Cost:
    """Seconds that one core takes for a trial, as `trials` of a store on so many `samples` took them."""

    store: str
    trials: int
    samples: int
    seconds: Interval

    def row(self) -> dict[str, Any]:
        """As plain values for JSON."""
        ends = {"low_s": self.seconds.low, "high_s": self.seconds.high}
        return {"store": self.store, "trials": self.trials, "samples": self.samples} | ends


def recorded(store: str | Path, digest: str, confidence: float = 0.99) -> Cost:
    """Return the cost of a trial of the model with this digest; InputError for another model, or too few trials."""
    with Store.open(store) as opened:
        header = opened.header()
        if header.model != digest:
            raise InputError(f"the times in {store} are of another model, {header.file!r}; give a store of this one")
        times = opened.times()
        if len(times) < 2:
            raise InputError(f"too few results in {store} ({len(times)}) for the time of a trial; run 2 trials or more")
        if len(set(times)) < 2:
            raise InputError(f"all {len(times)} trials in {store} ran together and share one time; run more trials")
        return Cost(str(store), len(times), opened.get("golden")["samples"], mean_time(times, confidence))


def mean_time(times: Sequence[float], confidence: float) -> Interval:
    """Return the interval of the mean time of a trial, in seconds.

    Trials that ran together share their time equally: those of one time are one draw, of the weight of its trials.

    >>> mean_time([1.0, 1.0, 3.0, 3.0], 0.9) == mean_time([1.0, 3.0], 0.9)
    True
    """
    each, trials = np.unique(np.asarray(times), return_counts=True)
    mean = float(np.mean(times))
    return t_interval(mean + len(each) / len(times) * trials * (each - mean), confidence)
