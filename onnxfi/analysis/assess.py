"""An assessment in a given time: census, a ranking of layers, a sweep around the knee, and a verdict in words.

The trials lie in two ordinary stores in the folder of the assessment, which `onnxfi run` extends. A stop ends the phase
that it meets, and what is there is assessed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from onnxfi.analysis.census import Census, census
from onnxfi.analysis.environment import Environment
from onnxfi.analysis.fit import FitBudget, fit
from onnxfi.analysis.knee import next_rate, sweep_rates
from onnxfi.analysis.verdict import Verdict, verdict
from onnxfi.campaign.report.findings import Curve
from onnxfi.campaign.report.report import Report, report
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.golden_run_cache import cached_golden
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError
from onnxfi.graph.model.loading import load
from onnxfi.graph.write.output_file import make_folder

#: The stores of an assessment, in its folder.
RANKING, SWEEP = "ranking.db", "sweep.db"
#: The share of the time after which the ranking ends, and the sweep.
_RANKING_SHARE, _SWEEP_SHARE = 0.6, 0.92
#: Seconds that are kept for the verdict and the page, at most, and the share of the time.
_LAST_S, _LAST_SHARE = 12.0, 0.3
#: Trials at a rate that decide where the knee is, and those that the plan holds for each.
_FEW, _MANY = 4, 24
#: Samples that trials are judged on where nobody says how many.
SAMPLES = 100

OnPhase = Callable[[str], None]


@dataclass(frozen=True)
class Assessment:
    """Result of an assessment: findings on what breaks and where, how sure they are, and what to do.

    Attributes
    ----------
    folder : Path
        Folder of the stores.
    census : Census
        The effect of every bit flip on its word.
    ranking : Report or None
        The ranking of layers, as far as it got.
    sweep : Report or None
        The sweep around the knee, as far as it got.
    budget : FitBudget or None
        FIT, where an environment was given.
    verdict : Verdict
        Sentences and commands.
    seconds : float
        The time that it took.
    stopped : bool
        True if somebody stopped it before its time was over.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> counted = census(load("models/fashion_cnn.onnx"))
    >>> sentences = verdict(counted, None, None, None)
    >>> made = Assessment(Path("a"), counted, None, None, None, sentences, 1.0, True)
    >>> made.verdict.sentences[-1].startswith("Of all single bit flips 3.1 %")
    True
    """

    folder: Path
    census: Census
    ranking: Report | None
    sweep: Report | None
    budget: FitBudget | None
    verdict: Verdict
    seconds: float
    stopped: bool

    @property
    def reports(self) -> list[Report]:
        """The reports that there are: ranking, sweep."""
        return [one for one in (self.ranking, self.sweep) if one is not None]

    def document(self) -> dict[str, Any]:
        """Return the assessment as plain values for JSON."""
        return {
            "verdict": list(self.verdict.sentences), "commands": list(self.verdict.commands),
            "seconds": self.seconds, "stopped": self.stopped, "folder": str(self.folder),
            "census": self.census.summary(),
            "ranking": None if self.ranking is None else self.ranking.summary(),
            "sweep": None if self.sweep is None else [
                {"ber": float(fold.key), "trials": fold.trials, "rates": [one.row() for one in fold.rates]}
                for fold in self.sweep.by_rate if fold.trials
            ],
            "fit": None if self.budget is None else self.budget.document(),
        }  # fmt: skip


def assess(
    model: str | Path,
    data: str | Path | None = None,
    *,
    time_s: float = 300.0,
    environment: Environment | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    on_phase: OnPhase | None = None,
    **fields: Any,
) -> Assessment:
    """Assess in a given time what breaks a network under bit flips in its weights, where, and how sure that is.

    Parameters
    ----------
    model : str or Path
        The ONNX file.
    data : str or Path, optional
        Labelled data; synthetic inputs without.
    time_s : float
        Seconds that it takes.
    environment : Environment, optional
        Memories, rates and mission, from which FIT is computed.
    out : str or Path, optional
        Folder of the stores; by default MODEL-stem.assess. Those of an earlier assessment are extended.
    workers : int
        Processes that run trials, as in `run`.
    on_phase : callable, optional
        Called with a line on what begins.
    **fields
        Further fields of a campaign, as `samples`, `include` or `provider`.

    Returns
    -------
    Assessment
        Verdict, census, reports and FIT.

    Raises
    ------
    InputError
        For a time in which no trial can begin, with the least that would do, and as `run`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = assess("models/fashion_cnn.onnx", "models/fashion_test.npz", time_s=10, samples=20, out=folder)
    >>> found.ranking is not None and found.verdict.sentences[0].startswith("Without faults")
    True
    """
    making = _Making(time.monotonic(), time_s, Path(out or f"{Path(model).stem}.assess"), workers, on_phase)
    given = {"samples": SAMPLES, "confidence": 0.95, **fields}
    base = {"model": str(model), "data": data, **given}
    opened = load(str(model), allow_links=bool(fields.get("allow_links", False)))
    making.phase("counting the effect of every bit flip on its word")
    counted = census(opened, Campaign(**base, rank="layer").draws[0].selector)
    make_folder(making.folder)
    stopped = False
    try:
        making.rank(Campaign(**base, rank="layer", method="asymptotic"))
        making.sweep(base, counted.whole.bits)
    except KeyboardInterrupt:
        stopped = True
    ranking, sweep = making.report(RANKING), making.report(SWEEP)
    budget = None
    if environment is not None and ranking is not None:
        budget = fit(making.folder / RANKING, environment)
    sentences = verdict(counted, ranking, sweep, budget)
    return Assessment(
        making.folder, counted, ranking, sweep, budget, sentences, time.monotonic() - making.began, stopped
    )  # fmt: skip


@dataclass
class _Making:
    """An assessment that is being made: its time and its folder."""

    began: float
    time_s: float
    folder: Path
    workers: int
    on_phase: OnPhase | None

    def phase(self, text: str) -> None:
        """Say what begins."""
        if self.on_phase is not None:
            self.on_phase(text)

    def until(self, share: float) -> float:
        """Return the monotonic time at which a share of the time is over, less what the end takes."""
        return self.began + share * max(self.time_s - min(_LAST_S, _LAST_SHARE * self.time_s), 0.0)

    @cached_property
    def _end(self) -> float:
        return self.began + self.time_s

    def rank(self, campaign: Campaign) -> None:
        """Rank layers until its share of the time is over; InputError if no trial can begin in it."""
        self.phase("ranking layers by what a flip in them damages")
        running = run(campaign, self.folder / RANKING, workers=self.workers, golden=cached_golden)
        now = time.monotonic()
        if now >= self._end and not running.outcomes.total():
            running.close()
            needed = now - self.began
            raise InputError(
                f"{self.time_s:g} s are too short for one golden run and a trial: opening the model, two golden runs "
                f"and the canary took {needed:.2g} s; give {math.ceil(2 * needed + 2 * running.golden_s + 1)} s or more"
            )
        with closing(running):
            for _ in running.until(max(self.until(_RANKING_SHARE), now + 2 * running.golden_s)):
                pass

    def sweep(self, base: dict[str, Any], bits: int) -> None:
        """Find the knee by bisection, and go on around it until the time is over."""
        rates, curve = sweep_rates(bits), Curve()
        end = self.until(_SWEEP_SHARE)
        while time.monotonic() < end and (place := next_rate(len(rates), curve)) is not None:
            self.phase(f"bisecting to the knee: {rates[place]:g} per bit")
            self._run_rates(base, rates, _FEW, {place}, end)
            found = self.report(SWEEP)
            if found is None:
                return
            curve = Curve.of(found)
            if place not in curve.losses:
                return
        around = curve.around(len(rates))
        if time.monotonic() < end and around:
            self.phase(f"more trials around the knee, {rates[min(around)]:g} to {rates[max(around)]:g} per bit")
            self._run_rates(base, rates, _MANY, around, end)

    def _run_rates(
        self, base: dict[str, Any], rates: tuple[float, ...], repeat: int, places: set[int], end: float
    ) -> None:
        campaign = Campaign(**base, ber=rates, repeat=repeat)
        running = run(campaign, self.folder / SWEEP, workers=self.workers, golden=cached_golden, strata=places)
        with closing(running):
            for _ in running.until(end):
                pass

    def report(self, name: str) -> Report | None:
        """Return the report of a store; None if it has no result."""
        file = self.folder / name
        if not file.is_file():
            return None
        with Store.open(file) as opened:
            if not opened.count("results") or opened.get("golden") is None:
                return None
        return report(file)
