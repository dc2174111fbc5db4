"""Inputs of a decoder that follow from its tokens: masks, positions, and a cache in which nothing is yet."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from onnxfi.errors import DataError
from onnxfi.graph.dataflow.lookup_tables import LookupTable
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.engine.ports import Array, Port, element_type

#: The input of the tokens, as Optimum and the exporters of Hugging Face models name it.
TOKENS = "input_ids"
_MASK, _POSITIONS, _BRANCH = "attention_mask", "position_ids", "use_cache_branch"
_CACHE = re.compile(r"past(_key_values?)?[._]\d+|past_key_values")


def is_cache(port: Port) -> bool:
    """Return true for an input that holds keys or values of past positions.

    >>> is_cache(Port("past_key_values.0.key", "float32", ("batch", 4, "past", 24)))
    True
    """
    return _CACHE.match(port.name) is not None and port.shape is not None and len(port.shape) >= 4


def is_decoder(ports: Sequence[Port]) -> bool:
    """Return true for the inputs of a decoder: tokens, and a cache of past positions."""
    return any(port.name == TOKENS for port in ports) and any(map(is_cache, ports))


def follows(port: Port) -> bool:
    """Return true for an input of a decoder that follows from its tokens."""
    return port.name in (_MASK, _POSITIONS, _BRANCH) or is_cache(port)


def completed(arrays: Mapping[str, Array], ports: Sequence[Port]) -> dict[str, Array]:
    """Return arrays with the inputs of a decoder that follow from its tokens, where they are not given.

    All positions are seen, positions count those that are, and the cache has length 0: the axes of the cache that are
    neither samples nor of a known size are empty. Other models get nothing.

    >>> ports = [Port("input_ids", "int64", ("N", "T")), Port("past_key_values.0.key", "float32", ("N", 4, "P", 24))]
    >>> completed({"input_ids": np.zeros((2, 8), np.int64)}, ports)["past_key_values.0.key"].shape
    (2, 4, 0, 24)
    """
    found, known = dict(arrays), {port.name: port for port in ports}
    tokens = found.get(TOKENS)
    if tokens is None or tokens.ndim != 2 or not is_decoder(ports):
        return found
    claimed = tokens.size > 1 and not any(tokens.strides)  # an archive that is not read yet
    for name in (_MASK, _POSITIONS) if claimed else ():
        if name in known and name not in found:
            found[name] = np.broadcast_to(np.ones((), element_type(known[name].dtype)), tokens.shape)
    if _MASK in known and _MASK not in found:
        found[_MASK] = np.ones(tokens.shape, element_type(known[_MASK].dtype))
    if _POSITIONS in known and _POSITIONS not in found:
        mask = found.get(_MASK)
        seen = np.ones(tokens.shape, np.int64) if mask is None or mask.shape != tokens.shape else mask
        places = np.maximum(np.cumsum(seen != 0, axis=1) - 1, 0)
        found[_POSITIONS] = places.astype(element_type(known[_POSITIONS].dtype))
    if _BRANCH in known and _BRANCH not in found:
        found[_BRANCH] = np.zeros(1, np.bool_)
    for port in ports:
        if is_cache(port) and port.name not in found:
            dims = (port.shape or ())[1:]
            shape = (len(tokens), *(dim if isinstance(dim, int) else 0 for dim in dims))
            found[port.name] = np.zeros(shape, element_type(port.dtype))
    return found


def check_rows(data: Data, tables: Sequence[LookupTable]) -> None:
    """Raise DataError if a number of an input is beyond the rows of the table that it looks up.

    >>> from onnxfi.graph.dataflow.batch_layout import BatchLayout
    >>> data = Data.of_arrays({"ids": np.array([[0, 7]])}, None, BatchLayout(0, (("ids", 0),), None), "")
    >>> check_rows(data, [LookupTable("ids", "table", 4)])
    Traceback (most recent call last):
    onnxfi.errors.DataError: 'ids' goes up to 7, and 'table', which it looks up, has 4 rows, counted from 0
    """
    tables = [table for table in tables if table.input in data.inputs]
    if data.synthetic or not tables:
        return
    for batch in data.batches(data.layout.fixed or 64):
        for table in tables:
            numbers = batch.feeds[table.input]
            if not numbers.size or -table.rows <= int(numbers.min()) <= int(numbers.max()) < table.rows:
                continue
            beyond = f"goes up to {int(numbers.max()):,}" if numbers.max() >= table.rows else "goes below its end"
            helps = ""
            if table.input == TOKENS:
                helps = "; the tokens are of another vocabulary: take the tokenizer of the model"
            elif table.input == _POSITIONS:
                helps = f"; texts are longer than the model's positions: take windows of {table.rows:,} tokens or fewer"
            raise DataError(
                f"{table.input!r} {beyond}, and {table.name!r}, which it looks up, has {table.rows:,} rows, counted "
                f"from 0{helps}"
            )
