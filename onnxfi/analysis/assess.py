"""An assessment in a given time: census, a ranking of layers, a sweep around the knee, and a verdict in words.

The trials lie in two ordinary stores in the folder of the assessment, which `onnxfi run` extends. A stop ends the phase
that it meets, and what is there is assessed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from onnxfi.analysis.bit_effects import EFFECT_MEANINGS, EFFECTS
from onnxfi.analysis.census import Census, census
from onnxfi.analysis.environment import Environment
from onnxfi.analysis.fit import FitBudget, check_memories, fit
from onnxfi.analysis.verdict import Verdict, verdict
from onnxfi.campaign.report.findings import Curve, harm_shares, silent_metric, sure_enough
from onnxfi.campaign.report.html_page import PageHead, PageTable, write_page
from onnxfi.campaign.report.report import Report, report
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.golden_run_cache import cached_golden
from onnxfi.campaign.run.runner import Running, run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError, SpecError
from onnxfi.faults.trials import json_value
from onnxfi.graph.model.loading import load
from onnxfi.graph.write.output_file import make_folder
from onnxfi.tasks.registry import AUTO, find_task

#: The stores of an assessment, in its folder.
RANKING, SWEEP = "ranking.db", "sweep.db"
#: The share of the time after which the ranking ends.
_RANKING_SHARE = 0.6
#: The share of the time after which a first assessment is made, of the trials so far.
_EARLY_SHARE = 0.25
#: Share of the time that is kept for the end before it was timed; times the end took once, for one with more trials.
_END_SHARE, _END_AGAIN = 0.1, 2.0
#: Times that opening a campaign took, for one with more trials.
_OPENS_AGAIN = 1.5
#: The margin of the ranking: it goes on as long as there is time where no rate is larger than a point.
_MARGIN = 0.002
#: Trials at a rate that decide where the knee is, and those around it at first; where time is left, twice as many.
_FEW, _MANY = 4, 24
#: Flips in the whole network, on average, at the lowest and at the highest rate.
_LEAST_FLIPS, _MOST_FLIPS = 0.3, 1e4
#: Lines of a table of harm, and the least share of the harm that has a line.
_MOST_LINES, _LEAST_HARM = 12, 0.0005
#: Samples that trials are judged on where nobody says how many.
SAMPLES = 100

OnPhase = Callable[[str], None]
OnFound = Callable[["Assessment"], object]


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

    def __repr__(self) -> str:
        return "\n".join((*self.verdict.sentences, f"{self.seconds:.0f} s; its stores are in {self.folder}"))

    def _repr_html_(self) -> str:
        lines = (*self.verdict.sentences, *(f"<code>{escape(command)}</code>" for command in self.verdict.commands))
        return "".join(f"<p>{line if line.startswith('<code>') else escape(line)}</p>" for line in lines)

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
    began: float | None = None,
    on_phase: OnPhase | None = None,
    on_found: OnFound | None = None,
    **fields: Any,
) -> Assessment:
    """Assess in a given time what breaks a network under bit flips in its weights, where, and how sure that is.

    `onnxfi.assess` describes arguments and errors; here model and data are files, and the time counts from `began`
    (monotonic; by default from the call). `on_found` is called with what there is after a quarter of the time, and with
    all at the end; it may write a page. What the first call takes is kept free for the second, so that this is part of
    the time, too.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = assess("models/fashion_cnn.onnx", "models/fashion_test.npz", time_s=10, samples=20, out=folder)
    >>> found.ranking is not None and found.verdict.sentences[0].startswith("Without faults")
    True
    """
    given = {"samples": SAMPLES, "confidence": 0.95, **fields}
    base = {"model": str(model), "data": data, **given}
    making = _Making(
        time.monotonic() if began is None else began, time_s, Path(out or f"{Path(model).stem}.assess"), base, workers,
        environment, on_phase, on_found,
    )  # fmt: skip
    opened = load(str(model), allow_links=bool(fields.get("allow_links", False)))
    making.phase("counting the effect of every bit flip on its word")
    making.census = census(opened, Campaign(**base, rank="layer").draws[0].selector)
    if environment is not None:
        check_memories(environment, [(row.layer, "weights", row.bits) for row in making.census.targets])
    make_folder(making.folder)
    stopped = False
    try:
        making.rank()
        making.ranked = making.report(RANKING)
        making.sweep()
    except KeyboardInterrupt:
        stopped = True
    return making.find(stopped=stopped)


@dataclass
class _Making:
    """An assessment that is being made: its time and its folder."""

    began: float
    time_s: float
    folder: Path
    base: dict[str, Any]
    workers: int
    environment: Environment | None
    on_phase: OnPhase | None
    on_found: OnFound | None
    census: Census = field(init=False)
    end_s: float = field(init=False)
    opening_s: float = 0.0
    ranked: Report | None = None
    sweep_end_s: float = 0.0

    def __post_init__(self) -> None:
        self.end_s = _END_SHARE * self.time_s

    def phase(self, text: str) -> None:
        """Say what begins."""
        if self.on_phase is not None:
            self.on_phase(text)

    @property
    def last(self) -> float:
        """The monotonic time at which the last trial ends, so that what follows fits."""
        return self.began + self.time_s - self.end_s - self.sweep_end_s

    @property
    def opens_again(self) -> bool:
        """True if there is time to open a campaign, and for a trial."""
        return time.monotonic() + _OPENS_AGAIN * self.opening_s < self.last

    @property
    def opens_again_twice(self) -> bool:
        """True if there is time to open a campaign twice: where only one more fits, the trials here go on."""
        return time.monotonic() + 2 * _OPENS_AGAIN * self.opening_s < self.last

    def open(self, campaign: Campaign, name: str) -> Running:
        """Begin a campaign, and learn how long that takes."""
        now = time.monotonic()
        running = run(campaign, self.folder / name, workers=self.workers, golden=cached_golden)
        self.opening_s = time.monotonic() - now + 2 * running.golden_s
        return running

    def find(self, *, stopped: bool = False) -> Assessment:
        """Return what there is, and learn how long that takes."""
        now = time.monotonic()
        ranking, sweep = self.ranked or self.report(RANKING), self.report(SWEEP)
        budget = None
        if self.environment is not None and ranking is not None and ranking.everything.rate(ranking.task.headline):
            budget = fit(self.folder / RANKING, self.environment)
        sentences = verdict(self.census, ranking, sweep, budget)
        found = Assessment(
            self.folder, self.census, ranking, sweep, budget, sentences, time.monotonic() - self.began, stopped
        )  # fmt: skip
        if self.on_found is not None and found.reports:
            self.on_found(found)
            self.end_s = min(_END_AGAIN * (time.monotonic() - now), self.time_s / 2)
        return found

    def rank(self) -> None:
        """Rank layers until its share of the time is over, or all where a sweep has no room; time the end on the way.

        InputError if no trial can begin.
        """
        self.phase("ranking layers by what a flip in them damages")
        running = self._open_ranking()
        now = time.monotonic()
        if now >= self.began + self.time_s and not running.outcomes.total():
            running.close()
            needed = now - self.began
            raise InputError(
                f"{self.time_s:g} s are too short for one golden run and a trial: opening the model, two golden runs "
                f"and the canary took {needed:.2g} s; give {math.ceil(2 * needed + 2 * running.golden_s + 1)} s or more"
            )
        first, seen = now + running.golden_s, False
        with closing(running):
            for _ in running:
                now = time.monotonic()
                if not seen and now >= self.began + _EARLY_SHARE * self.time_s:
                    seen = bool(self.find().reports)
                sweeps = self.last - now > 2 * self.opening_s
                if now >= max(
                    first, min(self.began + _RANKING_SHARE * self.time_s, self.last) if sweeps else self.last
                ):
                    return

    def _open_ranking(self) -> Running:
        """Begin a ranking by the silent errors of the task, or by changed answers where it lacks that rate."""
        task = self.base.get("task", AUTO)
        by = {} if task == AUTO else {"rate": silent_metric(find_task(task)).name}
        ranking = Campaign(**self.base, rank="layer", method="asymptotic", margin=_MARGIN, **by)
        try:
            return self.open(ranking, RANKING)
        except SpecError as error:
            if by or error.field != "rate":
                raise
            return self.open(ranking.with_fields(rate="sdc_samples"), RANKING)

    def sweep(self) -> None:
        """Find the knee by bisection, and go on around it until the time is over."""
        rates, curve = sweep_rates(self.census.whole.bits), Curve()
        while self.opens_again and (place := next_rate(len(rates), curve)) is not None:
            self.phase(f"bisecting to the knee: {rates[place]:g} per bit")
            self._run_rates([rates[place]], _MANY, _FEW)
            curve = self._measured(rates)
            if place not in curve.trials:
                return
        while self.opens_again and (around := sorted(curve.around(len(rates)))):
            fewest = min(curve.trials.get(place, 0) for place in around)
            repeat = 2 * fewest if fewest >= _MANY else _MANY
            low, high = rates[around[0]], rates[around[-1]]
            self.phase(f"{repeat} trials at each rate around the knee, {low:g} to {high:g} per bit")
            self._run_rates([rates[place] for place in around], repeat)
            curve = self._measured(rates)

    def _measured(self, rates: tuple[float, ...]) -> Curve:
        """Return the curve of the sweep; learn how long it takes to read."""
        now = time.monotonic()
        found = self.report(SWEEP)
        self.sweep_end_s = 2 * (time.monotonic() - now)  # it is read once more at the end, and drawn
        return Curve() if found is None else Curve.of(found, rates)

    def _run_rates(self, rates: list[float], repeat: int, enough: int | None = None) -> None:
        """Run trials at some rates; `enough` of them, or all where nothing else can be opened any more.

        The store holds what was asked for, so that no fault of a rate that nobody needs is drawn.
        """
        campaign = Campaign(**self.base, ber=rates, repeat=repeat)
        with closing(self.open(campaign, SWEEP)) as running:
            for n, _ in enumerate(running.until(self.last), 1):
                if enough is not None and n >= enough and self.opens_again_twice:
                    return

    def report(self, name: str) -> Report | None:
        """Return the report of a store; None if it has no result."""
        file = self.folder / name
        if not file.is_file():
            return None
        with Store.open(file) as opened:
            if not opened.count("results") or opened.get("golden") is None:
                return None
        return report(file)


def sweep_rates(bits: int) -> tuple[float, ...]:
    """Return the rates 1 and 3 in each decade that flip from a third of a bit to 10,000 bits of so many, rising.

    >>> sweep_rates(3_387_712)[:3], len(sweep_rates(3_387_712))
    ((1e-07, 3e-07, 1e-06), 9)
    """
    low, high = _LEAST_FLIPS / bits, min(_MOST_FLIPS / bits, 0.5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return tuple(rate for k in decades for m in (1, 3) if low * 0.99 <= (rate := float(f"{m}e{k}")) <= high * 1.01) or (
        low,
    )


def next_rate(rates: int, curve: Curve) -> int | None:
    """Return the rate to measure next; None once the knee lies between two neighbours.

    >>> next_rate(9, Curve()), next_rate(9, Curve({4: 0.5})), next_rate(9, Curve({4: 0.5, 2: 0.0, 3: 0.2}))
    (4, 1, None)
    """
    low, high = curve.kept, rates if curve.lost is None else curve.lost
    return None if high - low <= 1 else (low + high) // 2


def write_assessment(found: Assessment, file: Path) -> Path:
    """Write the page of an assessment; OutputError if the extra `report` is not installed."""
    return write_page(found.reports, file, head=_head(found))


def _head(found: Assessment) -> PageHead:
    tables = []
    ranking = found.ranking
    if ranking is not None and ranking.look is not None and ranking.look.ranking is not None:
        metric = ranking.task.metric(ranking.look.rate)
        rows = [
            (row.name, metric.interval(row.interval), str(row.rank), f"{row.trials:,}")
            for row in [row for row in ranking.look.ranking.rows() if row.trials][:_MOST_LINES]
        ]
        if rows:
            tables.append(PageTable("Weakest layers", ("Layer", metric.label, "Rank", "Trials"), tuple(rows)))
        for by in ("bit", "layer") if sure_enough(ranking) else ():
            shares = [row for row in harm_shares(ranking, by) if row[1] >= _LEAST_HARM][:_MOST_LINES]
            cells = tuple((key, f"{100 * share:.1f} %") for key, share in shares)
            tables.append(PageTable(f"Harm by {by}", (by.capitalize(), "Share of the harm"), cells))
    whole = found.census.whole
    effects = tuple(
        (f"{effect}: {meaning}", f"{100 * whole.share(effect):.3f} %")
        for effect, meaning in zip(EFFECTS, EFFECT_MEANINGS, strict=True)
    )
    tables.append(PageTable("Effect of a flip on its word, of all bits", ("Effect", "Share"), effects))
    if found.budget is not None:
        parts = sorted(found.budget.parts, key=lambda part: -part.fit[2])[:_MOST_LINES]
        fit = tuple(
            (part.part.layer, part.memory.name if part.memory else "–", f"{part.part.bits:,}", _ends(part.fit))
            for part in parts
        )
        tables.append(PageTable("FIT", ("Layer", "Memory", "Bits", "FIT [low, high]"), fit))
    model = Path(found.census.model).stem
    return PageHead(f"Assessment of {model}", found.verdict.sentences, found.verdict.commands, tuple(tables))


def _ends(ends: tuple[float, float, float]) -> str:
    low, middle, high = (f"{one:.4g}" if isinstance(json_value(one), float | int) else "–" for one in ends)
    return f"{middle} [{low}, {high}]"
