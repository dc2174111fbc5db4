"""The choice of flips: by the words alone, or one after the other by what each does to the attack batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.attacks.candidates import Flips, candidates, largest_words
from onnxfi.attacks.flip_trials import FlipTrials
from onnxfi.attacks.goals import Goal
from onnxfi.errors import InputError
from onnxfi.faults.space import FaultSpace, Site, Target
from onnxfi.graph.model.loading import Model, load
from onnxfi.runtime.inject.weights import inject, sample

#: Ways to choose flips: by runs, by gradients and runs, or by the words alone.
METHODS = ("search", "gradient", "sign", "exponent")


@dataclass(frozen=True)
class Rules:
    """Rules of a search: all that its result depends on beside the model and the samples.

    Attributes
    ----------
    method : str
        One of `METHODS`.
    flips : int
        The most flips.
    candidates : int
        Flips of each tensor that are run in each round.
    first_tensors : int
        Tensors, from the first on, whose words `sign` and `exponent` take.
    screen : int
        Samples of the attack batch on which the candidates of all tensors are run first; of these only as many as one
        tensor has, the best, are run on the whole batch. 0: all candidates are.
    """

    method: str = "search"
    flips: int = 10
    candidates: int = 32
    first_tensors: int = 3
    screen: int = 0


@dataclass(frozen=True)
class ChosenFlip:
    """A flip that an attack chose: its site, and its gain on the attack batch (None where nothing was run)."""

    site: str
    gain: float | None = None


def chosen_flips(
    model: Path,
    space: FaultSpace,
    attack: Path,
    goal: Goal,
    rules: Rules,
    fields: Mapping[str, Any],
    scratch: Path,
    gradients: Mapping[str, NDArray[np.float64]] | None = None,
    progress: Callable[[ChosenFlip], None] | None = None,
) -> tuple[ChosenFlip, ...]:
    """Choose flips, each with all before it in place.

    Parameters
    ----------
    model : Path
        The model.
    space : FaultSpace
        The tensors and bits that may be flipped.
    attack : Path
        The samples that flips are tried on, an .npz.
    goal, rules
        The attacker's goal, and the rules of the search.
    fields : mapping
        Further fields of the campaign that runs flips.
    scratch : Path
        A folder for the model with the flips that are chosen so far.
    gradients : mapping of str to array, optional
        The gradient of the loss for each tensor, of the method `gradient`.
    progress : callable, optional
        Called with each flip that is chosen.

    Returns
    -------
    tuple of ChosenFlip
        The flips in order; fewer than asked for where no candidate serves the goal any more.
    """
    if rules.method in ("sign", "exponent"):
        return tuple(map(ChosenFlip, _by_words(load(model), space, rules)))
    found: list[ChosenFlip] = []
    for flip in _one_by_one(model, space, attack, goal, rules, fields, scratch, gradients):
        found.append(flip)
        if progress is not None:
            progress(flip)
    return tuple(found)


def _one_by_one(
    model: Path, space: FaultSpace, attack: Path, goal: Goal, rules: Rules, fields: Mapping[str, Any], scratch: Path,
    gradients: Mapping[str, NDArray[np.float64]] | None,
) -> Iterator[ChosenFlip]:  # fmt: skip
    """Yield the best flip of the best tensor, with all before it in place."""
    now, sites = model, list[str]()
    while len(sites) < rules.flips:
        best = _best(now, space, attack, goal, rules, fields, sites, gradients)
        if best is None or best.gain is None or best.gain <= 0:
            return
        yield best
        sites.append(best.site)
        now = scratch / f"{len(sites)}.onnx"
        inject(model, sample(model, sites=sites), now)
        if len(sites) > 1:
            (scratch / f"{len(sites) - 1}.onnx").unlink()


def _best(
    now: Path, space: FaultSpace, attack: Path, goal: Goal, rules: Rules, fields: Mapping[str, Any], taken: list[str],
    gradients: Mapping[str, NDArray[np.float64]] | None,
) -> ChosenFlip | None:  # fmt: skip
    """Return the flip with the largest gain of all tensors; a flip that was taken is not taken back."""
    first = {"samples": rules.screen} if rules.screen else {}
    trials = FlipTrials(now, attack, goal, {**fields, **first})
    ranked = _ranked(trials, candidates(trials.model, space, rules.candidates, gradients), taken)
    if rules.screen:
        trials.executor.close()
        trials = FlipTrials(now, attack, goal, fields)
        ranked = _ranked(trials, _by_tensor(ranked[: rules.candidates]), taken)
    trials.executor.close()
    return ChosenFlip(_site(trials.model.targets[ranked[0].target], ranked[0], 0), ranked[0].gain) if ranked else None


@dataclass(frozen=True)
class _Tried(Flips):
    """One flip, and its gain."""

    gain: float


def _ranked(trials: FlipTrials, every: Iterable[Flips], taken: list[str]) -> list[_Tried]:
    """Run flips, and return those that are not taken, the largest gain first, in a tie the first."""
    found = list[_Tried]()
    for flips in every:
        gains = trials.gains(flips)
        for row in range(len(flips)):
            if _site(trials.model.targets[flips.target], flips, row) not in taken:
                one = slice(row, row + 1)
                found.append(_Tried(flips.target, flips.index[one], flips.bit[one], float(gains[row])))
    return sorted(found, key=lambda flip: -flip.gain)


def _by_tensor(flips: Sequence[_Tried]) -> Iterator[Flips]:
    """Yield flips, those of each tensor together."""
    for target in dict.fromkeys(flip.target for flip in flips):
        mine = [flip for flip in flips if flip.target == target]
        yield Flips(target, np.concatenate([f.index for f in mine]), np.concatenate([f.bit for f in mine]))


def _by_words(model: Model, space: FaultSpace, rules: Rules) -> list[str]:
    """Return the sites of the sign, or top exponent bit, of the largest words of the first tensors, largest first."""
    rows: list[tuple[float, str]] = []
    for target in space.targets[: rules.first_tensors]:
        bit = _bit(target, rules.method)
        flips = largest_words(model, target, bit, rules.flips)
        words = model.words(target, flips.index)
        numbers = np.abs(target.word.values(words).astype(np.float64))
        with np.errstate(all="ignore"):
            after = target.word.values(words ^ np.uint64(1 << bit)).astype(np.float64)
        unit = numbers.max(initial=0.0) or 1.0
        rows += [
            (float(numbers[row] / unit), _site(target, flips, row))
            for row in range(len(flips))
            if np.isfinite(after[row])
        ]
    if not rows:
        raise InputError(
            f"no word of the first {rules.first_tensors} tensors stays finite under {rules.method}; select others"
        )
    return [site for _, site in sorted(rows, key=lambda row: -row[0])[: rules.flips]]


def _bit(target: Target, method: str) -> int:
    """Return the sign bit of a word, or its top exponent bit; of integers the highest bit for both."""
    if method == "exponent" and target.word.is_float:
        return max(target.word.field("exponent"))
    return target.word.bits - 1


def _site(target: Target, flips: Flips, row: int) -> str:
    return str(Site(target.id, int(flips.index[row]), int(flips.bit[row])))
