"""The cache of a decoder: the outputs of one run that feed inputs of the next, found by name and shape."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxfi.errors import InputError
from onnxfi.runtime.engine.ports import Array, Port, element_type, shape_text

#: Beginnings of the names of inputs and outputs that carry the cache; the longest first.
_PAST = ("past_key_values", "past_key_value", "past_key", "past_value", "past")
_PRESENT = ("present_key_values", "present_key_value", "present_key", "present_value", "present")
#: Axes of a tensor of the cache: samples, heads, positions, and numbers of a head.
RANK, HEAD_AXIS, POSITION_AXIS = 4, 1, 2
_MOST_NAMES = 6


@dataclass(frozen=True)
class CacheTensor:
    """One tensor of the cache: the input that takes it, and the output that gives it (None: it stays as it was).

    Attributes
    ----------
    past : Port
        The input, [samples, heads, positions, numbers of a head].
    present : str or None
        The output that the next run takes as this input.
    cross : bool
        Whether it holds what the encoder saw, so that it does not grow.
    """

    past: Port
    present: str | None
    cross: bool = False

    @property
    def key(self) -> str:
        """The part of the name that input and output share, as `0.key`."""
        return key_of(self.past.name, _PAST) or self.past.name

    @property
    def layer(self) -> int | None:
        """The number of the layer; None if the name has none."""
        found = re.search(r"\d+", self.key)
        return None if found is None else int(found.group())

    @property
    def part(self) -> str:
        """`K`, `V`, or nothing where the name does not say it."""
        return {"key": "K", "value": "V"}.get(self.key.rsplit(".", 1)[-1], "")

    def empty(self) -> Array:
        """Return the tensor for a run without a past: no positions."""
        shape = self.past.shape or ()
        dims = [1, *(n if isinstance(n, int) else 0 for n in shape[1:])]
        dims[POSITION_AXIS] = 0
        return np.zeros(dims, element_type(self.past.dtype))


def key_of(name: str, beginnings: Sequence[str]) -> str | None:
    """Return what follows the beginning of a cache tensor's name; None if it has none of these.

    >>> key_of("present.0.key", _PRESENT), key_of("past_key_values.0.key", _PAST), key_of("logits", _PRESENT)
    ('0.key', '0.key', None)
    """
    for start in beginnings:
        if name == start or re.match(re.escape(start) + r"[._\d]", name):
            kind = {"key": ".key", "value": ".value"}.get(start.rsplit("_", 1)[-1], "")
            return name[len(start) :].strip("._") + kind
    return None


def is_past(port: Port) -> bool:
    """Return true for an input that is named as a part of a cache."""
    return key_of(port.name, _PAST) is not None


def is_present(port: Port) -> bool:
    """Return true for an output that is named as a part of a cache."""
    return key_of(port.name, _PRESENT) is not None


def match_cache(inputs: Sequence[Port], outputs: Sequence[Port], where: str = "the model") -> tuple[CacheTensor, ...]:
    """Return the cache of a model that takes one: each input with the output of the same name and shape.

    Raises
    ------
    InputError
        If an input has no such output, of the type and sizes that it has itself; the message names both sides.

    Examples
    --------
    >>> ports = [Port(f"past_key_values.0.{one}", "float32", ("N", 2, "P", 8)) for one in ("key", "value")]
    >>> found = match_cache(ports, [Port(f"present.0.{one}", "float32", ("N", 2, "T", 8)) for one in ("key", "value")])
    >>> [(one.past.name, one.present, one.part) for one in found][0]
    ('past_key_values.0.key', 'present.0.key', 'K')
    """
    pasts = [port for port in inputs if is_past(port)]
    given = {key_of(port.name, _PRESENT): port for port in outputs if is_present(port)}
    found = []
    for port in pasts:
        key = key_of(port.name, _PAST) or ""
        present = given.get(key)
        cross = "encoder" in re.split(r"[._]", key)
        if len(port.shape or ()) != RANK:
            raise InputError(
                f"{where}: input {port} is no cache of keys or values, which has the shape [samples,heads,positions,"
                f"size of a head]; export the decoder with one tensor for keys and one for values"
            )
        if present is None and not cross:
            raise InputError(
                f"{where}: the cache cannot be matched: input {port.name!r} has no output that feeds it; inputs "
                f"{listed(pasts)}, outputs {listed(outputs)}; name them past_key_values.N.key and present.N.key"
            )
        if present is not None and not _fits(port, present):
            raise InputError(
                f"{where}: the cache cannot be matched: output {present} does not fit input {port}; export the decoder "
                f"with a cache of one type and size"
            )
        found.append(CacheTensor(port, None if present is None else present.name, cross))
    return tuple(found)


def _fits(past: Port, present: Port) -> bool:
    if past.dtype != present.dtype:
        return False
    mine, theirs = past.shape or (), present.shape
    if theirs is None:
        return True
    pairs = [*enumerate(zip(mine, theirs, strict=False))]
    return len(mine) == len(theirs) and all(
        k in (0, POSITION_AXIS) or not isinstance(a, int) or not isinstance(b, int) or a == b for k, (a, b) in pairs
    )


def check_sizes(cache: Sequence[CacheTensor], where: str) -> None:
    """Refuse a cache whose sizes the model does not declare, so that none can be made for a run without a past."""
    for one in cache:
        shape = one.past.shape or ()
        if not (isinstance(shape[HEAD_AXIS], int) and isinstance(shape[3], int)):
            raise InputError(
                f"{where}: input {one.past.name!r} is declared {shape_text(shape)}, so the numbers of heads and of a "
                f"head are not known; declare them, or give the decoder of the prompt with prefill=FILE"
            )


def listed(ports: Sequence[Port]) -> str:
    """Return the names of some inputs or outputs for a message."""
    names = [repr(port.name) for port in ports]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (", ".join(names[:_MOST_NAMES]) or "none") + more
