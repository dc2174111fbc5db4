"""Scope of faults: tensors that it includes, times of a target, and rows that are read back or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import formats, names

from onnxfi.errors import InputError
from onnxfi.faults.scope import PERSISTENCE, TARGETS, ActivationSpace, FaultScope, with_times
from onnxfi.faults.sites import Target
from onnxfi.faults.words import WORDS

scopes = st.builds(
    FaultScope,
    st.lists(st.sampled_from(TARGETS), min_size=1, unique=True).map(tuple),
    st.sampled_from(PERSISTENCE),
    st.booleans(),
)
sizes = st.integers(0, 9)
spaces = st.builds(
    ActivationSpace,
    scopes,
    sizes,
    st.dictionaries(names, sizes),
    st.dictionaries(names, st.lists(sizes).map(tuple)),
    st.dictionaries(names, st.just(()) | st.tuples(sizes, st.integers(1, 9), st.integers(1, 9))),
    st.dictionaries(names, formats.map(lambda word: word.name)),
)


@given(scopes)
def test_a_target_is_included_by_its_kind(scope: FaultScope) -> None:
    kinds = {"initializer": "weights", "attribute": "weights", "activation": "activations", "input": "inputs"}
    for kind, name in kinds.items():
        assert scope.includes(Target("w", WORDS["int8"], (2,), kind)) == (name in scope.target)
    assert scope.includes_activations == bool({"activations", "inputs", "kv-cache"} & set(scope.target))


@given(spaces)
def test_a_row_gives_the_space_back(space: ActivationSpace) -> None:
    assert ActivationSpace.parse(space.row()) == space


@pytest.mark.parametrize(
    "change",
    [
        {"samples": -1}, {"samples": True}, {"samples": "3"}, {"target": "weights"}, {"target": [1]}, {"all": 1},
        {"persistence": 1}, {"persistence": "forever"}, {"steps": {"h": -1}}, {"shapes": {"h": [1.5]}},
        {"types": {"h": "float99"}}, {"sample_axes": {"h": [0, 1]}}, {"sample_axes": {"h": [0, 0, 1]}},
    ],
    ids=str,
)  # fmt: skip
def test_damaged_rows_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, InputError)):
        ActivationSpace.parse(ActivationSpace().row() | change)


def test_scopes_that_cannot_be() -> None:
    with pytest.raises(InputError, match="target 'activation' is unknown; closest: 'activations'"):
        FaultScope(("activation",))
    for target in ((), ("inputs", "inputs")):
        with pytest.raises(InputError, match="target names weights, activations, inputs, kv-cache, each once"):
            FaultScope(target)
    with pytest.raises(InputError, match="persistence 'permanet' is unknown; closest: 'permanent'"):
        FaultScope(persistence="permanet")


@pytest.mark.parametrize(
    ("persistence", "batched", "times"),
    [
        ("transient", True, 5 * 3), ("transient", False, 3), ("from", True, 3), ("permanent", True, 1),
    ],
)  # fmt: skip
def test_times_are_those_of_the_persistence(persistence: str, batched: bool, times: int) -> None:
    target = with_times(Target("h", WORDS["int8"], (4,), "activation"), persistence, 5, 3, batched=batched)
    assert (target.times, target.onwards) == (times, persistence == "from")
