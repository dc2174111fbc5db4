"""Intermittent faults: a chain that comes and goes with the given rates."""

from __future__ import annotations

import numpy as np
import pytest

from onnxfi.errors import FaultError, SelectorError
from onnxfi.faults.hardware.intermittent import Intermittent
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.sites import LAST_STEP, Target
from onnxfi.faults.space import FaultSpace
from onnxfi.faults.trials import Sampler, draw_faults
from onnxfi.faults.words import WORDS

LOOP = Target("h", WORDS["float32"], (4,), "activation", samples=3, steps=20)
FLAT = Target("y", WORDS["float32"], (4,), "activation", samples=50)


def test_it_comes_and_goes_with_its_rates() -> None:
    model = Intermittent(on=0.1, off=0.4)
    present = model.present(20_000, np.array([5], np.uint64))
    state = np.zeros(20_000, bool)
    state[present] = True
    assert abs(state.mean() - 0.2) < 0.02
    assert abs(state[1:][~state[:-1]].mean() - 0.1) < 0.01
    assert abs((~state[1:][state[:-1]]).mean() - 0.4) < 0.03


def test_steps_of_one_sample_or_samples_have_the_same_fault() -> None:
    model = parse_fault("intermittent:on=0.5,off=0.5,effect=stuck-at-1")
    for target in (LOOP, FLAT):
        faults = draw_faults(FaultSpace.over((target,), model), Sampler("count", n=1, seed=3), model)
        assert len(faults) > 3
        assert {(fault.index, fault.bits, fault.fault) for fault in faults} == {
            (faults[0].index, faults[0].bits, "stuck-at-1")
        }
        assert faults.sites.times is not None
        sample, first, last = faults.sites.times.T
        if target is LOOP:
            assert len(set(sample.tolist())) == 1 and (first == last).all() and (np.diff(first) > 0).all()
        else:
            assert (np.diff(sample) > 0).all() and (first == 0).all() and (last == LAST_STEP).all()


def test_what_never_comes_or_stays_is_refused() -> None:
    for text in ("intermittent:on=0", "intermittent:off=2", "intermittent:effect=zero"):
        with pytest.raises(FaultError, match=r"out of range|unknown"):
            parse_fault(text)
    for target, why in (
        (Target("w", WORDS["float32"], (4,)), "is stored"),
        (Target("y", WORDS["float32"], (4,), "activation"), "transient"),
    ):
        with pytest.raises(SelectorError, match=why):
            FaultSpace.over((target,), Intermittent())
