"""The ways to protect each part of a network against single faults, and what each costs in bytes and operations."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnxfi.analysis.planner.recorded_trials import RecordedTrials
from onnxfi.errors import InputError, closest
from onnxfi.faults.space import Selector, Target
from onnxfi.graph.dataflow.activation_targets import Activation, activations
from onnxfi.graph.dataflow.macs import layer_macs
from onnxfi.graph.model.loading import Model, parse
from onnxfi.graph.protection.checksum import checkable
from onnxfi.graph.protection.placement import find_places
from onnxfi.graph.protection.redundant_layers import find_layers
from onnxfi.protection.memory_codes import memory_codes, parse_memory_code
from onnxfi.protection.protection import Setting
from onnxfi.protection.protections import parse_protection, protections

#: Resources of a budget: bytes of memory beside the model's, operations of an inference beside the model's.
RESOURCES = ("bytes", "macs")
#: Units of each resource.
_UNITS: dict[str, dict[str, float]] = {
    "bytes": {
        "": 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3,
    },
    "macs": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
}  # fmt: skip
_EXAMPLES = {"bytes": "bytes=64KiB or bytes=12.5%", "macs": "macs=2M or macs=5%"}
_QUANTITY = re.compile(r"\s*(\d+\.?\d*(?:[eE][+-]?\d{1,3})?)\s*(%|[A-Za-z]*)\s*")
#: Protections of which a model takes one alone, since both add the same alarm.
ALARMS = ("duplicate", "triplicate", "checksum")
#: Considered by default against faults in weights, and in activations.
DEFAULT_WITH = {
    "weights": ("parity", "secded", "tmr", "tmr:top=1", "tmr:top=2", "tmr:top=4", "tmr:top=9", "mset", "cep",
                "clip-weights", "checksum"),
    "activations": ("duplicate", "triplicate", "checksum", "range:clip", "nan-filter"),
}  # fmt: skip
#: Operations of each number of an activation that is compared, voted on, summed or held.
_EACH = {"duplicate": 1, "triplicate": 3, "checksum": 1, "range": 2, "nan-filter": 2}


@dataclass(frozen=True)
class ProtectionOption:
    """A protection or memory code over a part, the tensors that it covers, and its cost in each of `RESOURCES`."""

    part: str
    protection: str
    memory: bool
    names: tuple[str, ...]
    costs: tuple[float, ...]


def is_for(text: str, kind: str) -> bool:
    """Return True if a protection or code can act on faults in weights, or in activations.

    >>> is_for("secded", "activations"), is_for("checksum", "activations"), is_for("duplicate", "weights")
    (False, True, False)
    """
    name = text.partition(":")[0]
    if kind == "weights":
        return name not in ("duplicate", "triplicate")
    return name not in memory_codes() and name != "clip-weights"


def check_kinds(kinds: Sequence[str], kind: str) -> tuple[str, ...]:
    """Return protections and codes in their text form; InputError for one that is unknown, or of no use here."""
    known = [*memory_codes(), *protections()]
    found = []
    for text in kinds:
        name = next((n for n in sorted(known, key=len, reverse=True) if text == n or text.startswith(n + ":")), None)
        if name is None:
            raise InputError(f"unknown protection {text!r}{closest(text, known)}")
        if name == "range:tuned":
            raise InputError("range:tuned searches its own bounds for the whole network; plan with range:clip")
        if kind == "activations" and not is_for(text, kind):
            raise InputError(f"{text} protects stored weights, but the store has faults in activations; leave it out")
        if not is_for(text, kind):
            raise InputError(f"{text} reads the same weights again, so it finds no fault in them; leave it out")
        found.append(str(parse_memory_code(text) if name in memory_codes() else parse_protection(text)))
    return tuple(dict.fromkeys(found))


def find_options(recorded: RecordedTrials, kinds: Sequence[str], setting: Setting) -> Iterator[ProtectionOption]:
    """Yield the options of every part; one that cannot be put there is left out.

    Parameters
    ----------
    recorded : RecordedTrials
        The trials, whose parts are protected.
    kinds : sequence of str
        Protections and memory codes in their text form.
    setting : Setting
        The model, with calibration data where it has any.
    """
    rows = {a.name: a for a in activations(recorded.model) if not a.path}
    macs = layer_macs(recorded.model)
    for part in recorded.names:
        targets = recorded.targets_of(part)
        for text in kinds:
            if text.partition(":")[0] in memory_codes():
                option = _memory_option(part, text, targets)
            else:
                option = _graph_option(part, text, targets, setting, rows, macs)
            if option is not None:
                yield option


def _memory_option(part: str, text: str, targets: Sequence[Target]) -> ProtectionOption | None:
    """Return a code over the targets of a part that it can cover; None if there are none."""
    code, bits, names = parse_memory_code(text), 0, []
    for target in targets:
        try:
            code.check(target)
        except InputError:
            continue
        names.append(target.id)
        bits += code.overhead_bits(target)
    if not names:
        return None
    return ProtectionOption(part, text, True, tuple(names), (float(math.ceil(bits / 8)), 0.0))


def _graph_option(
    part: str, text: str, targets: Sequence[Target], setting: Setting, rows: dict[str, Activation], macs: dict[str, int]
) -> ProtectionOption | None:
    """Return a protection of the graph over a part; None if it finds nothing to protect there."""
    kind = text.partition(":")[0]
    names = _covered(kind, targets, setting.model, rows)
    if not names:
        return None
    protection = parse_protection(text)
    try:
        proto, found = protection.passes(setting.of(names)).run(parse(setting.model))
    except InputError:
        return None
    size = len(proto.SerializeToString()) - len(parse(setting.model).SerializeToString())
    operations = 0
    if kind != "clip-weights":
        for name in names if kind in ALARMS else tuple(found):
            a = rows.get(name)
            if a is None or not a.shape_known or (kind in ALARMS and name not in macs):
                return None
            operations += _EACH[kind] * a.target.size + _again(kind, name, macs, a)
    return ProtectionOption(part, text, False, names, (float(max(size, 0)), float(operations)))


def _again(kind: str, name: str, macs: dict[str, int], a: Activation) -> int:
    """Return the multiplications that a detector adds to a layer."""
    copies = {"duplicate": 1.0, "triplicate": 2.0}.get(kind, 0.0)
    if kind == "checksum" and a.target.axes:
        copies = 1 / max(a.target.axes[0 if a.target.op == "Conv" else -1], 1)
    return math.ceil(copies * macs[name]) if copies else 0


def _covered(kind: str, targets: Sequence[Target], model: Model, rows: dict[str, Activation]) -> tuple[str, ...]:
    """Return the tensors that a protection of the graph covers for a part: weights, or activations behind them."""
    if kind == "clip-weights":
        stored = {tensor.name for tensor in model.proto.graph.initializer}
        return tuple(
            t.id for t in targets if t.id in stored and t.role in ("weight", "bias") and t.word.is_float
        )  # fmt: skip
    layers = {t.layer for t in targets} | {t.id for t in targets if t.is_activation}
    if kind in ALARMS:
        try:
            able = checkable(model) if kind == "checksum" else find_layers(model)
        except InputError:
            return ()
        return tuple(one.name for one in able if not one.path and {rows[one.name].target.layer, one.name} & layers)
    places = [a for a in find_places(model, Selector(), extend=False).measured if not a.path]
    own = tuple(a.name for a in places if {a.target.layer, a.name} & layers)
    return own or _next_place(model, layers, rows, {a.name for a in places})


def _next_place(model: Model, layers: set[str], rows: dict[str, Activation], places: set[str]) -> tuple[str, ...]:
    """Return the first activations behind layers whose range can be held."""
    main, found, seen = model.index.main, dict[str, None](), set[str]()
    waiting = [name for name, a in rows.items() if a.target.layer in layers]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in places:
            found[name] = None
            continue
        value = main.find(name)
        waiting += [] if value is None else [out.name for node in value.consumers for out in node.outputs]
    return tuple(found)


def merged(options: Sequence[ProtectionOption]) -> list[tuple[str, bool, tuple[str, ...]]]:
    """Return the options as one entry a protection, in the order in which a model takes them: detectors first.

    >>> from dataclasses import replace
    >>> one = ProtectionOption("a", "secded", True, ("a.w",), (8.0, 0.0))
    >>> merged([one, replace(one, part="b", names=("b.w",))])
    [('secded', True, ('a.w', 'b.w'))]
    """
    order = (*ALARMS, "clip-weights", "range", "nan-filter")
    found: dict[tuple[str, bool], dict[str, None]] = {}
    for option in options:
        names = found.setdefault((option.protection, option.memory), {})
        names |= dict.fromkeys(option.names)
    rows = [(text, memory, tuple(names)) for (text, memory), names in found.items()]

    def place(row: tuple[str, bool, tuple[str, ...]]) -> int:
        kind = row[0].partition(":")[0]
        return -1 if row[1] else order.index(kind)

    return sorted(rows, key=place)


def parse_budget(text: str, whole: Mapping[str, float]) -> tuple[float, float]:
    """Return the bytes and the operations that may be spent; infinite for one that is not given.

    Parameters
    ----------
    text : str
        `bytes=…,macs=…`, each a number with a unit, or a share of what the model has.
    whole : mapping of str to float
        The bytes and the operations of the model, of which `%` are shares.

    Raises
    ------
    InputError
        For an unknown resource or unit, one given twice, and a number that is none.

    Examples
    --------
    >>> parse_budget("bytes=12.5%,macs=2M", {"bytes": 427_790, "macs": 1_117_056})
    (53473.75, 2000000.0)
    >>> parse_budget("bytes=64 KiB", {"bytes": 427_790, "macs": 1_117_056})
    (65536.0, inf)
    """
    found: dict[str, float] = {}
    for one in text.split(","):
        name, is_given, value = (part.strip() for part in one.partition("="))
        if not is_given or not name:
            raise InputError(f"budget {one.strip()[:60]!r} is no resource with its limit; write bytes=64KiB,macs=5%")
        if name not in _UNITS:
            raise InputError(f"budget {name[:40]!r} is unknown{closest(name, _UNITS)}; write bytes=64KiB,macs=5%")
        if name in found:
            raise InputError(f"budget {name} is given twice; give it once")
        matched = _QUANTITY.fullmatch(value)
        if matched is None:
            raise InputError(f"budget {name}={value[:40]!r} is not a number with a unit; write {_EXAMPLES[name]}")
        number, unit = float(matched[1]), matched[2]
        if unit != "%" and unit not in _UNITS[name]:
            known = ", ".join(one for one in (*_UNITS[name], "%") if one)
            raise InputError(
                f"budget {name}={value[:40]}: unknown unit {unit[:20]!r}; units of {name} are {known}: write "
                f"{_EXAMPLES[name]}"
            )
        limit = number / 100 * whole[name] if unit == "%" else number * _UNITS[name][unit]
        if not math.isfinite(limit):
            raise InputError(f"budget {name}={value[:40]} is out of range; write {_EXAMPLES[name]}")
        found[name] = limit
    return found.get("bytes", math.inf), found.get("macs", math.inf)
