"""Positions: which elements of a tensor exist at a step of a generation loop.

A cache of keys and values grows by a position with each token, and an activation has one position for each token of a
prompt, then one in each further step. So the sites of such a tensor differ from sample to sample and from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DAMAGED = "the positions of the header are damaged"


@dataclass(frozen=True)
class Positions:
    """The positions along an axis that exist in front of each step of each sample.

    Attributes
    ----------
    axis : int
        The axis of a sample's shape that holds positions; -1 if the whole tensor exists or not.
    first, next : tuple of int
        The number of positions in step 0, and in step 1, of each sample.
    growth : int
        The number of positions that each further step adds.
    steps : tuple of int
        The number of steps of each sample.
    cache : bool
        True for a cache, whose faults stay; an activation is computed anew in each step.

    Examples
    --------
    >>> Positions(1, (0, 0), (4, 3), 1, (3, 2), cache=True).counts.tolist()
    [0, 4, 5, 0, 3, 0]
    """

    axis: int
    first: tuple[int, ...]
    next: tuple[int, ...]
    growth: int
    steps: tuple[int, ...]
    cache: bool = False

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self.steps)

    @property
    def most_steps(self) -> int:
        """The number of steps of the longest sample."""
        return max(self.steps)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """The number of positions at each time: sample after sample, step after step."""
        step = np.arange(self.most_steps)[None]
        later = np.array(self.next, np.int64)[:, None] + self.growth * (step - 1)
        found = np.where(step == 0, np.array(self.first, np.int64)[:, None], later)
        return np.where(step < np.array(self.steps, np.int64)[:, None], found, 0).ravel()

    def at(self, sample: int, step: int) -> int:
        """Return the number of positions in front of a step of a sample; 0 where there is no such step."""
        return 0 if step >= self.most_steps else int(self.counts[sample * self.most_steps + step])

    def in_all(self) -> Positions:
        """Return the positions that a fault in every sample and every step may have.

        Of a cache those that each sample has at its end; of an activation one, which stands for every position.
        """
        if not self.cache:
            return Positions(self.axis, (1,), (0,), 0, (1,))
        ends = (self.at(sample, steps - 1) for sample, steps in enumerate(self.steps))
        return Positions(self.axis, (min(ends),), (0,), 0, (1,), cache=True)

    def from_step(self) -> Positions:
        """Return the positions of a fault in every sample from a step on: one in each step that all samples have."""
        least = min(self.steps)
        return Positions(self.axis, (1 if min(self.first) else 0,), (1 if min(self.next) else 0,), 0, (least,))

    def row(self) -> dict[str, Any]:
        """Return the value as plain values for JSON."""
        return {
            "axis": self.axis, "first": list(self.first), "next": list(self.next), "growth": self.growth,
            "steps": list(self.steps), "cache": self.cache,
        }  # fmt: skip

    @classmethod
    def parse(cls, row: Any) -> Positions:
        """Return what `row` gave; KeyError or TypeError if it is damaged."""
        lists = [row[name] for name in ("first", "next", "steps")]
        numbers = [row["axis"] + 1, row["growth"], *(n for one in lists for n in one)]
        whole = all(type(n) is int and n >= 0 for n in numbers)
        if not whole or len({len(one) for one in lists}) != 1 or not lists[0] or type(row["cache"]) is not bool:
            raise TypeError(_DAMAGED)
        if len(lists[2]) * max(lists[2]) > 1 << 26 or not max(lists[2]):
            raise TypeError(_DAMAGED)
        first, after, steps = (tuple(one) for one in lists)
        return cls(row["axis"], first, after, row["growth"], steps, row["cache"])


def chosen_counts(positions: Positions, axes: Sequence[range]) -> NDArray[np.int64]:
    """Return the number of chosen elements at each time, of a selection with one range per axis.

    >>> chosen_counts(Positions(1, (0,), (4,), 1, (3,), cache=True), [range(2), range(1, 9, 2), range(3)]).tolist()
    [0, 12, 12]
    """
    others = 1
    for number, axis in enumerate(axes):
        others *= len(axis) if number != positions.axis else 1
    if positions.axis < 0:
        return np.where(positions.counts > 0, others, 0)
    return others * np.searchsorted(np.sort(np.array(axes[positions.axis])), positions.counts, side="left")


def chosen_elements(
    positions: Positions,
    axes: Sequence[range],
    shape: Sequence[int],
    number: NDArray[np.int64],
    time: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the flat indices of elements that are numbered among the chosen ones of their time ([n] each)."""
    flat, stride, rest = np.zeros_like(number), 1, number
    for k in reversed(range(len(axes))):
        places = np.sort(np.array(axes[k])) if k == positions.axis else np.array(axes[k])
        if k == positions.axis:
            many = np.searchsorted(places, positions.counts, side="left")[time]
        else:
            many = np.full_like(number, len(places))
        rest, place = np.divmod(rest, np.maximum(many, 1))
        flat += places[place] * stride
        stride *= shape[k]
    return flat
