"""Fault-aware training, independent of the framework: the faults of a step, and the words that they leave.

Faults are drawn and applied as in ONNX files, on the words of the framework's tensors: the faults of a step are a pure
function of the settings and of the number of the step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultListError, InputError, NonFiniteLossError
from onnxfi.faults import sampling
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.space import FaultSpace, Index, Selector, Sites, Target
from onnxfi.faults.trials import Faults, Sampler, apply_faults, draw_faults, faults_at_sites
from onnxfi.faults.words import WORDS, Word, Words
from onnxfi.graph.model.loading import Model
from onnxfi.runtime.engine.ports import Array

TARGETS = ("weights", "activations")
_LOG = logging.getLogger(__name__)
#: Each activation draws from its own random stream: the step, with the activation's number in the bits above.
_STREAM_SHIFT = 40
#: Reads the words at some indices (flat, row-major) of the target of this number.
WordReader = Callable[[int, Index], Words]


@dataclass(frozen=True)
class FaultSettings:
    """The faults of a training run: rate or number, fault model, selection, and the first epoch.

    Parameters
    ----------
    ber
        Probability of a fault at each selected site, drawn again at every step: per bit, or per word for fault models
        of whole words. None where `count` is given.
    selector
        Selection of parameters, bits and elements.
    fault
        Fault model, or its text.
    seed
        Seed of every draw.
    target
        "weights" or "activations".
    from_epoch
        First epoch with faults, counted from 0.
    clip
        Largest magnitude that a fault may leave: faulty numbers are clipped to ±`clip`, NaN becomes 0. None keeps them
        as the fault left them.
    count
        Number of faulty sites at every step instead of a rate: in the selected weights together, or of neurons in each
        selected activation, which are then faulty in every sample.
    permanent
        Keep the faults of the first step in every step.

    Raises
    ------
    InputError
        For a value out of range, and where not exactly one of `ber` and `count` is given.

    Examples
    --------
    >>> FaultSettings(1e-4, fault="stuck-at-1", clip=2.0).fault
    StuckAt1()
    """

    ber: float | None = None
    selector: Selector = field(default_factory=Selector)
    fault: FaultModel | str = "flip"
    seed: int = 0
    target: str = "weights"
    from_epoch: int = 0
    clip: float | None = None
    count: int | None = None
    permanent: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "fault", parse_fault(self.fault) if isinstance(self.fault, str) else self.fault)
        if (self.ber is None) == (self.count is None):
            raise InputError("give either ber, a probability, or count, a number of faulty sites at every step")
        if self.ber is not None:
            sampling.check_rate(self.ber)
        if self.count is not None and self.count < 0:
            raise InputError(f"count must be 0 or more, got {self.count}")
        sampling.raw_words(self.seed, 0, sampling.PLACE, 0)  # refuses a seed that is out of range
        if self.target not in TARGETS:
            raise InputError(f"target must be {' or '.join(TARGETS)}, got {self.target!r}")
        if self.from_epoch < 0:
            raise InputError(f"from_epoch must be 0 or more, got {self.from_epoch}")
        if self.clip is not None and not 0 < self.clip < float("inf"):
            raise InputError(
                f"clip must be a positive number, the largest magnitude a fault may leave, got {self.clip}"
            )

    @property
    def fault_model(self) -> FaultModel:
        """Fault model, parsed."""
        assert isinstance(self.fault, FaultModel)
        return self.fault

    def draw_weights(self, space: FaultSpace, trial: int) -> Faults:
        """Draw the faults of one trial in weights: those of `onnxfi inject` in a file with the same tensors."""
        how = (
            Sampler("ber", rate=self.ber, seed=self.seed)
            if self.ber is not None
            else Sampler("count", n=self.count or 0, seed=self.seed)
        )
        return draw_faults(space, how, self.fault_model, trial)

    def begun(self, epoch: int | None) -> bool:
        """Return whether faults are injected in an epoch, counted from 0; InputError where that has to be known."""
        if self.from_epoch and epoch is None:
            raise InputError(
                f"faults begin with epoch {self.from_epoch}, but the epoch is not known: call begin_epoch(number) as "
                f"each epoch begins"
            )
        return (epoch or 0) >= self.from_epoch

    def trial(self, step: int) -> int:
        """Return the number of the draw of a step of training."""
        return 1 if self.permanent else step

    def draw_activations(self, target: Target, samples: int, number: int, step: int) -> Faults:
        """Draw the faults of one step in activation `number`: by rate independently in each of `samples` samples.

        By number the same neurons are faulty in every sample. The shape of `target` is that of one sample; the elements
        of the faults count through the whole batch. There are none where the fault model fits no element.
        """
        space = FaultSpace.over([target], self.fault_model, bits=self.selector.bits, elements=self.selector.elements)
        stream = (number + 1) << _STREAM_SHIFT | self.trial(step)
        if self.ber is not None:
            chosen = sampling.ber(space.size * samples, self.ber, self.seed, stream)
            sample, inside = np.divmod(chosen, np.uint64(max(1, space.size)))
        else:
            neurons = sampling.count(space.size, self.count or 0, self.seed, stream)
            sample, inside = np.repeat(np.arange(samples, dtype=np.uint64), len(neurons)), np.tile(neurons, samples)
        sites = space.locate(inside)
        whole = replace(target, shape=(samples, *target.shape))
        start, index, bit, model = sample.astype(np.int64) * target.size, sites.index, sites.bit, self.fault_model
        if model.multi_element:  # inside a sample, never across two
            elements = [model.elements(target.axes, at) for at in index.tolist()]
            lengths = [len(part) for part in elements]
            index = np.concatenate([np.zeros(0, np.int64), *elements])
            start, bit, model = np.repeat(start, lengths), np.repeat(bit, lengths), model.element_model
        return faults_at_sites(
            (whole,), Sites(np.zeros(len(index), np.int64), start + index, bit), model, self.seed, stream
        )


@dataclass(frozen=True)
class InjectionPlan:
    """Fault settings for the parameters or modules of one model.

    `targets` are all of them, in the framework's order; `description` names them in messages. Raises SelectorError
    where the selector selects none.
    """

    settings: FaultSettings
    targets: tuple[Target, ...]
    description: str = "parameters"

    def __post_init__(self) -> None:
        if not self.targets:
            raise InputError(f"the model has no {self.description} to inject faults into")
        _ = self.space  # refuses a selector that selects nothing
        if self.settings.target == "weights" and self.rate_warning:
            _LOG.warning("%s", self.rate_warning)

    @cached_property
    def space(self) -> FaultSpace:
        """Selected sites; for activations, whose shapes are not known yet, one word of each."""
        selector = self.settings.selector
        if self.settings.target == "activations":
            selector = replace(selector, dtype=(), elements="")
        return selector.space(self.targets, self.settings.fault_model)

    @cached_property
    def rate_warning(self) -> str:
        """One line where the rate is so high that nearly every word is faulty at each step; else empty."""
        if self.settings.target != "weights":
            each = max(map(len, self.space.bit_positions)) * (self.settings.ber or 0.0)
            return f"about {each:,.1f} faults are expected in each word at every step" if each >= 1 else ""
        words, rate = sum(self.space.element_counts), self.settings.ber
        expected = float(self.settings.count or 0) if rate is None else rate * self.space.size
        if expected < words:
            return ""
        return f"{expected:,.0f} faults are expected in {words:,} words at every step: nearly every word is faulty"

    def faults(self, trial: int) -> Faults:
        """Return the faults of one trial in the weights, over all targets; trial k is step k of training, from 1."""
        faults = self.settings.draw_weights(self.space, trial)
        ordinal = {target.id: k for k, target in enumerate(self.targets)}
        places = np.array([ordinal[target.id] for target in self.space.targets], np.int64)
        sites = replace(faults.sites, target=places[faults.sites.target])
        return replace(faults, targets=self.targets, sites=sites)


class TrainingFaults:
    """Base of the wrappers of a framework: their settings, and faults in the weights outside a training step."""

    plan: InjectionPlan

    @property
    def settings(self) -> FaultSettings:
        """The settings of the faults."""
        return self.plan.settings

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about these settings, a line each."""
        return (self.plan.rate_warning,) if self.plan.rate_warning else ()

    def inject_faults(self, faults: Faults | None = None, *, trial: int = 1) -> Faults:
        """Inject faults into the weights themselves, and return them with the words before and after.

        Parameters
        ----------
        faults
            The faults, as `map_faults` returns those of a fault list; None draws them at this wrapper's rate.
        trial
            Number of the draw, from 1.

        Raises
        ------
        InputError
            If this wrapper injects into activations, which are not stored.
        """
        if self.settings.target != "weights":
            raise InputError("faults before or after training need target='weights': activations are not stored")
        drawn = self.plan.faults(trial) if faults is None else faults
        done, final_words = resolve_faults(drawn, self._read, self.settings.clip)
        self._write(final_words)
        return done

    @contextmanager
    def faulty(self, faults: Faults | None = None, *, trial: int = 1) -> Iterator[Faults]:
        """Inject faults as `inject_faults` for the duration of a `with` block, and restore the weights after it."""
        before = self._weights()
        try:
            yield self.inject_faults(faults, trial=trial)
        finally:
            self._restore(before)

    def map_faults(self, model: Model, faults: Faults) -> Faults:
        """Return faults of a file exported from this model, with its present numbers, as faults of its weights.

        Raises
        ------
        FaultListError
            For a tensor of the file that no weight holds, bit for bit.
        """
        return map_faults(model, faults, self.plan.targets, self._arrays())

    def _read(self, number: int, index: Index) -> Words:
        """Return words of the target with this number."""
        raise NotImplementedError

    def _write(self, final_words: Mapping[int, tuple[Index, Words]]) -> None:
        """Write words into the weights, by the number of their target."""
        raise NotImplementedError

    def _arrays(self) -> dict[str, Array]:
        """Return the weights of the targets by name."""
        raise NotImplementedError

    def _weights(self) -> dict[str, Any]:
        """Return a copy of all weights by name."""
        raise NotImplementedError

    def _restore(self, weights: Mapping[str, Any]) -> None:
        """Write all weights back."""
        raise NotImplementedError


def target_of(name: str, dtype: str, shape: Sequence[int], kind: str, op: str, layer: str) -> Target | None:
    """Return a parameter or activation as a target, None for a number format without a float word."""
    word = WORDS.get(dtype)
    if word is None or not word.is_float or word.parts > 1:
        return None
    role = "" if kind == "activation" else "bias" if name.endswith("bias") else "weight"
    return Target(name, word, tuple(shape), kind, op, layer, layer, role=role)


def read_words(values: Array, word: Word, index: Index) -> Words:
    """Return the words of some elements of an array."""
    return np.ascontiguousarray(values).reshape(-1).view(word.carrier)[index].astype(np.uint64)


def replace_words(values: Array, word: Word, index: Index, words: Words) -> Array:
    """Return a copy of an array in which some elements hold these words."""
    after = np.array(values, order="C")
    after.reshape(-1).view(word.carrier)[index] = words.astype(word.carrier)
    return after


def resolve_faults(
    faults: Faults, read: WordReader, clip: float | None = None
) -> tuple[Faults, dict[int, tuple[Index, Words]]]:
    """Return the faults with their words, and for the number of each faulty target its elements and final words.

    The words are those that injection into an ONNX file leaves, clipped afterwards if `clip` is given.
    """
    stored = np.zeros(len(faults), np.uint64)
    rows = {int(k): np.flatnonzero(faults.sites.target == k) for k in np.unique(faults.sites.target)}
    for number, here in rows.items():
        stored[here] = read(number, faults.sites.index[here])
    done, final = apply_faults(faults, stored)
    final_words = {}
    for number, here in rows.items():
        words = _clipped(faults.targets[number].word, final[here], clip)
        final_words[number] = faults.sites.index[here], words
    return done, final_words


def _clipped(word: Word, words: Words, clip: float | None) -> Words:
    """Return the words with their numbers clipped to ±clip; NaN becomes 0."""
    if clip is None:
        return words
    numbers = word.values(words).astype(np.float64)
    beyond = ~(np.abs(numbers) <= clip)
    return np.where(beyond, word.words(np.clip(np.nan_to_num(numbers, nan=0.0), -clip, clip)), words)


def nonfinite_loss(settings: FaultSettings, step: int, name: str, faults: Sequence[Faults]) -> NonFiniteLossError:
    """Return the error for a step whose gradient is not finite: number of faults, the largest number, a remedy."""
    injected = sum(len(part) for part in faults)
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
                worst = f", the largest number is {part[row].value('after')} at {part[row].site}"
    remedy = "lower ber, or exclude the highest exponent bit (bits='0-29,31' for float32)"
    clipping = "" if settings.clip is not None else "set clip, as clip=1.0 to clip faulty numbers to ±1, "
    return NonFiniteLossError(
        f"step {step}: the loss is not finite (gradient of {name!r}), with {injected:,} faults injected{worst}; "
        f"{clipping}{remedy}"
    )


def map_faults(model: Model, faults: Faults, targets: Sequence[Target], values: Mapping[str, Array]) -> Faults:
    """Return faults of an exported file as faults of the framework's own tensors: the same bits of the same numbers.

    `values` are the tensors by name, with the numbers that the file was exported from. Exporters transpose and reshape
    kernels: elements are matched by their numbers, which must equal those of the file bit for bit.

    Raises FaultListError for a tensor of the file that no parameter holds.
    """
    ordinal = {target.id: k for k, target in enumerate(targets)}
    target, index = faults.sites.target.copy(), faults.sites.index.copy()
    for number in np.unique(faults.sites.target).tolist():
        stored = faults.targets[number]
        name, elements = _match_parameter(model, stored, values)
        here = faults.sites.target == number
        target[here], index[here] = ordinal[name], elements[faults.sites.index[here]]
    return replace(faults, targets=tuple(targets), sites=Sites(target, index, faults.sites.bit), real_values=None)


def _match_parameter(model: Model, target: Target, values: Mapping[str, Array]) -> tuple[str, Index]:
    """Return the parameter that a stored tensor was exported from, and for each of its elements the parameter's."""
    stored = model.words(target, np.arange(target.size))
    found = []
    for name in [target.id] if target.id in values else values:
        if values[name].dtype != target.word.dtype or values[name].size != target.size:
            continue
        words = read_words(values[name], target.word, np.arange(target.size))
        if np.array_equal(np.sort(words), np.sort(stored)):
            found += [(name, order) for order in _element_orders(words, stored, values[name].shape, target.shape)]
    if len(found) == 1:
        return found[0]
    if found:
        raise FaultListError(
            f"the numbers of {target.id!r} match the parameters in {len(found)} ways (as {found[0][0]!r}), so that "
            f"its elements are ambiguous; export a model whose parameters differ"
        )
    raise FaultListError(
        f"no parameter holds the numbers of {target.id!r}, bit for bit; give the file that was exported from these "
        f"parameters (exporters may fold batch normalisation into weights: such tensors exist in the file alone)"
    )


def _element_orders(
    words: Words, stored: Words, shape: tuple[int, ...], wanted: tuple[int, ...]
) -> list[NDArray[np.int64]]:
    """Return the parameter's element for each stored one, for every transposition that gives the stored order."""
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
