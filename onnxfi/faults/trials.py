"""Faults, and the draw of a trial's faults.

A `Fault` is a fault model at a site with all random numbers drawn. A trial may hold millions, so they are stored in
columns: `Faults` is an immutable sequence of `Fault`. A `Sampler` says how sites are chosen, `draw_faults` chooses
them, and `apply_faults` computes the words before and after, given the stored words.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import InputError, SelectorError, closest
from onnxfi.faults import sampling
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.space import FaultSpace, Selector, Site, Sites, Target, parse_site
from onnxfi.faults.words import Word, Words
from onnxfi.numbers import number, whole_number

#: Faults that one trial may hold: some 50 bytes each in memory.
MOST_FAULTS = 20_000_000
SAMPLERS = ("ber", "count", "per-tensor", "exhaustive", "per-sample", "voltage", "temperature", "sites")


@dataclass(frozen=True)
class Fault:
    """One fault, with all random numbers drawn. It is hashable, and one line of a fault list.

    Attributes
    ----------
    target : str
        Id of the target.
    index : int
        Flat index of the element, row-major.
    bits : tuple of int or None
        Changed bit positions, 0 is the least significant; None for the whole word.
    fault : str
        Text form of the fault model, its random parameters drawn.
    word : Word
        Number format.
    before, after : int, optional
        The word before and after the fault; None until they are known.
    sample, step : int, optional
        Sample of the data and step of the loop, for faults in activations; None for all.
    onwards : bool
        True for a fault from `step` onwards.
    before_real, after_real : float, optional
        The real numbers that quantised integers represent; None for all other words.

    Examples
    --------
    >>> from onnxfi.faults.words import WORDS
    >>> fault = Fault("conv1.weight", 7, (30,), "flip", WORDS["float32"], before=0x3F800000, after=0x7F800000)
    >>> str(fault.site), fault.value("before"), fault.value("after")
    ('conv1.weight[7]:30', 1.0, inf)
    """

    target: str
    index: int
    bits: tuple[int, ...] | None
    fault: str
    word: Word
    before: int | None = None
    after: int | None = None
    sample: int | None = None
    step: int | None = None
    onwards: bool = False
    before_real: float | None = field(default=None, compare=False)
    after_real: float | None = field(default=None, compare=False)

    @property
    def site(self) -> Site:
        """Site of the fault."""
        bit = self.bits[0] if self.bits else None
        return Site(self.target, self.index, bit, self.sample, self.step, self.onwards)

    @property
    def changed(self) -> bool:
        """True if the word differs afterwards (a stuck-at fault may find its own value)."""
        return self.before != self.after

    def value(self, when: str) -> Any:
        """Return the number that the word `before` or `after` stands for: a float, an int or a bool."""
        word = self.before if when == "before" else self.after
        if word is None:
            return None
        return plain_numbers(self.word, np.array([word], np.uint64))[0]


def plain_numbers(word: Word, words: Words) -> list[Any]:
    """Return the numbers that words stand for; of a float the shortest decimal that names it in its own format.

    >>> from onnxfi.faults.words import WORDS
    >>> plain_numbers(WORDS["float32"], np.array([0x3DCCCCCD], np.uint64))
    [0.1]
    """
    values = word.values(words)
    if word.is_float:  # not its float64 expansion
        return [float(str(value)) for value in values]
    return [value.item() if word.bits < 2 else int(value) for value in values]


@dataclass(frozen=True)
class Faults(Sequence[Fault]):
    """Immutable sequence of faults, stored in columns.

    Attributes
    ----------
    targets : tuple of Target
        The targets, to which the sites refer by number.
    sites : Sites
        A row for each fault: target, element, bit, and for activations sample and steps.
    models : tuple of FaultModel
        The fault model of all rows, or one for each row.
    before, after : array of uint64, shape (n,), optional
        The words before and after each fault.
    events : int
        Number of drawn sites; less than the length if one event changes several elements.
    real_values : array of float32, shape (2, n), optional
        The real numbers before and after that quantised integers represent; NaN for all other words.

    Examples
    --------
    >>> from onnxfi.faults.words import WORDS
    >>> space = Selector().space([Target("w", WORDS["float32"], (100,))])
    >>> faults = draw_faults(space, Sampler("count", n=2, seed=1), parse_fault("flip"))
    >>> len(faults), [str(fault.site) for fault in faults]
    (2, ['w[39]:6', 'w[63]:0'])
    """

    targets: tuple[Target, ...]
    sites: Sites
    models: tuple[FaultModel, ...]
    before: Words | None = None
    after: Words | None = None
    events: int = -1
    real_values: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.events < 0:
            object.__setattr__(self, "events", len(self.sites))

    def __len__(self) -> int:
        return len(self.sites)

    def model(self, row: int) -> FaultModel:
        """Return the fault model of a row, its random parameters drawn."""
        return self.models[0 if len(self.models) == 1 else row]

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            pick = np.arange(len(self))[row]
            return self.pick(pick)
        row = range(len(self))[row]
        target = self.targets[int(self.sites.target[row])]
        bit, model = int(self.sites.bit[row]), self.model(row)
        before, after = (None if column is None else int(column[row]) for column in (self.before, self.after))
        bits = None if bit < 0 else tuple(range(bit, bit + model.width()))
        real = self.sites.sample_and_step(row)
        if self.real_values is not None and not np.isnan(self.real_values[0, row]):  # the shortest decimal of a float32
            real |= {f"{when}_real": float(str(self.real_values[k, row])) for k, when in enumerate(("before", "after"))}
        return Fault(target.id, int(self.sites.index[row]), bits, str(model), target.word, before, after, **real)

    def __iter__(self) -> Iterator[Fault]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Faults) and len(self) == len(other) and all(map(operator.eq, self, other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def pick(self, rows: Any) -> Faults:
        """Return the faults of these rows (numbers, a mask or a slice), in that order."""
        sites = self.sites.pick(rows)
        models = self.models if len(self.models) == 1 else tuple(self.models[r] for r in np.arange(len(self))[rows])
        before, after = (None if c is None else c[rows] for c in (self.before, self.after))
        reals = None if self.real_values is None else self.real_values[:, rows]
        return Faults(self.targets, sites, models, before, after, real_values=reals)

    @cached_property
    def word_count(self) -> int:
        """Number of different words that have faults."""
        return int(np.count_nonzero(_by_word(self.sites)[1]))

    def changed_by_target(self) -> NDArray[np.int64]:
        """Return the number of changed words of each target after all faults ([targets])."""
        found = np.zeros(len(self.targets), np.int64)
        if self.before is None or self.after is None:
            return found
        place, first = _by_word(self.sites)
        # The first fault of a word has the word as it is stored, the last one as it is at the end.
        last = np.append(first[1:], True)
        moved = self.before[place][first] != self.after[place][last[: len(place)]]
        return found + np.bincount(self.sites.target[place][first][moved], minlength=len(found))


def concatenate_faults(parts: Sequence[Faults]) -> Faults:
    """Return several sequences of faults over the same targets as one; words are kept if all parts have them."""
    if len(parts) == 1:
        return parts[0]
    models = {p.models for p in parts}
    spread = (
        parts[0].models
        if len(models) == 1 and len(parts[0].models) == 1
        else tuple(p.model(row) for p in parts for row in range(len(p)))
    )
    before, after = (
        None if any(getattr(p, when) is None for p in parts) else np.concatenate([getattr(p, when) for p in parts])
        for when in ("before", "after")
    )
    known = [p.real_values for p in parts if p.real_values is not None]
    reals = np.concatenate(known, axis=1) if len(known) == len(parts) else None
    return Faults(parts[0].targets, Sites.join([p.sites for p in parts]), spread, before, after,
                  sum(p.events for p in parts), reals)  # fmt: skip


#: Kinds that have a rate.
RATE_SAMPLERS = ("ber", "per-sample")
#: Kinds whose rate is a voltage or temperature, at which the cells of a fault map fail.
CONDITION_SAMPLERS = ("voltage", "temperature")


def _samples(space: FaultSpace) -> int:
    """Return how many samples its sites name; SelectorError if a target has no sample to name."""
    for target in space.targets:
        if target.positions is not None:
            raise SelectorError(f"the sites of {target.id!r} differ from sample to sample; use --ber or --single")
        if not target.samples:
            raise SelectorError(
                f"{target.id!r} has no batch axis, so no sample of it can be named; leave it out with --exclude"
                if target.is_activation
                else f"{target.id!r} is stored: its faults are in every sample; use --ber or --count for weights"
            )
    return max((target.samples for target in space.targets), default=0)


@dataclass(frozen=True)
class Sampler:
    """Choice of sites: a kind, its number, and the seed.

    Kinds: `ber` (each site with probability `rate`), `count` (`n` different sites), `per-tensor` (`n` in each
    target), `per-sample` (in each sample of the data, with probability `rate`, one site), `exhaustive` (all), `voltage`
    and `temperature` (cells of a fault map that fail at `rate`; each of `n` trials in sequence has the same memory),
    `sites` (those named).
    """

    kind: str
    rate: float = 0.0
    n: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in SAMPLERS:
            raise InputError(f"unknown sampler {self.kind!r}{closest(self.kind, SAMPLERS)}")
        for name, read in (("rate", number), ("n", whole_number), ("seed", whole_number)):
            try:
                object.__setattr__(self, name, read(getattr(self, name)))
            except ValueError:
                given = str(getattr(self, name))[:60]
                raise InputError(f"{self.kind} takes one number as its {name}; given {given!r}") from None
        if self.kind in RATE_SAMPLERS:
            sampling.check_rate(self.rate)
        elif self.kind in CONDITION_SAMPLERS and not math.isfinite(self.rate):
            raise InputError(f"{self.kind} {self.rate} is out of range; give a number, as 0.8")
        elif self.n < 0:
            raise InputError(f"--count {self.n} is out of range; give a whole number from 0")

    @classmethod
    def given(cls, seed: int, *, per_tensor: bool = False, **ways: Any) -> Sampler:
        """Return the one choice that is given of several; InputError if it is not one.

        >>> Sampler.given(1, ber=None, count=3, sites=None)
        Sampler(kind='count', rate=0.0, n=3, seed=1)
        """
        given = {name: value for name, value in ways.items() if value is not None}
        if len(given) != 1:
            *some, last = ways
            raise InputError(
                f"exactly one of {', '.join(some)} and {last} says how many faults; "
                f"given: {' and '.join(given) or 'none'}"
            )
        if per_tensor and "count" not in given:
            raise InputError("per_tensor goes with count; give both")
        ((name, value),) = given.items()
        if name == "sites":
            return cls(name, n=len(value), seed=seed)
        if name == "count":
            return cls("per-tensor" if per_tensor else name, n=value, seed=seed)
        return cls(name.replace("_", "-"), rate=value, seed=seed)

    def expected_count(self, space: FaultSpace, model: FaultModel | None = None) -> float:
        """Return the expected number of faults; of a fault map it is known with the model."""
        if self.kind in CONDITION_SAMPLERS:
            return 0.0 if model is None else model.expected(space.size, self.rate)
        each = {"per-tensor": self.n * len(space.targets), "exhaustive": space.size}
        if self.kind == "per-sample":
            return self.rate * _samples(space)
        return self.rate * space.size if self.kind == "ber" else float(each.get(self.kind, self.n))

    def site_numbers(self, space: FaultSpace, trial: int) -> sampling.Numbers:
        """Return the site numbers of one trial, ascending within each target."""
        if self.expected_count(space) > MOST_FAULTS:
            raise InputError(
                f"{self.expected_count(space):,.0f} faults in one trial are expected, more than {MOST_FAULTS:,}; "
                f"lower the rate or count, or narrow the selection"
            )
        if self.kind == "ber":
            return sampling.ber(space.size, self.rate, self.seed, trial)
        if self.kind == "count":
            return sampling.count(space.size, self.n, self.seed, trial)
        if self.kind == "per-tensor":
            return sampling.per_tensor(space.sizes, self.n, self.seed, trial)
        if self.kind == "per-sample":
            return sampling.per_sample(space.sizes, _samples(space), self.rate, self.seed, trial)
        return sampling.exhaustive(space.size)


def draw_faults(space: FaultSpace, how: Sampler, model: FaultModel, trial: int = 1, *, part: int = 0) -> Faults:
    """Return the faults of one trial: a pure function of the space, the sampler and the trial's number.

    `part` gives each of several draws in one trial random numbers of its own.
    """
    if how.kind in CONDITION_SAMPLERS or model.condition:
        return _failing_cells(space, how, model, trial)
    trial |= part << 56
    sites = space.locate(how.site_numbers(space, trial))
    return faults_at_sites(space.targets, sites, model, how.seed, trial)


def _failing_cells(space: FaultSpace, how: Sampler, model: FaultModel, trial: int) -> Faults:
    """Return the faults of the cells of a map that fail; InputError for another fault model, or another draw."""
    check_condition(model, how.kind)
    if model.expected(space.size, how.rate) > MOST_FAULTS:
        raise InputError(f"more than {MOST_FAULTS:,} cells fail at {how.rate:g}; narrow the selection")
    numbers, models = model.failing_sites(space.size, how.rate, how.seed, (trial - 1) // max(1, how.n))
    return Faults(space.targets, space.locate(numbers), models or (model.element_model,), events=len(numbers))


def check_condition(model: FaultModel, kind: str) -> None:
    """Raise InputError unless a fault model and a kind of draw go together: maps at a voltage, others at a rate."""
    if model.condition and kind != model.condition:
        raise InputError(f"a fault map of {model.condition} says which cells fail; give {model.condition}, not {kind}")
    if kind in CONDITION_SAMPLERS and not model.condition:
        raise InputError(f"{kind} draws the cells of a fault map; give fault fault-map:file=MAP.json, not {model}")


def faults_at_sites(targets: tuple[Target, ...], sites: Sites, model: FaultModel, seed: int, trial: int) -> Faults:
    """Return the faults of events at these sites, with drawn parameters: one per site, or all that an event affects."""
    events = len(sites)
    check_condition(model, "sites")
    if model.composite:
        raw = sampling.raw_words(seed, trial, sampling.VALUE, events)
        sites, models = model.spread(targets, sites, raw)
        return Faults(targets, sites, models or (model.element_model,), events=events)
    if model.multi_element:
        sites, model = _spread_out(targets, sites, model), model.element_model
    if not model.is_random:
        return Faults(targets, sites, (model,), events=events)
    raw = sampling.raw_words(seed, trial, sampling.VALUE, len(sites)).tolist()
    words = (targets[t].word for t in sites.target.tolist())
    spent = tuple(model.draw_parameters(r, w) for r, w in zip(raw, words, strict=True))
    return Faults(targets, sites, spent, events=events)


def check_number(model: FaultModel, faults: int) -> None:
    """Raise InputError for more faults than one trial can hold."""
    if faults > MOST_FAULTS:
        raise InputError(f"{model} changes more than {MOST_FAULTS:,} words in one trial; lower the rate or count")


def _spread_out(targets: tuple[Target, ...], sites: Sites, model: FaultModel) -> Sites:
    reached, total = [], 0
    for target, index in zip(sites.target.tolist(), sites.index.tolist(), strict=True):
        reached.append(model.elements(targets[target].axes, index))
        total += len(reached[-1])
        check_number(model, total)
    lengths = np.array([len(r) for r in reached], np.int64)
    index = np.concatenate([np.zeros(0, np.int64), *reached])
    return replace(sites.pick(np.repeat(np.arange(len(sites)), lengths)), index=index)


def faults_at_named_sites(
    texts: Sequence[str], targets: Sequence[Target], model: FaultModel, selector: Selector, seed: int = 0
) -> Faults:
    """Return the faults of one trial at the sites that are named (`ID[i]:B`).

    Raises SelectorError for a site that does not exist, is named twice, has no bit where the model needs one or one
    where it changes whole words, or is left out by the selector (to name a site includes its target).
    """
    ordinal = {t.id: k for k, t in enumerate(targets)}
    sites = [parse_site(text, targets) for text in texts]
    chosen = replace(selector, include=tuple(dict.fromkeys("=" + site.target for site in sites)))
    named = [t for t in targets if chosen.selects(t)]
    space = FaultSpace.over(named, model, bits=selector.bits, elements=selector.elements)
    seen: set[Site] = set()
    for site in sites:
        target = targets[ordinal[site.target]]
        if model.unit == "bit" and site.bit is None:
            raise SelectorError(f"site {str(site)!r} needs a bit for {model}, as {site}:{target.word.bits - 1}")
        if model.unit == "word" and site.bit is not None:
            raise SelectorError(f"site {str(site)!r} names a bit, but {model} changes whole words; leave the bit out")
        if site.bit is not None and site.bit + model.width() > target.word.bits:
            raise SelectorError(
                f"{model} at {str(site)!r} reaches beyond the {target.word.bits} bits of {target.dtype}"
            )
        if target.role == "spike" and not model.element_model.overwrites:
            chosen.space([target], model)  # says why there is no such fault
        if (site.sample is not None or site.step is not None) and not target.is_activation:
            raise SelectorError(f"site {str(site)!r}: a stored word has neither sample nor step; leave them out")
        if site not in space:
            raise SelectorError(f"site {str(site)!r} is left out by the other selectors")
        if site in seen:
            raise SelectorError(f"site {str(site)!r} is named twice")
        seen.add(site)
    timed = any(targets[ordinal[site.target]].is_activation for site in sites)
    columns = Sites.of(sites, [ordinal[site.target] for site in sites], timed=timed)
    return faults_at_sites(tuple(targets), columns, model, seed, 1)


def faults_of_event(text: str, space: FaultSpace, model: FaultModel, seed: int, trial: int) -> Faults:
    """Return the faults of one event at a site of the space that is named; SelectorError if it has no such site."""
    site = parse_site(text, space.targets)
    if site not in space:
        raise SelectorError(f"site {text[:80]!r} is not one of the list's")
    ordinal = next(k for k, target in enumerate(space.targets) if target.id == site.target)
    sites = Sites.of([site], [ordinal], timed=any(t.is_activation for t in space.targets))
    return faults_at_sites(space.targets, sites, model, seed, trial)


def single_faults(
    space: FaultSpace, numbers: sampling.Numbers, model: FaultModel, seed: int, trials: Sequence[int]
) -> tuple[Faults, list[int]]:
    """Return one event for each of many trials, each with the random numbers of its own trial.

    Returns the faults, trial after trial, and the number of faults of each trial.
    """
    check_condition(model, "single")
    sites = space.locate(numbers)
    if not (model.is_random or model.element_model.is_random or model.multi_element or model.composite):
        return Faults(space.targets, sites, (model,)), [1] * len(sites)
    rows = (slice(k, k + 1) for k in range(len(sites)))
    parts = [
        faults_at_sites(space.targets, sites.pick(k), model, seed, trial) for k, trial in zip(rows, trials, strict=True)
    ]
    return concatenate_faults(parts), [len(part) for part in parts]


def apply_separately(faults: Faults, stored: Words) -> Faults:
    """Return faults of different trials with their words before and after: each is applied to the stored word."""
    return replace(faults, before=stored, after=_apply(faults, np.arange(len(faults)), stored))


def apply_faults(faults: Faults, stored: Words) -> tuple[Faults, Words]:
    """Compute the words before and after each fault, given the stored word of each row.

    Several faults in one word act in the order of the rows, each on the result of the one before. Returns the faults
    with their words, and for each row the final word at its site.
    """
    place, first = _by_word(faults.sites)
    group = np.cumsum(first) - 1
    rank = np.arange(len(place)) - np.flatnonzero(first)[group] if len(place) else group
    now = stored[place][first].copy()
    before, after = np.zeros(len(faults), np.uint64), np.zeros(len(faults), np.uint64)
    for turn in range(int(rank.max(initial=-1)) + 1):
        here = rank == turn
        rows, cells = place[here], group[here]
        before[rows] = now[cells]
        after[rows] = _apply(faults, rows, before[rows])
        now[cells] = after[rows]
    final = np.zeros(len(faults), np.uint64)
    final[place] = now[group]
    return replace(faults, before=before, after=after), final


def _by_word(sites: Sites) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the order of sites by word, and where in it a word is the first time."""
    place = np.lexsort((np.arange(len(sites)), sites.index, sites.target))
    words = np.stack([sites.target[place], sites.index[place]])
    return place, np.append(np.ones(min(1, len(place)), np.bool_), (words[:, 1:] != words[:, :-1]).any(axis=0))


def _apply(faults: Faults, rows: Any, before: Words) -> Words:
    after = np.zeros(len(rows), np.uint64)
    bits, target = faults.sites.bit[rows], faults.sites.target[rows]
    if len(rows) == 1:  # as in most trials, of which there are many
        word = faults.targets[int(target[0])].word
        return np.asarray(faults.model(int(np.arange(len(faults))[rows][0])).apply(word, before, bits), np.uint64)
    present = np.unique(target).tolist()
    layouts = {word: k for k, word in enumerate(dict.fromkeys(faults.targets[t].word for t in present))}
    of_target = np.zeros(len(faults.targets), np.int64)
    of_target[present] = [layouts[faults.targets[t].word] for t in present]
    layout = of_target[target]
    models, which = [faults.models[0]], np.zeros(len(rows), np.int64)
    if len(faults.models) > 1:
        held = [faults.models[row] for row in rows.tolist()]
        known = {id(model): model for model in held}  # by identity: a draw shares the models that it gives often
        numbers = {name: k for k, name in enumerate(known)}
        models = [*known.values()]
        which = np.fromiter((numbers[id(model)] for model in held), np.int64, len(held))
    place = np.lexsort((layout, which))
    kinds = np.stack([which[place], layout[place]])
    edges = np.flatnonzero((kinds[:, 1:] != kinds[:, :-1]).any(axis=0)) + 1
    words = [*layouts]
    for here in np.split(place, edges):
        if len(here):
            model, word = models[int(which[here[0]])], words[int(layout[here[0]])]
            after[here] = model.apply(word, before[here], bits[here])
    return after


def json_value(value: Any) -> Any:
    """Return a number as strict JSON takes it: NaN and the infinities become strings.

    >>> json_value(float("-inf")), json_value(0.5)
    ('-Infinity', 0.5)
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def fault_model(given: str | FaultModel | type[FaultModel]) -> FaultModel:
    """Return a fault model from its text form, of a class with its defaults, or as it is."""
    if isinstance(given, type):
        return given()
    return parse_fault(given) if isinstance(given, str) else given
