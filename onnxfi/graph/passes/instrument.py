"""The pass: put fault operators behind tensors of a graph, and keep everything else as it is.

The result is a plain ONNX model: standard nodes and model-local functions (fault_operators.py). A faulty tensor keeps
its name, so that every user, every graph output and every body that captures it sees the faulty value; the output of
its node is renamed `NAME.fault_free`. A faulty graph input keeps its name too, and its users read `NAME.faulty`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfi.errors import FaultError, ModelError
from onnxfi.faults.sites import LAST_STEP
from onnxfi.faults.words import Mask
from onnxfi.graph.dataflow.activation_targets import Activation
from onnxfi.graph.dataflow.sample_axis import SampleAxis
from onnxfi.graph.passes.bit_arithmetic import NUMBER, Nodes, body_for, opset_of, plane_values, planes, tensor
from onnxfi.graph.passes.fault_operators import DOMAIN, Operator, check_values
from onnxfi.graph.passes.insert_nodes import Insert, edit, used_names

if TYPE_CHECKING:
    import onnx

_STEPS = ("first", "last")
_LARGEST = (1 << 31) - 1


@dataclass(frozen=True)
class Armed:
    """An armed model: golden until its columns are fed.

    `sites` are the struck tensors, numbered in order; `prefix` begins the names of the columns; `steps` says whether
    the iterations (`first`, `last`) are columns too; `values` whether numbers change (`scale`, `shift`) and not words.
    """

    proto: onnx.ModelProto = field(repr=False)
    sites: tuple[Activation, ...] = field(repr=False)
    prefix: str
    steps: bool
    values: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the columns."""
        change = ("scale", "shift") if self.values else ("keep", "flip")
        return tuple(f"{self.prefix}.{n}" for n in ("site", "element", *change, *(_STEPS if self.steps else ())))


@dataclass(frozen=True)
class ActivationFault:
    """One fault that the file is to have: an element of a tensor in flight (flat; within a sample where it has a batch
    axis), and a mask, or `scale` and `shift`; in all samples or one; in the iterations from `first` to `last`."""

    activation: Activation
    element: int
    mask: Mask | None = None
    scale: float = 1.0
    shift: float = -0.0
    sample: int | None = None
    first: int = 0
    last: int = LAST_STEP


def check_word_formats(rows: Iterable[Activation], opset: int, body: str = "auto") -> tuple[Activation, ...]:
    """The activations with those marked whose format no body strikes at this opset."""
    return tuple(
        a if a.unsupported_reason else replace(a, unsupported_reason=_unreachable(a, opset, body)) for a in rows
    )


def _unreachable(a: Activation, opset: int, body: str) -> str:
    try:
        body_for(a.target.word, opset, body)
    except ModelError as error:
        return str(error)
    return ""


def check_value_formats(rows: Iterable[Activation]) -> tuple[Activation, ...]:
    """The activations with those marked whose numbers no scale and shift can change."""
    return tuple(a if a.unsupported_reason else replace(a, unsupported_reason=_unnumbered(a)) for a in rows)


def _unnumbered(a: Activation) -> str:
    try:
        check_values(a.target.word)
    except FaultError as error:
        return str(error)
    return ""


def arm(proto: onnx.ModelProto, sites: Sequence[Activation], *, body: str = "auto", values: bool = False) -> Armed:
    """A copy of a model with an armed operator behind each of these tensors.

    Its new inputs have defaults that mean no fault; with `values` they say what a number becomes, `number * scale +
    shift`, rather than a word. Raises ModelError for a tensor that cannot be struck, FaultError for one of a format
    whose numbers cannot be changed so.
    """
    made = _copy(proto)
    opset = opset_of(made)
    armed = Armed(made, tuple(sites), _prefix(made), any(a.loop for a in sites), values)
    functions: dict[str, onnx.FunctionProto] = {}
    inserts: dict[tuple[str, str], Insert] = {}
    ready: set[str] = set()
    for number, a in enumerate(sites):
        if values:
            check_values(a.target.word)
        operator = Operator(a.target.word, opset, "armed", a.axis is None, bool(a.loop), values, body)
        ready.update(operator.columns)
        inserts[a.path, a.name] = _armed_site(_function(made, functions, operator), operator, a, number, armed.prefix)
    if sites:
        edit(made, inserts, _types(sites))
        _columns(armed, sorted(ready))
        made.functions.extend(functions.values())
        _import(made)
        table = made.metadata_props.add()
        table.key, table.value = f"{armed.prefix}.sites", json.dumps([_row(n, a) for n, a in enumerate(sites)])
    _check(made)
    return armed


def _row(number: int, a: Activation) -> dict[str, object]:
    """One line of the table that the armed file holds."""
    row = {"site": number, "tensor": a.target.id, "dtype": a.target.dtype, "bits": a.target.word.bits}
    row |= {"shape": list(a.dims or ()), "batch_axis": a.axis}
    if a.place is not None and a.place.rows > 1:
        row["rows"] = [a.place.outer, a.place.inner]
    return row | {"loop": a.loop or None}


def bake(
    proto: onnx.ModelProto, faults: Sequence[ActivationFault], *, body: str = "auto", inline: bool = False
) -> onnx.ModelProto:
    """A copy of a model that has these faults: indices and masks are constants.

    `inline` writes it without model-local functions, for runtimes that know none.
    """
    made = _copy(proto)
    opset = opset_of(made)
    functions: dict[str, onnx.FunctionProto] = {}
    inserts: dict[tuple[str, str], Insert] = {}
    struck = {(f.activation.path, f.activation.name): f.activation for f in faults}
    for place, a in struck.items():
        mine = [f for f in faults if (f.activation.path, f.activation.name) == place]
        steps = [_baked_step(made, functions, a, group, opset, body) for group in _groups(mine)]
        inserts[place] = _chain(steps, a.name)
    if faults:
        edit(made, inserts, _types(list(struck.values())))
        made.functions.extend(functions.values())
        _import(made)
    _check(made)
    return _inlined(made) if inline else made


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    from onnx import inliner

    names = [(f.domain, f.name) for f in proto.functions if f.domain == DOMAIN]
    made: onnx.ModelProto = inliner.inline_selected_functions(proto, names) if names else proto
    for k in reversed(range(len(made.opset_import))):
        if made.opset_import[k].domain == DOMAIN:
            del made.opset_import[k]
    return made


def _groups(faults: Sequence[ActivationFault]) -> list[list[ActivationFault]]:
    """Faults of one tensor that one operator strikes; faults of one word are merged, in order."""
    groups: dict[tuple[bool, bool, int, int], dict[tuple[int | None, int], ActivationFault]] = {}
    for f in faults:
        group = groups.setdefault((f.sample is not None, f.mask is None, f.first, f.last), {})
        place = (f.sample, f.element)
        old = group.get(place)
        if old is None:
            group[place] = f
        elif f.mask is not None and old.mask is not None:
            group[place] = replace(f, mask=old.mask.then(f.mask))
        else:
            group[place] = replace(f, scale=old.scale * f.scale, shift=old.shift * f.scale + f.shift)
    return [list(group.values()) for group in groups.values()]


def _baked_step(
    proto: onnx.ModelProto,
    functions: dict[str, onnx.FunctionProto],
    a: Activation,
    group: list[ActivationFault],
    opset: int,
    body: str,
) -> Insert:
    head = group[0]
    gated = bool(a.loop) and (head.first, head.last) != (0, LAST_STEP)
    if not a.loop and (head.first, head.last) != (0, LAST_STEP):
        raise FaultError(f"{a.target.id!r} lies in no loop, so it has no step; leave @step out")
    if head.sample is not None and a.axis is None:
        raise FaultError(f"{a.target.id!r} has {a.no_axis_message}, so no sample of it can be named; leave @sample out")
    valued = head.mask is None
    if valued:
        check_values(a.target.word)
    form = "baked" if head.sample is None else "sampled"
    operator = Operator(a.target.word, opset, form, a.axis is None, gated, valued, body)
    name = _function(proto, functions, operator)

    def insert(g: Nodes, value: str, result: str, step: str) -> None:
        at = [f.element for f in group] if form == "baked" else [[f.sample, f.element] for f in group]
        given = [g.constant(at), *_masks(g, operator, group)]
        if gated:
            given += [g.constant([head.first]), g.constant([head.last]), step]
        _call(g, name, a, value, result, given)

    return insert


def _masks(g: Nodes, operator: Operator, group: list[ActivationFault]) -> list[str]:
    if operator.valued:
        return [g.constant([[getattr(f, n) for f in group]], "float64") for n in ("scale", "shift")]
    rows = [[f.mask or Mask(operator.word.full, 0) for f in group]]
    columns = [np.array([[getattr(m, n) for m in row] for row in rows], np.uint64) for n in ("keep", "flip")]
    if not operator.takes_planes:
        return [g.constant(c.view(np.int64)) for c in columns]
    bits = operator.word.bits
    return [g.constant(plane_values(c, bits), "bool") for c in columns]


def _chain(steps: Sequence[Insert], name: str) -> Insert:
    """Several operators one behind the other."""

    def insert(g: Nodes, value: str, result: str, step: str) -> None:
        for k, one in enumerate(steps):
            last = k == len(steps) - 1
            target = result if last else f"{g.prefix}part_{k}"
            one(g, value, target, step)
            value = target

    return insert


def _armed_site(name: str, operator: Operator, a: Activation, number: int, prefix: str) -> Insert:
    def insert(g: Nodes, value: str, result: str, step: str) -> None:
        columns = [f"{prefix}.{c}" for c in ("named", "checked", "element", *operator.columns)]
        if operator.gated:
            columns += [*(f"{prefix}.{c}.checked" for c in _STEPS), step]
        _call(g, name, a, value, result, columns, number=tensor(number))

    return insert


def _call(g: Nodes, name: str, a: Activation, value: str, result: str, given: Sequence[str], **attributes: Any) -> None:
    """Call an operator; samples that do not come first are brought there and back."""
    attributes["domain"] = DOMAIN
    if a.place is not None and a.place.rows > 1:
        _call_apart(g, name, a, a.place, value, result, given, attributes)
        return
    if not a.axis:
        g.add(name, value, *given, name=result, **attributes)
        return
    rank = len(a.dims or ())
    there = [a.axis, *(k for k in range(rank) if k != a.axis)]
    back = [there.index(k) for k in range(rank)]
    struck = g.add(name, g.add("Transpose", value, perm=there), *given, **attributes)
    g.add("Transpose", struck, name=result, perm=back)


def _call_apart(
    g: Nodes, name: str, a: Activation, held: SampleAxis, value: str, result: str, given: Sequence[str],
    attributes: Mapping[str, Any],
) -> None:  # fmt: skip
    """Call an operator on a tensor that has several rows a sample: those are laid apart, and back."""
    own = a.target.shape
    if not a.shape_known:
        raise ModelError(f"the shape of {a.target.id!r} is not known, so its samples cannot be told apart; give --data")
    before = math.prod(own[: held.axis]) * held.outer
    behind = held.inner * math.prod(own[held.axis + 1 :])
    shape = g.add("Shape", value)
    apart = g.reshape(value, g.constant([before, -1, behind]))
    struck = g.add(name, g.add("Transpose", apart, perm=[1, 0, 2]), *given, **attributes)
    g.restore(g.add("Transpose", struck, perm=[1, 0, 2]), shape, name=result)


def _function(proto: onnx.ModelProto, functions: dict[str, onnx.FunctionProto], operator: Operator) -> str:
    """The name of an operator's function, which is made where the model has no equal one."""
    name, number = operator.name, 1
    if name in functions:
        return name
    made = operator.function()
    there = {f.name: f for f in proto.functions if f.domain == DOMAIN}
    while made.name in there:
        if there[made.name].SerializeToString(deterministic=True) == made.SerializeToString(deterministic=True):
            return made.name
        number += 1
        made.name = f"{name}_{number}"
    functions[name] = made
    return made.name


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(proto)
    if made.ir_version < 8:  # functions need it; and there weights that are inputs could be fed, and are not folded
        made.ir_version = 8
        stored = {t.name for t in made.graph.initializer}
        for k in reversed(range(len(made.graph.input))):
            if made.graph.input[k].name in stored:
                del made.graph.input[k]
    return made


def _prefix(proto: onnx.ModelProto) -> str:
    """`onnxfi`, or `onnxfi2`, … where the model has such names: it is armed already, or came so."""
    names, keys = used_names(proto), {entry.key for entry in proto.metadata_props}
    wanted = (DOMAIN + (str(number) if number > 1 else "") for number in count(1))
    return next(name for name in wanted if name not in names and f"{name}.sites" not in keys)


def _import(proto: onnx.ModelProto) -> None:
    if not any(o.domain == DOMAIN for o in proto.opset_import):
        entry = proto.opset_import.add()
        entry.domain, entry.version = DOMAIN, 1


def _columns(armed: Armed, ready: Sequence[str]) -> None:
    """The new inputs with their defaults, nodes that refuse columns which do not go together, and masks made ready."""
    from onnx import helper

    proto, prefix = armed.proto, armed.prefix
    for name in armed.inputs:
        column = name.rpartition(".")[2]
        number = NUMBER["float64" if column in ("scale", "shift") else "int64"]
        shape = (0,) if column in ("site", *_STEPS) else (1, 0)
        dims = [None, f"{prefix}.faults"][-len(shape) :]
        proto.graph.input.append(helper.make_tensor_value_info(name, number, dims))
        default = proto.graph.initializer.add()
        default.name, default.data_type = name, number
        default.dims.extend(shape)
        default.raw_data = b""
    g = Nodes(opset_of(proto), f"{prefix}.check_")
    one, two = g.constant([1]), g.constant([2])
    faults = g.add("Slice", g.add("Shape", f"{prefix}.element"), one, two)
    asked = g.reshape(f"{prefix}.site", faults)
    sites = len(armed.sites)
    known = g.add("Gather", g.constant(np.arange(sites)), asked, name=f"{prefix}.checked")
    said = g.add("Expand", g.constant(True, "bool"), faults)
    g.add("ScatterElements", g.constant(np.zeros(sites), "bool"), known, said, name=f"{prefix}.named")
    if armed.steps:
        for column in _STEPS:
            g.reshape(f"{prefix}.{column}", faults, name=f"{prefix}.{column}.checked")
    for name in ready:
        column, _, form = name.partition(".")
        bits = int(form.removeprefix("planes").removeprefix("word") or 0)
        if form.startswith("planes"):
            g.add("Identity", planes(g, f"{prefix}.{column}", bits), name=f"{prefix}.{name}")
        elif form:
            g.add("BitwiseAnd", f"{prefix}.{column}", g.constant((1 << bits) - 1), name=f"{prefix}.{name}")
    rest = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*g.nodes, *rest])


def _types(sites: Sequence[Activation]) -> dict[tuple[str, str], onnx.TypeProto]:
    """What value_info is to say of the struck tensors: with it the runtime can prove that it may scatter in place.

    Nothing inside bodies, where what is inferred need not hold in every iteration, and nothing that the file alone
    declares: the runtime would believe it.
    """
    from onnx import helper

    return {
        (a.path, a.name): helper.make_tensor_type_proto(NUMBER[a.target.dtype], list(a.dims))
        for a in sites
        if a.dims is not None and a.shape_inferred and not a.path
    }


def _check(proto: onnx.ModelProto) -> None:
    size = proto.ByteSize()
    if size > _LARGEST:
        raise ModelError(
            f"the model takes {size:,} bytes, more than the {_LARGEST:,} that one ONNX file can hold; "
            f"move its weights into external data first (onnx.save with save_as_external_data)"
        )


__all__ = ["ActivationFault", "Armed", "arm", "bake", "check_value_formats", "check_word_formats", "opset_of"]
