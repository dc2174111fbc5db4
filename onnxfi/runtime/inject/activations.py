"""Injection into activations: arm a model so that faults can be fed, or write a model that has them.

The passes (graph/passes/instrument.py) do the work; here a run shows what the file leaves open (number formats,
shapes), and proves that a raised opset changes no output.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfi.errors import InputError, IsolationError, ModelError, OnnxfiError, SelectorError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.models import Add, Scale
from onnxfi.faults.space import FaultSpace, Selector, parse_site, refuse_without_sites
from onnxfi.faults.trials import Faults, Sampler, draw_faults, fault_model, faults_at_named_sites
from onnxfi.graph.dataflow.activation_targets import (
    Activation,
    ActivationSelection,
    activations,
    inputs_by_default,
    select_activations,
)
from onnxfi.graph.dataflow.sample_placement import one_at_a_time
from onnxfi.graph.dataflow.type_inference import convert_opset
from onnxfi.graph.model.loading import Model, ModelLike, load, parse
from onnxfi.graph.model.neuron_table import expand_steps, refuse_whole_tensor_models
from onnxfi.graph.passes.fault_inputs import check_iteration, check_location
from onnxfi.graph.passes.fault_operators import DOMAIN
from onnxfi.graph.passes.instrument import ActivationFault, Armed, arm, bake, check_value_formats, check_word_formats
from onnxfi.graph.passes.node_builder import opset_of
from onnxfi.graph.write.model_file import save_model
from onnxfi.numbers import named_whole
from onnxfi.runtime.data.open_data import Data, data_of
from onnxfi.runtime.engine.ports import Array, inputs_of, same_bytes, shape_text
from onnxfi.runtime.inject.shape_query import complete_by_running, loop_iterations, open_session, run_first_samples

if TYPE_CHECKING:
    import onnx

__all__ = ["ActivationInjection", "Instrumented", "PreparedModel", "inject_activations", "instrument", "prepare"]

MADE_UP_SHAPES = "shapes that the file leaves open are those of made-up inputs; give --data for the real ones"
_LOWEST, _RAISED, _NATIVE = 11, 13, 26


@dataclass(frozen=True)
class PreparedModel:
    """Model that is ready for injection: its proto at the chosen opset, its activations, and notes on what was done.

    `guessed` is true if made-up inputs showed what the file leaves open.
    """

    model: Model
    proto: onnx.ModelProto = field(repr=False)
    activations: tuple[Activation, ...] = field(repr=False)
    body: str
    notes: tuple[str, ...]
    guessed: bool = False


def prepare(
    model: Model, *, opset: int | str = "auto", body: str = "auto", data: Data | None = None, shapes: bool = False,
    custom_ops: Sequence[str] = (),
) -> PreparedModel:  # fmt: skip
    """Bring a model to an opset at which faults in its activations can be computed, and list the activations.

    `opset` is a number, `keep`, or `auto`: the file's own from 11 on, else 13; 26 where `body` is native. A raise is
    kept only where the outputs on `data` (default: made-up inputs) stay the same byte for byte with optimisation off;
    else ModelError names the output that differs. `shapes` runs the model where the file leaves shapes open.
    `custom_ops` are libraries of operators.
    """
    if body not in ("auto", "native", "portable"):
        raise InputError(f"no body {body!r}; give auto, native or portable")
    proto, notes = parse(model), []
    own, wanted = opset_of(proto), _wanted(opset_of(proto), opset, body)
    current = model
    if proto.ir_version < 8:
        listed = {v.name for v in proto.graph.input} & {t.name for t in proto.graph.initializer}
        also = "; weights are no inputs any more" if listed else ""
        notes.append(f"IR version raised from {proto.ir_version} to 8{also}")
    if own == 0:
        entry = proto.opset_import.add()
        entry.domain, entry.version = "", 17
    elif wanted != own:
        proto = _raised(model, proto, wanted, data, custom_ops)
        current = load(proto)
        notes.append(f"opset raised from {own} to {wanted}; outputs stayed the same byte for byte")
    rows, guessed = activations(current, None if data is None else data.layout), False
    if any(
        "type is not known" in a.unsupported_reason or (shapes and (not a.shape_known or a.axis_unknown_reason))
        for a in rows
    ):
        known = complete_by_running(model, proto, rows, data, custom_ops)
        guessed, rows = data is None and known != rows, known
    return PreparedModel(model, proto, check_word_formats(rows, opset_of(proto), body), body, tuple(notes), guessed)


def _wanted(own: int, opset: int | str, body: str) -> int:
    """Return the opset to use."""
    if opset not in ("auto", "keep"):
        opset = named_whole("opset", opset)
        if opset < own:
            raise InputError(f"--opset {opset} is below the model's own {own}; an opset is only raised")
        return opset
    if own == 0 or opset == "keep":
        return own
    if body == "native":
        return max(own, _NATIVE)
    return own if own >= _LOWEST else _RAISED


def _raised(
    model: Model, proto: onnx.ModelProto, opset: int, data: Data | None, custom_ops: Sequence[str]
) -> onnx.ModelProto:
    """Return the model at another opset by the official converter, its outputs proven the same."""
    where = f"{model.name} cannot be raised to opset {opset}"
    if model.external:
        raise ModelError(f"{where}: its weights are in external data; convert it with onnx.version_converter first")
    try:
        made = convert_opset(proto, opset)
    except IsolationError as error:
        raise ModelError(f"{where}: onnx's converter: {error}") from None
    made.ir_version = proto.ir_version
    kept = {entry.key for entry in made.metadata_props}
    for entry in proto.metadata_props:
        if entry.key not in kept:
            made.metadata_props.append(entry)
    try:
        golden, after = (_outputs(model, p, data, custom_ops) for p in (proto, made))
    except OnnxfiError as error:
        raise ModelError(f"{where}, since the model does not run: {error}") from None
    for name, array in golden.items():
        if name not in after or not same_bytes(array, after[name]):
            remedy = "leave the opset (--opset keep)" if opset_of(proto) >= _LOWEST else "onnxfi run needs no raise"
            raise ModelError(f"{where}: output {name!r} differs then; {remedy}")
    return made


def _outputs(model: Model, proto: onnx.ModelProto, data: Data | None, custom_ops: Sequence[str]) -> dict[str, Array]:
    """Return the outputs of a model on the first samples."""
    session = open_session(model, proto, custom_ops)
    return run_first_samples(session, data)[1]


@dataclass(frozen=True)
class Instrumented:
    """Armed model: where it was written, the number of activations that cannot have faults by reason, and notes.

    Attributes
    ----------
    armed : Armed
        The armed model and its sites.
    out : Path or None
        The written file.
    left_out : mapping of str to int
        By reason the number of activations that cannot have faults.
    notes : tuple of str
        Notes for the user.
    """

    armed: Armed
    out: Path | None
    left_out: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def data(self) -> bytes:
        """The armed model, serialised."""
        return self.armed.proto.SerializeToString(deterministic=True)


def instrument(
    model: ModelLike,
    selector: Selector | None = None,
    out: str | Path | None = None,
    *,
    all: bool = False,
    opset: int | str = "auto",
    body: str = "auto",
    data: Any = None,
    values: bool = False,
    custom_ops: Sequence[str] = (),
    **selection: Any,
) -> Instrumented:
    """Arm a model: fault-free until faults are fed, with one session for every trial.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The model.
    selector : Selector, optional
        The activations; without `include` or `op` the outputs of layers.
    out : str or Path, optional
        The armed model; without it nothing is written.
    all : bool
        Arm every activation that can have faults, rather than the outputs of layers.
    opset : int or str
        The opset to raise the model to; `auto` or `keep`.
    body : str
        Body of the fault operators: `auto`, `native` or `portable`.
    data : Data, or all that `open_data` takes, optional
        Samples that show the formats and shapes that the file leaves open; made up without it.
    values : bool
        Faults describe what becomes of a number, not of a word; formats that cannot have such faults are left out.
    custom_ops : sequence of str
        Libraries of custom operators.
    **selection
        Fields of a selector in place of one: ``include="conv1"``, ``bits="exponent"``, ….

    Returns
    -------
    Instrumented
        The armed model. Where a default selection finds nothing it is the model as it was.

    Raises
    ------
    SelectorError
        If an explicit selection finds nothing.
    ModelError
        If the opset cannot be raised.
    OutputError
        If the output cannot be written.

    Examples
    --------
    >>> done = instrument(load("models/fashion_cnn.onnx"))
    >>> [a.target.id for a in done.armed.sites], done.armed.inputs[:2]
    (['relu', 'relu_1', 'relu_2', 'logits'], ('onnxfi.site', 'onnxfi.element'))
    """
    model = load(model)
    data = data_of(data, inputs_of(model.proto))
    prepared = prepare(model, opset=opset, body=body, data=data, custom_ops=custom_ops)
    if values:
        prepared = replace(prepared, activations=check_value_formats(prepared.activations))
    chosen = _chosen(prepared, Selector.given(selector, selection), every=all)
    armed = arm(prepared.proto if chosen.activations else parse(model), chosen.activations, body=body, values=values)
    place = None if out is None else Path(out)
    if place is not None:
        save_model(model, armed.proto, place)
    notes = (*prepared.notes, *chosen.notes) if chosen.activations else ()
    return Instrumented(armed, place, left_out(prepared.activations, model), notes)


def left_out(rows: Sequence[Activation], model: Model) -> dict[str, int]:
    """Count the activations that cannot have faults, by reason."""
    own = [function for function in model.proto.functions if function.domain != DOMAIN]  # its values are no model's
    inside = sum(len(node.output) for function in own for node in function.node)
    reasons = {"it lies in a local function; inline those first (onnx.inliner)": inside} if inside else {}
    for a in rows:
        if a.unsupported_reason:
            reasons[a.unsupported_reason] = reasons.get(a.unsupported_reason, 0) + 1
    return reasons


@dataclass(frozen=True)
class ActivationInjection:
    """Model that has faults in its activations.

    Attributes
    ----------
    proto : onnx.ModelProto
        The faulty model.
    inserted : tuple of ActivationFault
        The faults as they are written into the graph.
    faults : Faults
        The drawn faults.
    space : FaultSpace
        The population that they were drawn from.
    draw : Draw
        The way they were drawn.
    out : Path or None
        The written file.
    notes : tuple of str
        Notes for the user.
    """

    proto: onnx.ModelProto = field(repr=False)
    inserted: tuple[ActivationFault, ...] = field(repr=False)
    faults: Faults = field(repr=False)
    space: FaultSpace = field(repr=False)
    draw: Sampler
    out: Path | None
    notes: tuple[str, ...]

    @property
    def population(self) -> int:
        """The number of sites of one sample."""
        return self.space.size // max(1, *(t.samples for t in self.space.targets), 1)

    @property
    def data(self) -> bytes:
        """The faulty model, serialised."""
        return self.proto.SerializeToString(deterministic=True)


def inject_activations(
    model: ModelLike,
    out: str | Path | None = None,
    *,
    ber: float | None = None,
    count: int | None = None,
    per_tensor: bool = False,
    sites: Sequence[str] = (),
    per_sample: float | None = None,
    voltage: float | None = None,
    temperature: float | None = None,
    batch: int = 1,
    fault: str | FaultModel | type[FaultModel] = "flip",
    target: str = "activations",
    selector: Selector | None = None,
    seed: int = 0,
    all: bool = False,
    inline: bool = False,
    opset: int | str = "auto",
    body: str = "auto",
    data: Any = None,
    custom_ops: Sequence[str] = (),
    **selection: Any,
) -> ActivationInjection:
    """Write a model that has faults in its activations, for any batch size.

    Exactly one of `ber`, `count`, `sites`, `per_sample`, `voltage` and `temperature` determines the number of faults.
    Drawn faults are in every sample and step, except those of `per_sample`.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The fault-free model.
    out : str or Path, optional
        The faulty model; without it nothing is written.
    ber : float, optional
        Probability of a fault at each site of a sample.
    count : int, optional
        Number of sites; with `per_tensor` in each activation.
    per_tensor : bool
        Draw `count` sites in each selected activation.
    sites : sequence of str
        Sites by name, `ID[i]@sample=k@step=t:B`; an index counts within one sample.
    per_sample : float, optional
        Probability of one fault in each of the first `batch` samples.
    voltage, temperature : float, optional
        Condition of a `fault-map`, the memory that holds the activations: the cells that fail there are faulty.
    batch : int
        Number of samples that are fed together, for `per_sample`.
    fault : str or FaultModel
        The fault model: one with a mask, `scale` or `add`.
    target : {"activations", "inputs"}
        Computed tensors, or the inputs of the graph alone, all of them without a selection.
    selector : Selector, optional
        The activations, bits and elements; without `include` or `op` the outputs of layers.
    seed : int
        Seed of the draw.
    all : bool
        Select every activation that can have faults, rather than the outputs of layers.
    inline : bool
        Write no local functions, for runtimes that have none.
    opset, body, data, custom_ops
        As for `instrument`.
    **selection
        Fields of a selector in place of one: ``include="conv1"``, ``bits="exponent"``, ….

    Returns
    -------
    ActivationInjection
        The faulty model and its faults.

    Raises
    ------
    InputError
        If not exactly one of the four is given.
    SelectorError
        If a selection finds nothing, a site does not exist, or a shape is not known.
    ModelError
        If the opset cannot be raised.
    OutputError
        If the output cannot be written.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> done = inject_activations(load("models/fashion_cnn.onnx"), sites=["relu[3]@sample=0:30"])
    >>> done.inserted[0].element, done.inserted[0].sample, done.inserted[0].mask
    (3, 0, Mask(keep=4294967295, flip=1073741824))
    """
    model = load(model)
    ways = {"ber": ber, "count": count, "sites": sites or None, "per_sample": per_sample}
    how = Sampler.given(seed, per_tensor=per_tensor, **ways, voltage=voltage, temperature=temperature)
    event = fault_model(fault)
    selector = Selector.given(selector, selection).of_model(event)
    data = data_of(data, inputs_of(model.proto))
    prepared = prepare(model, opset=opset, body=body, data=data, shapes=True, custom_ops=custom_ops)
    prepared = replace(prepared, activations=tuple(of_target(prepared.activations, target)))
    if sites:
        sites = expand_steps(model.proto, sites)
        chosen = _named(prepared, sites)
        faults = faults_at_named_sites(sites, [_open(a) for a in chosen.activations], event, selector, seed)
        inserted = activation_faults(faults, {a.target.id: a for a in chosen.activations})
        _check_places(prepared, inserted, data, custom_ops)
        space = _space(model.proto, chosen, selector, event)
    else:
        chosen = _chosen(prepared, selector, every=all)
        chosen = replace(chosen, activations=_shaped(chosen.activations))
        if prepared.guessed:
            chosen = replace(chosen, notes=(*chosen.notes, MADE_UP_SHAPES))
        space = _space(model.proto, chosen, selector, event, batch if per_sample is not None else 0)
        faults = draw_faults(space, how, event)
        inserted = activation_faults(faults, {a.target.id: a for a in chosen.activations})
    made = bake(prepared.proto, inserted, body=body, inline=inline)
    place = None if out is None else Path(out)
    if place is not None:
        save_model(model, made, place)
    return ActivationInjection(made, tuple(inserted), faults, space, how, place, (*prepared.notes, *chosen.notes))


def _space(
    proto: onnx.ModelProto, chosen: ActivationSelection, selector: Selector, event: FaultModel, samples: int = 0
) -> FaultSpace:
    """Return the population of a selection."""
    refuse_whole_tensor_models(proto, event, [a.target.id for a in chosen.activations])
    for a in chosen.activations:
        if samples and a.axis_unknown_reason:
            raise SelectorError(
                f"no sample of {a.target.id!r} ({shape_text(a.dims)}) can be named: {a.axis_unknown_reason}; "
                f"leave it out with --exclude, or draw with --count, which injects into every sample"
                f"{one_at_a_time(a.dims)}"
            )
    targets = [
        replace(a.target, structural=False, samples=0 if a.axis is None else samples) for a in chosen.activations
    ]
    space = FaultSpace.over(targets, event, bits=selector.bits, elements=selector.elements)
    if not space.size:
        refuse_without_sites(targets, event, selector.bits, selector.elements)
    return space


def _shaped(rows: Sequence[Activation]) -> tuple[Activation, ...]:
    """Return the activations; SelectorError if a shape is not known."""
    for a in rows:
        if not a.shape_known:
            raise SelectorError(
                f"the shape of {a.target.id!r} is not known, so its elements cannot be drawn; "
                f"name it in --site, give --data, or leave it out with --exclude"
            )
    return tuple(rows)


def of_target(rows: Sequence[Activation], target: str) -> Sequence[Activation]:
    """Return all activations, or the inputs of the graph alone, each taken by default.

    Raises InputError for a target that is neither `activations` nor `inputs`.
    """
    if target not in ("activations", "inputs"):
        raise InputError(f"no target {target!r} of faults at run time; give activations or inputs")
    return rows if target == "activations" else [a for a in inputs_by_default(rows) if a.target.kind == "input"]


def _chosen(prepared: PreparedModel, selector: Selector, *, every: bool) -> ActivationSelection:
    """Return the activations that a selector takes."""
    try:
        return select_activations(prepared.activations, selector, every=every)
    except SelectorError:
        names = {name for a in prepared.activations for name in (a.target.id, a.target.node, a.target.layer)}
        _refuse_hidden(prepared.model, [pattern.lstrip("=") for pattern in selector.include], names)
        raise


def _named(prepared: PreparedModel, sites: Sequence[str]) -> ActivationSelection:
    """Return the activations that sites name, with notes on floats inside QDQ groups."""
    by_id = {a.target.id: a for a in prepared.activations}
    named: dict[str, Activation] = {}
    _refuse_hidden(prepared.model, [text.partition("[")[0] for text in sites], by_id)
    for text in sites:
        name, _, place = text.partition("[")
        if name in by_id and not by_id[name].shape_known and "," in place.partition("]")[0]:
            raise SelectorError(f"the shape of {name!r} is not known: give a flat index, as {name}[5], or --data")
        found = parse_site(text, [_open(a) for a in prepared.activations]).target
        a = by_id[found]
        if a.unsupported_reason:
            raise SelectorError(f"{found!r} cannot have a fault: {a.unsupported_reason}")
        named[found] = a
    notes = [
        f"{a.target.id!r} lies in a QDQ group; a fault in its integer {a.quantized!r} keeps the integer kernels"
        for a in named.values()
        if a.quantized
    ]
    return ActivationSelection(tuple(named.values()), tuple(notes))


def _refuse_hidden(model: Model, names: Iterable[str], known: Container[str]) -> None:
    """Refuse a name that is one of a local function's."""
    for name in names:
        for function in model.proto.functions:
            made = {output for node in function.node for output in node.output}
            if name not in known and name.rpartition("::")[2] in made:
                raise SelectorError(
                    f"{name!r} lies in the local function {function.name!r}, where no fault can be; inline it first "
                    f"(onnx.inliner.inline_local_functions)"
                )


def _open(a: Activation) -> Any:
    """Return the target, with room for any flat index while its shape is not known."""
    return replace(a.target, structural=False, shape=a.target.shape if a.shape_known else (1 << 40,))


def _check_places(
    prepared: PreparedModel, inserted: Sequence[ActivationFault], data: Data | None, custom_ops: Sequence[str]
) -> None:
    """Refuse an element or sample that does not exist, and with data a step that does not come."""
    in_loops = data is not None and any(s.activation.loop for s in inserted)
    iterations = loop_iterations(prepared.model, data, custom_ops) if in_loops else {}
    for s in inserted:
        check_location(s.activation, s, 1 << 62)
        check_iteration(s, iterations.get(s.activation.path))


def activation_faults(faults: Faults, rows: Mapping[str, Activation]) -> list[ActivationFault]:
    """Return faults as the passes bake or feed them: masks, or a scale and a shift.

    `rows` are the activations by target id. Raises InputError for a fault that is neither.
    """
    out = []
    sites = faults.sites
    columns = zip(
        sites.target.tolist(), sites.index.tolist(), sites.bit.tolist(), sites.times_or_all().tolist(), strict=True
    )
    for row, (target, index, bit, (sample, first, last)) in enumerate(columns):
        a, model = rows[faults.targets[target].id], faults.model(row)
        mask = model.mask(a.target.word, bit)
        times: dict[str, Any] = {"sample": None if sample < 0 else sample, "first": first, "last": last}
        if mask is not None:
            out.append(ActivationFault(a, index, mask, **times))
        elif isinstance(model, Scale):
            out.append(ActivationFault(a, index, None, scale=float(model.factor), **times))
        elif isinstance(model, Add):
            out.append(ActivationFault(a, index, None, shift=float(model.value), **times))
        else:
            raise InputError(
                f"{model} is neither a mask nor scale nor add, so no graph can do it; choose another fault"
            )
    return out


def bake_into(model: Model, faults: Sequence[ActivationFault], out: Path) -> None:
    """Write a model that has these faults; its opset is raised where that is needed."""
    save_model(model, bake(prepare(model).proto, faults), out)
