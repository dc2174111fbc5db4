"""Samples that no file holds: arrays, tensors of a framework and datasets, and those that are made up from a seed.

They become arrays by the name of the input. Nothing of a framework is imported: its tensors give their
numbers through the array protocol of numpy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, closest
from onnxfi.runtime.data.batches import Data, layout
from onnxfi.runtime.data.decoder_inputs import completed, follows, is_decoder
from onnxfi.runtime.data.npz import memory_bytes
from onnxfi.runtime.engine.ports import Array, Port, element_type, one_line

#: The name of the labels among arrays.
LABELS = "labels"
#: Size of an open dimension where nothing says another: whole strides of an image net, a short text.
_OPEN_DIMENSION = 32


def named_arrays(given: Any, inputs: Sequence[Port], limit: int | None = None) -> dict[str, Array]:
    """Return samples as arrays by the name of the input, samples first, with the labels as ``labels``.

    Parameters
    ----------
    given : array, tuple, mapping or iterable
        An array or tensor for a model with one input; a pair of these and the labels; arrays by name; or a dataset: an
        iterable, whose items are one of these for a single sample (as of `torch.utils.data.Dataset`), or for a batch
        (as of a `DataLoader` or a `tf.data.Dataset`). Whether items are batches follows from the rank of the input.
    inputs : sequence of Port
        The inputs of the model.
    limit : int, optional
        The number of samples that are read; all by default.

    Returns
    -------
    dict of str to numpy.ndarray
        The arrays; their types and shapes are checked where they are opened as data.

    Raises
    ------
    DataError
        For what is none of these, an iterable without items, or an array where the model has several inputs.

    Examples
    --------
    >>> port = Port("x", "float32", ("N", 2))
    >>> pairs = [(np.array([1, 2], np.float32), 0), (np.array([3, 4], np.float32), 1)]
    >>> {name: array.tolist() for name, array in named_arrays(pairs, [port]).items()}
    {'x': [[1.0, 2.0], [3.0, 4.0]], 'labels': [0, 1]}
    """
    names = [port.name for port in inputs if not port.dtype.startswith("optional")]
    if isinstance(given, Mapping) or _is_array(given) or isinstance(given, tuple):
        return _cut(_item(given, names), limit)
    if isinstance(given, str | bytes) or not _is_iterable(given):
        raise DataError(
            f"{type(given).__name__} is no data; give arrays by the name of the input, an array, a pair of samples and "
            f"labels, a dataset, or the path of an .npz archive or a folder"
        )
    ranks = {port.name: len(port.shape) for port in inputs if port.shape is not None}
    parts: dict[str, list[Array]] = {}
    samples = 0
    for item in _items(given, limit):
        arrays = _item(item, names)
        single = any(name in ranks and array.ndim < ranks[name] for name, array in arrays.items())
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array[None] if single else array)
        samples += 1 if single else max((len(array) for array in arrays.values() if array.ndim), default=0)
        if limit is not None and samples >= limit:
            break
    if not parts:
        raise DataError(f"the {type(given).__name__} has no samples")
    try:
        return _cut({name: np.concatenate(arrays) for name, arrays in parts.items()}, limit)
    except ValueError as error:
        raise DataError(f"the samples do not fit together: {one_line(error)}") from None


def _items(given: Any, limit: int | None) -> Iterator[Any]:
    """Yield the items of an iterable, or of a sequence that has only a length and items, as datasets of PyTorch."""
    if hasattr(given, "__iter__"):
        yield from islice(given, limit)
    else:
        yield from (given[k] for k in range(len(given) if limit is None else min(limit, len(given))))


def _is_iterable(given: Any) -> bool:
    return isinstance(given, Iterable) or (hasattr(given, "__getitem__") and hasattr(given, "__len__"))


def _is_array(given: Any) -> bool:
    return hasattr(given, "__array__") or isinstance(given, np.generic | int | float)


def _item(item: Any, names: Sequence[str]) -> dict[str, Array]:
    """Return one item as arrays by name: those of a mapping, or the inputs in their order and then the labels."""
    if isinstance(item, Mapping):
        return {str(name): _array(array) for name, array in item.items()}
    values = list(item) if isinstance(item, tuple | list) and not _is_array(item) else [item]
    if len(values) == 2 and isinstance(values[0], Mapping):
        return {**_item(values[0], names), LABELS: _array(values[1])}
    known = [*names, LABELS] if LABELS not in names else list(names)
    if not len(names) <= len(values) <= len(known):
        raise DataError(
            f"an item of the data has {len(values)} values; the model takes {', '.join(map(repr, names))}, and labels "
            f"may follow; give arrays by name where the order is another"
        )
    return {name: _array(value) for name, value in zip(known, values, strict=False)}


def _array(value: Any) -> Array:
    """Return a tensor as an array; of one that computes gradients its numbers."""
    try:
        return np.asarray(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"a {type(value).__name__} is no array: {one_line(error)}") from None


def _cut(arrays: dict[str, Array], limit: int | None) -> dict[str, Array]:
    """Return the first samples of arrays; those without an axis of samples stay."""
    return arrays if limit is None else {n: a[:limit] if a.ndim else a for n, a in arrays.items()}


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
            known = closest(name, places) if places else "; none but that of the samples is open, so leave it out"
            raise DataError(f"no open dimension {name[:60]!r} of the inputs{known}")
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
