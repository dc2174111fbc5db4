"""The verdict of an assessment: sentences with numbers, and the commands that sharpen or act on them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnxfi.analysis.census import Census
from onnxfi.analysis.fit import FitBudget
from onnxfi.analysis.knee import Curve, measured
from onnxfi.campaign.plan.strata import bit_field_label
from onnxfi.campaign.report.html_page import command_of
from onnxfi.campaign.report.ranking_text import sentences as ranking_sentences
from onnxfi.campaign.report.rates import CampaignRates
from onnxfi.campaign.results.store import Store

#: The share of all harm that the named bits and layers make up.
_MOST_HARM = 0.9
#: Half the width of an interval from which on an estimate is no news.
_WIDEST = 0.1
#: Layers or bits that are named.
_MOST_NAMED = 4


@dataclass(frozen=True)
class Verdict:
    """Sentences in the order of their weight, and commands that go on from here."""

    sentences: tuple[str, ...]
    commands: tuple[str, ...]


def verdict(
    counted: Census,
    ranking: CampaignRates | None,
    sweep: CampaignRates | None,
    budget: FitBudget | None,
) -> Verdict:
    """Return what the parts of an assessment say together."""
    lines: list[str] = []
    if ranking is not None or sweep is not None:
        lines.append(_golden(next(one for one in (sweep, ranking) if one is not None)))
    if sweep is not None:
        lines += _sweep(sweep, counted)
    if ranking is not None:
        lines += _singles(ranking)
        lines += _harm(ranking)
        if ranking.look is not None and ranking.look.ranking is not None:
            lines += [f"Ranking: {line}." for line in ranking_sentences(ranking.look.ranking)]
        lines += _more_time(ranking)
    if budget is not None:
        low, _, high = budget.fit
        lines.append(
            f"In the given environment {_number(low)} to {_number(high)} FIT are upsets that damage answers "
            f"undetected, of {_number(budget.raw[1])} FIT raw."
        )
    share = counted.whole.share("catastrophic")
    lines.append(
        f"Of all single bit flips {100 * share:.2g} % make a number grow by 2^16 or more, or not finite; the bits are "
        f"{', '.join(_catastrophic_bits(counted)) or 'none'}."
    )
    return Verdict(tuple(lines), tuple(_commands(ranking, sweep, counted)))


def _golden(one: CampaignRates) -> str:
    metric, golden = measured(one)
    if metric.name in one.golden["metrics"] and metric.golden:
        return f"Without faults {metric.label} is {metric.text(golden)}, on {one.golden['samples']:,} samples."
    return f"Without labels, changed answers are counted, on {one.golden['samples']:,} samples."


def _sweep(found: CampaignRates, counted: Census) -> Iterator[str]:
    """Yield the rate up to which the network keeps its answers, and what happens beyond."""
    metric, _ = measured(found)
    curve = Curve.of(found)
    for place, verb in ((curve.kept, "keeps its answers"), (curve.lost, "does not")):
        if place is None or place < 0:
            continue
        fold = found.by_rate[place]
        i = fold.rate(metric.name)
        if i is None:
            continue
        worst = i.low if metric.better == "higher" else i.high
        least = "at least" if metric.better == "higher" else "at most"
        flips = float(fold.key) * counted.whole.bits
        yield (
            f"At {fold.key} per bit, {_number(flips)} flips on average, the network {verb}: {metric.label} "
            f"{metric.text(i.estimate)}, {least} {metric.text(worst)} ({fold.trials:,} trials)."
        )
    if curve.lost is None and curve.losses:
        yield "No rate of the sweep costs a point."


def _singles(found: CampaignRates) -> Iterator[str]:
    """Yield how often one flip changes an answer."""
    metric = found.task.metric(found.task.headline)
    i = found.everything.estimated(metric.name)
    if i is None or metric.bounds != (0, 1):
        return
    if i.estimate <= 0:
        tried = f"{found.everything.trials:,} trials"
        yield f"No answer changed under one flip in {tried}: {metric.label} is below {metric.text(i.high)}."
        return
    if i.half_width > _WIDEST:
        yield (
            f"Too few trials to say how often one flip changes an answer ({found.everything.trials:,}): {metric.label} "
            f"lies between {metric.text(i.low)} and {metric.text(i.high)}."
        )
        return
    often = f"between one in {1 / i.high:,.0f} and " + (f"one in {1 / i.low:,.0f}" if i.low > 0 else "none")
    yield (
        f"One flipped bit changes one answer in {1 / i.estimate:,.0f} ({metric.label} {metric.text(i.estimate)}; "
        f"{often}; {found.everything.trials:,} trials)."
    )


def sure_enough(found: CampaignRates) -> bool:
    """Return True if the rate over all flips is known well enough for estimates of its parts."""
    i = found.everything.rate(found.task.headline)
    return i is not None and i.half_width <= _WIDEST


def harm_shares(found: CampaignRates, by: str) -> list[tuple[str, float]]:
    """Return the share of the harm of single flips in each layer, or at each bit, the largest first.

    The harm of a stratum is the mean of its trials times its population; one without a trial has none. `by` is "layer"
    or "bit". Empty where no trial did harm, or strata do not go by layers and bits.
    """
    metric = found.task.metric(found.task.headline)
    sums: dict[int, list[float]] = {}
    with Store.open(found.store) as opened:
        for row in opened.rows():
            value = metric.value(row.outcome, row.metrics)
            if value is not None:
                sums.setdefault(row.stratum, []).append(value)
    harm: dict[str, float] = {}
    for one in found.strata:
        if one["layer"] is None:
            return []
        values = sums.get(one["stratum"], [])
        key = one["layer"] if by == "layer" else bit_field_label(one["label"], one["layer"])
        mean = max(math.fsum(values) / len(values), 0.0) if values else 0.0
        harm[key] = harm.get(key, 0.0) + mean * one["population"]
    total = math.fsum(harm.values())
    return sorted(((key, one / total) for key, one in harm.items()), key=lambda row: -row[1]) if total > 0 else []


def _harm(found: CampaignRates) -> Iterator[str]:
    """Yield from which bits and layers most of the harm comes."""
    if not sure_enough(found):
        return
    bits = _leading(harm_shares(found, "bit"))
    layers = _leading(harm_shares(found, "layer"))
    if bits:
        names = _listed([f"bit {key}" if key.isdecimal() else f"bits {key}" for key, _ in bits])
        yield (
            f"About {_percent(bits)} of the harm comes from {names}; protecting that would leave about "
            f"{100 * max(0.0, 1 - sum(share for _, share in bits)):.1g} % of it."
        )
    if layers:
        names = _listed([key for key, _ in layers])
        yield f"About {_percent(layers)} of the harm comes from {names}."


def _percent(rows: Sequence[tuple[str, float]]) -> str:
    """Return a sum of shares as text, below 100 % unless nothing is left."""
    share = sum(one for _, one in rows)
    return "all" if share >= 1 - 1e-12 else f"{min(100 * share, 99.9):.3g} %"


def _leading(shares: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return the first of the shares that make up most of the harm."""
    found: list[tuple[str, float]] = []
    for row in shares[:_MOST_NAMED]:
        found.append(row)
        if sum(share for _, share in found) >= _MOST_HARM:
            break
    return found


def _more_time(found: CampaignRates) -> Iterator[str]:
    """Yield how long a sharper answer takes."""
    with Store.open(found.store) as opened:
        times = opened.times()
    trials, seconds = len(times), math.fsum(times)
    if found.look is None or not trials:
        return
    i = found.look.interval
    if i.half_width > _WIDEST:
        return
    yield (
        f"The rate over all flips is known to ±{100 * i.half_width:.2g} points; half of that takes about "
        f"{3 * trials:,} trials more, {_duration(3 * seconds)} of one core."
    )


def _commands(ranking: CampaignRates | None, sweep: CampaignRates | None, counted: Census) -> Iterator[str]:
    """Yield the commands that go on, and one that acts."""
    for one in (ranking, sweep):
        if one is not None:
            with Store.open(one.store) as opened:
                spec = opened.get("spec")
            if text := command_of(spec, str(one.store)):
                yield text
    model = shlex.quote(counted.model)
    yield f"onnxfi protect {model} --data CALIBRATION --with range:clip --with nan-filter -o protected.onnx"


def _catastrophic_bits(counted: Census) -> list[str]:
    """Return the bits, by format, that hold nearly all catastrophic flips."""
    found = []
    for row in counted.formats:
        bits = [k for k, flips in enumerate(row.flips) if sum(flips) and flips[0] > sum(flips) / 2]
        if bits and row.bits >= 0.01 * counted.whole.bits:
            text = str(bits[0]) if len(bits) == 1 else f"{bits[0]}-{bits[-1]}"
            found.append(f"{text} of {row.dtype}")
    return found


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
