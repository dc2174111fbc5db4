"""Detectors scored on a campaign: the faults that each would find, and the time of one check.

A *self test* runs a few inputs whose golden answers are known, and compares: its inputs are chosen greedily on one
half of the trials, and its coverage is counted on the other half. A *hash* of the stored tensors finds every
changed word. Alarms of protections and values that are not finite are counted as the campaign saw them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.report.curves import Figure
from onnxfi.campaign.report.figures import coverage_figure
from onnxfi.campaign.results.rows import Row
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.spec_file import parse_spec
from onnxfi.errors import InputError, OnnxfiError
from onnxfi.faults.trials import json_value
from onnxfi.graph.model.loading import load
from onnxfi.statistics.intervals import Interval, clopper_pearson
from onnxfi.tasks.answers import Flags
from onnxfi.tasks.outcomes import unpacked

#: Numbers of inputs of a self test.
SIZES = (1, 2, 4, 8, 16, 32, 64)
#: Times that a check is timed; their median counts.
_TIMED = 5
#: Harmful trials of each half below which no coverage is printed.
_LEAST = 5


@dataclass(frozen=True)
class Detector:
    """A detector with its coverage of harmful faults and the time of one check.

    Attributes
    ----------
    name : str
        Its name.
    found, harmful : int
        Trials that it finds, of the harmful ones that it was counted on.
    coverage : Interval
        Their share; of the hash it is 1 by construction.
    inputs : tuple of int
        Of a self test the numbers of its samples, in the order in which they were chosen.
    check_s : float or None
        The time of one check in seconds; None if the model or data is not at hand.
    """

    name: str
    found: int
    harmful: int
    coverage: Interval
    inputs: tuple[int, ...] = ()
    check_s: float | None = None


@dataclass(frozen=True)
class DetectorReport:
    """Detectors of a campaign, with what they were counted on.

    Attributes
    ----------
    trials, harmful : int
        Trials, and those in which some answer is silently another one.
    samples : int
        Samples of each trial.
    detectors : tuple of Detector
        The detectors.
    untimed : str
        The reason why no check was timed; empty if all were.
    untested : str
        The reason why there is no self test; empty if there are.

    Examples
    --------
    >>> DetectorReport(80, 20, 40, (), "checks were not timed").document()["harmful"]
    20
    """

    trials: int
    harmful: int
    samples: int
    detectors: tuple[Detector, ...]
    untimed: str = ""
    untested: str = ""

    def document(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        rows = [asdict(one) | {"coverage": _ends(one.coverage)} for one in self.detectors]
        return asdict(self) | {"detectors": rows}

    @property
    def figure(self) -> Figure:
        """Coverage over the time of a check, where checks were timed."""
        points = [(one.name, one.check_s, one.coverage) for one in self.detectors if one.check_s]
        return coverage_figure("detectors", points, self.untimed)


def _ends(one: Interval) -> dict[str, Any]:
    return {name: json_value(getattr(one, name)) for name in ("estimate", "low", "high")}


def detectors(store: str | Path, *, timed: bool = True) -> DetectorReport:
    """Score detectors on the trials of a campaign.

    Parameters
    ----------
    store : str or Path
        The store of a campaign whose task says which answers are other ones.
    timed : bool
        Time the checks, which opens the model and the data of the campaign.

    Returns
    -------
    DetectorReport
        Self tests of 1, 2, 4, … inputs with their coverage on held-out trials, alarms, values that are not finite, and
        the hash of stored tensors; each with the time of one check.

    Raises
    ------
    InputError
        For a campaign without answers of samples, or with too few harmful trials to hold half of them out.

    Examples
    --------
    >>> import tempfile, onnxfi
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = onnxfi.run("models/fashion_cnn.onnx", "models/fashion_test.npz", folder + "/s.db", single=True,
    ...                        trials=60, bits="30", samples=50)
    ...     detectors(folder + "/s.db", timed=False).harmful > 10
    True
    """
    with Store.open(store) as opened:
        golden, length, spec = opened.get("golden"), opened.get("length"), opened.get("spec")
        if golden is None or length is None:
            raise InputError(f"{str(store)!r} holds no campaign yet; run it first")
        rows = [row for row in opened.rows() if row.outcome]
        stored = opened.header().activations is None
    samples, confidence = int(golden["samples"]), float(length["confidence"])
    flags = _flags(rows, samples)
    harmful, held = np.asarray(flags.any(axis=1)), np.arange(len(rows)) % 2 == 1
    caused = [one for cause, name in _CAUSES.items() if (one := _caused(rows, harmful, cause, name, confidence))]
    untested = ""
    if min((harmful & held).sum(), (harmful & ~held).sum()) < _LEAST:
        untested = (
            f"{int(harmful.sum())} of {len(rows)} trials silently change an answer, too few to choose inputs on one "
            f"half and count on the other; run more trials"
        )
    if untested and not caused:
        raise InputError(untested)
    order = () if untested else chosen_inputs(flags[harmful & ~held], max(SIZES))
    sizes = [k for k in SIZES if k <= len(order) or (k == 1 and not untested)]
    found = [_self_test(flags[harmful & held], order[:k], confidence) for k in sizes] + caused
    if stored:
        every = int(harmful.sum()) + sum(one.found for one in caused)
        found.append(Detector(_HASH, every, every, Interval(1.0, 1.0, 1.0, "by construction", confidence)))
    untimed = "checks were not timed"
    if timed:
        found, untimed = _with_times(found, spec)
    return DetectorReport(len(rows), int(harmful.sum()), samples, tuple(found), untimed, untested)


_HASH = "hash of tensors"
#: Causes of DUE that are detectors of their own.
_CAUSES = {"alarm": "alarms of protections", "nonfinite": "values not finite"}


def _flags(rows: Sequence[Row], samples: int) -> Flags:
    """Return the samples of each trial whose answer is silently another one ([trials, samples])."""
    if any(row.changed is None for row in rows):
        raise InputError("the task of this campaign does not say which answers are other ones; score another --task")
    return np.array([unpacked(row.changed or b"", samples) for row in rows], np.bool_).reshape(len(rows), samples)


def chosen_inputs(flags: Flags, most: int) -> tuple[int, ...]:
    """Return samples, each the one that finds most trials that those before it do not; fewer once all are found.

    Parameters
    ----------
    flags : array of bool, shape (trials, samples)
        The samples whose answer each trial changes.
    most : int
        The most samples.

    Examples
    --------
    >>> chosen_inputs(np.array([[1, 0, 0], [1, 0, 1], [0, 1, 0]], bool), 3)
    (0, 1)
    """
    left, found = flags.copy(), list[int]()
    while len(found) < most and left.any():
        best = int(left.sum(axis=0).argmax())
        found.append(best)
        left = left[~left[:, best]]
    return tuple(found)


def _self_test(flags: Flags, inputs: tuple[int, ...], confidence: float) -> Detector:
    """Return a self test with its coverage of held-out trials."""
    seen = int(flags[:, list(inputs)].any(axis=1).sum())
    label = f"self test, {len(inputs)} input{'s' if len(inputs) != 1 else ''}"
    return Detector(label, seen, len(flags), clopper_pearson(seen, len(flags), confidence), inputs)


def _caused(rows: Sequence[Row], harmful: Flags, cause: str, name: str, confidence: float) -> Detector | None:
    """Return a detector that the campaign ran with: trials of another answer that it ended, of these and the silent."""
    seen = sum(row.cause == cause and bool(row.metrics.get("top1_changed", 1)) for row in rows)
    if not seen:
        return None
    silent = int(sum(harmful[k] and row.cause != cause for k, row in enumerate(rows)))
    return Detector(name, seen, seen + silent, clopper_pearson(seen, seen + silent, confidence), check_s=None)


def _with_times(found: list[Detector], spec: str) -> tuple[list[Detector], str]:
    """Return the detectors with the time of one check; the reason where there is none."""
    try:
        campaign = parse_spec(spec)
        executor = TrialExecutor.open(campaign)
        data = executor.opened.judged
        batch = next(iter(data.batches(data.layout.fixed or max(SIZES))))
        session = executor.opened.session()
    except (OnnxfiError, OSError) as error:
        return found, f"no check is timed: {error}"
    whole = _median_s(lambda: session.run(batch.feeds))
    hashed = _median_s(lambda: load(campaign.model).digest)
    return [_timed(one, whole / batch.valid, hashed) for one in found], ""


def _timed(one: Detector, sample_s: float, hashed_s: float) -> Detector:
    seconds = len(one.inputs) * sample_s if one.inputs else hashed_s if one.name == _HASH else None
    return replace(one, check_s=seconds)


def _median_s(check: Callable[[], Any]) -> float:
    taken = []
    for _ in range(_TIMED):
        begun = time.perf_counter()
        check()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)
