"""Inputs that are made up from a seed, where there is no data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, closest
from onnxfi.runtime.data.batches import Data, layout
from onnxfi.runtime.data.decoder_inputs import completed, follows, is_decoder
from onnxfi.runtime.data.npz import memory_bytes
from onnxfi.runtime.engine.ports import Array, Port, element_type

#: Size of an open dimension where nothing says another: whole strides of an image net, a short text.
_OPEN_DIMENSION = 32


def synthetic(ports: Sequence[Port], samples: int, seed: int, batch_axis: int = 0, dim: Sequence[str] = ()) -> Data:
    """Make inputs from Philox words keyed by seed and input number; more samples extend fewer.

    Floats are uniform in [0, 1), 8-bit integers uniform over their range, other integers and booleans 0 or 1,
    which every embedding and mask takes. An open dimension has 32, or what `dim` says; one of open rank is a scalar.

    >>> data = synthetic([Port("x", "float32", ("N", 2))], samples=2, seed=0)
    >>> next(data.batches(2)).feeds["x"]
    array([[0.01154673, 0.2415492 ],
           [0.11142582, 0.5644146 ]], dtype=float32)
    """
    place = layout(ports, batch_axis)
    arrays: dict[str, Array] = {}
    sizes = _sizes(ports, dim, dict(place.axes))
    decoder = is_decoder(ports)
    for number, port in enumerate(ports):
        if decoder and follows(port):
            continue
        shape = [
            n if isinstance(n, int) else sizes.get((port.name, k), _OPEN_DIMENSION)
            for k, n in enumerate(port.shape or ())
        ]
        axis = place.batched.get(port.name)
        if axis is not None:
            del shape[axis]
            shape.insert(0, samples)
        count = math.prod(shape)
        if 32 * count > memory_bytes():  # words, numbers, and what lies between them
            raise DataError(f"input {port} is too large to be made up; give data")
        words = np.random.Philox(key=np.array([seed, number], np.uint64)).random_raw(count)
        array = _values(np.asarray(words, np.uint64).reshape(shape), port)
        arrays[port.name] = array if axis is None else np.moveaxis(array, 0, axis)
    arrays = completed(arrays, ports)
    arrays = {port.name: arrays[port.name] for port in ports}
    many = place.rows(arrays)
    noun = "sample" if many == 1 else "samples"
    of = f"{many} synthetic {noun} of seed {seed}, unlabelled; floats in [0, 1), open dimensions of 32"
    of += "".join(f", {one.replace('=', ' ')}" for one in dim)
    return Data.of_arrays(arrays, None, place, of, synthetic=True)


def _sizes(ports: Sequence[Port], dim: Sequence[str], batched: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """Return the sizes of open dimensions by input and axis; DataError for a name that is none of them."""
    places: dict[str, list[tuple[str, int]]] = {}
    for port in ports:
        for axis, size in enumerate(port.shape or ()):
            if not isinstance(size, int) and batched.get(port.name) != axis:
                places.setdefault(size or f"{port.name}[{axis}]", []).append((port.name, axis))
    found: dict[tuple[str, int], int] = {}
    for text in dim:
        name, _, size = text.rpartition("=")
        if not re.fullmatch(r"[1-9]\d{0,8}", size, re.ASCII) or not name:
            raise DataError(f"dim is {text[:60]!r}; it takes NAME=SIZE, as T=512")
        if name not in places:
            raise DataError(f"no open dimension {name[:60]!r} of the inputs{closest(name, places) if places else ''}")
        found |= dict.fromkeys(places[name], int(size))
    return found


def _values(words: NDArray[np.uint64], port: Port) -> Array:
    """Words as values of the port's type."""
    if port.dtype == "string":
        raise DataError(f"input {port} takes text, which is not made up; give data")
    element = element_type(port.dtype)
    if element.kind in "iub":
        return (words & np.uint64(255 if port.dtype in ("int8", "uint8") else 1)).astype(element)
    # As many bits as the type holds, so that none rounds up to 1.
    bits = int(ml_dtypes.finfo(element).nmant) + 1  # type: ignore[no-untyped-call]
    values: Array = ((words >> np.uint64(64 - bits)) * 2.0**-bits).astype(element)
    return values
