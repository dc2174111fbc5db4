"""Targets and sites: the tensors that faults can be injected into, and the places in them.

A weight is stored once. An activation is computed in every run: its sites may also name a sample of the data and a step
of the loop around it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import SelectorError, closest
from onnxfi.faults.quantization import QuantizationScheme
from onnxfi.faults.token_positions import Positions
from onnxfi.faults.words import Word

Index = NDArray[np.int64]
Bits = NDArray[np.int16]

#: Last step of a fault that lasts until the end of any loop.
LAST_STEP = (1 << 63) - 1
#: The kind of a tensor that a generation loop carries from step to step.
KV_CACHE = "kv-cache"
#: Kinds of targets that are computed at run time: outputs of nodes, inputs of the graph, and the cache of a decoder.
ACTIVATION_KINDS = ("activation", "input", KV_CACHE)


@dataclass(frozen=True)
class Consumer:
    """Node that uses a stored tensor: its operator, its label and its layer."""

    op: str
    node: str
    layer: str


@dataclass(frozen=True)
class Target:
    """Tensor of a model that faults can be injected into.

    Attributes
    ----------
    id : str
        Path and name in the model.
    word : Word
        Number format.
    shape : tuple of int
        Shape in elements; of an activation that of one sample. A complex number is one element of two words.
    kind : str
        `initializer`, `constant`, `sparse`, `attribute`, `activation`, `input` or `kv-cache`.
    op, node, layer : str
        Operator that uses it first, that node's name, and the module of the training framework.
    structural : bool
        True for integers that only hold shapes or indices; they are left out unless named.
    role : str
        `weight`, `bias`, `scale`, `zero-point`, a parameter of a neuron, or empty.
    scheme : QuantizationScheme, optional
        Real numbers that its integers represent.
    samples, steps : int
        Number of samples and of steps of which faults name one; 0 if faults are present in all.
    onwards : bool
        True if a fault lasts from its step on.
    consumers : tuple of Consumer
        Nodes that use a stored tensor; the first is `op`, `node` and `layer`.
    roles : tuple of str
        Every role that it has.
    aliases : tuple of str
        Further ids under which it is stored; selectors match each.
    span : tuple
        Location (file, start, end) if another target shares some of its bytes.
    positions : Positions, optional
        The positions that exist at each step of a generation loop; None if every element exists at all times.
    gemm : tuple of int
        Of an output of a matrix product: the axis of its channels, from the end, and its groups.
    stored : tuple of int
        Of a stored tensor in one run of bytes: the number of its file (0: the model, then its external data in order),
        and the offset of its first byte.
    unused : bool
        True if no output of the model depends on it; it is left out unless named.

    Examples
    --------
    >>> import onnxfi
    >>> targets = onnxfi.load("models/fashion_cnn.onnx").targets
    >>> targets[0].id, targets[0].dtype, targets[0].shape
    ('conv1.weight', 'float32', (16, 1, 3, 3))
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
    scheme: QuantizationScheme | None = None
    samples: int = 0
    steps: int = 0
    onwards: bool = False
    consumers: tuple[Consumer, ...] = ()
    roles: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    span: tuple[int, ...] = ()
    unused: bool = False
    positions: Positions | None = None
    gemm: tuple[int, ...] = ()
    stored: tuple[int, ...] = field(default=(), compare=False)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids under which it is stored."""
        return (self.id, *self.aliases)

    @cached_property
    def ops(self) -> tuple[str, ...]:
        """Operators that use it."""
        return tuple(dict.fromkeys(op for op in (self.op, *(user.op for user in self.consumers)) if op))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names that selectors match: its ids, and the nodes and layers that use it."""
        consumers = (name for user in self.consumers for name in (user.node, user.layer))
        return tuple(dict.fromkeys(name for name in (*self.ids, self.node, self.layer, *consumers) if name))

    @property
    def dtype(self) -> str:
        """Name of the number format."""
        return self.word.name

    @property
    def axes(self) -> tuple[int, ...]:
        """Shape in words: `shape`, with a last axis of 2 for complex numbers."""
        return (*self.shape, self.word.parts) if self.word.parts > 1 else self.shape

    @cached_property
    def size(self) -> int:
        """Number of words: 1 for rank 0, 0 if a dimension is 0."""
        return math.prod(self.axes)

    @property
    def times(self) -> int:
        """Number of times at which each word can be faulty: samples × steps; 1 if faults name neither."""
        return max(1, self.samples) * max(1, self.steps)

    @property
    def is_activation(self) -> bool:
        """True if it is computed at run time (activation or input) rather than stored."""
        return self.kind in ACTIVATION_KINDS

    @property
    def bits(self) -> int:
        """Number of bits in its words."""
        return self.size * self.word.bits


@dataclass(frozen=True)
class Site:
    """Place of one fault: an element of a target, and a bit of its word.

    Attributes
    ----------
    target : str
        Id of the target.
    index : int
        Flat index of the element, row-major.
    bit : int, optional
        Bit position, 0 is the least significant; None for a fault of the whole word.
    sample, step : int, optional
        Sample of the data and step of the loop, for faults in activations; None for all.
    onwards : bool
        True for a fault from `step` onwards.

    Examples
    --------
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
        """Return the text form, `ID[index]@sample=S@step=T:bit`."""
        named = (("sample", self.sample), ("from" if self.onwards else "step", self.step))
        at = "".join(f"@{k}={v}" for k, v in named if v is not None)
        return f"{self.target}[{self.index}]{at}" + ("" if self.bit is None else f":{self.bit}")


_SITE = re.compile(r"(?P<id>.*)\[(?P<index>[\d,\s]*)\](?P<at>(?:@(?:sample|step|from)=\d+)*)(?::(?P<bit>\d+))?", re.S)


def parse_site(text: str, targets: Sequence[Target]) -> Site:
    """Return the site that `ID[i]:B` or `ID[i,j,…]:B` names; parsed from the right, as names may hold `:` and `[`.

    Raises SelectorError for a target that does not exist (the message names the closest), an index beyond its shape,
    and a bit beyond its word.

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
        raise SelectorError(f"site {text[:80]!r} has an index that is not a whole number") from None
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
    """Sites in columns.

    Attributes
    ----------
    target : ndarray of int64, shape (n,)
        Position of the target in its space.
    index : ndarray of int64, shape (n,)
        Flat index of the element.
    bit : ndarray of int16, shape (n,)
        Bit position; -1 for the whole word.
    times : ndarray of int64, shape (n, 3), optional
        Sample (-1: all), first and last step, if there are activations among the targets.
    """

    target: NDArray[np.int64]
    index: Index
    bit: Bits
    times: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.index)

    @staticmethod
    def of(sites: Sequence[Site], targets: Sequence[int], *, timed: bool) -> Sites:
        """Return sites, each with the number of its target, in columns; `timed` with their samples and steps."""
        times = [fault_time(site.sample, site.step, onwards=site.onwards) for site in sites]
        return Sites(
            np.array(targets, np.int64),
            np.array([site.index for site in sites], np.int64),
            np.array([-1 if site.bit is None else site.bit for site in sites], np.int16),
            np.array(times, np.int64) if timed else None,
        )

    def pick(self, rows: Any) -> Sites:
        """Return the sites of these rows (numbers, a mask or a slice), in that order."""
        times = None if self.times is None else self.times[rows]
        return Sites(self.target[rows], self.index[rows], self.bit[rows], times)

    def moved(
        self, rows: Sequence[int], index: Sequence[int], bit: Sequence[int], target: Sequence[int] | None = None
    ) -> Sites:
        """Return sites at the times of these rows, with elements, bits, and maybe targets of their own."""
        kept = self.pick(np.array(rows, np.int64))
        moved = replace(kept, index=np.array(index, np.int64), bit=np.array(bit, np.int16))
        return moved if target is None else replace(moved, target=np.array(target, np.int64))

    def times_or_all(self) -> NDArray[np.int64]:
        """Return `times`, or all samples and steps if there are none."""
        return all_times(len(self)) if self.times is None else self.times

    def sample_and_step(self, row: int) -> dict[str, Any]:
        """Return sample and step of a row as fields of `Site` and `Fault`."""
        if self.times is None:
            return {}
        sample, first, last = self.times[row].tolist()
        stepped = (first, last) != (0, LAST_STEP)
        return {
            "sample": None if sample < 0 else sample,
            "step": first if stepped else None,
            "onwards": stepped and last == LAST_STEP,
        }

    @staticmethod
    def join(parts: Sequence[Sites]) -> Sites:
        """Return several columns, one below the other."""
        target, index, bit = (np.concatenate([getattr(p, n) for p in parts]) for n in ("target", "index", "bit"))
        has_times = any(p.times is not None for p in parts)
        return Sites(target, index, bit, np.concatenate([p.times_or_all() for p in parts]) if has_times else None)

    def retarget(self, positions: NDArray[np.int64]) -> Sites:
        """Return the sites over another sequence of targets, given the new position of each."""
        return replace(self, target=positions[self.target])


def all_times(n: int) -> NDArray[np.int64]:
    """Return the times of `n` faults that are present in all samples and steps, shape (n, 3)."""
    return np.tile(np.array([-1, 0, LAST_STEP], np.int64), (n, 1))


def fault_time(sample: int | None, step: int | None, *, onwards: bool = False) -> tuple[int, int, int]:
    """Return one row of `Sites.times`: the sample (None: all), the step (None: all) or the one from which on.

    >>> fault_time(3, None)[0], fault_time(None, 2)[1:]
    (3, (2, 2))
    """
    return (
        -1 if sample is None else sample,
        0 if step is None else step,
        LAST_STEP if step is None or onwards else step,
    )
