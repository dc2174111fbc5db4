"""Scope of faults: weights or activations, and for how long a fault is present.

A `transient` fault is present in one sample, and in one step if the tensor is in a loop; `from` in every sample, from
one step onwards; `permanent` in every sample and every step. A fault in a weight is permanent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from onnxfi.errors import InputError, closest
from onnxfi.faults.sites import KV_CACHE, Target
from onnxfi.faults.token_positions import Positions
from onnxfi.faults.words import WORDS

TARGETS = ("weights", "activations", "inputs", "kv-cache")
PERSISTENCE = ("transient", "from", "permanent")
_KINDS = {"activation": "activations", "input": "inputs", KV_CACHE: "kv-cache"}
_DAMAGED = "the activations of the header are damaged"


@dataclass(frozen=True)
class FaultScope:
    """Kinds of tensors into which faults are injected, and the persistence of faults in activations.

    Attributes
    ----------
    target : tuple of {"weights", "activations", "inputs", "kv-cache"}
        Kinds of tensors.
    persistence : {"transient", "from", "permanent"}
        Persistence of faults in activations and inputs.
    all : bool
        True if every activation counts without being selected, not only the outputs of layers.

    Examples
    --------
    >>> FaultScope(("activations",)).includes_activations, FaultScope().includes_activations
    (True, False)
    """

    target: tuple[str, ...] = ("weights",)
    persistence: str = "transient"
    all: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        for one in self.target:
            if one not in TARGETS:
                raise InputError(f"target {one!r} is unknown{closest(one, TARGETS)}")
        if not self.target or len(set(self.target)) < len(self.target):
            raise InputError(f"target names {', '.join(TARGETS)}, each once")
        if self.persistence not in PERSISTENCE:
            raise InputError(f"persistence {self.persistence!r} is unknown{closest(self.persistence, PERSISTENCE)}")

    @property
    def includes_activations(self) -> bool:
        """True if faults are injected into what is computed at run time."""
        return self.target != ("weights",)

    def includes(self, target: Target) -> bool:
        """Return True if a target is of one of the kinds."""
        return _KINDS.get(target.kind, "weights") in self.target


@dataclass(frozen=True)
class ActivationSpace:
    """Scope of faults in activations, with the samples, steps and shapes that only a run of the model shows.

    Attributes
    ----------
    scope : FaultScope
        Kinds of tensors, and the persistence.
    samples : int
        Number of samples of the data.
    steps : mapping of str to int
        Iterations of the loop around a target.
    shapes : mapping of str to tuple of int
        Shape of a target in one sample.
    sample_axes : mapping of str to tuple of int
        Axis of the samples, with the rows of each before and behind it (`SampleAxis`); empty if there is none.
    types : mapping of str to str
        Number format of a target.
    positions : mapping of str to Positions
        Positions of a target at each step of a generation loop.

    Notes
    -----
    The mappings are by target id, and hold only what the model file does not say.
    """

    scope: FaultScope = field(default_factory=FaultScope)
    samples: int = 0
    steps: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    sample_axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[str, Positions] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the value as plain values for JSON."""
        optional: dict[str, Any] = {}
        if self.sample_axes:
            optional["sample_axes"] = {name: list(axis) for name, axis in self.sample_axes.items()}
        if self.types:
            optional["types"] = dict(self.types)
        if self.positions:
            every = dict.fromkeys(self.positions.values())
            optional["positions"] = [
                {**one.row(), "targets": [name for name, held in self.positions.items() if held == one]}
                for one in every
            ]
        return {
            "target": list(self.scope.target), "persistence": self.scope.persistence, "all": self.scope.all,
            "samples": self.samples, "steps": dict(self.steps),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()}, **optional,
        }  # fmt: skip

    @classmethod
    def parse(cls, row: Any) -> ActivationSpace:
        """Return what `row` gave; ValueError, KeyError or TypeError if it is damaged."""
        sample_axes, types = row.get("sample_axes", {}), row.get("types", {})
        texts = [row["persistence"], *row["target"], *row["steps"], *row["shapes"], *sample_axes, *types]
        numbers = [row["samples"], *row["steps"].values(), *(n for shape in row["shapes"].values() for n in shape)]
        numbers += [n for axis in sample_axes.values() for n in axis]
        positions = dict[str, Positions]()
        for block in row.get("positions", ()):
            positions |= dict.fromkeys(block["targets"], Positions.parse(block))
        texts += positions
        if not all(isinstance(one, str) for one in texts) or isinstance(row["target"], str):
            raise TypeError(_DAMAGED)
        if (
            not all(type(one) is int and one >= 0 for one in numbers)
            or type(row["all"]) is not bool
            or any(one not in WORDS for one in types.values())
            or any(len(one) not in (0, 3) or 0 in one[1:] for one in sample_axes.values())
        ):
            raise TypeError(_DAMAGED)
        return cls(
            FaultScope(tuple(row["target"]), row["persistence"], row["all"]), row["samples"], dict(row["steps"]),
            {name: tuple(shape) for name, shape in row["shapes"].items()},
            {name: tuple(axis) for name, axis in sample_axes.items()},
            dict(types),
            positions,
        )  # fmt: skip


def with_times(target: Target, persistence: str, samples: int, steps: int, *, batched: bool) -> Target:
    """Return an activation with the times at which it can be faulty: one or all of its samples, and of its steps.

    >>> from onnxfi.faults.words import WORDS
    >>> with_times(Target("h", WORDS["int8"], (4,), "activation"), "transient", 10, 3, batched=True).times
    30
    """
    return replace(
        target,
        samples=samples if persistence == "transient" and batched else 0,
        steps=0 if persistence == "permanent" else steps,
        onwards=persistence == "from",
    )
