"""Findings of a campaign in words: what its faults do to the answers, where, at which rate, and how sure that is.

Each sentence has its number, and its interval or its trials. A rate of silent errors that falls because trials turn
into DUE is said to be no improvement.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from onnxfi.campaign.plan.strata import bit_field_label
from onnxfi.campaign.report.rates import CampaignRates, Fold
from onnxfi.campaign.results.store import Store
from onnxfi.statistics.intervals import Interval, Stratum, stratified_interval
from onnxfi.statistics.sample_size import sample_size
from onnxfi.tasks.task import Metric, Task

#: A loss up to which a network counts as keeping its answers: a point.
KEPT = 0.01
#: Half the width of an interval from which on an estimate is no news.
WIDEST = 0.1
#: A low end is no news where the estimate is so many times as large.
_FAR = 100
#: A high end of a share from which on it is none.
_NO_LIMIT = 0.9
#: The share of all harm that the named bits and layers make up, and how many are named.
_MOST_HARM, _MOST_NAMED = 0.9, 4
#: Rounding error of a sum of shares that is 1.
_NOTHING = 1e-12


@dataclass(frozen=True)
class Shares:
    """Shares of the answers that are kept as they were, silently wrong, or detected as errors; together 1."""

    kept: float
    sdc: float
    due: float

    @property
    def lost(self) -> float:
        """The answers that are not kept."""
        return self.sdc + self.due


def silent_metric(task: Task) -> Metric:
    """Return the rate of silent errors that stands for a task: its headline, else the samples that changed."""
    headline = task.metric(task.headline)
    return headline if headline.silent and headline.per == "sample" else task.metric("sdc_samples")


def short(metric: Metric) -> str:
    """Return the label of a metric without what its brackets add."""
    return metric.label.partition(" (")[0]


def shares(task: Task, fold: Fold) -> Shares | None:
    """Return the shares of the answers in a fold by their outcome; None where its rates do not say."""
    silent, due = fold.estimated(silent_metric(task).name), fold.estimated("due_samples")
    if silent is None or due is None:
        n = sum(fold.outcomes.values())
        return Shares(*(fold.outcomes[name] / n for name in ("masked", "sdc", "due"))) if n else None
    lost = min(silent.estimate + due.estimate, 1.0)
    return Shares(1.0 - lost, lost - due.estimate, due.estimate)


def lost_answers(found: CampaignRates) -> dict[str, Interval]:
    """Return the share of answers that are silently wrong or detected as errors, by rate, and over `all` trials.

    It does not fall where trials turn from SDC into DUE. Empty for adaptive campaigns, which weigh their draws.
    """
    silent, due = silent_metric(found.task), found.task.metric("due_samples")
    if found.look is not None and found.look.method != "simple":
        return {}
    trials = found.trials
    both = np.minimum(np.nan_to_num(trials.of(silent.name)) + np.nan_to_num(trials.of(due.name)), 1.0)
    values = trials.by_stratum(both)
    single = bool(found.by_layer)
    strata = {
        s["stratum"]: Stratum.of(values.get(s["stratum"], ()), s["population"] if single else None)
        for s in found.strata
    }
    if single:
        return {"all": stratified_interval(list(strata.values()), found.confidence)}
    by_rate: dict[str, Interval] = {}
    for s in found.strata:
        if s["ber"] is not None and strata[s["stratum"]].n:
            by_rate[f"{s['ber']:g}"] = stratified_interval([strata[s["stratum"]]], found.confidence)
    return by_rate


# The knee of a sweep


def measured(found: CampaignRates) -> tuple[Metric, float]:
    """Return the metric of a curve, and its value without faults."""
    metrics = found.golden["metrics"]
    metric = found.task.first(found.task.curves, found.telling)
    golden = metrics.get(metric.name, metric.unchanged)
    return metric, 0.0 if golden is None else float(golden)


@dataclass(frozen=True)
class Curve:
    """Losses against the golden run by the number of the rate, as far as they were measured; and the trials at each.

    >>> Curve({0: 0.0, 2: 0.3}).around(5)
    {0, 1, 2}
    """

    losses: Mapping[int, float] = field(default_factory=dict)
    trials: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, found: CampaignRates, rates: Sequence[float] | None = None) -> Curve:
        """Return the curve of a sweep: of all its rates, or of those in `rates`, numbered as there."""
        metric, golden = measured(found)
        losses, trials = dict[int, float](), dict[int, int]()
        for number, fold in enumerate(found.by_rate):
            if not fold.trials or (rates is not None and float(fold.key) not in rates):
                continue
            place = number if rates is None else rates.index(float(fold.key))
            trials[place] = fold.trials
            if (i := fold.estimated(metric.name)) is not None:
                losses[place] = golden - i.estimate if metric.better == "higher" else i.estimate - golden
        return cls(losses, trials)

    @property
    def kept(self) -> int:
        """The highest measured rate at which the network keeps its answers; -1 for none."""
        return max((place for place, loss in self.losses.items() if loss <= KEPT), default=-1)

    @property
    def lost(self) -> int | None:
        """The lowest measured rate above `kept` at which it does not; None if there is none."""
        return min((place for place, loss in self.losses.items() if loss > KEPT and place > self.kept), default=None)

    def around(self, rates: int) -> set[int]:
        """Return the rates from the last that is kept to the second one beyond."""
        first = max(self.kept, 0)
        return set(range(first, min(first + 3, rates)))


# Sentences


def findings(found: CampaignRates) -> Iterator[str]:
    """Yield the findings of a campaign, the gravest first."""
    sweep = len(found.by_rate) > 1
    yield from sweep_sentences(found) if sweep else single_sentences(found)
    yield golden_sentence(found)
    if not sweep:
        yield from harm_sentences(found)
    yield from due_sentences(found)
    yield from cost_sentences(found)


def golden_sentence(one: CampaignRates) -> str:
    """Return how right the network is without faults."""
    metric, golden = measured(one)
    if metric.name in one.golden["metrics"] and metric.golden:
        return f"Without faults {metric.label} is {metric.text(golden)}, on {one.golden['samples']:,} samples."
    return f"Changed answers are counted, on {one.golden['samples']:,} samples."


def sweep_sentences(found: CampaignRates) -> Iterator[str]:
    """Yield the rate up to which the network keeps its answers, and what happens beyond."""
    metric, _ = measured(found)
    curve, (unit, population) = Curve.of(found), _drawn_from(found)
    for place in (curve.kept, curve.lost):
        if place is None or place < 0:
            continue
        fold = found.by_rate[place]
        i = fold.rate(metric.name)
        if i is not None:
            flips = f" ({_number(float(fold.key) * population)} faults on average)" if unit != "sample" else ""
            said = _kept_or_lost(found, metric, i, fold.trials, place == curve.kept)
            yield f"At {fold.key} per {unit}{flips} {said}."
    if curve.lost is None and curve.losses:
        yield "No measured rate costs a point; higher ones would show where that begins."
    if curve.kept < 0 and curve.lost is not None and _surely_lost(found, curve.lost):
        yield "Every measured rate costs more than a point; lower rates would show where that begins."
    yield from turned_into_due(found)


def _kept_or_lost(found: CampaignRates, metric: Metric, i: Interval, trials: int, kept: bool) -> str:
    """Return what becomes of a metric at a rate, and whether the trials are enough to be sure."""
    _, golden = measured(found)
    higher = metric.better == "higher"
    worst, best = (i.low, i.high) if higher else (i.high, i.low)
    text, n = metric.text(i.estimate), f"{trials:,} trial{'s' if trials != 1 else ''}"
    bound = "at least" if higher else "at most"
    if kept:
        if metric.bounds != (0, 1) or abs(golden - worst) <= KEPT + WIDEST:
            return f"the network keeps its answers: {metric.label} {text}, {bound} {metric.text(worst)} ({n})"
        few = f"{n} {'are' if trials != 1 else 'is'} too few to exclude {metric.text(worst)}"
        return f"no loss was seen: {metric.label} {text}, but {few}"
    ends = f"between {metric.text(i.low)} and {metric.text(i.high)}"
    if best < golden if higher else best > golden:
        return f"the network loses answers: {metric.label} {text}, {ends} ({n})"
    return (
        f"a loss was seen, but {n} {'are' if trials != 1 else 'is'} too few to be sure: {metric.label} {text}, {ends}"
    )


def _surely_lost(found: CampaignRates, place: int) -> bool:
    """Return True if a rate of a sweep surely costs something."""
    metric, golden = measured(found)
    i = found.by_rate[place].rate(metric.name)
    return i is not None and (i.high < golden if metric.better == "higher" else i.low > golden)


def turned_into_due(found: CampaignRates) -> Iterator[str]:
    """Yield where fewer answers are silently wrong at a higher rate only because more are detected as errors."""
    label, points = short(silent_metric(found.task)), []
    for fold in found.by_rate:
        if fold.trials and (share := shares(found.task, fold)) is not None:
            points.append((fold.key, share))
    for (_, before), (key, after) in pairwise(points):
        if before.sdc - after.sdc > KEPT and after.due - before.due > KEPT:
            lost = (
                f"the answers lost to either go from {_percent(before.lost)} to {_percent(after.lost)}"
                if after.lost >= before.lost - KEPT
                else f"of the fall of {100 * (before.sdc - after.sdc):.3g} points DUE takes up "
                f"{100 * (after.due - before.due):.3g}"
            )
            yield (
                f"At {key} the silent rate falls ({label} from {_percent(before.sdc)} to {_percent(after.sdc)}) "
                f"because answers turn into DUE (from {_percent(before.due)} to {_percent(after.due)}), which is no "
                f"improvement: {lost}."
            )


def single_sentences(found: CampaignRates) -> Iterator[str]:
    """Yield how often one fault changes an answer, and in which layer most."""
    metric = found.task.metric(found.task.headline)
    i = found.everything.estimated(metric.name)
    if i is None or metric.bounds != (0, 1):
        return
    one, trials, label = _one_fault(found), f"{found.everything.trials:,} trials", short(metric)
    if i.estimate <= 0 and i.half_width <= WIDEST:
        yield f"No answer changed under {one} in {trials}: {label} is below {metric.text(i.high)}."
    elif i.half_width > WIDEST:
        most = f"at most {metric.text(i.high)}" if i.high < _NO_LIMIT else "with no limit yet"
        yield (
            f"How often {one} changes an answer is still open: {label} {metric.text(i.estimate)} so far, {most} "
            f"({trials}, too few to say more)."
        )
    else:
        ends = (
            f"between {metric.text(i.low)} and {metric.text(i.high)}"
            if i.low * _FAR > i.estimate
            else f"at most {metric.text(i.high)}"
        )
        yield (
            f"{one[0].upper()}{one[1:]} changes one answer in {1 / i.estimate:,.0f}: {label} "
            f"{metric.text(i.estimate)}, {ends} ({trials})."
        )
        yield from _weakest(found, metric)


def _weakest(found: CampaignRates, metric: Metric) -> Iterator[str]:
    """Yield the layer with the highest rate, and whether that is sure."""
    rows = [(fold.key, i) for fold in found.by_layer if fold.trials and (i := fold.estimated(metric.name)) is not None]
    rows.sort(key=lambda row: -row[1].estimate)
    if len(rows) < 2 or rows[0][1].estimate <= 0 or rows[0][1].half_width > WIDEST:
        return
    (name, first), others = rows[0], rows[1:]
    sure = all(first.low > i.high for _, i in others)
    behind = [key for key, i in others if i.high >= first.low]
    rest = (
        "more than any other layer"
        if sure
        else f"not sure yet against {listed(behind[:_MOST_NAMED])}"
        + (f" and {len(behind) - _MOST_NAMED:,} more" if len(behind) > _MOST_NAMED else "")
    )
    yield f"The layer that suffers most from a fault is {name}: {short(metric)} {metric.interval(first)}; {rest}."


def sure_enough(found: CampaignRates) -> bool:
    """Return True if the rate over all flips is known well enough for estimates of its parts."""
    i = found.everything.rate(found.task.headline)
    return i is not None and i.half_width <= WIDEST


@dataclass(frozen=True)
class HarmShares:
    """The harm of single flips: its share by layer and bit, and the trials that did any.

    A trial stands for the faults of its stratum that were not drawn as well. A layer or bit is None where a trial lies
    in no one of them.
    """

    shares: Mapping[tuple[str | None, str | None], float]
    trials: int

    @classmethod
    def of(cls, found: CampaignRates) -> HarmShares:
        """Read the harm of a campaign of single faults."""
        metric = found.task.metric(found.task.headline)
        values, strata = found.trials.of(metric.name), {s["stratum"]: s for s in found.strata}
        here = ~np.isnan(values)
        sums: dict[tuple[int, str | None, str | None], float] = {}
        counts: dict[int, float] = {}
        harms = np.where(here, np.maximum(values, 0.0), 0.0)
        for (stratum, layer, bit), (n, done) in found.trials.by_cell(np.stack([here, harms])):
            if n:
                counts[stratum] = counts.get(stratum, 0) + n
                key = stratum, strata[stratum]["layer"] or layer, _bits(strata[stratum], bit)
                sums[key] = sums.get(key, 0.0) + done
        harm: dict[tuple[str | None, str | None], float] = {}
        for (stratum, layer, bits), total in sums.items():
            part = total / counts[stratum] * strata[stratum]["population"]
            harm[layer, bits] = harm.get((layer, bits), 0.0) + part
        total = math.fsum(harm.values())
        return cls({key: one / total for key, one in harm.items()} if total > 0 else {}, int((values[here] > 0).sum()))

    def by(self, key: str, bits: Collection[str] = ()) -> list[tuple[str, float]]:
        """Return the share in each "layer" or "bit", the largest first; of `bits` alone where some are given."""
        place, found = ("layer", "bit").index(key), dict[str, float]()
        for one, share in self.shares.items():
            name = one[place]
            if name is None:
                return []
            if not bits or one[1] in bits:
                found[name] = found.get(name, 0.0) + share
        return sorted(found.items(), key=lambda row: -row[1])


def harm_shares(found: CampaignRates, by: str) -> list[tuple[str, float]]:
    """Return the share of the harm of single flips in each "layer", or at each "bit", the largest first.

    Empty where no trial did harm, or a trial lies in no one layer.
    """
    return HarmShares.of(found).by(by)


def _bits(stratum: Mapping[str, Any], bit: int | None) -> str | None:
    """Return the bits that a trial's harm belongs to."""
    if stratum["layer"] is not None and stratum["label"] not in (stratum["layer"], f"{stratum['layer']} bit {bit}"):
        return bit_field_label(stratum["label"], stratum["layer"])
    return None if bit is None else str(bit)


def harm_sentences(found: CampaignRates) -> Iterator[str]:
    """Yield from which bits of which layers most of the harm comes, and what their protection would bring."""
    metric = found.task.metric(found.task.headline)
    i = found.everything.estimated(metric.name)
    if i is None or not sure_enough(found) or i.estimate <= 0:
        return
    harm = HarmShares.of(found)
    bits, layers = _leading(harm.by("bit")), harm.by("layer")
    where, named = "", _leading(layers)
    if bits:
        where = _named_bits([key for key, _ in bits])
        named = _leading(harm.by("layer", [key for key, _ in bits]))
    rows = named
    if layers and len(named) < len(found.by_layer):
        names = listed([key for key, _ in named])
        many = f"{len(named)} of {len(found.by_layer):,} layers ({names})"
        where += f"{' in ' if where else ''}{names if len(named) == 1 else many}"
    elif bits:
        rows = bits
    if not where or not rows:
        return
    did = f"{harm.trials:,} trials that did any" if harm.trials != 1 else "one trial that did any"
    if math.fsum(share for _, share in rows) < _MOST_HARM / 2:
        yield f"The harm is spread: {where} make up about {_together(rows)} of it, by the {did}."
        return
    left = i.estimate * max(1 - math.fsum(share for _, share in rows), 0.0)
    fewer = metric.text(left) if left > _NOTHING else "next to nothing"
    yield (
        f"About {_together(rows)} of the harm comes from {where}, by the {did}: without it {short(metric)} would fall "
        f"from {metric.text(i.estimate)} to about {fewer}."
    )


def _named_bits(keys: Sequence[str]) -> str:
    """Return bits in words, those of each number format together.

    >>> _named_bits(["30", "16-19"]), _named_bits(["int8 7", "float32 30", "int8 6"])
    ('bits 30 and 16-19', 'bits 7 and 6 of int8 and bit 30 of float32')
    """
    formats: dict[str, list[str]] = {}
    for key in keys:
        word, _, place = key.rpartition(" ")
        formats.setdefault(word, []).append(place)
    found = []
    for word, places in formats.items():
        one = len(places) == 1 and places[0].isdecimal()
        found.append(f"{'bit' if one else 'bits'} {listed(places)}" + (f" of {word}" if word else ""))
    return listed(found)


def due_sentences(found: CampaignRates) -> Iterator[str]:
    """Yield how many trials were detected as errors, and by what."""
    n, trials = found.everything.outcomes["due"], found.everything.trials
    if not trials:
        return
    if not n:
        yield f"No trial ended in a detected error (DUE), of {trials:,}."
        return
    causes = ", ".join(f"{cause} {count:,}" for cause, count in found.causes().items())
    yield f"{n:,} of {trials:,} trials ended in a detected error (DUE){f': {causes}' if causes else ''}."


def cost_sentences(found: CampaignRates) -> Iterator[str]:
    """Yield the cost of a trial in golden inferences, and the trials that a plan saved."""
    with Store.open(found.store, checked=True) as opened:
        golden_s, times = opened.get("golden_s"), opened.times()
    if golden_s and times and found.everything.trials:
        mean = math.fsum(times) / len(times)
        spared = len(times) * (1 - mean / golden_s)
        saved = f": {_number(spared)} were saved by running again only what a fault can reach" if spared > 0 else ""
        yield (
            f"A trial cost {_number(mean / golden_s)} golden inferences of all samples on average ({mean:.2g} s "
            f"against {golden_s:.2g} s), "
            f"{len(times):,} trials as much as {_number(len(times) * mean / golden_s)} of them{saved}."
        )
    population, n = found.everything.population, found.everything.trials
    if found.look is not None:
        i = found.look.interval
        if 0 < i.half_width <= WIDEST and 0 < i.estimate < 1 and found.look.population > n:
            plain, asked = (
                sample_size(found.look.population, i.half_width, found.confidence, p) for p in (i.estimate, 0.5)
            )
            yield (
                f"As narrow an interval takes {plain:,} trials of a plain sample whose rate is known beforehand, "
                f"{asked:,} if it is not; this campaign took {n:,}."
            )
    elif population and population > n:
        yield f"The {n:,} trials stand for {population:,} possible faults: {population - n:,} were not run."
    elif population:
        yield f"Every one of the {population:,} possible faults was run, so that these rates are exact."


# Words


def design(found: CampaignRates) -> str:
    """Return in words which faults a campaign injects, and where."""
    campaign = found.campaign
    targets = campaign.get("target") or "weights"
    where = targets if isinstance(targets, str) else listed(list(map(str, targets)))
    fault = found.header.fault
    kinds = {
        "single": f"one fault per trial ({fault}) in its {where}",
        "exhaustive": f"every single fault ({fault}) in its {where}",
        "adaptive": f"one fault per trial ({fault}) in its {where}, drawn where they tell most",
        "ber": f"faults ({fault}) at {len(found.by_rate)} rates in its {where}",
        "per_sample": f"faults ({fault}) at {len(found.by_rate)} probabilities per sample in its {where}",
        "mix": "a mix of faults",
    }
    return kinds.get(campaign["design"], f"faults ({fault}) of a list")


def any_bit(found: CampaignRates) -> str:
    """Return how often any bit of an output differs, and that most papers mean another rate by SDC."""
    i, silent = found.everything.rate("sdc"), silent_metric(found.task)
    if i is None:
        return ""
    named = f"Most papers on classifiers call SDC-1, a changed top-1 answer, SDC; {silent.label} above is that rate. "
    said = named if silent.name == "sdc1" else f"The silent errors above are {silent.label}. "
    rate = "" if len(found.by_rate) > 1 else f": {found.task.metric('sdc').interval(i)}"
    return (
        f"{said}Any-bit SDC, which counts a trial as soon as an output of one sample differs without being masked or "
        f"detected, is far more frequent and says little of the answers{rate} of the trials."
    )


def _one_fault(found: CampaignRates) -> str:
    """Return the fault of a trial in words."""
    fault = found.header.fault
    return "one flipped bit" if fault == "flip" else f"one fault ({fault})"


def _drawn_from(found: CampaignRates) -> tuple[str, int]:
    """Return the unit of the rates of a sweep, and how many there are of it."""
    if found.campaign["design"] == "per_sample":
        return "sample", 0
    return found.header.unit, found.header.population


def _together(rows: Sequence[tuple[str, float]]) -> str:
    """Return a sum of shares as text, below 100 % unless nothing is left."""
    share = sum(one for _, one in rows)
    return "all" if share >= 1 - _NOTHING else f"{min(100 * share, 99.9):.3g} %"


def _leading(rows: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return the first of the shares that make up most of the harm."""
    found: list[tuple[str, float]] = []
    for row in rows[:_MOST_NAMED]:
        found.append(row)
        if sum(share for _, share in found) >= _MOST_HARM:
            break
    return found


def listed(names: Sequence[str]) -> str:
    """Return names with commas and an "and".

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
