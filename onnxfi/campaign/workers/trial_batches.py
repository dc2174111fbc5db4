"""Batches: trials that are sent to a worker together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, groupby, islice, repeat
from typing import TypeVar

Item = TypeVar("Item")

#: A trial's number and its lines.
PendingTrial = tuple[int, str]
#: Trials among which those with faults in the same tensor are brought together.
_WINDOW = 512
#: Largest batches of a window, at least.
_BATCHES = 8
#: The first ones are smaller, so that a campaign of a minute has looked everywhere.
_FIRST_WINDOWS = (64, 128, 256)
#: Trials that are read ahead at most to have some of every stratum.
_MOST_AHEAD = 1 << 14
#: Tasks that each worker gets of a window, at least.
_TASKS_A_WORKER = 4


def spread(items: Sequence[Item]) -> Iterator[Item]:
    """Yield all items, so that those of any first part lie evenly over the whole.

    >>> list(spread(range(8)))
    [0, 5, 2, 7, 4, 1, 6, 3]
    """
    n = len(items)
    step = next(k for k in count(max(1, round(0.618 * n))) if math.gcd(k, n) == 1) if n else 1
    return (items[k * step % n] for k in range(n))


def interleaved(pending: Iterator[PendingTrial], strata: int) -> Iterator[PendingTrial]:
    """Yield trials so that any first part of them lies evenly over layers and bits.

    Trials come stratum after stratum, and strata layer after layer: of many, the first minutes would see few layers.
    """
    if strata <= _WINDOW:
        yield from pending
        return
    while ahead := list(islice(pending, min(strata, _MOST_AHEAD))):
        yield from spread(ahead)


def batches_in_order(pending: Iterator[PendingTrial], most: int) -> Iterator[list[PendingTrial]]:
    """Yield the trials in batches of up to `most`, in their order."""
    while tasks := list(islice(pending, most)):
        yield tasks


def batches_by_tensor(
    pending: Iterator[PendingTrial], most: int, workers: int | Callable[[], int]
) -> Iterator[list[PendingTrial]]:
    """Yield the trials in batches of up to `most`, those with faults in the same tensor together.

    So a worker opens a route once for them. Only within a window, whose batches go over all its tensors from the first
    ones on, so that what is done when a campaign is stopped is a fair sample, and some tasks for each of so many
    workers in it, so that none stands idle.
    """
    for size in chain(_FIRST_WINDOWS, repeat(max(_WINDOW, _BATCHES * most))):
        if not (window := list(islice(pending, size))):
            return
        workers_now = max(1, workers if isinstance(workers, int) else workers())
        here = min(most, -(-len(window) // (_TASKS_A_WORKER * workers_now)))
        together, batches = list[PendingTrial](), list[list[PendingTrial]]()
        for _, group in groupby(sorted(window, key=lambda task: (_tensor_of(task), task[0])), key=_tensor_of):
            alike = list(group)
            if together and len(together) + len(alike) > here:
                batches.append(together)
                together = []
            together += alike
            while len(together) > here:
                batches.append(together[:here])
                together = together[here:]
        yield from spread([*batches, together])


def _tensor_of(task: PendingTrial) -> str:
    return str(json.loads(task[1].partition("\n")[0]).get("target", ""))
