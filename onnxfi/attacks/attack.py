"""Attack search: the few flips that harm a classifier most, and what as many random flips do to the same samples."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.attacks.candidates import check_gradients
from onnxfi.attacks.flip_trials import FlipTrials, Harm, split_samples
from onnxfi.attacks.goals import Goal
from onnxfi.attacks.search import METHODS, ChosenFlip, Rules, chosen_flips
from onnxfi.errors import InputError, closest
from onnxfi.faults.faultlist import Header, trial_lines
from onnxfi.faults.models import Flip
from onnxfi.faults.space import FaultSpace, Selector, Target
from onnxfi.faults.trials import Faults, Sampler, draw_faults
from onnxfi.graph.model.loading import Model, ModelLike, load, stored_form
from onnxfi.graph.write.output_file import atomic_files, check_output_files
from onnxfi.numbers import named_whole, optional_whole
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.labels import as_kind
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import inputs_of
from onnxfi.runtime.inject.weights import sample
from onnxfi.tasks.kinds.classification import CLASSIFICATION
from onnxfi.tasks.registry import AUTO

#: Numbers of random flips that chosen ones are compared with.
RANDOM_COUNTS = (1, 10, 100, 1_000, 10_000)
#: A network guesses at random from this multiple of the accuracy of guessing on.
_NEAR_CHANCE = 1.1
_MOST_SEEDS = 100


@dataclass(frozen=True)
class RandomHarm:
    """Accuracy under so many random flips: the median, the least and the largest of some trials."""

    flips: int
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Search:
    """The flips of one search, with the effect of the first k of them on the samples that are scored.

    Attributes
    ----------
    seed : int
        The seed that chose the attack batch.
    flips : tuple of ChosenFlip
        The flips, in the order in which they were chosen.
    golden : float
        The accuracy without faults on the scored samples.
    harm : tuple of Harm
        For each k from 1 the effect of the first k flips.
    success : tuple of float, optional
        Of a targeted attack `reached` and `kept` without faults.
    """

    seed: int
    flips: tuple[ChosenFlip, ...]
    golden: float
    harm: tuple[Harm, ...]
    success: tuple[float, float] | None = None

    def to(self, accuracy: float) -> int | None:
        """Return the least k whose accuracy is at most this; None if none is."""
        return next((k for k, harm in enumerate(self.harm, 1) if harm.accuracy <= accuracy), None)


@dataclass(frozen=True)
class Defended:
    """Effect of the flips of the first search on another model with the same tensors, on the same scored samples.

    Attributes
    ----------
    model : str
        Its name.
    golden : float
        Its accuracy without faults.
    harm : tuple of Harm
        For each k from 1 the effect of the first k flips.
    success : tuple of float, optional
        Of a targeted attack `reached` and `kept` without faults.
    """

    model: str
    golden: float
    harm: tuple[Harm, ...]
    success: tuple[float, float] | None = None


@dataclass(frozen=True)
class Attack:
    """Result of an attack search, with all that it depends on.

    Attributes
    ----------
    model, digest : str
        Name and SHA-256 of the model.
    formats : tuple of str
        Number formats of the words that may be flipped, of quantised ones with the quantiser: operators and scales.
    goal : Goal
        The attacker's goal.
    rules : Rules
        The rules of the search.
    attack_samples, scored_samples : int
        Samples that flips are tried on, and samples that are scored, which are others.
    chance : float
        The accuracy of a network that guesses: 1.1 times the share of the most common class in the scored samples.
    searches : tuple of Search
        One for each seed.
    random : tuple of RandomHarm
        The effect of random flips in the same tensors and bits on the samples that the first search scores.
    random_trials : int
        Trials behind each row of `random`.
    defended : tuple of Defended
        The flips of the first search on other models, as protected ones.

    Examples
    --------
    >>> data = "models/fashion_test.npz"
    >>> found = attack("models/fashion_cnn.onnx", data, method="sign", flips=1, samples=100, random_trials=0)
    >>> found.attack_samples, found.scored_samples, len(found.searches[0].harm)
    (64, 36, 1)
    """

    model: str
    digest: str
    formats: tuple[str, ...]
    goal: Goal
    rules: Rules
    attack_samples: int
    scored_samples: int
    chance: float
    searches: tuple[Search, ...]
    random: tuple[RandomHarm, ...]
    random_trials: int
    defended: tuple[Defended, ...] = ()

    @cached_property
    def to_chance(self) -> tuple[int | None, ...]:
        """For each search the flips until the network guesses; None if it does not."""
        return tuple(search.to(self.chance) for search in self.searches)

    @property
    def median_to_chance(self) -> float | None:
        """The median number of flips until the network guesses; None if fewer than half of the searches get there."""
        reached = [float("inf") if k is None else float(k) for k in self.to_chance]
        median = statistics.median(reached)
        return None if median == float("inf") else median

    def document(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        return asdict(self) | {"to_chance": list(self.to_chance)}


def attack(
    model: ModelLike,
    data: Any,
    out: str | Path | None = None,
    *,
    method: str = "search",
    flips: int = 10,
    source_class: int | None = None,
    target_class: int | None = None,
    attack_samples: int = 64,
    candidates: int = 32,
    first_tensors: int = 3,
    screen: int = 0,
    gradients: Mapping[str, NDArray[Any]] | None = None,
    selector: Selector | None = None,
    seed: int = 0,
    seeds: int = 1,
    random_trials: int = 20,
    also: Sequence[ModelLike] = (),
    progress: Callable[[int, ChosenFlip], None] | None = None,
    **fields: Any,
) -> Attack:
    """Search the few bit flips in stored weights that harm a classifier most.

    Some of the samples, drawn at random, are the attack batch, on which flips are tried; all others are scored. The
    result is the worst case that this search found, not the worst there is.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The model.
    data : path, arrays or dataset
        Labelled samples, as `open_data` takes them.
    out : str or Path, optional
        The fault list to write; trial k has the first k flips of the first search.
    method : {"search", "gradient", "sign", "exponent"}
        `search` runs candidates of every tensor and keeps the best, one flip after the other; `gradient` takes the
        candidates from `gradients`; `sign` and `exponent` run nothing: they flip that bit of the largest words of the
        first tensors.
    flips : int
        The most flips.
    source_class, target_class : int, optional
        Classes of a targeted attack, as places of their scores from 0: samples of `source_class` (None: of all
        others) are to be answered as `target_class`, the others as before.
    attack_samples : int
        Samples of the attack batch.
    candidates : int
        Flips of each tensor that are run in each round.
    first_tensors : int
        Tensors, from the first on, whose words `sign` and `exponent` take.
    screen : int
        Samples of the attack batch on which all candidates are run first; only the best `candidates` of them all are
        then run on the whole batch. 0: all are.
    gradients : mapping of str to array, optional
        The gradient of the loss by tensor, in its shape; of the method `gradient`.
    selector : Selector, optional
        The tensors and bits that may be flipped; by default those with the role of a weight.
    seed, seeds : int
        The first seed of attack batches, and their number: one search for each.
    random_trials : int
        Trials of random flips, for each of 1, 10, 100, … flips; 0 for none.
    also : sequence of models
        Models with the same tensors, as protected ones, on which the flips of the first search are scored too.
    progress : callable, optional
        Called with a seed and each flip that its search chose.
    **fields
        Fields of `Campaign` of engine, data and scoring: ``samples``, ``batch``, ``preprocess``, ``provider``, ….

    Returns
    -------
    Attack
        The flips, their effect beside that of random ones, and the flips until the network guesses.

    Raises
    ------
    InputError
        For samples without labels, a model that is no classifier, or a value out of range.

    Examples
    --------
    >>> found = attack("models/fashion_cnn.onnx", "models/fashion_test.npz", flips=1, samples=200, random_trials=0)
    >>> found.searches[0].golden > 0.85, found.searches[0].harm[0].accuracy < 0.3
    (True, True)
    """
    attack_samples, seed = named_whole("attack_samples", attack_samples), named_whole("seed", seed)
    seeds = named_whole("seeds", seeds, 1, _MOST_SEEDS)
    random_trials = named_whole("random_trials", random_trials, 0, 10_000)
    given = {"flips": flips, "candidates": candidates, "first_tensors": first_tensors, "screen": screen}
    rules = _rules(method, given, attack_samples, gradients)
    goal = Goal(optional_whole("source_class", source_class), optional_whole("target_class", target_class))
    opened = load(model)
    space = (selector or Selector(role=("weight",))).space(opened.targets, Flip())
    if gradients is not None:
        check_gradients(gradients, space)
    slopes = None if gradients is None else {name: np.asarray(g, np.float64) for name, g in gradients.items()}
    if out is not None:
        check_output_files(opened, [Path(out)], copy=False)
    whole = _samples(opened, data, fields)
    fields = _classifying(fields, whole)
    searches, random, defended = list[Search](), tuple[RandomHarm, ...](), tuple[Defended, ...]()
    with tempfile.TemporaryDirectory(prefix="onnxfi-attack-") as folder:
        path = _kept(model, Path(folder, "model.onnx"))
        for number in range(seed, seed + seeds):
            batch, scored, left = split_samples(whole, attack_samples, number, Path(folder))
            follow = None if progress is None else partial(progress, number)
            chosen = chosen_flips(path, space, batch, goal, rules, fields, Path(folder), slopes, follow)
            trials = FlipTrials(path, scored, goal, fields)
            searches.append(Search(number, chosen, trials.accuracy, _harm(trials, opened, chosen), trials.success))
            if number == seed:
                defended = tuple(
                    _defended(m, k, chosen, scored, goal, fields, Path(folder)) for k, m in enumerate(also)
                )
                random, chance = _random_harm(trials, space, random_trials, seed), _NEAR_CHANCE * trials.majority
            trials.executor.close()
    formats = tuple(dict.fromkeys(map(_format, space.targets)))
    found = Attack(opened.name, opened.digest, formats, goal, rules, attack_samples, left, chance, tuple(searches),
                   random, random_trials, defended)  # fmt: skip
    if out is not None:
        _write(Path(out), opened, space, searches[0].flips)
    return found


def _classifying(fields: Mapping[str, Any], data: Data) -> dict[str, Any]:
    """Return the fields of a campaign on a classifier; DataError for labels of something else."""
    if data.labels is not None:
        as_kind("classes", data.labels)
    return {**fields, "task": CLASSIFICATION.name} if fields.get("task", AUTO) == AUTO else {**fields}


def _samples(opened: Model, data: Any, fields: dict[str, Any]) -> Data:
    """Open the samples, and take what says how from the fields."""
    reading = {name: fields.pop(name) for name in ("preprocess", "labels") if name in fields}
    limit, axis = optional_whole("samples", fields.pop("samples", None)), fields.get("batch_axis", 0)
    return open_data(data, inputs_of(opened.proto), limit=limit, batch_axis=named_whole("batch_axis", axis), **reading)


def _format(target: Target) -> str:
    """Return the number format of a tensor with its quantiser."""
    scheme = target.scheme
    return target.dtype if scheme is None else f"{target.dtype} ({scheme.name}, {scheme.granularity})"


def _kept(model: ModelLike, file: Path) -> Path:
    """Return the path of a model; one in memory is written to a file."""
    form = stored_form(model)
    if not isinstance(form, bytes):
        return Path(form)
    file.write_bytes(form)
    return file


def _defended(
    model: ModelLike, number: int, chosen: Sequence[ChosenFlip], scored: Path, goal: Goal, fields: Mapping[str, Any],
    folder: Path,
) -> Defended:  # fmt: skip
    """Return the effect of chosen flips on another model; InputError if it lacks one of their tensors."""
    opened = load(model)
    lacking = [flip.site for flip in chosen if flip.site.rpartition("[")[0] not in opened.by_id]
    if lacking:
        raise InputError(f"{opened.name} has no tensor of {lacking[0]!r}; give a version of the same network")
    trials = FlipTrials(_kept(model, folder / f"also-{number}.onnx"), scored, goal, fields)
    harm = _harm(trials, opened, chosen)
    trials.executor.close()
    return Defended(opened.name, trials.accuracy, harm, trials.success)


def _rules(method: str, given: Mapping[str, int], attack_samples: int, gradients: object) -> Rules:
    """Return the rules of a search; InputError for one that cannot be."""
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}{closest(method, METHODS)}")
    if (method == "gradient") != (gradients is not None):
        raise InputError("the method gradient takes gradients by tensor, and no other does; give both or neither")
    least = {"flips": 1, "candidates": 1, "first_tensors": 1, "screen": 0}
    most = {"flips": 1_000, "candidates": 100_000, "first_tensors": 1_000, "screen": max(attack_samples, 0)}
    return Rules(method, **{name: named_whole(name, value, least[name], most[name]) for name, value in given.items()})


def _first_flips(model: Model, chosen: Sequence[ChosenFlip]) -> Iterator[Faults]:
    """Yield the first k of the chosen flips, with their words, for each k."""
    if chosen:
        faults = sample(model, sites=[flip.site for flip in chosen]).faults
        yield from (faults[:k] for k in range(1, len(faults) + 1))


def _harm(trials: FlipTrials, model: Model, chosen: Sequence[ChosenFlip]) -> tuple[Harm, ...]:
    """Return the effect of the first k of the chosen flips, for each k."""
    return tuple(map(trials.harm, _first_flips(model, chosen)))


def _random_harm(trials: FlipTrials, space: FaultSpace, repeats: int, seed: int) -> tuple[RandomHarm, ...]:
    """Return the accuracy under random flips of the same tensors and bits."""
    rows = []
    for count in RANDOM_COUNTS if repeats else ():
        if count > space.size:
            break
        found = []
        for trial in range(1, repeats + 1):
            faults = draw_faults(space, Sampler("count", n=count, seed=seed), Flip(), trial)
            found.append(trials.harm(trials.executor.opened.fault_targets.onto(faults)).accuracy)
        rows.append(RandomHarm(count, statistics.median(found), min(found), max(found)))
    return tuple(rows)


def _write(out: Path, model: Model, space: FaultSpace, chosen: Sequence[ChosenFlip]) -> None:
    """Write a fault list whose trial k has the first k flips."""
    how = Sampler("sites", n=len(chosen))
    named = Selector(include=tuple("=" + target.id for target in space.targets))
    header = Header(model.digest, "flip", named, how, population=space.size, file=str(model.path or ""))
    with atomic_files([out]) as (stream,):
        stream.write(f"{header.line()}\n".encode())
        for k, faults in enumerate(_first_flips(model, chosen), 1):
            for line in trial_lines(k, faults, how, range(len(model.targets))):
                stream.write(f"{line}\n".encode())
