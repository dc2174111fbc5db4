"""Input shapes as text: `N,1,28,28`, `N,16:int64`. A letter is a dimension that may vary, a number a fixed one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.errors import InputError
from onnxfi.runtime.data.npz import read_npz
from onnxfi.runtime.engine.ports import Port, type_name

_DIMENSION = re.compile(r"[1-9]\d{0,8}|[A-Za-z_]\w*")
_TYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def parse_port(text: str, name: str) -> Port:
    """Return the input that a text describes.

    >>> parse_port("N,1,28,28", "image"), parse_port("1,16:int64", "ids").shape
    (Port(name='image', dtype='float32', shape=('N', 1, 28, 28)), (1, 16))
    >>> parse_port("N,-1", "x")
    Traceback (most recent call last):
    onnxfi.errors.InputError: input shape 'N,-1': invalid dimension '-1'; write N,1,28,28 or N,16:int64, ...
    """
    dims, colon, dtype = text.partition(":")
    parts = [part.strip() for part in dims.split(",")]
    for part in parts:
        if not _DIMENSION.fullmatch(part):
            raise InputError(
                f"input shape {text!r}: invalid dimension {part!r}; write N,1,28,28 or N,16:int64, a letter may vary"
            )
    if colon and dtype not in _TYPES:
        raise InputError(f"input shape {text!r}: unknown type {dtype!r}; use one of {', '.join(_TYPES)}")
    return Port(name, dtype or "float32", tuple(int(part) if part.isdigit() else part for part in parts))


def parse_ports(texts: Sequence[str], names: Sequence[str]) -> list[Port]:
    """Return the inputs that texts describe, in the order of the model's inputs."""
    if len(texts) > len(names):
        raise InputError(f"{len(texts)} input shapes, but the model takes {len(names)}: {', '.join(names) or 'none'}")
    return [parse_port(text, name) for text, name in zip(texts, names, strict=False)]


def ports_of(data: str | Path | Mapping[str, Any] | None, names: Sequence[str]) -> list[Port]:
    """Return inputs of the shapes of arrays in a dict or archive; the first axis, the samples, may vary."""
    if isinstance(data, str | Path) and Path(data).is_file():
        data = read_npz(Path(data))
    if not isinstance(data, Mapping):
        return []
    arrays = {name: np.asarray(data[name]) for name in names if name in data}
    return [Port(name, type_name(array), ("N", *array.shape[1:])) for name, array in arrays.items()]


def as_tuple(texts: str | Sequence[str]) -> tuple[str, ...]:
    """Return one text or several as a tuple."""
    return (texts,) if isinstance(texts, str) else tuple(texts)
