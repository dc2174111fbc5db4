"""The verdict of an assessment: sentences with numbers, and the commands that sharpen or act on them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from onnxfi.analysis.census import Census
from onnxfi.analysis.fit import FitBudget
from onnxfi.campaign.report.findings import (
    golden_sentence,
    harm_sentences,
    harm_shares,
    listed,
    single_sentences,
    sweep_sentences,
)
from onnxfi.campaign.report.html_page import command_of
from onnxfi.campaign.report.ranking_text import more_trials, ranking_sentences
from onnxfi.campaign.report.rates import CampaignRates
from onnxfi.campaign.results.store import Store
from onnxfi.statistics.adaptive import FIRST_ROUND


@dataclass(frozen=True)
class Verdict:
    """Sentences in the order of their weight, and commands that go on from here."""

    sentences: tuple[str, ...]
    commands: tuple[str, ...]


def verdict(
    counted: Census, ranking: CampaignRates | None, sweep: CampaignRates | None, budget: FitBudget | None
) -> Verdict:
    """Return what the parts of an assessment say together."""
    lines: list[str] = []
    if ranking is not None or sweep is not None:
        lines.append(golden_sentence(next(one for one in (sweep, ranking) if one is not None)))
    if sweep is not None:
        lines += sweep_sentences(sweep)
    if ranking is not None:
        lines += single_sentences(ranking)
        lines += harm_sentences(ranking)
        if ranking.look is not None and ranking.look.ranking is not None:
            lines.append(f"Ranking of layers: {'; '.join(ranking_sentences(ranking.look.ranking))}.")
        lines += _more_time(ranking)
    if budget is not None:
        low, _, high = budget.fit
        lines.append(
            f"In the given environment {_number(low)} to {_number(high)} FIT are upsets that damage answers "
            f"undetected, of {_number(budget.raw[1])} FIT raw."
        )
    share, bits = counted.whole.share("catastrophic"), _catastrophic_bits(counted)
    lines.append(
        f"Of all single bit flips {100 * share:.2g} % make a number grow by 2^16 or more, or not finite"
        + (f", nearly always at bit {listed(bits)}." if bits else ".")
    )
    return Verdict(tuple(lines), tuple(_commands(ranking, sweep, counted)))


def _more_time(found: CampaignRates) -> Iterator[str]:
    """Yield how long a sharper answer takes."""
    with Store.open(found.store) as opened:
        times = opened.times()
    look, trials = found.look, len(times)
    if look is None or not trials:
        return
    each = math.fsum(times) / trials

    def price(more: int) -> str:
        return f"about {more:,} trials more, {_duration(more * each)} of one core"

    if not look.trials:
        yield f"No round of trials is complete yet; the first one takes {price(max(FIRST_ROUND - trials, 1))}."
        return
    i, more = look.interval, more_trials(look.ranking) if look.ranking is not None else 0
    first = 0 if look.ranking is None else min(look.ranking.standing.top, len(look.ranking.names))
    order = f"; to settle the order of the first {first} layers takes {price(more)}" if more else ""
    yield (
        f"With more time: half the width of the interval over all flips (±{100 * i.half_width:.2g} points) takes "
        f"{price(3 * trials)}{order}."
    )


def _commands(ranking: CampaignRates | None, sweep: CampaignRates | None, counted: Census) -> Iterator[str]:
    """Yield the commands that go on, and one that acts."""
    for one in (ranking, sweep):
        if one is not None:
            with Store.open(one.store) as opened:
                spec = opened.get("spec")
            if text := command_of(spec, str(one.store)):
                yield text
    if ranking is not None and any(share > 0 for _, share in harm_shares(ranking, "layer")):
        plan = shlex.quote(str(ranking.store.parent / "plan.yaml"))
        yield f"onnxfi plan-protection {shlex.quote(str(ranking.store))} --budget bytes=2% -o {plan}"
    if any(row.key.startswith(("float", "bfloat")) and 2 * row.bits > counted.whole.bits for row in counted.formats):
        model = shlex.quote(counted.model)
        calibrated = "--data CALIBRATION --with range:clip --with nan-filter"
        yield f"onnxfi protect {model} {calibrated} -o protected.onnx  # CALIBRATION: other samples of the same kind"


def _catastrophic_bits(counted: Census) -> list[str]:
    """Return the bits, by format, that hold nearly all catastrophic flips."""
    found = []
    for row in counted.formats:
        bits = [k for k, flips in enumerate(row.flips) if sum(flips) and flips[0] > sum(flips) / 2]
        if bits and row.bits >= 0.01 * counted.whole.bits:
            text = str(bits[0]) if len(bits) == 1 else f"{bits[0]}-{bits[-1]}"
            found.append(f"{text} of {row.dtype}")
    return found


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
