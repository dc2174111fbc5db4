"""Registry of fault models: every model by its name, and parsing of its text form."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cache

from onnxfi.faults.fault_model import FaultModel, parse_model, with_installed
from onnxfi.faults.models import BUILT_IN
from onnxfi.faults.neuron_models import NEURON_MODELS

#: Fault models of `faults/hardware/` by module: loaded as those of other packages are, when models are asked for.
_HARDWARE = {
    "patterns": ("Pattern",),
    "cells": ("CellCluster", "AsymmetricFlip"),
    "sensors": ("StuckPixel", "StuckLine", "SaltPepper", "PixelFlip"),
    "distribution": ("Distribution",),
    "fault_map": ("FaultMap",),
    "array": ("Array",),
    "memory_faults": ("MemoryPart",),
    "intermittent": ("Intermittent",),
}


@cache
def fault_models() -> Mapping[str, type[FaultModel]]:
    """Return every fault model by its name: onnxfi's own and those that installed packages offer.

    Returns
    -------
    mapping of str to type
        Read-only; the docstring of each class says which physical effect it stands for.

    Raises
    ------
    FaultError
        If an installed package offers something that is not a fault model, or takes a name twice.

    Examples
    --------
    >>> sorted(fault_models())[:3]
    ['add', 'array', 'asymmetric-flip']
    """
    return with_installed((*BUILT_IN, *NEURON_MODELS, *_of_hardware()))


def _of_hardware() -> Iterator[type[FaultModel]]:
    """Load the fault models of the room above, which is built on these."""
    for module, names in _HARDWARE.items():
        loaded = importlib.import_module(f"{__package__}.hardware.{module}")
        yield from (getattr(loaded, name) for name in names)


def parse_fault(text: str) -> FaultModel:
    """Return the fault model that `NAME[:key=value,…]` describes.

    Parameters
    ----------
    text : str
        Name of the model, then its parameters; parameters left out have their default.

    Returns
    -------
    FaultModel
        Frozen; `str(model)` is its text form again.

    Raises
    ------
    FaultError
        If the name or a key does not exist (the message names the closest), or a value is out of range.

    Examples
    --------
    >>> parse_fault("burst:k=3")
    Burst(k=3)
    >>> str(parse_fault("set-word:word=0x7f800000"))
    'set-word:word=0x7f800000'
    """
    return parse_model(text, fault_models())
