"""Notes on the validity of a report's numbers, the same on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxfi.campaign.report.findings import WIDEST, listed, measured
from onnxfi.campaign.report.rates import FEWEST, CampaignRates
from onnxfi.statistics.intervals import Stratum
from onnxfi.statistics.sample_size import trials_needed
from onnxfi.tasks.task import Task

#: Causes of DUE that protections give; all others come from the runtime or the system.
PROTECTING = ("alarm", "memory-code")
#: Half the width of an interval that is worth its trials.
_WORTH = 0.05
#: The flag that asks for more trials, by the design.
_FLAGS = {"ber": "repeat", "per_sample": "repeat", "mix": "repeat", "single": "trials"}


def notes(found: CampaignRates) -> Iterator[str]:
    """Yield the conditions under which the numbers of a report hold, a line each."""
    if found.golden.get("kind") == "counts":
        yield "scores are read as spike counts: score shifts are relative changes of a count (--scores says otherwise)"
    if note := of_trials([found.judged], found.task):
        yield note
    if note := too_few(found):
        yield note
    if found.look is not None and found.look.method != "simple":
        yield (
            f"of a layer or of bits with fewer than {FEWEST} trials, or where the estimate lies beyond all that they "
            f"showed, the interval alone is given"
        )
    elif found.samples is not None:
        yield _elsewhere(found)


def protection_notes(found: CampaignRates) -> Iterator[str]:
    """Yield DUE trials by cause where errors or detectors made them, and blocks by what a memory code made of them."""
    causes = found.causes()
    mine = sum(causes.get(cause, 0) for cause in PROTECTING)
    by_cause = ", ".join(f"{cause} {n:,}" for cause, n in causes.items())
    if mine:
        total = sum(causes.values())
        yield f"DUE trials by cause: {by_cause}; {mine:,} of {total:,} detected by a protection, the others without one"
    elif causes.get("error"):  # also of a mistake in a decode of the user's own
        yield f"DUE trials by cause: {by_cause}; error: the runtime, a stage or the decoding of the outputs failed"
    blocks = found.blocks()
    if blocks is not None:
        counts = ", ".join(f"{n:,} {status}" for status, n in blocks.items())
        yield f"memory code {found.campaign['memory_code']}: blocks with errors: {counts}"


def of_trials(judged: Sequence[int], task: Task) -> str:
    """Return the note that rates of trials depend on the number of samples; empty if that is one.

    >>> from onnxfi.tasks.kinds.classification import CLASSIFICATION
    >>> of_trials([1], CLASSIFICATION)
    ''
    """
    if max(judged) == 1:
        return ""
    many = " and ".join(f"{n:,}" for n in dict.fromkeys(judged))
    counted = [m for m in task.reports if m.fold == "count"]
    falling = listed([m.name for m in counted if m.better == "higher"])
    rising = [m.name for m in counted if m.detected or m.any_of]
    return (
        f"{listed([m.name for m in counted])} count trials by the gravest of their {many} samples: with more samples "
        f"{falling} falls, {listed(rising)} {'rise' if len(rising) > 1 else 'rises'}"
    )


def too_few(found: CampaignRates) -> str:
    """Return the note that trials are too few to say anything, and how many would do; empty where they are enough.

    An interval of more than ±10 points says nothing, and ±5 points are worth their trials. The rates of a sweep are
    looked at one by one, by the metric of its curve; other campaigns as a whole, by their headline.
    """
    task, sweep = found.task, len(found.by_rate) > 0
    metric = measured(found)[0] if sweep else task.metric(task.headline)
    folds = found.by_rate if sweep else (found.everything,)
    wide = [(fold, i) for fold in folds if (i := fold.estimated(metric.name)) and i.half_width > WIDEST]
    if not wide or found.look is not None or metric.bounds != (0, 1):
        return ""
    fold, i = max(wide, key=lambda one: one[1].half_width)
    values = found.trials.by_stratum(found.trials.of(metric.name))
    if not (sweep or found.by_layer):
        values = {0: np.concatenate([*values.values()])}
    sites: dict[int, int] = {s["stratum"]: s["population"] for s in found.strata}
    strata = {n: Stratum.of(x, sites[n] if found.by_layer else None) for n, x in values.items()}
    groups = [[one] for one in strata.values()] if sweep else [list(strata.values())]
    needed = _rounded(max(trials_needed(group, _WORTH, found.confidence) for group in groups))
    flag = _FLAGS.get(found.campaign["design"])
    ask = f"--{flag} {needed}" if flag else f"{needed:,} trials"
    return (
        f"{fold.trials:,} trials {'at a rate ' if sweep else ''}say little: {metric.label} "
        f"{f'at {fold.key} ' if sweep else ''}may be anything from {metric.text(i.low)} to {metric.text(i.high)}; "
        f"{ask} would tell {'every rate' if sweep else 'it'} to about ±{100 * _WORTH:.0f} points"
    )


def _rounded(n: int) -> int:
    """Return a number of trials with two digits, rounded up.

    >>> _rounded(386), _rounded(91), _rounded(1201)
    (390, 91, 1300)
    """
    step: int = 10 ** max(0, len(str(n)) - 2)
    return -(-n // step) * step


def _elsewhere(found: CampaignRates) -> str:
    """Return the note on other samples of this kind."""
    samples, level = found.golden["samples"], f"{100 * found.confidence:.4g} %"
    if found.others is None or found.samples is None:
        return f"all {samples:,} samples fared alike: what others of this kind would say is not known"
    headline = found.task.metric(found.task.headline).label.partition(" (")[0]
    ends = [f"{100 * end:.3f} %" for i in (found.others, found.samples) for end in (i.low, i.high)]
    return (
        f"other samples of this kind, {samples:,} again, would put {headline} between {ends[0]} and {ends[1]}, "
        f"and all of that kind together between {ends[2]} and {ends[3]} ({level})"
    )
