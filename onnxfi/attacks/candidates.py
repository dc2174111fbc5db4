"""Flips that are worth a run: those that move a stored number far, and by gradients those that raise the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import InputError
from onnxfi.faults.models import Flip
from onnxfi.faults.space import FaultSpace, Index, Sites, Target
from onnxfi.faults.trials import Faults
from onnxfi.faults.words import Words
from onnxfi.graph.model.dequantize import dequantized
from onnxfi.graph.model.loading import Model

Floats = NDArray[np.float64]
#: Elements of a tensor that are looked at together.
_CHUNK_ELEMENTS = 1 << 20
#: A bit is worth a look if it moves some word by this share of the tensor's largest magnitude.
_FAR = 0.5


@dataclass(frozen=True)
class Flips:
    """Bit flips of one tensor, one for each trial.

    Attributes
    ----------
    target : int
        Ordinal of the tensor among all targets of the model.
    index : array of int64, shape (n,)
        Flat indices of the elements.
    bit : array of int16, shape (n,)
        The flipped bits.
    """

    target: int
    index: NDArray[np.int64]
    bit: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.index)

    def faults(self, targets: tuple[Target, ...], rows: slice | NDArray[np.int64]) -> Faults:
        """Return some of the flips as faults over all targets of the model."""
        index = self.index[rows]
        sites = Sites(np.full(len(index), self.target, np.int64), index, self.bit[rows])
        return Faults(targets, sites, (Flip(),))


def candidates(
    model: Model, space: FaultSpace, most: int, gradients: Mapping[str, Floats] | None = None
) -> Iterator[Flips]:
    """Yield for each tensor of a space the flips that are worth a run, at most `most` of each.

    Without gradients these are flips of the bits that move a word by half of the tensor's largest magnitude or more
    (the sign, exponents, the high bits of integers): of each such bit those that move it furthest and stay finite, one
    in each output channel, and as many spread over the rest, since the furthest may overflow. With gradients they are
    those with the largest first-order rise of the loss, the gradient times the change.

    Examples
    --------
    >>> from onnxfi.faults.space import Selector
    >>> from onnxfi.graph.model.loading import load
    >>> model = load("models/fashion_cnn.onnx")
    >>> space = Selector(role=("weight",)).space(model.targets)
    >>> [(space.targets[k].id, len(found)) for k, found in enumerate(candidates(model, space, 18))][:2]
    [('conv1.weight', 18), ('conv2.weight', 18)]
    """
    for target, bits in zip(space.targets, space.bit_positions, strict=True):
        if not target.size:
            continue
        slope = None if gradients is None else gradients.get(target.id)
        if gradients is not None and slope is None:
            continue
        moves = _Moves(model, target, np.asarray(bits, np.int64))
        chosen = moves.furthest(most) if slope is None else moves.steepest(slope, most)
        if chosen:
            index, bit = (np.array(column) for column in zip(*chosen, strict=True))
            yield Flips(model.by_id[target.id], index.astype(np.int64), bit.astype(np.int16))


def largest_words(model: Model, target: Target, bit: int, most: int) -> Flips:
    """Return the flips of one bit in the words of largest magnitude, one in each output channel, largest first."""
    magnitude = np.abs(_numbers(model, target, np.arange(target.size), None))
    magnitude[~np.isfinite(magnitude)] = -1.0
    index = _one_in_each_channel(np.argsort(-magnitude, kind="stable"), target)[:most]
    return Flips(model.by_id[target.id], index, np.full(len(index), bit, np.int16))


def check_gradients(gradients: Mapping[str, Floats], space: FaultSpace) -> None:
    """Refuse gradients that name no selected tensor, or have another shape than theirs."""
    known = {target.id: target for target in space.targets}
    if not known.keys() & gradients.keys():
        given, wanted = (", ".join(map(repr, list(names)[:3])) for names in (gradients, known))
        raise InputError(f"the gradients name no selected tensor: they are of {given}; the model has {wanted}, …")
    for name, values in gradients.items():
        if name in known and tuple(values.shape) != known[name].shape:
            raise InputError(
                f"the gradient of {name!r} has shape {list(values.shape)}, the tensor {list(known[name].shape)}; give "
                f"it as the file stores the tensor"
            )


@dataclass(frozen=True)
class _Moves:
    """Changes of a tensor's numbers under flips of single bits."""

    model: Model
    target: Target
    bits: NDArray[np.int64]

    def _chunks(self) -> Iterator[tuple[Index, Words, Floats]]:
        for start in range(0, self.target.size, _CHUNK_ELEMENTS):
            index = np.arange(start, min(start + _CHUNK_ELEMENTS, self.target.size))
            words = self.model.words(self.target, index)
            yield index, words, _numbers(self.model, self.target, index, words)

    def _moved(self, index: Index, words: Words, bit: int, before: Floats) -> Floats:
        """Return the change of each number, NaN where it is not finite."""
        after = _numbers(self.model, self.target, index, words ^ np.uint64(1 << bit))
        with np.errstate(all="ignore"):
            moved = after - before
        return np.where(np.isfinite(moved), moved, np.nan)

    def furthest(self, most: int) -> list[tuple[int, int]]:
        """Return (index, bit) of the flips that move a number furthest, and of some spread over the others."""
        far = {bit: list[tuple[Index, Floats]]() for bit in self._far()}
        for index, words, before in self._chunks() if far else ():
            for bit, parts in far.items():
                size = np.abs(self._moved(index, words, bit, before))
                best = np.argsort(-np.nan_to_num(size, nan=-1.0), kind="stable")
                kept = np.unique(np.concatenate([best[: 64 * most], best[:: max(1, len(best) // most)]]))
                kept = kept[~np.isnan(size[kept])]
                parts.append((index[kept], size[kept]))
        ranked: list[tuple[float, list[tuple[int, int]]]] = []
        for bit, parts in far.items():
            index, size = (np.concatenate(column) for column in zip(*parts, strict=True))
            order = index[np.argsort(-size, kind="stable")]
            first = _one_in_each_channel(order, self.target)
            spread = order[np.linspace(0, len(order) - 1, min(most, len(order))).astype(np.int64)]
            turns = [int(n) for pair in zip(first, spread, strict=False) for n in pair] + [int(n) for n in order]
            ranked.append((float(size.max()), [(n, bit) for n in dict.fromkeys(turns)]))
        return _by_turns([row for _, row in sorted(ranked, key=lambda one: -one[0])], most)

    def _far(self) -> list[int]:
        """Return the bits that move some word far: to rank the moves of all others would take most of the time."""
        # Below the highest bit of a mantissa none moves a number by as much as half of it.
        lowest = self.target.word.mantissa - 1 if self.target.word.is_float else 0
        largest, moves = 0.0, {bit: 0.0 for bit in self.bits.tolist() if bit >= lowest}
        for index, words, before in self._chunks():
            largest = max(largest, float(np.abs(before[np.isfinite(before)]).max(initial=0.0)))
            for bit, most in moves.items():
                size = np.abs(self._moved(index, words, bit, before))
                moves[bit] = max(most, float(size.max(initial=0.0, where=~np.isnan(size))))
        return [bit for bit, most in moves.items() if most > 0 and most >= _FAR * largest]

    def steepest(self, slope: Floats, most: int) -> list[tuple[int, int]]:
        """Return (index, bit) of the flips with the largest rise of the loss to first order."""
        flat, best = slope.reshape(-1), list[tuple[float, int, int]]()
        for index, words, before in self._chunks():
            for bit in self.bits.tolist():
                rise = np.nan_to_num(self._moved(index, words, bit, before) * flat[index], nan=0.0)
                top = np.argsort(-rise, kind="stable")[:most]
                best += [(float(rise[k]), int(index[k]), bit) for k in top.tolist() if rise[k] > 0]
            best = sorted(best, key=lambda row: -row[0])[:most]
        return [(index, bit) for _, index, bit in best]


def _numbers(model: Model, target: Target, index: Index, words: Words | None) -> Floats:
    """Return the numbers that words stand for; of quantised tensors the real ones, where the file has the scales."""
    words = model.words(target, index) if words is None else words
    real = dequantized(model, target, index, words)
    if real is None or np.isnan(real).all():
        with np.errstate(all="ignore"):
            return np.asarray(target.word.values(words).astype(np.float64))
    return real.astype(np.float64)


def _one_in_each_channel(order: NDArray[np.int64], target: Target) -> NDArray[np.int64]:
    """Return the first element of each output channel in an order of elements; all of a tensor without channels."""
    if len(target.shape) < 2:
        return order
    axis = 0 if target.op.startswith(("Conv", "QLinearConv")) else len(target.shape) - 1
    channel = np.unravel_index(order, target.axes)[axis]
    _, first = np.unique(channel, return_index=True)
    return order[np.sort(first)]


def _by_turns(ranked: list[list[tuple[int, int]]], most: int) -> list[tuple[int, int]]:
    """Return the first of each list, then the second, until there are `most`."""
    found: list[tuple[int, int]] = []
    for turn in range(most):
        found += [row[turn] for row in ranked if turn < len(row)]
        if len(found) >= most:
            break
    return found[:most]
