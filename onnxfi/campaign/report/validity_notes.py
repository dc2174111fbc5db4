"""Notes on the validity of a report's numbers, the same on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxfi.campaign.report.rates import FEWEST, CampaignRates
from onnxfi.statistics.sample_size import sample_size
from onnxfi.tasks.task import Task

#: Causes of DUE that protections give; all others come from the runtime or the system.
PROTECTING = ("alarm", "memory-code")
#: Half of an interval that says little, and of one that says enough; shares.
_LITTLE, _ENOUGH = 0.1, 0.05


def notes(found: CampaignRates) -> Iterator[str]:
    """Yield the conditions under which the numbers of a report hold, a line each."""
    if found.golden.get("kind") == "counts":
        yield "scores are read as spike counts: score shifts are relative changes of a count (--scores says otherwise)"
    if note := of_repeats(found):
        yield note
    if note := of_trials([found.judged], found.task):
        yield note
    if found.look is not None and found.look.method != "simple":
        yield (
            f"of a layer or of bits with fewer than {FEWEST} trials, or where the estimate lies beyond all that they "
            f"showed, the interval alone is given"
        )
    elif found.samples is not None:
        yield _elsewhere(found)


def protection_notes(found: CampaignRates) -> Iterator[str]:
    """Yield what detectors and a memory code did: DUE trials by cause, and blocks by what became of them."""
    causes = found.causes()
    mine = sum(causes.get(cause, 0) for cause in PROTECTING)
    if mine:
        listed = ", ".join(f"{cause} {n:,}" for cause, n in causes.items())
        total = sum(causes.values())
        yield f"DUE trials by cause: {listed}; {mine:,} of {total:,} detected by a protection, the others without one"
    blocks = found.blocks()
    if blocks is not None:
        counts = ", ".join(f"{n:,} {status}" for status, n in blocks.items())
        yield f"memory code {found.campaign['memory_code']}: blocks with errors: {counts}"


def of_repeats(found: CampaignRates) -> str:
    """Return how many trials at each rate of a sweep would say something, where those that there are say little."""
    task = found.task
    metric = task.accuracy or task.metric(task.headline)
    known = [(fold.trials, i.half_width) for fold in found.by_rate if (i := fold.rate(metric.name)) is not None]
    if not metric.share or not known or max(half for _, half in known) <= _LITTLE:
        return ""
    trials, widest = max(known, key=lambda row: row[1])
    needed = sample_size(1 << 62, _ENOUGH, found.confidence)
    return (
        f"{trials:,} trials at a rate leave {metric.label} uncertain by up to ±{100 * widest:.0f} points; some "
        f"{needed:,} leave ±{100 * _ENOUGH:g}: --repeat {needed} runs those that are missing"
    )


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
    falling = _listed([m.name for m in counted if m.better == "higher"])
    rising = [m.name for m in counted if m.detected or m.any_of]
    return (
        f"{_listed([m.name for m in counted])} count trials by the gravest of their {many} samples: with more samples "
        f"{falling} falls, {_listed(rising)} {'rise' if len(rising) > 1 else 'rises'}"
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


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
