"""The campaign: all that fixes an answer, as a frozen value, as flags, or as a YAML file.

Exactly one of `ber` (a sweep), `single`, `exhaustive`, `faults` (a replay) and `mix` says which trials there are. How
many there are (`repeat`, `trials`, `margin`, `confidence`) is no part of the identity: a longer campaign extends a
shorter one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, get_args

from onnxfi.errors import InputError, closest
from onnxfi.faults.models import parse_fault
from onnxfi.faults.sampling import check_rate
from onnxfi.faults.space import Selector
from onnxfi.faults.statistics import Per
from onnxfi.runtime.engines import OrtEngine
from onnxfi.runtime.metrics import KINDS

VERSION = 1
_LARGEST_SPEC = 1 << 20
DUE = ("error", "timeout", "crash", "memory", "nonfinite")
_WAYS = ("ber", "single", "exhaustive", "faults", "mix")
#: Fields that say how long a campaign is, or where it runs: others may be given when a store is extended.
_LENGTH = ("repeat", "trials", "margin", "confidence")
_PLACE = ("model", "data", "preprocess", "faults", "allow_links")


class SpecError(InputError):
    """A campaign that cannot be: an unknown field, a wrong type, a value out of range, fields at odds."""


@dataclass(frozen=True)
class Part:
    """One draw of a mixed trial: a fault model on a selection, at a rate or in a number."""

    fault: str = "flip"
    ber: float | None = None
    count: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    op: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()
    bits: str = ""
    elements: str = ""
    role: tuple[str, ...] = ()

    @property
    def selector(self) -> Selector:
        """What may be struck."""
        return Selector(self.include, self.exclude, self.op, self.dtype, self.bits, self.elements, self.role)


@dataclass(frozen=True)
class Campaign:
    """Which trials are run, on which model and data, by which engine. Fields bear the names of the flags.

    `ber` are the rates of a sweep, `repeat` the trials at each (also of a mix). `single` strikes one site a trial:
    `trials` of them, or as many as `margin` at `confidence` asks for, drawn `per` network, layer, layer-bit, or
    data-aware. `exhaustive` strikes every site once. `faults` replays a list. `mix` puts several draws into each trial.
    A sample is masked where its output is golden's within `tolerance` (absolute); `due` names what counts as DUE.

    >>> Campaign(model="m.onnx", ber=(1e-6, 1e-5), repeat=3).way
    'ber'
    """

    model: str
    data: str | None = None
    ber: tuple[float, ...] = ()
    repeat: int = 10
    single: bool = False
    trials: int | None = None
    margin: float | None = None
    confidence: float = 0.99
    per: str = "network"
    exhaustive: bool = False
    faults: str | None = None
    mix: tuple[Part, ...] = ()
    fault: str = "flip"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    op: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()
    bits: str = ""
    elements: str = ""
    role: tuple[str, ...] = ()
    seed: int = 0
    preprocess: str | None = None
    samples: int | None = None
    batch: int = 32
    batch_axis: int = 0
    output: str | None = None
    scores: str = "auto"
    tolerance: float = 0.0
    due: tuple[str, ...] = DUE
    provider: str = "auto"
    provider_option: tuple[str, ...] = ()
    threads: int = 1
    optimization: str = "all"
    custom_ops: tuple[str, ...] = ()
    allow_links: bool = False

    def __post_init__(self) -> None:
        ways = [way for way in _WAYS if getattr(self, way)]
        if len(ways) != 1:
            given = " and ".join(ways) or "none"
            raise SpecError(f"exactly one of {', '.join(_WAYS)} says which trials there are; given: {given}")
        for rate in self.ber:
            check_rate(rate)
        if list(self.ber) != sorted(set(self.ber)):
            raise SpecError(
                f"ber {', '.join(f'{b:g}' for b in self.ber)} is out of order; give rising rates, each once"
            )
        _check(self.repeat >= 1, "repeat", self.repeat, "1 or more")
        _check(self.trials is None or self.trials >= 1, "trials", self.trials, "1 or more")
        _check(self.margin is None or 0 < self.margin < 1, "margin", self.margin, "a share between 0 and 1, as 0.01")
        _check(0 < self.confidence < 1, "confidence", self.confidence, "a share between 0 and 1, as 0.99")
        _check(self.tolerance >= 0, "tolerance", self.tolerance, "0 or more")
        _check(0 <= self.seed < 1 << 64, "seed", self.seed, "a whole number from 0 to 2**64 - 1")
        _check(self.batch >= 1, "batch", self.batch, "1 or more")
        for name, known in (("per", get_args(Per)), ("scores", KINDS)):
            value = getattr(self, name)
            if value not in known:
                raise SpecError(f"{name} {value!r} is unknown{closest(value, known)}")
        for cause in self.due:
            if cause not in DUE:
                raise SpecError(f"due {cause!r} is unknown{closest(cause, DUE)}")
        if self.single and (self.trials is None) == (self.margin is None):
            raise SpecError("single takes trials or margin: how many, or how narrow the interval shall be")
        if self.single and self.trials is not None and self.per != "network":
            raise SpecError(f"per {self.per!r} sizes each stratum by a margin; give margin instead of trials")
        for part in self.mix:
            if (part.ber is None) == (part.count is None):
                raise SpecError("each part of mix takes ber or count")
        parse_fault(self.fault)
        self.engine()

    @property
    def way(self) -> str:
        """Which trials there are: ber, single, exhaustive, faults or mix."""
        return next(way for way in _WAYS if getattr(self, way))

    @property
    def selector(self) -> Selector:
        """What may be struck."""
        return Selector(self.include, self.exclude, self.op, self.dtype, self.bits, self.elements, self.role)

    def engine(self) -> OrtEngine:
        """What runs it."""
        pairs = tuple((k, v) for k, _, v in (text.partition("=") for text in self.provider_option))
        return OrtEngine(self.provider, pairs, self.optimization, self.threads, self.custom_ops)

    def identity(self) -> dict[str, Any]:
        """The fields that fix each trial's answer, apart from the digests of model, data and list."""
        kept = dataclasses.asdict(self)
        for name in (*_LENGTH, *_PLACE):
            kept.pop(name)
        return {**kept, "way": self.way}


def _check(good: bool, name: str, given: object, allowed: str) -> None:
    if not good:
        raise SpecError(f"{name} {given} is out of range; give {allowed}")


def parse_rates(text: str) -> tuple[float, ...]:
    """Read rates: a list by comma, or decades from one end to the other, both included.

    >>> parse_rates("1e-6:1e-4"), parse_rates("2e-5,1e-3"), parse_rates("1e-6:5e-6")
    ((1e-06, 1e-05, 0.0001), (2e-05, 0.001), (1e-06, 5e-06))
    """
    try:
        low, colon, high = text.partition(":")
        if not colon:
            return tuple(float(piece) for piece in text.split(","))
        first, last = Decimal(low.strip()), Decimal(high.strip())
    except (ValueError, InvalidOperation):
        raise SpecError(f"ber {text!r} is no rate; write 1e-6, a list 1e-6,1e-5 or decades 1e-7:1e-3") from None
    if not 0 < first <= last <= 1:
        raise SpecError(f"ber {text!r}: decades run from a smaller rate above 0 to a larger one, as 1e-7:1e-3")
    rates = []
    while first < last:
        rates.append(float(first))
        first *= 10
    return (*rates, float(last))


_TEXT = "a text"
_TYPES: dict[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": _TEXT,
}


@dataclass(frozen=True)
class _Place:
    """Where a value stands in a spec, for messages."""

    file: str
    node: Any = field(repr=False)

    def error(self, text: str) -> SpecError:
        mark = self.node.start_mark
        return SpecError(f"{self.file}, line {mark.line + 1}, column {mark.column + 1}: {text}")


def load_spec(path: str | Path) -> Campaign:
    """Read a campaign from a YAML file; every field is checked by name and type, with line and column.

    Loading is safe: no tags, no anchors that grow, no more than 1 MB. Paths are taken as they stand there.
    """
    import yaml

    place = Path(path)
    try:
        text = place.read_bytes()
    except OSError as error:
        raise SpecError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if len(text) > _LARGEST_SPEC:
        raise SpecError(f"{path} has {len(text):,} bytes; a campaign has at most {_LARGEST_SPEC:,}")
    try:
        root = yaml.compose(text.decode("utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(root, yaml.MappingNode):
        raise SpecError(f"{path} holds no campaign; it maps field names to values, as model: m.onnx")
    given = _fields(root, Campaign, str(path), extra=("version",))
    version = given.pop("version", VERSION)
    if version != VERSION:
        raise SpecError(f"{path} has version {version}; this onnxfi reads version {VERSION}")
    if "model" not in given:
        raise SpecError(f"{path} names no model; add model: FILE.onnx")
    try:
        return Campaign(**given)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def _fields(root: Any, kind: type, file: str, *, extra: Sequence[str] = ()) -> dict[str, Any]:
    import yaml

    known = {f.name: str(f.type) for f in dataclasses.fields(kind)} | dict.fromkeys(extra, "int")
    given: dict[str, Any] = {}
    for key, value in root.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name not in known:
            raise _Place(file, key).error(f"unknown field {name!r}{closest(name, known)}")
        if name in given:
            raise _Place(file, key).error(f"{name} is given twice")
        given[name] = _value(value, known[name], name, _Place(file, value))
    return given


def _value(node: Any, kind: str, name: str, place: _Place) -> Any:
    import yaml

    if kind == "tuple[Part, ...]":
        if not isinstance(node, yaml.SequenceNode):
            raise place.error(f"{name} is a list of parts, each with fault, ber or count, and selectors")
        for item in node.value:
            if not isinstance(item, yaml.MappingNode):
                raise _Place(place.file, item).error(f"a part of {name} maps field names to values")
        return tuple(Part(**_fields(item, Part, place.file)) for item in node.value)
    if kind == "tuple[float, ...]" and isinstance(node, yaml.ScalarNode):
        try:
            return parse_rates(node.value)
        except SpecError as error:
            raise place.error(str(error)) from None
    if kind.startswith("tuple["):
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        inner = kind[len("tuple[") :].partition(",")[0]
        return tuple(_scalar(item, inner, name, _Place(place.file, item)) for item in items)
    return _scalar(node, kind.partition(" | ")[0], name, place, optional="None" in kind)


def _scalar(node: Any, kind: str, name: str, place: _Place, *, optional: bool = False) -> Any:
    import yaml

    wrong = f"{name} must be {_TYPES[kind]}"
    if not isinstance(node, yaml.ScalarNode):
        raise place.error(f"{wrong}, not a list or mapping")
    text, tag = node.value, node.tag.rpartition(":")[2]
    if tag == "null" and optional:
        return None
    if kind == "str":
        return text
    if kind == "bool" and tag == "bool":
        return text.lower() in ("true", "yes", "on")
    try:
        if kind in ("int", "float") and tag != "bool":
            return int(text) if kind == "int" else float(text)
    except ValueError:
        pass
    raise place.error(f"{wrong}; given {text[:60]!r}")


def print_spec(campaign: Campaign) -> str:
    """The campaign as a YAML file that `load_spec` reads back: every field that is not at its default.

    >>> print(print_spec(Campaign(model="m.onnx", ber=(1e-6,))), end="")
    version: 1
    model: m.onnx
    ber:
    - 1.0e-06
    """
    import yaml

    def plain(value: Any) -> Any:
        if isinstance(value, Part):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if _differs(value, f)}
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    rows: Mapping[str, Any] = {
        f.name: plain(getattr(campaign, f.name)) for f in dataclasses.fields(campaign) if _differs(campaign, f)
    }
    return yaml.safe_dump({"version": VERSION, **rows}, sort_keys=False, allow_unicode=True)


def _differs(value: Any, f: dataclasses.Field[Any]) -> bool:
    return bool(getattr(value, f.name) != f.default)
