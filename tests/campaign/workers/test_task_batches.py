"""Tasks: which trials go to a worker together."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from onnxfi.campaign.workers.task_batches import PendingTrial, batches_by_tensor, batches_in_order


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
    first = [task for group in islice(batches_by_tensor(iter(tasks(targets)), 2000, lambda: 1), 4) for task in group]
    assert {number for number, _ in first} == set(range(1, 513))


def test_no_worker_stands_idle() -> None:
    assert [len(group) for group in batches_by_tensor(iter(tasks(list("abcdefgh"))), 32, 2)] == [1] * 8


def test_trials_of_this_process_keep_their_order() -> None:
    assert [len(group) for group in batches_in_order(iter(tasks(list("abab") * 3)), 5)] == [5, 5, 2]
    assert [task for group in batches_in_order(iter(tasks(list("ba"))), 1) for task in group] == tasks(list("ba"))
