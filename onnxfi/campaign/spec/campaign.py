"""The campaign: all that fixes an answer, as a frozen value. As flags and as a YAML file it bears the same names.

Exactly one of `ber` (a sweep), `single`, `exhaustive`, `faults` (a replay) and `mix` says which trials there are. How
many there are (`repeat`, `trials`, `margin`, `confidence`) is no part of the identity: a longer campaign extends a
shorter one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from onnxfi.campaign.spec.field_types import check, check_types, differs, named
from onnxfi.errors import SpecError, closest
from onnxfi.faults.fault_registry import parse_fault
from onnxfi.faults.sampling import check_rate
from onnxfi.faults.scope import FaultScope
from onnxfi.faults.space import Selector
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.runtime.engine.registry import DEFAULT, engine_class, engine_of, setting_names
from onnxfi.statistics.adaptive import Method
from onnxfi.statistics.sample_size import Per
from onnxfi.tasks.classification import CLASSIFICATION, KINDS
from onnxfi.tasks.registry import AUTO, is_own, known_metric, metric_names, task_names

DUE = ("error", "timeout", "crash", "memory", "nonfinite")
ROUTES = ("auto", "late-start", "early-stop", "full")
#: What counts as a layer: the modules of the source framework, or every tensor.
LAYERS = ("modules", "tensors")
WAYS = ("ber", "per_sample", "single", "exhaustive", "faults", "mix")
#: Fields of the scope of faults.
AIMS = ("target", "persistence", "all")
SELECTORS = ("include", "exclude", "op", "dtype", "role", "bits", "elements")
#: Fields that say how long a campaign is, or where its files lie: others may be given when a store is extended.
LENGTH = ("repeat", "trials", "margin", "relative_margin", "confidence")
_PLACE = ("model", "data", "preprocess", "faults", "neurons", "allow_links")
_DRAWN = ("ber", "per_sample", "single", "exhaustive")
#: Fields that say something only in some ways of choosing trials.
_ONLY = {
    "repeat": ("ber", "per_sample", "mix"),
    **dict.fromkeys(("trials", "margin", "per", "adaptive", "relative_margin", "rate", "method"), ("single",)),
    **dict.fromkeys(("fault", *AIMS, *SELECTORS), _DRAWN),
    "seed": (*_DRAWN, "mix"),
}
#: Values of fields for activations in a campaign on weights.
_STORED = {
    "target": ("weights",), "persistence": "transient", "all": False, "per_sample": (), "time_axis": None, "task": AUTO,
    "metric": (),
}  # fmt: skip
#: Of single faults, where neither it nor their number is given.
_MARGIN = 0.01
#: Of an adaptive campaign whose margin is relative: below it no rate is measured, or one of 0 would never be done.
_FINEST_MARGIN = 1e-4
#: Trials and samples, whatever a file says: a store holds a row for each.
_MOST = 10**12
_MOST_AXES = 64
#: Fields that are settings of the engine, and the engine's own names of them.
ENGINE_SETTINGS = {
    "provider": "provider",
    "provider_option": "provider_options",
    "optimization": "optimization",
    "threads": "threads",
    "custom_ops": "custom_ops",
}
#: Fields that say something only of an adaptive campaign.
_ADAPTIVE = ("relative_margin", "rate", "method")


@dataclass(frozen=True)
class Part:
    """One draw of a mixed trial: a fault model on a selection, at a rate (`ber`) or in a number (`count`).

    >>> Part("stuck-at-1", count=2, include=("conv1",)).selector.include
    ('conv1',)
    """

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
    target: tuple[str, ...] = ("weights",)
    persistence: str = "transient"
    all: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        _check_aim(self)
        if (self.ber is None) == (self.count is None):
            raise SpecError("each part of mix takes ber or count: at which rate, or how many")
        if self.ber is not None:
            named("ber", check_rate, self.ber)
        check(self.count is None or 0 <= self.count < 1 << 63, "count", self.count, "a whole number from 0")
        named("fault", parse_fault, self.fault)

    @property
    def selector(self) -> Selector:
        """The selection of sites."""
        return Selector(self.include, self.exclude, self.op, self.dtype, self.bits, self.elements, self.role)

    @property
    def aim(self) -> FaultScope:
        """The scope of its faults: weights or activations, and their persistence."""
        return FaultScope(self.target, self.persistence, self.all)


@dataclass(frozen=True)
class Campaign:
    """A campaign: its trials, model, data and engine. Fields have the names of the flags.

    `ber` are the rates of a sweep, `repeat` the trials at each (also of a mix); `per_sample` those of a sweep that
    injects one fault into a sample. `target` selects weights, activations or inputs, `persistence` says how
    long a fault in an activation lasts, `all` takes every activation. `single` injects one fault a trial:
    `trials` of them, or as many as `margin` (0.01) at `confidence` asks for, drawn `per` network, layer, layer-bit, or
    data-aware. `adaptive` draws them in rounds where they tell most of `rate`, until half the width of its interval is
    `margin` or less, or `relative_margin` times the rate where that is more; `method` is guaranteed, asymptotic or
    simple (docs/explanation/statistics.md). `exhaustive` injects into every site once. `faults` replays a list. `mix`
    puts several draws into each trial.
    `data` None are synthetic inputs. A sample is masked where its output is golden's within `tolerance` (absolute);
    `due` names what counts as DUE. `expose` gives each neuron of a spiking network words of its own, `neurons` is a
    mapping of those that no pattern finds; `time_axis` counts spikes over that axis of the output, and scores the
    counts. `layers` says what reports call a layer. Lists become tuples, and a single value the tuple of it.

    >>> Campaign(model="m.onnx", ber=[1e-6, 1e-5], repeat=3, include="conv").include
    ('conv',)
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
    adaptive: bool = False
    relative_margin: float | None = None
    rate: str = CLASSIFICATION.headline
    method: str = "guaranteed"
    exhaustive: bool = False
    per_sample: tuple[float, ...] = ()
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
    target: tuple[str, ...] = ("weights",)
    persistence: str = "transient"
    all: bool = False
    seed: int = 0
    preprocess: str | None = None
    samples: int | None = None
    batch: int = 32
    batch_axis: int = 0
    output: str | None = None
    task: str = AUTO
    metric: tuple[str, ...] = ()
    scores: str = "auto"
    tolerance: float = 0.0
    due: tuple[str, ...] = DUE
    engine: str = DEFAULT
    provider: str = "auto"
    provider_option: tuple[str, ...] = ()
    threads: int = 1
    optimization: str = "all"
    route: str = "auto"
    custom_ops: tuple[str, ...] = ()
    allow_links: bool = False
    expose: bool = False
    neurons: str | None = None
    layers: str = "modules"
    time_axis: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.data == "synthetic":  # as the command line says it
            object.__setattr__(self, "data", None)
        self._check_task()
        _check_aim(self)
        self._check_ways()
        self._check_adaptive()
        for way in ("ber", "per_sample"):
            rates = getattr(self, way)
            for rate in rates:
                named(way, check_rate, rate)
            if list(rates) != sorted(set(rates)):
                text = ", ".join(f"{rate:g}" for rate in rates)
                raise SpecError(f"{way} {text} is out of order; give rising rates, each once", way)
        for name, fine, allowed in _RANGES:
            value = getattr(self, name)
            check(value is None or fine(value), name, value, allowed)
        words = {"per": get_args(Per), "scores": KINDS, "due": DUE, "layers": LAYERS, "route": ROUTES}
        for name, known in (*words.items(), ("method", get_args(Method))):
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if one not in known:
                    raise SpecError(f"{name} {one!r} is unknown{closest(one, known)}", name)
        named("fault", parse_fault, self.fault)
        if self.neurons is not None and not self.expose:
            raise SpecError("neurons says nothing without expose; leave it out, or add expose", "neurons")
        for text in self.provider_option:
            check(text.find("=") > 0, "provider_option", repr(text), "KEY=VALUE")
        self._check_engine()

    def _check_task(self) -> None:
        if not is_own(self.task) and (head := self.task.partition(":")[0]) not in task_names():
            raise SpecError(f"task {head!r} is unknown{closest(head, task_names())}, or give module:name", "task")
        if self.rate == "any":  # as the command line says it
            object.__setattr__(self, "rate", f"any_{CLASSIFICATION.headline}")
        metric = named("rate", lambda given: known_metric(given, self.task, self.metric), self.rate)
        if metric is None:
            raise SpecError(f"rate {self.rate!r} is unknown{closest(self.rate, metric_names())}", "rate")
        if metric.bounds != (0, 1):
            raise SpecError(f"rate {self.rate!r} is no share; adaptive measures a metric between 0 and 1", "rate")

    def _check_ways(self) -> None:
        ways = [way for way in WAYS if getattr(self, way)]
        if len(ways) != 1:
            given = " and ".join(ways) or "none"
            raise SpecError(f"exactly one of {', '.join(WAYS)} says which trials there are; given: {given}", *ways[1:2])
        for f in dataclasses.fields(self):
            if f.name in _ONLY and ways[0] not in _ONLY[f.name] and differs(self, f):
                hint = "; its parts and its list say it" if f.name in _ONLY["fault"] else ""
                wants = ", ".join(_ONLY[f.name])
                raise SpecError(f"{f.name} says nothing with {ways[0]}, only with {wants}; leave it out{hint}", f.name)
        if self.trials is not None and self.margin is not None:
            raise SpecError("single takes trials or margin: how many, or how narrow the interval shall be", "margin")
        if self.single and self.trials is None and self.margin is None:
            object.__setattr__(self, "margin", _MARGIN if self.relative_margin is None else _FINEST_MARGIN)
        if self.trials is not None and self.per != "network":
            raise SpecError(f"per {self.per!r} sizes each stratum by a margin; give margin instead of trials", "per")

        if self.per_sample and ("weights" in self.target or self.persistence != "transient"):
            raise SpecError(
                "per_sample draws faults in activations of one sample each; give target activations or inputs, "
                "and leave persistence out", "per_sample",
            )  # fmt: skip
        if self.aim.includes_activations and self.per == "data-aware":
            raise SpecError("per 'data-aware' looks at stored numbers; use layer-bit for activations", "per")

    def _check_adaptive(self) -> None:
        for f in dataclasses.fields(self):
            if f.name in _ADAPTIVE and not self.adaptive and differs(self, f):
                raise SpecError(f"{f.name} says nothing without adaptive; leave it out, or add adaptive", f.name)
        if self.adaptive and self.trials is not None:
            raise SpecError("adaptive runs until the interval is as narrow as margin; leave trials out", "trials")
        if self.adaptive and self.per != "network":
            raise SpecError(f"adaptive chooses its strata, layer by bits; leave per {self.per!r} out", "per")

    @property
    def way(self) -> str:
        """The design of the trials: ber, per_sample, single, exhaustive, faults or mix."""
        return next(way for way in WAYS if getattr(self, way))

    @property
    def selector(self) -> Selector:
        """The selection of sites."""
        return Selector(self.include, self.exclude, self.op, self.dtype, self.bits, self.elements, self.role)

    @property
    def aim(self) -> FaultScope:
        """The scope of the faults: weights or activations, and their persistence."""
        return FaultScope(self.target, self.persistence, self.all)

    @property
    def aims(self) -> tuple[FaultScope, ...]:
        """The scopes of all parts."""
        return tuple(part.aim for part in self.mix) or (self.aim,)

    @property
    def rates(self) -> tuple[float, ...]:
        """The rates of a sweep, of either kind."""
        return self.ber or self.per_sample

    def _check_engine(self) -> None:
        """Refuse an engine that does not exist, and settings that it does not take."""
        known = named("engine", lambda name: setting_names(engine_class(name)), self.engine)
        settings = self._engine_settings()
        for name in (n for n, field in ENGINE_SETTINGS.items() if field in settings and field not in known):
            raise SpecError(f"{name} is not a setting of the engine {self.engine!r}; leave it out", name)
        if self.route not in ("auto", "full") and not engine_class(self.engine).cuts:
            raise SpecError(f"the engine {self.engine!r} runs whole models only; leave route out", "route")
        options = settings.pop("provider_options", None)
        provider = {"provider": settings.pop("provider")} if "provider" in settings else {}
        for name, field in ENGINE_SETTINGS.items():
            if field in settings:
                named(name, lambda given: engine_of(self.engine, **given), {field: settings[field]})
        if options is not None:
            provider["provider_options"] = options
        named("provider_option" if options else "provider", lambda given: engine_of(self.engine, **given), provider)

    def _engine_settings(self) -> dict[str, Any]:
        """Return the settings of the engine that differ from the default, by its own names."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        found = {field: getattr(self, n) for n, field in ENGINE_SETTINGS.items() if getattr(self, n) != defaults[n]}
        if "provider_options" in found:
            pairs = (text.partition("=") for text in self.provider_option)
            found["provider_options"] = tuple((key, value) for key, _, value in pairs)
        return found

    def open_engine(self) -> Engine:
        """Return the engine that runs every trial of the campaign, in whatever process."""
        return engine_of(self.engine, **self._engine_settings())

    def with_provider(self, name: str) -> Campaign:
        """Return the campaign with the provider that `auto` chose, so that every session gets the same one."""
        takes = "provider" in setting_names(engine_class(self.engine))
        return dataclasses.replace(self, provider=name) if takes and self.provider.lower() == "auto" else self

    def identity(self) -> dict[str, Any]:
        """Return the fields that fix the result of each trial, apart from the digests of model, data and list."""
        kept = dataclasses.asdict(self)
        for name in (*LENGTH, *_PLACE, *(() if self.adaptive else ("adaptive", "rate", "method"))):
            kept.pop(name)
        for row in (kept, *kept["mix"]):
            for name, value in _STORED.items():  # a store of faults in weights leaves the fields of activations out
                if name in row and row[name] == value:
                    del row[name]
            row["fault"] = str(parse_fault(row["fault"]))  # with the digest of a pattern's file
        return {**kept, "way": self.way}


_RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    *((name, lambda n: n >= 1, "1 or more") for name in ("repeat", "trials", "samples", "batch", "threads")),
    *((name, lambda n: n <= _MOST, f"at most {_MOST:,}") for name in ("repeat", "trials", "samples", "batch")),
    ("threads", lambda n: n < 1 << 64, "at most 1,024"),
    *((name, lambda n: n >= 0, "0 or more") for name in ("batch_axis", "time_axis")),
    *((name, lambda n: n < _MOST_AXES, f"at most {_MOST_AXES - 1}") for name in ("batch_axis", "time_axis")),
    ("margin", lambda e: 0 < e < 1, "a share between 0 and 1, as 0.01"),
    ("relative_margin", lambda e: 0 < e < 1, "a share of the rate between 0 and 1, as 0.1"),
    ("confidence", lambda c: 0 < c < 1, "a share between 0 and 1, as 0.99"),
    ("tolerance", lambda t: 0 <= t < math.inf, "0 or more"),
    ("seed", lambda s: 0 <= s < 1 << 64, "a whole number from 0 to 2**64 - 1"),
)


def _check_aim(value: Campaign | Part) -> None:
    for name, field in (("target", {"target": value.target}), ("persistence", {"persistence": value.persistence})):
        named(name, lambda given: FaultScope(**given), field)
    if not value.aim.includes_activations and (value.persistence != "transient" or value.all):
        name = "all" if value.all else "persistence"
        raise SpecError(f"{name} says nothing for weights, whose faults stay; give target activations or inputs", name)
    if value.aim.includes_activations and value.role:
        raise SpecError("role is a matter of weights; leave it out for activations", "role")


def outdo(base: Campaign, said: Mapping[str, Any]) -> Campaign:
    """Return the campaign with other values; a given value replaces those that it excludes.

    >>> outdo(Campaign("m.onnx", single=True, margin=0.01, per="layer"), {"ber": (1e-6,)}).per
    'network'
    """
    left = {f.name: getattr(base, f.name) for f in dataclasses.fields(base) if differs(base, f)}
    way = next((name for name in WAYS if said.get(name)), base.way)
    gone = {name for name in WAYS if name != way} | {name for name, ways in _ONLY.items() if way not in ways}
    for one, other in (("trials", "margin"), ("margin", "trials"), ("margin", "relative_margin")):
        gone |= {one} if other in said else set()
    return Campaign(**{**{name: value for name, value in left.items() if name not in gone}, **said})
