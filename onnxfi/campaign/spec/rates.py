"""The rates of a campaign: what a trial says yes or no to, and the shares of samples that are averaged over trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from onnxfi.tasks.outcomes import CLASSES

if TYPE_CHECKING:
    from onnxfi.campaign.results.store import Row

OUTCOMES = ("masked", "sdc", "due")
#: Yes/no outcomes of trials. Each depends on the number of samples: of more of them, one is sooner another.
YES_NO: dict[str, Callable[[Row], bool]] = {
    "masked": lambda row: row.outcome == "masked",
    "sdc": lambda row: row.outcome == "sdc",
    "due": lambda row: row.outcome == "due",
    "any_sdc1": lambda row: float(row.metrics.get("sdc1", 0)) > 0,
}
#: Shares of samples, averaged over trials.
SHARES = (
    "top1",
    "top5",
    "sdc1",
    "sdc5",
    "top1_changed",
    "critical",
    "nonfinite",
    "masked_samples",
    "sdc_samples",
    "due_samples",
    *CLASSES,
)
RATES = (*YES_NO, *SHARES)
#: What rates are called for people; each name has one definition (docs/reference/outcomes.md).
LABELS = {
    "top1": "top-1", "top5": "top-5", "top1_changed": "top-1 changed", "sdc1": "SDC-1 (silent)",
    "any_sdc1": "any SDC-1", "sdc": "SDC", "due": "DUE", "masked": "masked", "sdc_samples": "changed samples",
}  # fmt: skip
_LABELLED = ("top1", "top5", "critical")
#: Rates that need no classifier.
_ANY_OUTPUT = (*OUTCOMES, "nonfinite", "masked_samples", "sdc_samples", "due_samples")


def value(row: Row, name: str) -> float | None:
    """What a trial adds to a rate: 0 or 1, or a share of its samples; None where it does not have it."""
    if name in YES_NO:
        return float(YES_NO[name](row)) if name in OUTCOMES or "sdc1" in row.metrics else None
    found = row.metrics.get(name)
    return None if found is None else float(found)


def missing(name: str, *, classifier: bool, labelled: bool) -> str:
    """What a model or its data lack for a rate; nothing where they lack nothing.

    >>> missing("critical", classifier=True, labelled=False)
    'the data has no labels; name labelled data with --data, or take the rate sdc1'
    """
    if name in _ANY_OUTPUT:
        return ""
    if not classifier:
        return "the scored output is no classifier's; name one with --output, or take the rate sdc or sdc_samples"
    if name in _LABELLED and not labelled:
        return "the data has no labels; name labelled data with --data, or take the rate sdc1"
    return ""


def given(name: str, metrics: Mapping[str, object]) -> bool:
    """Whether a campaign has a rate, by the metrics of its golden run."""
    return name in OUTCOMES or ("sdc1" if name == "any_sdc1" else name) in metrics
