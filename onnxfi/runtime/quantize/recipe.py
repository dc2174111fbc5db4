"""Recipes: the settings of a quantisation, checked before anything runs."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from typing import Any

from onnxfi.errors import InputError, closest

MODES = ("static", "dynamic", "weight-only", "fp16", "bf16")
#: Names for a mode with its usual settings, as tools for transformers give them.
SHORT: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("dynamic", {"weights": "int8", "per_channel": True}),
    "int4": ("weight-only", {"weights": "int4"}),
}
FORMATS = ("qdq", "qoperator")
WEIGHTS = ("int8", "uint8", "int4", "uint4")
ACTIVATIONS = ("uint8", "int8", "uint16", "int16")
CALIBRATIONS = ("minmax", "entropy", "percentile")
#: The flags of each mode, and their values.
_ALLOWED: dict[str, dict[str, tuple[str, ...]]] = {
    "static": {"format": FORMATS, "weights": WEIGHTS, "activations": ACTIVATIONS, "calibration": CALIBRATIONS},
    "dynamic": {"weights": ("int8", "uint8")},
    "weight-only": {"format": FORMATS, "weights": WEIGHTS},
    "fp16": {},
    "bf16": {},
}
_PER_CHANNEL = ("static", "dynamic")
_DEFAULTS = {
    "static": {"format": "qdq", "weights": "int8", "activations": "", "calibration": "minmax"},
    "dynamic": {"weights": "int8"},
    "weight-only": {"format": "qoperator", "weights": "int4"},
}


@dataclass(frozen=True)
class QuantisationRecipe:
    """Settings of a quantisation. Fields have the names of the flags; an empty one takes the default of the mode.

    Parameters
    ----------
    mode : {"static", "dynamic", "weight-only", "fp16", "bf16", "int8", "int4"}
        The kind of quantisation. "int8" is dynamic with int8 weights and a scale per channel, "int4" weight-only with
        int4 weights.
    format : {"qdq", "qoperator"}
        Form of the quantised operators.
    weights, activations : str
        Number formats, as `int8`.
    per_channel : bool
        Give each output channel of a weight a scale of its own.
    calibration : {"minmax", "entropy", "percentile"}
        How the ranges of activations are found.
    calibration_samples : int
        Samples of the data that are used for it.
    block : int
        Elements of a weight that share a scale, in mode weight-only.
    exclude : tuple of str
        Patterns of nodes, layers or weights that stay float.
    opset : int, optional
        Opset to which the model is raised first.

    Raises
    ------
    InputError
        For a setting that the mode does not have, or a value that it does not allow.

    Examples
    --------
    >>> QuantisationRecipe("dynamic", calibration="entropy")
    Traceback (most recent call last):
    onnxfi.errors.InputError: --calibration has no effect in mode dynamic; leave it out
    """

    mode: str
    format: str = ""
    weights: str = ""
    activations: str = ""
    per_channel: bool = False
    calibration: str = ""
    calibration_samples: int = 200
    block: int = 32
    exclude: tuple[str, ...] = ()
    opset: int | None = None

    def __post_init__(self) -> None:
        if self.mode in SHORT:
            mode, settings = SHORT[self.mode]
            if self.weights not in ("", settings["weights"]):
                raise InputError(f"--mode {self.mode} has {self.mode} weights, not {self.weights}; use --mode {mode}")
            for name, value in {"mode": mode, **settings}.items():
                object.__setattr__(self, name, value)
        if self.mode not in MODES:
            raise InputError(f"no mode {self.mode!r}{closest(self.mode, (*MODES, *SHORT))}")
        allowed = _ALLOWED[self.mode]
        for name in ("format", "weights", "activations", "calibration"):
            value = getattr(self, name)
            if value and name not in allowed:
                raise InputError(f"--{name} has no effect in mode {self.mode}; leave it out")
            if value and value not in allowed[name]:
                raise InputError(f"--{name} {value!r} is not for mode {self.mode}; give {' or '.join(allowed[name])}")
        if self.per_channel and self.mode not in _PER_CHANNEL:
            raise InputError(f"--per-channel has no effect in mode {self.mode}; leave it out")
        narrow = [n for n in ("weights", "activations") if getattr(self, n) and getattr(self, n)[-1] in "46"]
        if self.mode == "static" and self.format == "qoperator" and narrow:
            raise InputError(f"--{narrow[0]} {getattr(self, narrow[0])} has no QOperator form; use --format qdq")
        if self.mode == "weight-only" and self.format == "qdq" and self.weights.endswith("8"):
            raise InputError(
                f"--weights {self.weights} has no QDQ form in mode weight-only, int4 and uint4 have; "
                f"use --format qoperator, or --mode dynamic"
            )
        if self.block not in (16, 32, 64, 128, 256):
            raise InputError(f"--block {self.block} is not for MatMulNBits; give 16, 32, 64, 128 or 256")
        if self.block != 32 and self.mode != "weight-only":
            raise InputError(f"--block has no effect in mode {self.mode}; leave it out")
        if self.calibration_samples < 1:
            raise InputError(f"--calibration-samples {self.calibration_samples} is out of range; give 1 or more")

    def settled(self) -> tuple[QuantisationRecipe, list[str]]:
        """Return the recipe with the defaults of its mode, and notes on them."""
        notes = []
        filled: dict[str, Any] = {k: getattr(self, k) or v for k, v in _DEFAULTS.get(self.mode, {}).items()}
        recipe = replace(self, **filled)
        if self.mode == "static" and not self.activations:
            x86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
            recipe = replace(recipe, activations="uint8" if x86 else "int8")
            if x86:
                notes.append("activations are uint8: with int8 ONNX Runtime keeps few integer kernels on x86")
        return recipe, notes
