"""The fault list: an experiment as a text file. The format, version 1, is in docs/reference/fault-list.md.

Writing and reading are streams: a list of ten million trials is never held in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxfi.errors import FaultError, FaultListError, InputError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.scope import ActivationSpace
from onnxfi.faults.space import LAST_STEP, FaultSpace, Selector, Site, Sites, Target, fault_time
from onnxfi.faults.trials import (
    CONDITION_SAMPLERS,
    RATE_SAMPLERS,
    SAMPLERS,
    Fault,
    Faults,
    Sampler,
    concatenate_faults,
    draw_faults,
    faults_of_event,
    json_value,
    plain_numbers,
)
from onnxfi.faults.words import Word

FORMAT = "onnxfi-fault-list"
VERSION = 1
#: Trials with more faults than this are written as a recipe.
MAX_LINES = 1000
#: Recipe of a single composite event whose faults are more than that.
EVENT = "event"
LONGEST_LINE = 1 << 28
_RATES = (*RATE_SAMPLERS, *CONDITION_SAMPLERS)


@cache
def _installed() -> str:
    return version("onnxfi")  # read from a file of the installation, which costs more than a small model's fault


#: Trials of a rate that a sweep got later have numbers from a multiple of this on.
ADDED = 1 << 44


@dataclass(frozen=True)
class Header:
    """Header of a fault list: the model and the draw that it belongs to."""

    model: str
    fault: str = "flip"
    selector: Selector = field(default_factory=Selector)
    sampler: Sampler = field(default_factory=lambda: Sampler("sites"))
    population: int = 0
    unit: str = "bit"
    faulty: str | None = None
    #: The model's file as it was given, and the strata of a plan: hints for running the list.
    file: str = ""
    strata: tuple[dict[str, Any], ...] = ()
    #: Number of the strata, the last ones, that are rates that a sweep got later; their trials are numbered apart.
    added: int = 0
    #: Scope of faults in activations; None for lists of weights alone.
    activations: ActivationSpace | None = None
    tool: str = field(default_factory=_installed)

    def place(self, trial: int) -> tuple[int, int]:
        """Return the number of a trial within its stratum, from 0, and that of its stratum.

        >>> header = Header("m", strata=({}, {}, {}), added=1)
        >>> header.place(4), header.place(3 * ADDED + 2)
        ((1, 1), (1, 2))
        """
        block, rest = divmod(trial - 1, ADDED)
        return (rest, block - 1) if block else divmod(rest, max(1, len(self.strata) - self.added))

    def number(self, j: int, stratum: int) -> int:
        """Return the number of the j-th trial, from 0, of a stratum; the inverse of `place`."""
        first = len(self.strata) - self.added
        return 1 + (j * first + stratum if stratum < first else (stratum + 1) * ADDED + j)

    @property
    def of_single_faults(self) -> bool:
        """True if each trial of a plan is one event, drawn from its stratum without repetition."""
        return self.sampler.kind in ("count", "exhaustive") and bool(self.strata)

    def line(self) -> str:
        """Return the header as one line of JSON."""
        sampler: dict[str, Any] = {"kind": self.sampler.kind}
        sampler |= {"rate": self.sampler.rate} if self.sampler.kind in _RATES else {"n": self.sampler.n}
        chosen = asdict(self.selector)
        if not self.selector.role:  # optional, so that older readers take the lists that do not need it
            del chosen["role"]
        row = {
            "format": FORMAT, "version": VERSION, "tool": self.tool, "model": self.model, "faulty": self.faulty,
            "selector": chosen, "sampler": sampler, "fault": self.fault, "seed": self.sampler.seed,
            "population": self.population, "unit": self.unit,
        } | {
            key: value
            for key, value in (("file", self.file), ("strata", list(self.strata)), ("added", self.added))
            if value
        }  # fmt: skip
        if self.activations is not None:
            row["activations"] = self.activations.row()
        return json.dumps(row, allow_nan=False)

    @classmethod
    def parse(cls, line: str, where: str) -> Header:
        """Read a header; FaultListError if it is none or of another version."""
        row = _json(line, where)
        if row.get("format") != FORMAT:
            raise FaultListError(f"{where} is not a fault list; give a file that --save-faults or plan wrote")
        if row.get("version") != VERSION:
            raise FaultListError(
                f"{where} has version {row.get('version')} of the fault list format, this onnxfi reads version "
                f"{VERSION}; use the one that wrote it"
            )
        try:
            kept, drawn = dict(row["selector"]), row["sampler"]
            lists = {k: tuple(map(str, kept[k])) for k in ("include", "exclude", "op", "dtype")}
            if any(isinstance(kept[k], str) for k in (*lists, "role") if k in kept):
                raise TypeError("include, exclude, op, dtype and role are lists")
            lists["role"] = tuple(map(str, kept.get("role", ())))
            selector = Selector(**lists, bits=str(kept["bits"]), elements=str(kept["elements"]))
            how = Sampler(drawn["kind"], float(drawn.get("rate", 0)), int(drawn.get("n", 0)), int(row["seed"]))
            fault = str(parse_fault(row["fault"]))
            faulty = None if row["faulty"] is None else str(row["faulty"])
            return cls(
                str(row["model"]),
                fault,
                selector,
                how,
                int(row["population"]),
                str(row["unit"]),
                faulty,
                str(row.get("file", "")),
                tuple(_stratum(s) for s in row.get("strata", ())),
                _added(row),
                None if row.get("activations") is None else ActivationSpace.parse(row["activations"]),
                str(row["tool"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, InputError) as error:
            raise FaultListError(f"{where}: the header is damaged: {_say(error)}") from None


def _added(row: dict[str, Any]) -> int:
    added, strata = int(row.get("added", 0)), len(row.get("strata", ()))
    if not 0 <= added < max(1, strata):
        raise ValueError(f"{added} of {strata} strata were added")
    return added


def _stratum(row: Any) -> dict[str, Any]:
    kinds = {"label": (str,), "layer": (str, type(None)), "bit": (int, type(None)), "ber": (float, int, type(None))}
    if not isinstance(row, dict) or set(row) != set(kinds) or any(not isinstance(row[k], kinds[k]) for k in kinds):
        raise ValueError(f"{str(row)[:80]} is not a stratum")
    return row


def fault_row(trial: int, fault: Fault) -> dict[str, Any]:
    """Return a fault as the keys of its line."""
    row: dict[str, Any] = {"trial": trial, "target": fault.target, "index": fault.index}
    row |= {} if fault.sample is None else {"sample": fault.sample}
    row |= {} if fault.step is None else {"from" if fault.onwards else "step": fault.step}
    row |= {"bits": None if fault.bits is None else list(fault.bits), "fault": fault.fault}
    for when, word in (("before", fault.before), ("after", fault.after)):
        row[when] = None if word is None else f"0x{word:0{-(-fault.word.bits // 4)}x}"
    row |= {f"{when}_value": json_value(fault.value(when)) for when in ("before", "after")}
    if fault.before_real is not None and fault.after_real is not None:
        row |= {"before_real": json_value(fault.before_real), "after_real": json_value(fault.after_real)}
    return row | {"changed": None if fault.before is None and fault.after is None else fault.changed}


def trial_lines(trial: int, faults: Faults, how: Sampler, ordinals: Sequence[int]) -> Iterator[str]:
    """Return the lines of one trial: its faults, or a recipe if they are many and drawn.

    `ordinals` gives for each target of `faults` its number among all targets of the model.
    """
    if len(faults) <= MAX_LINES or how.kind == "sites":
        yield from (json.dumps(fault_row(trial, fault), allow_nan=False) for fault in faults)
        return
    row: dict[str, Any] = {"trial": trial, "sampler": how.kind}
    row |= {"rate": how.rate} if how.kind in RATE_SAMPLERS else {"per": how.n}
    row |= {"rate": how.rate} if how.kind in CONDITION_SAMPLERS else {}
    yield _recipe(row, faults, how.seed, ordinals)


def single_lines(trials: Sequence[int], faults: Faults) -> Iterator[str]:
    """Return the line of each of many trials of one fault in a weight: those of `trial_lines`, column by column.

    All faults have one fault model, and their words before and after.
    """
    assert faults.before is not None and faults.after is not None
    columns: dict[str, list[Any]] = {}
    target, real = faults.sites.target, faults.real_values
    for when, words in (("before", faults.before), ("after", faults.after)):
        columns[when], columns[f"{when}_value"] = words.tolist(), [None] * len(faults)
        for ordinal in np.unique(target).tolist():
            rows = np.flatnonzero(target == ordinal)
            for at, value in zip(rows.tolist(), plain_numbers(faults.targets[ordinal].word, words[rows]), strict=True):
                columns[f"{when}_value"][at] = json_value(value)
    ids = [one.id for one in faults.targets]
    digits = [-(-one.word.bits // 4) for one in faults.targets]
    model = faults.models[0]
    width = model.width() if model.unit == "bit" else 0
    sites = zip(target.tolist(), faults.sites.index.tolist(), faults.sites.bit.tolist(), strict=True)
    for n, (trial, (ordinal, index, bit)) in enumerate(zip(trials, sites, strict=True)):
        row: dict[str, Any] = {"trial": trial, "target": ids[ordinal], "index": index}
        row |= {"bits": [*range(bit, bit + width)] if bit >= 0 else None, "fault": str(model)}
        row |= {when: f"0x{columns[when][n]:0{digits[ordinal]}x}" for when in ("before", "after")}
        row |= {name: columns[name][n] for name in ("before_value", "after_value")}
        if real is not None and not np.isnan(real[0, n]):
            row |= {f"{when}_real": json_value(float(str(real[k, n]))) for k, when in enumerate(("before", "after"))}
        yield json.dumps(row | {"changed": columns["before"][n] != columns["after"][n]}, allow_nan=False)


def event_line(trial: int, site: Site, faults: Faults, seed: int, ordinals: Sequence[int]) -> str:
    """Return the recipe of one composite event: its site, from which its faults follow."""
    return _recipe({"trial": trial, "sampler": EVENT, "site": str(site)}, faults, seed, ordinals)


def _recipe(row: dict[str, Any], faults: Faults, seed: int, ordinals: Sequence[int]) -> str:
    row |= {"seed": seed, "n": len(faults), "sha256": sites_digest(faults, ordinals)}
    if faults.before is not None and not (len(faults.models) == 1 and faults.models[0].self_inverse):
        row["before"] = base64.b64encode(zlib.compress(faults.before.astype("<u8").tobytes(), 6)).decode()
    return json.dumps(row, allow_nan=False)


def sites_digest(faults: Faults, ordinals: Sequence[int]) -> str:
    """Return the SHA-256 of the sites in order: target ordinal, element, bit; for activations sample and steps too."""
    columns: list[Any] = [("target", "<u4"), ("index", "<u8"), ("bit", "<i2")]
    columns += [] if faults.sites.times is None else [("when", "<i8", (3,))]
    rows = np.zeros(len(faults), dtype=np.dtype(columns))
    if faults.sites.times is not None:
        rows["when"] = faults.sites.times
    rows["target"] = np.array(ordinals, np.uint32)[faults.sites.target] if len(faults) else 0
    rows["index"], rows["bit"] = faults.sites.index, faults.sites.bit
    return hashlib.sha256(rows.tobytes()).hexdigest()


@dataclass(frozen=True)
class FaultList:
    """Fault list on disk: its header, and its trials as a stream.

    Attributes
    ----------
    path : Path
        The file.
    header : Header
        The model that the list belongs to, and the draw that made it.

    Examples
    --------
    >>> import tempfile, onnxfi
    >>> model, folder = onnxfi.load("models/fashion_cnn.onnx"), Path(tempfile.mkdtemp())
    >>> _ = onnxfi.inject(model, onnxfi.sample(model, count=3), save_faults=folder / "faults.jsonl")
    >>> opened = FaultList.open(folder / "faults.jsonl")
    >>> opened.header.fault, [(trial, len(faults)) for trial, faults in opened.trials(model.targets)]
    ('flip', [(1, 3)])
    """

    path: Path
    header: Header

    @classmethod
    def open(cls, path: str | Path) -> FaultList:
        """Read the header; FaultListError if the file is not a fault list."""
        place = Path(path)
        with _text(place) as stream:
            return cls(place, Header.parse(_line(stream, place), str(place)))

    def check_model(self, digest: str, *, undo: bool = False) -> None:
        """Raise FaultListError for a model that the list does not belong to; the message has both digests."""
        wanted = self.header.faulty if undo else self.header.model
        if undo and wanted is None:
            raise FaultListError(f"{self.path} was written without a faulty model, so there is nothing to undo")
        if digest != wanted:
            what = "faulty model" if undo else "model"
            hint = ""
            if digest == self.header.faulty:
                hint = "; this is the faulty model that the list made: --undo restores the original"
            elif digest == self.header.model:
                hint = "; this is the original: leave --undo out"
            raise FaultListError(f"{self.path} belongs to the {what} {wanted}, this one is {digest}{hint}")

    def trials(
        self, targets: Sequence[Target], space: Callable[[], FaultSpace] | None = None
    ) -> Iterator[tuple[int, Faults]]:
        """Return the trials in order with their recorded words, over the model's targets; `space` as in `LineReader`.

        A recipe records the words before its faults only if the faults are not self-inverse.
        """
        return LineReader(self.header, tuple(targets), str(self.path), space).trials(self._lines())

    def _lines(self) -> Iterator[tuple[int, str]]:
        with _text(self.path) as stream:
            _line(stream, self.path)
            number = 1
            while line := _line(stream, self.path):
                number += 1
                yield number, line


@dataclass(frozen=True)
class LineReader:
    """Reader of the lines of a list, for a model with these targets; `where` names their source in messages.

    `space` gives the sites that recipes draw from; by default those that the header's selector leaves of the targets.
    """

    header: Header
    targets: tuple[Target, ...]
    where: str
    space: Callable[[], FaultSpace] | None = None

    @cached_property
    def _known(self) -> dict[str, int]:
        return {name: k for k, t in enumerate(self.targets) for name in t.ids}

    def trials(self, numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Faults]]:
        """Return the trials of some lines, in order; each line is (number of the line, its text)."""
        rows = (_json(line, f"{self.where}, line {number}") | {"#": number} for number, line in numbered)
        last = 0
        for trial, group in groupby(rows, key=lambda row: row.get("trial")):
            if not isinstance(trial, int) or isinstance(trial, bool) or trial < 1:
                raise FaultListError(f"{self.where}: trial {trial!r} is not a whole number from 1; the list is damaged")
            if trial <= last:
                raise FaultListError(
                    f"{self.where}: trial {trial} comes after trial {last}; trials ascend, and the lines of each are "
                    f"contiguous"
                )
            last = trial
            parts: list[Faults] = []
            for recipe, some in groupby(group, key=lambda row: "sampler" in row):
                given = [*some]
                parts += map(self._expand, given) if recipe else [self._read(given)]
            yield trial, concatenate_faults(parts)

    def singles(self, lines: Sequence[str]) -> list[Faults | None]:
        """Return the fault of each line, read together; None of one that is a recipe."""
        rows = [_json(line, self.where) | {"#": number} for number, line in enumerate(lines, 1)]
        plain = [n for n, row in enumerate(rows) if "sampler" not in row]
        found: list[Faults | None] = [None] * len(rows)
        if plain:
            every = self._read([rows[n] for n in plain])
            for place, n in enumerate(plain):
                found[n] = every.pick(slice(place, place + 1))
        return found

    def _expand(self, row: dict[str, Any]) -> Faults:
        where = f"{self.where}, line {row['#']}"
        model = parse_fault(self.header.fault)
        try:
            if row["sampler"] not in (*SAMPLERS[:-1], EVENT):
                raise FaultListError(f"{where}: unknown sampler {row['sampler']!r}")
            if (row["sampler"], row.get("per"), row["n"]) == ("count", 0, 0):
                return Faults(self.targets, _NO_SITES, (model,))
            space = self.space() if self.space else self.header.selector.space(self.targets, model)
            faults = self._drawn(row, space, model, where)
            ordinals = np.array([self._known[t.id] for t in space.targets], np.int64)
            faults = replace(
                faults,
                targets=self.targets,
                sites=faults.sites.retarget(ordinals),
            )
            if len(faults) != row["n"] or sites_digest(faults, range(len(self.targets))) != row["sha256"]:
                raise FaultListError(
                    f"{where}: the recipe does not give the faults that it states; it is from another tool or model"
                )
            if "before" not in row:
                return faults
            limit = 8 * len(faults)
            raw = zlib.decompressobj().decompress(base64.b64decode(row["before"], validate=True), limit + 1)
            if len(raw) != limit:
                raise FaultListError(f"{where}: the recipe does not hold the words of its {len(faults)} faults")
            before = np.frombuffer(raw, "<u8").astype(np.uint64)
            most = np.array([(1 << t.word.storage) - 1 for t in self.targets], np.uint64)
            if (before > most[faults.sites.target]).any():
                raise FaultListError(f"{where}: a word before has more bits than the words of its target")
            return replace(faults, before=before)
        except FaultListError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, zlib.error, InputError) as error:
            raise FaultListError(f"{where}: the recipe is damaged: {_say(error)}") from None

    def _drawn(self, row: dict[str, Any], space: FaultSpace, model: FaultModel, where: str) -> Faults:
        """Return what a recipe draws, over the targets of the space."""
        if row["sampler"] == EVENT:
            return faults_of_event(str(row["site"]), space, model, int(row["seed"]), int(row["trial"]))
        how = Sampler(row["sampler"], float(row.get("rate", 0)), int(row.get("per", 0)), int(row["seed"]))
        if how.expected_count(space) > 2 * int(row["n"]) + 1000:
            raise FaultListError(f"{where}: the recipe does not give the {row['n']} faults that it states")
        return draw_faults(space, how, model, int(row["trial"]))

    def _read(self, rows: list[dict[str, Any]]) -> Faults:
        models: dict[str, FaultModel] = {}
        columns: list[tuple[int, int, int, FaultModel, int | None, int | None, tuple[int, int, int]]] = []
        for row in rows:
            where = f"{self.where}, line {row['#']}"
            try:
                ordinal = self._known[row["target"]]
                target, index = self.targets[ordinal], row["index"]
                model = models.get(row["fault"]) or models.setdefault(row["fault"], parse_fault(row["fault"]))
                old, new = (None if row[k] is None else int(row[k], 16) for k in ("before", "after"))
                if type(index) is not int or not 0 <= index < target.size:
                    raise ValueError(f"{target.id!r} has no element {index}")
                times = self._when(row, target)
                if any(w is not None and not 0 <= w < 1 << target.word.storage for w in (old, new)):
                    raise ValueError(f"a word has more than the {target.word.bits} bits of {target.dtype}")
                columns.append((ordinal, index, _lowest(row["bits"], model, target.word), model, old, new, times))
            except KeyError as error:
                why = "the list is damaged"
                if error.args[0] == row.get("target"):
                    why = "is it a list of another model, or of inputs, which onnxfi run replays?"
                raise FaultListError(f"{where}: no {error.args[0]!r} in this line or model; {why}") from None
            except (TypeError, ValueError, IndexError, AttributeError, FaultError) as error:
                raise FaultListError(f"{where}: the line is damaged: {_say(error)}") from None
        target_, index_, bit_, models_, before, after, when_ = zip(*columns, strict=True)
        computed = any(self.targets[k].is_activation for k in set(target_))
        sites = Sites(
            np.array(target_, np.int64), np.array(index_, np.int64), np.array(bit_, np.int16),
            np.array(when_, np.int64) if computed else None,
        )  # fmt: skip
        first, last = (None if None in c else np.array(c, np.uint64) for c in (before, after))
        return Faults(self.targets, sites, models_[:1] if len(models) == 1 else models_, first, last)

    def _when(self, row: dict[str, Any], target: Target) -> tuple[int, int, int]:
        """Return the times of a fault; ValueError for a sample or step that does not exist."""
        given: dict[str, int] = {key: row[key] for key in ("sample", "step", "from") if key in row}
        if given and not target.is_activation:
            raise ValueError("a stored word has neither sample nor step")
        if any(type(n) is not int or not 0 <= n < LAST_STEP for n in given.values()) or {"step", "from"} <= set(given):
            raise ValueError("sample and step are whole numbers from 0")
        space, sample = self.header.activations, given.get("sample")
        if space is not None and sample is not None and sample >= space.samples:
            raise ValueError(f"there is no sample {sample}, samples are 0 to {space.samples - 1}")
        return fault_time(sample, given.get("step", given.get("from")), onwards="from" in given)


_NO_SITES = Sites(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int16))


def _lowest(bits: list[int] | None, model: FaultModel, word: Word) -> int:
    """Return the lowest faulty bit (−1: the whole word); ValueError for bits that the model cannot change."""
    if model.is_random:
        raise ValueError(f"{model} has random parameters that were not drawn")
    if model.unit == "word" and bits is None:
        return -1
    if model.unit == "bit" and bits:
        low, width = bits[0], model.width()
        if 0 <= low <= word.bits - width and bits == [*range(low, low + width)]:
            return low
    raise ValueError(f"{model} changes no bits {bits} of {word.name}")


def _text(path: Path) -> IO[str]:
    try:
        if not path.is_file():
            raise FaultListError(f"no fault list {str(path)!r}; give a file that --save-faults or plan wrote")
        return path.open(encoding="utf-8")
    except OSError as error:
        raise FaultListError(f"cannot read {str(path)!r}: {error.strerror}") from None


def _line(stream: IO[str], path: Path) -> str:
    try:
        line = stream.readline(LONGEST_LINE)
    except UnicodeDecodeError:
        raise FaultListError(f"{path} is not a fault list: it is not text") from None
    if len(line) >= LONGEST_LINE:
        raise FaultListError(f"{path} is not a fault list: a line is longer than {LONGEST_LINE >> 20} MB")
    return line


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not strict JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return found


#: Made once: a list of a sweep has thousands of lines for each trial.
_STRICT = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_once)


def _json(line: str, where: str) -> dict[str, Any]:
    try:
        row = _STRICT.decode(line)
    except (ValueError, RecursionError):
        raise FaultListError(
            f"{where} is not a line of a fault list; give a file that --save-faults or plan wrote"
        ) from None
    if not isinstance(row, dict):
        raise FaultListError(f"{where} is not a line of a fault list; give a file that --save-faults or plan wrote")
    return row


def _say(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)[:200]
