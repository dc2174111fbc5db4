"""Targets and sites: the tensors whose words can be struck, and the places in them.

A stored word is there once. A value in flight is there once in every run: its sites may also name a sample of the data
and a step of the loop around it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import SelectorError, closest
from onnxfi.faults.quantization import Scheme
from onnxfi.faults.words import Word

Index = NDArray[np.int64]
Bits = NDArray[np.int16]

#: The last step of any loop.
FOREVER = (1 << 63) - 1
#: Kinds of targets that are values in flight: what nodes put out, and inputs of the graph.
IN_FLIGHT = ("activation", "input")


@dataclass(frozen=True)
class User:
    """A node that uses a stored tensor: its operator, its label and its layer."""

    op: str
    node: str
    layer: str


@dataclass(frozen=True)
class Target:
    """A tensor of a model whose words can be struck.

    `id` is its path and name; `kind` initializer, constant, sparse, attribute, activation or input; `op` and `node`
    the operator that uses it first; `layer` the source framework's module; `shape` in elements (a complex number is
    one element of two words: its last axis is then the part). `structural` marks integers that only carry shapes or
    indices: they are left out unless named. `role` is weight, bias, scale, zero-point or '', `scheme` how its integers
    stand for real numbers. Of a value in flight `shape` is that of one sample; where faults shall name one of so many
    `samples` or `steps` these are not 0, and `onwards` says that a fault lasts from its step on.

    A stored tensor may have several `users` (the first of them is `op`, `node` and `layer`) and `roles`, and be stored
    under further ids, its `aliases`: a selector finds it by each. Where another target shares some of its bytes, `span`
    is where they lie (file, start, end). `unused` says that no output of the model depends on its words, so that it is
    left out unless named.
    """

    id: str
    word: Word
    shape: tuple[int, ...]
    kind: str = "initializer"
    op: str = ""
    node: str = ""
    layer: str = ""
    structural: bool = False
    role: str = ""
    scheme: Scheme | None = None
    samples: int = 0
    steps: int = 0
    onwards: bool = False
    users: tuple[User, ...] = ()
    roles: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    span: tuple[int, ...] = ()
    unused: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids under which it is stored."""
        return (self.id, *self.aliases)

    @cached_property
    def ops(self) -> tuple[str, ...]:
        """The operators that use it."""
        return tuple(dict.fromkeys(op for op in (self.op, *(user.op for user in self.users)) if op))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All that a selector finds it by: its ids, and the nodes and layers that use it."""
        users = (name for user in self.users for name in (user.node, user.layer))
        return tuple(dict.fromkeys(name for name in (*self.ids, self.node, self.layer, *users) if name))

    @property
    def dtype(self) -> str:
        """The name of the number format."""
        return self.word.name

    @property
    def axes(self) -> tuple[int, ...]:
        """The shape in words: as `shape`, with a last axis of 2 for complex numbers."""
        return (*self.shape, self.word.parts) if self.word.parts > 1 else self.shape

    @cached_property
    def size(self) -> int:
        """Words in the tensor: 1 for rank 0, 0 where a dimension is 0."""
        return math.prod(self.axes)

    @property
    def times(self) -> int:
        """At how many times each word can be struck: samples by steps; 1 where faults name neither."""
        return max(1, self.samples) * max(1, self.steps)

    @property
    def in_flight(self) -> bool:
        """Whether it is a value in flight rather than stored."""
        return self.kind in IN_FLIGHT

    @property
    def bits(self) -> int:
        """Bits in the tensor's words."""
        return self.size * self.word.bits


@dataclass(frozen=True)
class Site:
    """One place where a fault can sit: a target's element (flat index, row-major) and a bit of its word.

    `bit` is None for a fault of the whole word; `sample` and `step` say which sample of the data and which step of
    a loop, for faults in flight (None: all); `onwards` means from that step on.

    >>> str(Site("conv1.weight", 7, 30)), str(Site("relu", 7, 30, sample=2)), str(Site("h", 7, step=3, onwards=True))
    ('conv1.weight[7]:30', 'relu[7]@sample=2:30', 'h[7]@from=3')
    """

    target: str
    index: int
    bit: int | None = None
    sample: int | None = None
    step: int | None = None
    onwards: bool = False

    def __str__(self) -> str:
        named = (("sample", self.sample), ("from" if self.onwards else "step", self.step))
        at = "".join(f"@{k}={v}" for k, v in named if v is not None)
        return f"{self.target}[{self.index}]{at}" + ("" if self.bit is None else f":{self.bit}")


_SITE = re.compile(r"(?P<id>.*)\[(?P<index>[\d,\s]*)\](?P<at>(?:@(?:sample|step|from)=\d+)*)(?::(?P<bit>\d+))?", re.S)


def parse_site(text: str, targets: Sequence[Target]) -> Site:
    """Read `ID[i]:B` or `ID[i,j,…]:B`, from the right, since names may hold `:` and `[`.

    Raises SelectorError for a target that does not exist (with the closest), an index beyond its shape, and a bit
    beyond its word.

    >>> from onnxfi.faults.words import WORDS
    >>> str(parse_site("w[1,2]:31", [Target("w", WORDS["float32"], (2, 3))]))
    'w[5]:31'
    """
    match = _SITE.fullmatch(text.rstrip())
    if match is None or len(text) > 100_000:
        raise SelectorError(f"site {text[:80]!r} is not of the form NAME[index]:bit, as conv1.weight[3,0,1,2]:30")
    known = {name: t for t in targets for name in t.ids}
    target = known.get(match["id"]) or known.get(match["id"].lstrip())
    if target is None:
        raise SelectorError(f"no target {match['id']!r} in this model{closest(match['id'], known)}")
    try:
        index = _flat([int(p) for p in match["index"].split(",")] if match["index"].strip() else [], target)
        at = {key: int(value) for key, value in re.findall(r"@(\w+)=(\d+)", match["at"])}
    except ValueError:  # "1 2", or more digits than Python reads
        raise SelectorError(f"site {text[:80]!r} has an index that is no whole number") from None
    if len(at) < match["at"].count("@") or {"step", "from"} <= set(at):
        raise SelectorError(f"site {text[:80]!r} names its sample or step twice")
    bit = None if match["bit"] is None else int(match["bit"][:9])
    if bit is not None and bit >= target.word.bits:
        raise SelectorError(
            f"bit {bit} is beyond {target.dtype} of {target.id!r}: bits are 0 to {target.word.bits - 1}"
        )
    return Site(target.id, index, bit, at.get("sample"), at.get("step", at.get("from")), "from" in at)


def _flat(index: list[int], target: Target) -> int:
    axes = target.axes
    limits = axes if len(index) == len(axes) else (target.size,)
    if len(index) not in (1, len(axes)) or any(i >= n for i, n in zip(index, limits, strict=True)):
        shape = "×".join(map(str, axes)) or "scalar"
        raise SelectorError(
            f"index {index} is beyond {target.id!r} of shape {shape}: "
            f"give {len(axes)} indices, or one below {target.size}"
        )
    flat = 0
    for i, n in zip(index, limits, strict=True):
        flat = flat * n + i
    return flat


@dataclass(frozen=True)
class Sites:
    """Many sites in columns: the ordinal of the target in its space, the element, and the bit (−1: whole word).

    `when` ([n, 3]) is there where values in flight are struck: the sample (−1: all), the first and the last step.
    """

    target: NDArray[np.int64]
    index: Index
    bit: Bits
    when: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def pick(self, rows: Any) -> Sites:
        """The sites of these rows (numbers, a mask or a slice), in that order."""
        when = None if self.when is None else self.when[rows]
        return Sites(self.target[rows], self.index[rows], self.bit[rows], when)

    def times(self) -> NDArray[np.int64]:
        """`when`, also where it is not there: all samples, all steps."""
        return always(len(self)) if self.when is None else self.when

    def named(self, row: int) -> dict[str, Any]:
        """Sample and step of a row as `Site` and `Fault` have them."""
        if self.when is None:
            return {}
        sample, first, last = self.when[row].tolist()
        stepped = (first, last) != (0, FOREVER)
        return {
            "sample": None if sample < 0 else sample,
            "step": first if stepped else None,
            "onwards": stepped and last == FOREVER,
        }

    @staticmethod
    def join(parts: Sequence[Sites]) -> Sites:
        """Several columns one below the other."""
        target, index, bit = (np.concatenate([getattr(p, n) for p in parts]) for n in ("target", "index", "bit"))
        timed = any(p.when is not None for p in parts)
        return Sites(target, index, bit, np.concatenate([p.times() for p in parts]) if timed else None)

    def onto(self, ordinals: NDArray[np.int64]) -> Sites:
        """The same sites over other targets: the new number of each."""
        return replace(self, target=ordinals[self.target])


def always(n: int) -> NDArray[np.int64]:
    """The times of faults that are there in all samples and steps ([n, 3])."""
    return np.tile(np.array([-1, 0, FOREVER], np.int64), (n, 1))


def moment(sample: int | None, step: int | None, *, onwards: bool = False) -> tuple[int, int, int]:
    """One row of `Sites.when`: the sample (None: all), and the step (None: all) or the one from which on.

    >>> moment(3, None)[0], moment(None, 2)[1:]
    (3, (2, 2))
    """
    return (
        -1 if sample is None else sample,
        0 if step is None else step,
        FOREVER if step is None or onwards else step,
    )
