"""Samples that a program holds: arrays, tensors of a framework, datasets. They become arrays by the name of the input.

Nothing of a framework is imported: its tensors give their numbers through the array protocol of numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from onnxfi.errors import DataError
from onnxfi.runtime.engine.ports import Array, Port, one_line

#: The name of the labels among arrays.
LABELS = "labels"


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
