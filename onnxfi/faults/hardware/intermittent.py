"""Intermittent faults: present in some steps of a loop, or in some samples, and absent in the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import SelectorError
from onnxfi.faults.fault_model import FaultModel, Spread
from onnxfi.faults.models import BIT_EFFECTS
from onnxfi.faults.sampling import Numbers, derive, uniform
from onnxfi.faults.sites import LAST_STEP, Sites, Target


@dataclass(frozen=True)
class Intermittent(FaultModel):
    """Fault of one bit that comes and goes: with probability `on` at each step it comes, with `off` it goes again.

    Stands for a loose contact, a marginal cell or timing path. In a loop the steps of the site's sample count;
    elsewhere the samples, one after the other. At first it is present with its share of the time, on / (on + off).
    """

    on: float = 0.1
    off: float = 0.5
    effect: str = "flip"
    name = "intermittent"
    unit = "bit"
    composite = True
    examples = ("intermittent:on=0.2,off=0.2,effect=stuck-at-1",)

    def __post_init__(self) -> None:
        """Check the parameters."""
        self.require_known("effect", BIT_EFFECTS)
        for key in ("on", "off"):
            self.require(0 < getattr(self, key) <= 1, key, "a probability above 0")
        object.__setattr__(self, "self_inverse", self.effect == "flip")

    @property
    def element_model(self) -> FaultModel:
        """Effect where the fault is present."""
        return BIT_EFFECTS[self.effect]

    def fits(self, target: Target) -> bool:
        """Return True for activations; SelectorError where faults name neither samples nor steps."""
        if not target.is_activation:
            raise SelectorError(
                f"{target.id!r} is stored, so a fault in it does not come and go; give target activations"
            )
        if target.onwards or not (target.samples or target.steps):
            raise SelectorError(f"faults in {target.id!r} name neither step nor sample; use --persistence transient")
        return True

    def present(self, steps: int, raw: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the steps in which the fault of one raw word is present."""
        chances = uniform(derive(np.arange(steps, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ raw, 0)).tolist()
        state, found = False, []
        for step, chance in enumerate(chances):
            if not step:
                state = chance < self.on / (self.on + self.off)
            else:
                state = chance >= self.off if state else chance < self.on
            if state:
                found.append(step)
        return np.array(found, np.int64)

    def spread(self, targets: tuple[Target, ...], sites: Sites, raw: Numbers) -> Spread:
        """Return a fault for each step, or sample, in which it is present."""
        rows, times = list[int](), list[NDArray[np.int64]]()
        held = sites.times_or_all()
        for row, ordinal in enumerate(sites.target.tolist()):
            target = targets[ordinal]
            at = self.present(target.steps or target.samples, raw[row : row + 1])
            rows += [row] * len(at)
            if target.steps:
                times.append(np.stack([np.full_like(at, held[row, 0]), at, at], axis=1))
            else:
                times.append(np.stack([at, np.zeros_like(at), np.full_like(at, LAST_STEP)], axis=1))
        every = np.concatenate([np.zeros((0, 3), np.int64), *times])
        return replace(sites.pick(np.array(rows, np.int64)), times=every), (self.element_model,)
