"""What a draw strikes beside stored words: values in flight, and for how long a fault is there.

`transient` is one sample, and where there are steps one step; `from` is every sample, from a step onwards; `permanent`
every sample and every step. A fault in a stored word is permanent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from onnxfi.errors import InputError, closest
from onnxfi.faults.sites import Target
from onnxfi.faults.words import WORDS

TARGETS = ("weights", "activations", "inputs")
PERSISTENCE = ("transient", "from", "permanent")
_KINDS = {"activation": "activations", "input": "inputs"}


@dataclass(frozen=True)
class Aim:
    """What is struck, and how long a fault in flight is there.

    `target` names stored words (`weights`), values in flight (`activations`, `inputs`), or several; `all` lets every
    value in flight count, also where nothing is selected, rather than those that layers put out.

    >>> Aim(("activations",)).flies, Aim().flies
    (True, False)
    """

    target: tuple[str, ...] = ("weights",)
    persistence: str = "transient"
    all: bool = False

    def __post_init__(self) -> None:
        for one in self.target:
            if one not in TARGETS:
                raise InputError(f"target {one!r} is unknown{closest(one, TARGETS)}")
        if not self.target or len(set(self.target)) < len(self.target):
            raise InputError(f"target names {', '.join(TARGETS)}, each once")
        if self.persistence not in PERSISTENCE:
            raise InputError(f"persistence {self.persistence!r} is unknown{closest(self.persistence, PERSISTENCE)}")

    @property
    def flies(self) -> bool:
        """Whether values in flight are struck."""
        return self.target != ("weights",)

    def takes(self, target: Target) -> bool:
        """Whether a target is of a kind that is struck."""
        return _KINDS.get(target.kind, "weights") in self.target


@dataclass(frozen=True)
class Flight:
    """What binds faults in flight to their run: how many samples there are, and what only a run tells.

    `steps` are the iterations of the loops around targets, `shapes` the shapes of a sample, `places` the axis of the
    samples with the rows of each before and behind (`SampleAxis`; none: []), `types` number formats, all by target id
    and only where the file does not say them.
    """

    aim: Aim = field(default_factory=Aim)
    samples: int = 0
    steps: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    places: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As plain values for JSON."""
        told: dict[str, Any] = {}
        if self.places:
            told["places"] = {name: list(place) for name, place in self.places.items()}
        if self.types:
            told["types"] = dict(self.types)
        return {
            "target": list(self.aim.target), "persistence": self.aim.persistence, "all": self.aim.all,
            "samples": self.samples, "steps": dict(self.steps),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()}, **told,
        }  # fmt: skip

    @classmethod
    def parse(cls, row: Any) -> Flight:
        """Read what `row` gave; ValueError, KeyError or TypeError where that is damaged."""
        places, types = row.get("places", {}), row.get("types", {})
        texts = [row["persistence"], *row["target"], *row["steps"], *row["shapes"], *places, *types]
        numbers = [row["samples"], *row["steps"].values(), *(n for shape in row["shapes"].values() for n in shape)]
        numbers += [n for place in places.values() for n in place]
        if not all(isinstance(one, str) for one in texts) or isinstance(row["target"], str):
            raise TypeError("what is struck in flight is damaged")
        if (
            not all(type(one) is int and one >= 0 for one in numbers)
            or type(row["all"]) is not bool
            or any(one not in WORDS for one in types.values())
            or any(len(one) not in (0, 3) or 0 in one[1:] for one in places.values())
        ):
            raise TypeError("what is struck in flight is damaged")
        return cls(
            Aim(tuple(row["target"]), row["persistence"], row["all"]), row["samples"], dict(row["steps"]),
            {name: tuple(shape) for name, shape in row["shapes"].items()},
            {name: tuple(place) for name, place in places.items()},
            dict(types),
        )  # fmt: skip


def timed(target: Target, persistence: str, samples: int, steps: int, *, batched: bool) -> Target:
    """A value in flight with the times at which it can be struck: of its samples one, of its steps one, or all.

    >>> from onnxfi.faults.words import WORDS
    >>> timed(Target("h", WORDS["int8"], (4,), "activation"), "transient", 10, 3, batched=True).times
    30
    """
    return replace(
        target,
        samples=samples if persistence == "transient" and batched else 0,
        steps=0 if persistence == "permanent" else steps,
        onwards=persistence == "from",
    )
