"""Batches of trials that are sent to a worker together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import groupby, islice

#: A trial's number and its lines.
PendingTrial = tuple[int, str]
#: Trials among which those with faults in the same tensor are brought together.
_WINDOW = 512
#: Tasks that each worker gets of a window, at least.
_TASKS_A_WORKER = 4


def batches_in_order(pending: Iterator[PendingTrial], most: int) -> Iterator[list[PendingTrial]]:
    """Yield the trials in batches of up to `most`, in their order."""
    while tasks := list(islice(pending, most)):
        yield tasks


def batches_by_tensor(
    pending: Iterator[PendingTrial], most: int, workers: int | Callable[[], int]
) -> Iterator[list[PendingTrial]]:
    """Yield the trials in batches of up to `most`, those with faults in the same tensor together.

    So a worker opens a route once for them. Only within a window, so that what is done when a campaign is stopped stays
    a fair sample, and some tasks for each of so many workers in it, so that none stands idle.
    """
    while window := list(islice(pending, _WINDOW)):
        workers_now = max(1, workers if isinstance(workers, int) else workers())
        most = min(most, -(-len(window) // (_TASKS_A_WORKER * workers_now)))
        together: list[PendingTrial] = []
        for _, group in groupby(sorted(window, key=lambda task: (_tensor_of(task), task[0])), key=_tensor_of):
            alike = list(group)
            if together and len(together) + len(alike) > most:
                yield together
                together = []
            together += alike
            while len(together) > most:
                yield together[:most]
                together = together[most:]
        yield together


def _tensor_of(task: PendingTrial) -> str:
    return str(json.loads(task[1].partition("\n")[0]).get("target", ""))
