"""What goes in: `N,1,28,28`, `N,16:int64`. A letter is a dimension that may vary, a number one that is fixed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.errors import InputError
from onnxfi.runtime.data.npz import read_npz
from onnxfi.runtime.engine.model_io import Port, type_name

_DIMENSION = re.compile(r"[1-9]\d{0,8}|[A-Za-z_]\w*")
_TYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def port(text: str, name: str) -> Port:
    """An input from its text.

    >>> port("N,1,28,28", "image"), port("1,16:int64", "ids").shape
    (Port(name='image', dtype='float32', shape=('N', 1, 28, 28)), (1, 16))
    >>> port("N,-1", "x")
    Traceback (most recent call last):
    onnxfi.errors.InputError: input shape 'N,-1': '-1' is no dimension; write N,1,28,28 or N,16:int64, a letter varies
    """
    dims, colon, dtype = text.partition(":")
    parts = [part.strip() for part in dims.split(",")]
    for part in parts:
        if not _DIMENSION.fullmatch(part):
            raise InputError(
                f"input shape {text!r}: {part!r} is no dimension; write N,1,28,28 or N,16:int64, a letter varies"
            )
    if colon and dtype not in _TYPES:
        raise InputError(f"input shape {text!r}: no type {dtype!r}; one of {', '.join(_TYPES)}")
    return Port(name, dtype or "float32", tuple(int(part) if part.isdigit() else part for part in parts))


def ports(texts: Sequence[str], names: Sequence[str]) -> list[Port]:
    """Inputs from their texts, in the order of the model's own names."""
    if len(texts) > len(names):
        raise InputError(f"{len(texts)} input shapes, but the model takes {len(names)}: {', '.join(names) or 'none'}")
    return [port(text, name) for text, name in zip(texts, names, strict=False)]


def ports_of(data: str | Path | Mapping[str, Any] | None, names: Sequence[str]) -> list[Port]:
    """Inputs as the arrays of a dict or an archive are shaped, samples along the first axis, which may vary."""
    if isinstance(data, str | Path) and Path(data).is_file():
        data = read_npz(Path(data))
    if not isinstance(data, Mapping):
        return []
    arrays = {name: np.asarray(data[name]) for name in names if name in data}
    return [Port(name, type_name(array), ("N", *array.shape[1:])) for name, array in arrays.items()]


def tuple_of(texts: str | Sequence[str]) -> tuple[str, ...]:
    """One text or many, as many."""
    return (texts,) if isinstance(texts, str) else tuple(texts)
