"""Tests of values that are kept within a limit."""

from __future__ import annotations

import copy
from operator import attrgetter

import numpy as np

from onnxfi.runtime.engine.ports import Array
from onnxfi.runtime.engine.recently_used import RecentlyUsed


def test_what_was_used_longest_ago_is_made_again() -> None:
    kept, made = RecentlyUsed[Array](16, attrgetter("nbytes")), list[int]()

    def of(key: int) -> Array:
        return kept.of(key, lambda: (made.append(key), np.full(2, key, np.float32))[1])

    assert [of(key)[0] for key in (0, 1, 0, 2, 0, 1)] == [0, 1, 0, 2, 0, 1]
    assert made == [0, 1, 2, 1] and kept.total == 16
    assert [*copy.deepcopy(kept).values] == [0, 1]


def test_a_value_that_is_made_twice_at_once_counts_once() -> None:
    kept = RecentlyUsed[bytes](10, len)
    assert kept.of("a", lambda: kept.of("a", lambda: b"first") + b"second") == b"first" and kept.total == 5


def test_the_last_value_stays_whatever_it_costs() -> None:
    kept = RecentlyUsed[bytes](3, len)
    assert kept.of("a", lambda: bytes(9)) is kept.of("a", lambda: b"another")
    kept.of("b", lambda: b"1")
    assert [*kept.values] == ["b"] and kept.total == 1
