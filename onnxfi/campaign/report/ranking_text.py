"""Sentences on a ranking: what is settled, what ties, and what more trials would tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxfi.campaign.run.adaptive_rounds import RankedPart, Ranking

#: Parts that are named in a sentence.
_MOST_NAMES = 6
#: A high end above which an interval that starts at 0 says nothing.
_NO_NEWS = 0.5


def sentences(ranking: Ranking) -> Iterator[str]:
    """Yield what a ranking says, a sentence a line."""
    standing, rows, by = ranking.standing, list(ranking.rows()), ranking.by
    top = min(standing.top, len(rows))
    if not any(row.interval.low > 0 for row in rows):
        most = max(row.interval.high for row in rows)
        if most > _NO_NEWS:
            yield f"too few trials yet to say of any {by} how often it does damage; the same command goes on"
            return
        yield f"no {by} has a rate that is surely above 0: all are below {100 * most:.3g} %, not to be distinguished"
        return
    if standing.settled and len(rows) > 1:
        first = f"first {top:,} {by}s" if top > 1 else f"first {by}"
        yield f"the {first} of {len(rows):,} are settled" if top > 1 else f"the {first} of {len(rows):,} is settled"
    for together in _together(rows, top):
        if len(together) > 1:
            tied = all(row.tied for row in together[:-1])
            how = f"neighbours differ by {100 * standing.margin:.3g} points at most" if tied else "more trials may tell"
            names = [row.name for row in together[:_MOST_NAMES]]
            more = f" and {len(together) - len(names):,} more" if len(together) > len(names) else ""
            yield f"{', '.join(names)}{more} cannot be distinguished: {how}"
    if not standing.settled:
        count = len(standing.open_pairs)
        yield f"{count:,} {'pair is' if count == 1 else 'pairs are'} open: the same command goes on"


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
