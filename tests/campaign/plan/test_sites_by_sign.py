"""Sites by the sign of the weight: both signs together are the space, and each has its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.campaign.plan.sites_by_sign import SignBits, by_sign
from onnxfi.faults.models import Flip
from onnxfi.faults.sites import Index
from onnxfi.faults.space import FaultSpace, Target
from onnxfi.faults.words import WORDS, Words


def sites(space: FaultSpace) -> set[tuple[str, int, int]]:
    found = space.locate(np.arange(space.size, dtype=np.uint64))
    rows = zip(found.target.tolist(), found.index.tolist(), found.bit.tolist(), strict=True)
    return {(space.targets[target].id, index, bit) for target, index, bit in rows}


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from(["", "1:3", "::2,0"]))
def test_both_signs_together_are_the_space(seed: int, share: float, elements: str) -> None:
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 5), "v": (3, 2)}
    held = {name: np.where(rng.random(np.prod(shape)) < share, -1.0, 1.0) for name, shape in shapes.items()}
    targets = [Target(name, WORDS["float32"], shape) for name, shape in shapes.items()]
    space = FaultSpace.over(targets, Flip(), bits="30-31", elements=elements)

    def read(target: Target, index: Index) -> Words:
        return target.word.words(held[target.id][index])

    parts = dict(by_sign(space, tuple(SignBits.read(space, k, read) for k in range(2))))
    for sign, part in parts.items():
        for name, index, _ in sites(part) if sign else ():
            assert (held[name][index] < 0) == (sign == "-")
    assert sum(part.size for part in parts.values()) == space.size
    assert set().union(*map(sites, parts.values())) == sites(space)


@pytest.mark.parametrize("size", [1, 8 * 4096 + 5])
def test_elements_are_found_beyond_a_block(size: int) -> None:
    negative = np.random.default_rng(1).random(size) < 0.5
    space = FaultSpace.over([Target("w", WORDS["float16"], (size,))], Flip(), bits="15")
    signs = SignBits.read(space, 0, lambda target, index: target.word.words(np.where(negative[index], -2.0, 2.0)))
    for sign in (False, True):
        places = np.flatnonzero(negative == sign)
        assert signs.count(negative=sign) == len(places)
        assert np.array_equal(signs.places(np.arange(len(places)), negative=sign), places)
