"""Sentences on a ranking: what is settled, what ties, and what more trials would tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from onnxfi.campaign.run.adaptive_rounds import RankedPart, Ranking

#: Parts that are named in a sentence.
_MOST_NAMES = 6
#: Trials of a part, on average, below which widths fall with their number.
_EARLY = 200
#: A high end above which an interval that starts at 0 says nothing.
_NO_NEWS = 0.5


def ranking_sentences(ranking: Ranking) -> Iterator[str]:
    """Yield what a ranking says, a sentence a line."""
    standing, rows, by = ranking.standing, list(ranking.rows()), ranking.by
    top = min(standing.top, len(rows))
    if not any(row.interval.low > 0 for row in rows):
        most = max(row.interval.high for row in rows)
        if most > _NO_NEWS:
            yield f"too few trials yet to say of any {by} how often a fault in it does damage"
        else:
            below = f"all are below {100 * most:.3g} %, not to be distinguished"
            yield f"no {by} has a rate that is surely above 0: {below}"
        return
    if standing.settled and len(rows) > 1:
        first = f"first {top:,} {by}s" if top > 1 else f"first {by}"
        which = ", ".join(row.name for row in rows[: min(top, _MOST_NAMES)])
        yield f"the {first} of {len(rows):,} {'are' if top > 1 else 'is'} settled: {which}"
    for together in _together(rows, top):
        if len(together) > 1:
            tied = all(row.tied for row in together[:-1])
            how = f"neighbours differ by {_points(standing.margin)} at most" if tied else "more trials may tell"
            names = [row.name for row in together[:_MOST_NAMES]]
            more = f" and {len(together) - len(names):,} more" if len(together) > len(names) else ""
            yield f"{', '.join(names)}{more} cannot be distinguished: {how}"


def more_trials(ranking: Ranking) -> int:
    """Return about how many more trials settle the order, by the widths of the intervals; 0 where it is settled.

    Two parts are apart where the distance of their rates, or the margin, is more than half of both widths. These
    fall with the root of the trials, and with their number as long as they are few.
    """
    standing = ranking.standing
    factor = 1.0
    for pair in standing.open_pairs:
        i, j = (standing.intervals[k] for k in pair)
        apart = 0.0 if math.isnan(i.estimate + j.estimate) else abs(i.estimate - j.estimate)
        factor = max(factor, (i.half_width + j.half_width) / max(apart, standing.margin))
    trials = sum(ranking.trials)
    return math.ceil(trials * (factor ** (1 if trials < _EARLY * len(ranking.trials) else 2) - 1))


def _points(margin: float) -> str:
    """Return a margin in percentage points.

    >>> _points(0.01), _points(0.002)
    ('1 point', '0.2 points')
    """
    return f"{100 * margin:.3g} point{'s' if margin != 0.01 else ''}"


def _together(rows: Sequence[RankedPart], top: int) -> Iterator[list[RankedPart]]:
    """Yield the parts that reach into the first `top` places, those together of which neighbours are not apart."""
    found: list[RankedPart] = []
    for place, row in enumerate(rows):
        if place >= top and not found:
            return
        found.append(row)
        if row.apart:
            yield found
            found = []
    if found:
        yield found
