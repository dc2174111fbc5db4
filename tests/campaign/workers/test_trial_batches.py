"""Tasks: which trials go to a worker together."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.campaign.workers.trial_batches import PendingTrial, batches_by_tensor, batches_in_order, interleaved, spread


def tasks(targets: list[str]) -> list[PendingTrial]:
    return [(k, json.dumps({"target": target}) + "\n") for k, target in enumerate(targets, 1)]


@given(st.lists(st.sampled_from("abcd"), max_size=60), st.integers(1, 12), st.integers(1, 3))
def test_trials_of_one_tensor_stay_together(targets: list[str], most: int, workers: int) -> None:
    groups = list(batches_by_tensor(iter(tasks(targets)), most, workers))
    most = min(most, -(-len(targets) // (4 * workers)))
    assert sorted(task for group in groups for task in group) == tasks(targets)
    assert all(0 < len(group) <= most for group in groups)
    holding = Counter(target for group in groups for target in {json.loads(lines)["target"] for _, lines in group})
    for target, count in Counter(targets).items():
        assert holding[target] <= -(-count // most) + (count > most), "only what is too large for one task is divided"


def test_a_long_campaign_is_gathered_batch_by_batch() -> None:
    targets = ["a", "b"] * 600
    groups = list(batches_by_tensor(iter(tasks(targets)), 64, lambda: 1))
    numbers, ends = [number for group in groups for number, _ in group], (64, 192, 448, 960)
    for end in ends:
        assert set(numbers[:end]) == set(range(1, end + 1))


def test_the_first_batches_go_over_all_tensors() -> None:
    targets = [letter for letter in "abcdefgh" for _ in range(8)]
    first = list(islice(batches_by_tensor(iter(tasks(targets)), 32, 2), 4))
    assert len({json.loads(lines)["target"] for group in first for _, lines in group}) >= 4


@given(st.lists(st.integers(), max_size=200))
def test_spread_items_are_all_there_and_lie_evenly(items: list[int]) -> None:
    assert sorted(spread(items)) == sorted(items)
    places, n = list(spread(range(len(items)))), len(items)
    for most in range(4, n, 7):  # no gap in a first part is much larger than in an even one
        gaps = np.diff([-1, *sorted(places[:most]), n])
        assert gaps.max() <= 4 * n / most + 1


def test_many_strata_are_interleaved_from_the_first_trial_on() -> None:
    strata = 3200
    found = [number for number, _ in interleaved(iter(tasks(["t"] * (2 * strata + 5))), strata)]
    assert sorted(found) == list(range(1, 2 * strata + 6))
    assert len({(number - 1) // 32 for number in found[:200]}) > 90, "nearly each of 100 layers"
    assert [number for number, _ in interleaved(iter(tasks(["t"] * 9)), 3)] == list(range(1, 10))


def test_no_worker_stands_idle() -> None:
    assert [len(group) for group in batches_by_tensor(iter(tasks(list("abcdefgh"))), 32, 2)] == [1] * 8


def test_trials_of_this_process_keep_their_order() -> None:
    assert [len(group) for group in batches_in_order(iter(tasks(list("abab") * 3)), 5)] == [5, 5, 2]
    assert [task for group in batches_in_order(iter(tasks(list("ba"))), 1) for task in group] == tasks(list("ba"))


def test_batches_grow_with_the_windows() -> None:
    sizes = [len(group) for group in batches_by_tensor(iter(tasks(["w"] * 40_000)), 2048, 2)]
    assert max(sizes[:8]) == 8 and max(sizes) == 2048 and sum(sizes) == 40_000
