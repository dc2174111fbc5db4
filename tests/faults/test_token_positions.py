"""Positions that come and go: their sites are numbered without gaps, and each is there at its time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.faults.models import Flip
from onnxfi.faults.scope import ActivationSpace, FaultScope
from onnxfi.faults.sites import KV_CACHE, Target
from onnxfi.faults.space import FaultSpace
from onnxfi.faults.token_positions import Positions
from onnxfi.faults.words import WORDS


@st.composite
def held(draw: st.DrawFn) -> Positions:
    samples = draw(st.integers(1, 3))
    numbers = st.lists(st.integers(0, 4), min_size=samples, max_size=samples).map(tuple)
    steps = st.lists(st.integers(1, 4), min_size=samples, max_size=samples).map(tuple)
    return Positions(
        draw(st.sampled_from([-1, 0, 1])), draw(numbers), draw(numbers), draw(st.integers(0, 2)), draw(steps),
        cache=draw(st.booleans()),
    )  # fmt: skip


@given(held(), st.sampled_from(["", "1:,:", ":,::2", "0,1:3"]))
def test_every_site_is_numbered_once(positions: Positions, elements: str) -> None:
    most = max(1, int(positions.counts.max()))
    shape = tuple(most if k == positions.axis else 3 for k in range(2))
    target = Target(
        "k", WORDS["int8"], shape, KV_CACHE, samples=positions.samples, steps=positions.most_steps, positions=positions
    )
    space = FaultSpace.over([target], Flip(), bits="0,7", elements=elements)
    chosen = np.zeros(shape, bool)
    if elements:
        parts = [slice(*(int(n) if n else None for n in one.split(":"))) if ":" in one else int(one)
                 for one in elements.split(",")]  # fmt: skip
        if any(isinstance(one, int) and one >= n for one, n in zip(parts, shape, strict=True)):
            return
        chosen[tuple(parts)] = True
    else:
        chosen[:] = True
    wanted = set()
    for sample, step in itertools.product(range(positions.samples), range(positions.most_steps)):
        count = positions.at(sample, step) if step < positions.steps[sample] else 0
        for place in np.argwhere(chosen).tolist():
            if count and (positions.axis < 0 or place[positions.axis] < count):
                index = int(np.ravel_multi_index(place, shape))
                wanted |= {(sample, step, index, bit) for bit in (0, 7)}
    sites = space.locate(np.arange(space.size, dtype=np.uint64))
    assert sites.times is not None or not space.size
    found = [] if sites.times is None else list(
        zip(sites.times[:, 0].tolist(), sites.times[:, 1].tolist(), sites.index.tolist(), sites.bit.tolist(), strict=True)
    )  # fmt: skip
    assert len(found) == len(wanted) == space.size and set(found) == wanted


def test_a_cache_grows_by_a_position_a_step() -> None:
    positions = Positions(1, (0, 0), (6, 5), 1, (4, 2), cache=True)
    assert positions.counts.reshape(2, 4).tolist() == [[0, 6, 7, 8], [0, 5, 0, 0]]
    assert positions.at(1, 9) == 0
    assert positions.in_all().counts.tolist() == [5]


@given(held())
def test_positions_are_kept_in_a_list(positions: Positions) -> None:
    space = ActivationSpace(FaultScope(("kv-cache",)), positions.samples, positions={"a": positions, "b": positions})
    assert ActivationSpace.parse(space.row()) == space


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("first", [0]),
        ("steps", [-1, 2]),
        ("steps", [0, 0]),
        ("axis", -2),
        ("cache", 1),
        ("next", ["a", 1]),
        ("steps", [1 << 40, 1]),
    ],
)
def test_damaged_positions_are_refused(key: str, value: object) -> None:
    row = Positions(1, (0, 0), (6, 5), 1, (4, 2), cache=True).row() | {key: value}
    with pytest.raises(TypeError):
        Positions.parse(row)
