"""The passes that insert fault operators after activations, and change nothing else.

The result is a plain ONNX model: standard nodes and model-local functions (fault_operators.py). A faulty tensor keeps
its name, so that every reader, every graph output and every body that captures it sees the faulty value; the output of
its node is renamed `NAME.fault_free`. A faulty graph input keeps its name too, and its readers read `NAME.faulty`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from onnxfi.errors import FaultError, ModelError
from onnxfi.faults.sites import LAST_STEP
from onnxfi.faults.words import Mask, Word
from onnxfi.graph.dataflow.activation_targets import Activation
from onnxfi.graph.passes.bit_arithmetic import body_for, plane_values, planes
from onnxfi.graph.passes.fault_operators import (
    DOMAIN,
    FunctionLibrary,
    Operator,
    allow_functions,
    call_operator,
    check_values,
    value_info_types,
)  # fmt: skip
from onnxfi.graph.passes.graph_edit import Insert, insert_behind, used_names
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.passes.node_builder import NUMBER, NodeBuilder, opset_of, tensor

if TYPE_CHECKING:
    import onnx


_STEPS = ("first", "last")


@dataclass(frozen=True)
class Armed:
    """An armed model: fault-free until its columns are fed.

    `sites` are the armed tensors, numbered in order; `prefix` begins the names of the columns. With `steps` the
    iterations (`first`, `last`) are columns too; with `values` faults change numbers (`scale`, `shift`), not words.
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
    """One fault in an activation: an element, and a mask, or `scale` and `shift`.

    The element is a flat index, within a sample where there is a batch axis. The fault is in all samples or one, in
    the iterations from `first` to `last`.
    """

    activation: Activation
    element: int
    mask: Mask | None = None
    scale: float = 1.0
    shift: float = -0.0
    sample: int | None = None
    first: int = 0
    last: int = LAST_STEP


def check_word_formats(rows: Iterable[Activation], opset: int, body: str = "auto") -> tuple[Activation, ...]:
    """Return the activations, with the reason for those whose words no operator can change at this opset."""
    return tuple(_with_refusal(a, lambda word: body_for(word, opset, body)) for a in rows)


def check_value_formats(rows: Iterable[Activation]) -> tuple[Activation, ...]:
    """Return the activations, with the reason for those whose numbers no scale and shift can change."""
    return tuple(_with_refusal(a, check_values) for a in rows)


def _with_refusal(a: Activation, check: Callable[[Word], object]) -> Activation:
    """Return an activation, with the reason where a check refuses its format."""
    if not a.unsupported_reason:
        try:
            check(a.target.word)
        except (FaultError, ModelError) as error:
            return replace(a, unsupported_reason=str(error))
    return a


@dataclass(frozen=True)
class ArmFaults(ModelPass[Armed]):
    """The pass that inserts an armed operator after each of these activations.

    Its new inputs have defaults that mean no fault. With `values` they describe the change of a number, `number * scale
    + shift`, rather than of a word.
    """

    sites: tuple[Activation, ...]
    body: str = "auto"
    values: bool = False
    name = "arm-faults"

    def requires(self, proto: onnx.ModelProto) -> None:
        """Raise an error for formats whose words (with `values`: numbers) no operator can change."""
        for a in self.sites:
            body_for(a.target.word, opset_of(proto), self.body)
            if self.values:
                check_values(a.target.word)

    def apply(self, proto: onnx.ModelProto) -> Armed:
        """Add the operators, the inputs that feed them, and the table of sites."""
        allow_functions(proto)
        opset = opset_of(proto)
        armed = Armed(proto, self.sites, _free_prefix(proto), any(a.loop for a in self.sites), self.values)
        library = FunctionLibrary(proto)
        inserts: dict[tuple[str, str], Insert] = {}
        ready: set[str] = set()
        for number, a in enumerate(self.sites):
            operator = Operator(a.target.word, opset, "armed", a.axis is None, bool(a.loop), self.values, self.body)
            ready.update(operator.columns)
            inserts[a.path, a.name] = _armed_site(library.name_of(operator), operator, a, number, armed.prefix)
        if self.sites:
            insert_behind(proto, inserts, value_info_types(self.sites))
            _add_inputs(armed, sorted(ready))
            library.write()
            table = proto.metadata_props.add()
            rows = [_row(number, a) for number, a in enumerate(self.sites)]
            table.key, table.value = f"{armed.prefix}.sites", json.dumps(rows)
        return armed


def arm(proto: onnx.ModelProto, sites: Sequence[Activation], *, body: str = "auto", values: bool = False) -> Armed:
    """Return a copy of a model with an armed operator after each of these tensors (see `ArmFaults`).

    Raises ModelError for a tensor that does not exist or whose format no operator can change, FaultError for a format
    whose numbers cannot be changed.
    """
    return ArmFaults(tuple(sites), body, values).run(proto)[1]


def _row(number: int, a: Activation) -> dict[str, object]:
    """Return one line of the table that the armed file holds."""
    row = {"site": number, "tensor": a.target.id, "dtype": a.target.dtype, "bits": a.target.word.bits}
    row |= {"shape": list(a.dims or ()), "batch_axis": a.axis}
    if a.place is not None and a.place.rows > 1:
        row["rows"] = [a.place.outer, a.place.inner]
    return row | {"loop": a.loop or None}


@dataclass(frozen=True)
class BakeFaults(ModelPass[None]):
    """The pass that writes these faults into a model: indices and masks are constants.

    `inline` writes it without model-local functions, for runtimes that do not support them.
    """

    faults: tuple[ActivationFault, ...]
    body: str = "auto"
    inline: bool = False
    name = "bake-faults"

    def requires(self, proto: onnx.ModelProto) -> None:
        """Raise FaultError for samples and steps of activations without these, and for faults that do not fit."""
        for fault in self.faults:
            a = fault.activation
            if not a.loop and (fault.first, fault.last) != (0, LAST_STEP):
                raise FaultError(f"{a.target.id!r} lies in no loop, so it has no step; leave @step out")
            if fault.sample is not None and a.axis is None:
                raise FaultError(
                    f"{a.target.id!r} has {a.no_axis_message}, so no sample of it can be named; leave @sample out"
                )
            if fault.mask is None:
                check_values(a.target.word)

    def apply(self, proto: onnx.ModelProto) -> None:
        """Add an operator for the faults of each activation that share a form."""
        allow_functions(proto)
        library = FunctionLibrary(proto)
        by_site: dict[tuple[str, str], list[ActivationFault]] = {}
        for fault in self.faults:
            by_site.setdefault((fault.activation.path, fault.activation.name), []).append(fault)
        inserts = {
            site: _in_sequence([_baked_step(library, group, self.body) for group in _groups(faults)])
            for site, faults in by_site.items()
        }
        if self.faults:
            insert_behind(proto, inserts, value_info_types([faults[0].activation for faults in by_site.values()]))
            library.write()
        if self.inline:
            _inline_functions(proto)


def bake(
    proto: onnx.ModelProto, faults: Sequence[ActivationFault], *, body: str = "auto", inline: bool = False
) -> onnx.ModelProto:
    """Return a copy of a model that has these faults (see `BakeFaults`)."""
    return BakeFaults(tuple(faults), body, inline).run(proto)[0]


def _inline_functions(proto: onnx.ModelProto) -> None:
    """Replace the calls of fault operators by their nodes."""
    from onnx import inliner

    names = [(f.domain, f.name) for f in proto.functions if f.domain == DOMAIN]
    if names:
        proto.CopyFrom(inliner.inline_selected_functions(proto, names))
    for k in reversed(range(len(proto.opset_import))):
        if proto.opset_import[k].domain == DOMAIN:
            del proto.opset_import[k]


def _groups(faults: Sequence[ActivationFault]) -> list[list[ActivationFault]]:
    """Group the faults of one tensor by operator, those of one word merged in order."""
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


def _baked_step(library: FunctionLibrary, group: list[ActivationFault], body: str) -> Insert:
    """Return the insertion of the operator of faults that share a form."""
    head, a = group[0], group[0].activation
    gated = bool(a.loop) and (head.first, head.last) != (0, LAST_STEP)
    form = "baked" if head.sample is None else "sampled"
    operator = Operator(a.target.word, library.opset, form, a.axis is None, gated, head.mask is None, body)
    name = library.name_of(operator)

    def insert(g: NodeBuilder, value: str, result: str, step: str) -> None:
        at = [f.element for f in group] if form == "baked" else [[f.sample, f.element] for f in group]
        given = [g.constant(at), *_masks(g, operator, group)]
        if gated:
            given += [g.constant([head.first]), g.constant([head.last]), step]
        call_operator(g, name, a, (value, result), given)

    return insert


def _masks(g: NodeBuilder, operator: Operator, group: list[ActivationFault]) -> list[str]:
    """Return the constants of masks, or of scales and shifts, as an operator takes them."""
    if operator.valued:
        return [g.constant([[getattr(f, n) for f in group]], "float64") for n in ("scale", "shift")]
    rows = [[f.mask or Mask(operator.word.full, 0) for f in group]]
    columns = [np.array([[getattr(m, n) for m in row] for row in rows], np.uint64) for n in ("keep", "flip")]
    if not operator.takes_planes:
        return [g.constant(c.view(np.int64)) for c in columns]
    bits = operator.word.bits
    return [g.constant(plane_values(c, bits), "bool") for c in columns]


def _in_sequence(steps: Sequence[Insert]) -> Insert:
    """Return the insertion of several operators in sequence."""

    def insert(g: NodeBuilder, value: str, result: str, step: str) -> None:
        for k, one in enumerate(steps):
            last = k == len(steps) - 1
            target = result if last else f"{g.prefix}part_{k}"
            one(g, value, target, step)
            value = target

    return insert


def _armed_site(name: str, operator: Operator, a: Activation, number: int, prefix: str) -> Insert:
    """Return the insertion of the armed operator of one site."""

    def insert(g: NodeBuilder, value: str, result: str, step: str) -> None:
        columns = [f"{prefix}.{c}" for c in ("armed", "checked", "element", *operator.columns)]
        if operator.gated:
            columns += [*(f"{prefix}.{c}.checked" for c in _STEPS), step]
        call_operator(g, name, a, (value, result), columns, number=tensor(number))

    return insert


def _free_prefix(proto: onnx.ModelProto) -> str:
    """Return `onnxfi`, or `onnxfi2`, … if the model has such names, as an armed one has."""
    names, keys = used_names(proto), {entry.key for entry in proto.metadata_props}
    wanted = (DOMAIN + (str(number) if number > 1 else "") for number in count(1))
    return next(name for name in wanted if name not in names and f"{name}.sites" not in keys)


def _add_inputs(armed: Armed, ready: Sequence[str]) -> None:
    """Add the inputs with their defaults, nodes that refuse columns of unequal lengths, and prepared masks."""
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
    g = NodeBuilder(opset_of(proto), f"{prefix}.check_")
    one, two = g.constant([1]), g.constant([2])
    faults = g.add("Slice", g.add("Shape", f"{prefix}.element"), one, two)
    given = g.reshape(f"{prefix}.site", faults)
    sites = len(armed.sites)
    known = g.add("Gather", g.constant(np.arange(sites)), given, name=f"{prefix}.checked")
    true = g.add("Expand", g.constant(True, "bool"), faults)
    g.add("ScatterElements", g.constant(np.zeros(sites), "bool"), known, true, name=f"{prefix}.armed")
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


__all__ = ["ActivationFault", "Armed", "arm", "bake", "check_value_formats", "check_word_formats", "opset_of"]
