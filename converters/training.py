"""Faults in training, whatever the framework: what strikes at a step, and the words that it leaves.

The draw and the strike are those of the ONNX side, on the words that the framework's tensors hold: a step's faults are
a pure function of the settings and the number of the step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultListError, InputError, NonFiniteLossError
from onnxfi.faults import sampling
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.fault_registry import parse_fault
from onnxfi.faults.space import FaultSpace, Index, Selector, Sites, Target
from onnxfi.faults.trials import Faults, Sampler, apply_faults, draw_faults, faults_at_sites
from onnxfi.faults.words import WORDS, Word, Words
from onnxfi.graph.model.loading import Model
from onnxfi.runtime.engine.model_io import Array

PLACES = ("weights", "activations")
_LOG = logging.getLogger(__name__)
#: Each activation draws from a stream of its own: the step, with the activation's number above it.
_STREAM = 40
#: Reads the words of some elements (flat, row-major) of the target of this number.
Reader = Callable[[int, Index], Words]


@dataclass(frozen=True)
class Exposure:
    """What strikes in training: a rate, a fault model, a selection, and when.

    Each site of the selection is struck with probability `ber` (per bit, or per word for faults of whole words), drawn
    again at every step. `place` is weights or activations. Faults begin with epoch `from_epoch`, counted from 0. Struck
    numbers beyond ±`clip` are held there, and NaN becomes 0; None leaves them as the fault made them.

    >>> Exposure(1e-4, fault="stuck-at-1", clip=2.0).fault
    StuckAt1()
    """

    ber: float
    selector: Selector = field(default_factory=Selector)
    fault: FaultModel | str = "flip"
    seed: int = 0
    place: str = "weights"
    from_epoch: int = 0
    clip: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "fault", parse_fault(self.fault) if isinstance(self.fault, str) else self.fault)
        sampling.check_rate(self.ber)
        sampling.raw_words(self.seed, 0, sampling.PLACE, 0)  # refuses a seed that is out of range
        if self.place not in PLACES:
            raise InputError(f"place is {self.place!r}; faults in training strike {' or '.join(PLACES)}")
        if self.from_epoch < 0:
            raise InputError(f"from_epoch is {self.from_epoch}; epochs count from 0")
        if self.clip is not None and not 0 < self.clip < float("inf"):
            raise InputError(f"clip is {self.clip}; it takes a positive number, the largest that a fault may leave")

    @property
    def event(self) -> FaultModel:
        """The fault model."""
        assert isinstance(self.fault, FaultModel)
        return self.fault

    def weights(self, space: FaultSpace, trial: int) -> Faults:
        """The faults of one trial in stored tensors: those that `onnxfi inject --ber` draws in a file with the same."""
        return draw_faults(space, Sampler("ber", rate=self.ber, seed=self.seed), self.event, trial)

    def activations(self, target: Target, samples: int, number: int, step: int) -> Faults:
        """The faults of one step in activation `number`: each of `samples` samples of `target` is struck by itself.

        The target's shape is one sample's; elements of the faults count through the whole batch. There are none where
        the fault fits nowhere in it.
        """
        space = FaultSpace.over([target], self.event, bits=self.selector.bits, elements=self.selector.elements)
        stream = (number + 1) << _STREAM | step
        chosen = sampling.ber(space.size * samples, self.ber, self.seed, stream)
        sample, inside = np.divmod(chosen, np.uint64(max(1, space.size)))
        sites = space.locate(inside)
        whole = replace(target, shape=(samples, *target.shape))
        start, index, bit, event = sample.astype(np.int64) * target.size, sites.index, sites.bit, self.event
        if event.multi_element:  # inside a sample, not from one to the next
            reached = [event.elements(target.axes, at) for at in index.tolist()]
            lengths = [len(part) for part in reached]
            index = np.concatenate([np.zeros(0, np.int64), *reached])
            start, bit, event = np.repeat(start, lengths), np.repeat(bit, lengths), event.element_model
        return faults_at_sites(
            (whole,), Sites(np.zeros(len(index), np.int64), start + index, bit), event, self.seed, stream
        )


@dataclass(frozen=True)
class Plan:
    """An exposure on a model's parameters. `targets` are all of them, in the framework's order.

    Raises SelectorError where the selector leaves none of them.
    """

    exposure: Exposure
    targets: tuple[Target, ...]
    named: str = "parameters"

    def __post_init__(self) -> None:
        if not self.targets:
            raise InputError(f"the model has no {self.named} that can be struck")
        selected = self.space
        if self.exposure.place == "weights":
            words = sum(selected.element_counts)
            expected = self.exposure.ber * selected.size
            if expected >= words:
                _LOG.warning("%s", self.crowded)

    @cached_property
    def space(self) -> FaultSpace:
        """The sites that the selector leaves; for activations, whose shapes are not known yet, one word of each."""
        selector = self.exposure.selector
        if self.exposure.place == "activations":
            selector = replace(selector, dtype=(), elements="")
        return selector.space(self.targets, self.exposure.event)

    @cached_property
    def crowded(self) -> str:
        """One line where the rate is so high that about every word is struck at each step; else empty."""
        if self.exposure.place != "weights":
            each = max(map(len, self.space.bit_positions)) * self.exposure.ber
            return f"about {each:,.1f} faults strike each word at every step" if each >= 1 else ""
        words, expected = sum(self.space.element_counts), self.exposure.ber * self.space.size
        if expected < words:
            return ""
        return f"{expected:,.0f} faults are expected in {words:,} words at every step: about every word is struck"

    def faults(self, trial: int) -> Faults:
        """The faults of one trial in the weights, over all targets; trial k is step k of training, from 1 on."""
        faults = self.exposure.weights(self.space, trial)
        ordinal = {target.id: k for k, target in enumerate(self.targets)}
        places = np.array([ordinal[target.id] for target in self.space.targets], np.int64)
        sites = replace(faults.sites, target=places[faults.sites.target])
        return replace(faults, targets=self.targets, sites=sites)


def target_of(name: str, dtype: str, shape: Sequence[int], kind: str, op: str, layer: str) -> Target | None:
    """A parameter or activation as a target; None for a number format that is none of ours."""
    word = WORDS.get(dtype)
    if word is None or not word.is_float or word.parts > 1:
        return None
    role = "" if kind == "activation" else "bias" if name.endswith("bias") else "weight"
    return Target(name, word, tuple(shape), kind, op, layer, layer, role=role)


def read_array(values: Array, word: Word, index: Index) -> Words:
    """The words of some elements of an array."""
    return np.ascontiguousarray(values).reshape(-1).view(word.carrier)[index].astype(np.uint64)


def write_array(values: Array, word: Word, index: Index, words: Words) -> Array:
    """A copy of an array in which some elements hold these words."""
    after = np.array(values, order="C")
    after.reshape(-1).view(word.carrier)[index] = words.astype(word.carrier)
    return after


def outcome(faults: Faults, read: Reader, clip: float | None = None) -> tuple[Faults, dict[int, tuple[Index, Words]]]:
    """The faults with their words, and for the number of each struck target its elements and what they hold in the end.

    This is the ONNX side's strike, and after it the clip, if there is one.
    """
    stored = np.zeros(len(faults), np.uint64)
    rows = {int(k): np.flatnonzero(faults.sites.target == k) for k in np.unique(faults.sites.target)}
    for number, here in rows.items():
        stored[here] = read(number, faults.sites.index[here])
    done, final = apply_faults(faults, stored)
    ends = {}
    for number, here in rows.items():
        words = final[here]
        ends[number] = faults.sites.index[here], _held(faults.targets[number].word, words, clip)
    return done, ends


def _held(word: Word, words: Words, clip: float | None) -> Words:
    """Words whose numbers lie within ±clip; NaN becomes 0."""
    if clip is None:
        return words
    numbers = word.values(words).astype(np.float64)
    beyond = ~(np.abs(numbers) <= clip)
    return np.where(beyond, word.words(np.clip(np.nan_to_num(numbers, nan=0.0), -clip, clip)), words)


def refusal(exposure: Exposure, step: int, name: str, faults: Sequence[Faults]) -> NonFiniteLossError:
    """The error for a step whose gradient is not finite: what was struck, what is worst in it, what to do."""
    struck = sum(len(part) for part in faults)
    worst, size = "", -1.0
    for part in faults:
        if not len(part) or part.after is None:
            continue
        for number in np.unique(part.sites.target).tolist():
            here = np.flatnonzero(part.sites.target == number)
            values = part.targets[number].word.values(part.after[here]).astype(np.float64)
            sizes = np.nan_to_num(np.abs(values), nan=np.inf, posinf=np.inf)
            if sizes.max() > size:
                size, row = float(sizes.max()), int(here[sizes.argmax()])
                worst = f", the worst leaves {part[row].value('after')} at {part[row].site}"
    remedy = "lower ber, or leave the highest exponent bit out (bits='0-29,31' for float32)"
    held = "" if exposure.clip is not None else "give clip=1.0, say, to hold struck numbers within ±1, "
    return NonFiniteLossError(
        f"step {step}: the loss is not finite, as the gradient of {name!r} shows: {struck:,} faults were there{worst}; "
        f"{held}{remedy}"
    )


def carried(model: Model, faults: Faults, targets: Sequence[Target], values: Mapping[str, Array]) -> Faults:
    """Faults of an exported file as faults of the framework's own tensors: the same bits of the same numbers.

    `values` are the tensors by name, with the numbers that the file was exported from. Exporters transpose and reshape
    kernels: where an element went is told by the numbers, which must be those of the file, bit for bit.

    Raises FaultListError for a tensor of the file that no parameter holds.
    """
    ordinal = {target.id: k for k, target in enumerate(targets)}
    target, index = faults.sites.target.copy(), faults.sites.index.copy()
    for number in np.unique(faults.sites.target).tolist():
        struck = faults.targets[number]
        name, places = _found(model, struck, values)
        here = faults.sites.target == number
        target[here], index[here] = ordinal[name], places[faults.sites.index[here]]
    return replace(faults, targets=tuple(targets), sites=Sites(target, index, faults.sites.bit), real_values=None)


def _found(model: Model, struck: Target, values: Mapping[str, Array]) -> tuple[str, Index]:
    """The parameter that a stored tensor came from, and for each of its elements the parameter's."""
    stored = model.words(struck, np.arange(struck.size))
    found = []
    for name in [struck.id] if struck.id in values else values:
        if values[name].dtype != struck.word.dtype or values[name].size != struck.size:
            continue
        words = read_array(values[name], struck.word, np.arange(struck.size))
        if np.array_equal(np.sort(words), np.sort(stored)):
            found += [(name, way) for way in _ways(words, stored, values[name].shape, struck.shape)]
    if len(found) == 1:
        return found[0]
    if found:
        raise FaultListError(
            f"the numbers of {struck.id!r} lie in {len(found)} ways in the parameters (as in {found[0][0]!r}), so that "
            f"its elements cannot be told apart; export a model whose parameters differ"
        )
    raise FaultListError(
        f"no parameter holds the numbers of {struck.id!r}, bit for bit; give the file that was exported from these "
        f"parameters (exporters may fold batch normalisation into weights: such tensors exist in the file alone)"
    )


def _ways(words: Words, stored: Words, shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """Every different way in which moved axes give the stored order: for each stored element the parameter's."""
    own = np.arange(words.size, dtype=np.int64).reshape(shape)
    found: list[NDArray[np.int64]] = []
    long = [axis for axis, n in enumerate(shape) if n > 1]
    lengths = [n for n in wanted if n > 1]
    for order in permutations(long):
        moved = own.transpose([*order, *(axis for axis in range(len(shape)) if axis not in order)])
        fits = [n for n in moved.shape if n > 1] == lengths or len(lengths) != len(long)
        places = moved.reshape(-1)
        if fits and np.array_equal(words[places], stored) and not any(np.array_equal(places, f) for f in found):
            found.append(places)
    return found
