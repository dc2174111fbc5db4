"""Inputs of an armed model: columns of several faults, merged or refused."""

from __future__ import annotations

import numpy as np
import pytest
from armed_models import named, parsed, run
from identity_models import identity, run_words, target

from onnxfi.errors import FaultError, SelectorError
from onnxfi.faults.words import WORDS, Mask
from onnxfi.graph.passes.fault_inputs import columns
from onnxfi.graph.passes.instrument import ActivationFault, arm, bake


def test_faults_of_one_word_are_merged_in_order() -> None:
    word = WORDS["float32"]
    plain = identity(word, 17, [1, 2])
    site = target(plain)
    stuck, flip = Mask(word.full & ~1, 1), Mask(word.full, 3)
    found = run_words(
        bake(plain, [ActivationFault(site, 1, stuck), ActivationFault(site, 1, flip)]),
        {"x": np.zeros((1, 2), "f4")},
        word,
    )
    assert found.tolist() == [0, 2]


def test_columns_that_do_not_go_together_are_loud() -> None:
    plain = identity(WORDS["float32"], 17, ["N", 4])
    armed = arm(plain, [target(plain)]).proto
    x = np.ones((2, 4), np.float32)
    good = {
        "onnxfi.site": np.array([0]),
        "onnxfi.element": np.array([[3]]),
        "onnxfi.keep": np.array([[-1]]),
        "onnxfi.flip": np.array([[1]]),
    }
    run_words(armed, {"x": x} | good, WORDS["float32"])
    for left in good:
        with pytest.raises(Exception, match=r"."):
            run_words(armed, {"x": x} | {k: v for k, v in good.items() if k != left}, WORDS["float32"])
    for wrong in (
        {"onnxfi.site": np.array([1])},
        {"onnxfi.element": np.array([[4]])},
        {"onnxfi.flip": np.ones((3, 1), "i8")},
    ):
        with pytest.raises(Exception, match=r"."):
            run_words(armed, {"x": x} | good | wrong, WORDS["float32"])


FULL = 0xFFFFFFFF


NEGATE = Mask(FULL, 1 << 31)


def test_columns_merge_and_refuse() -> None:
    plain = parsed("g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    armed = arm(plain, [named(plain, "y")])
    site = armed.sites[0]
    x = np.ones((2, 3), np.float32)
    twice = [
        ActivationFault(site, 1, NEGATE),
        ActivationFault(site, 1, NEGATE, sample=1),
        ActivationFault(site, 2, NEGATE, sample=0),
    ]
    found = run(armed.proto, {"x": x} | columns(armed, twice, batch=2))["y"]
    assert found.tolist() == [[1, -1, -1], [1, 1, 1]]
    assert all(c.size == 0 for c in columns(armed, []).values())
    for fault, why in (
        (ActivationFault(site, -1, NEGATE), "elements of 'y' are 0 to 2"),
        (ActivationFault(site, 3, NEGATE), "elements of 'y' are 0 to 2"),
        (ActivationFault(site, 0, NEGATE, sample=2), "samples are 0 to 1"),
        (ActivationFault(site, 0, NEGATE, first=1, last=1), "lies in no loop"),
        (ActivationFault(site, 0, Mask(FULL, 1 << 40)), "32 bits of float32"),
        (ActivationFault(site, 0, None, 2.0), "value fault cannot be fed"),
        (ActivationFault(named(plain, "x"), 0, NEGATE), "not armed"),
    ):
        with pytest.raises((SelectorError, FaultError), match=why):
            columns(armed, [fault], batch=2)
