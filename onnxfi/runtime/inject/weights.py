"""Injection into weights: inspect a model, sample faults, inject them, replay a list, undo it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.errors import FaultListError, InputError, OutputError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.faultlist import MAX_LINES, FaultList, Header, sites_digest, trial_lines
from onnxfi.faults.models import Flip
from onnxfi.faults.space import Consumer, FaultSpace, Selector, Sites, check_disjoint
from onnxfi.faults.trials import Faults, Sampler, concatenate_faults, draw_faults, fault_model, faults_at_named_sites
from onnxfi.graph.model.dequantize import describe_scheme, with_dequantized
from onnxfi.graph.model.loading import Model, ModelLike, load
from onnxfi.graph.write.faulty_copy import (
    FaultyCopy,
    OnProgress,
    bind_models,
    find_edits,
    look_up_words,
    undo_words,
    write_copy,
)
from onnxfi.graph.write.output_file import atomic_files, check_output_files, output_files
from onnxfi.runtime.inject.neurons import describe_neurons

__all__ = ["Injection", "Sample", "inject", "inspect", "load", "replay", "sample", "undo"]


@dataclass(frozen=True)
class Sample:
    """Drawn faults with their words, and the header of their fault list.

    Attributes
    ----------
    faults : Faults
        The faults, with the words before and after them.
    header : Header
        The selection, the draw and the population, as a fault list records them.
    expected : float
        The number of faults that the draw has on average.
    population_bits : int
        The bits of all words in the population.
    trial : int
        The number of the trial, from 1.
    """

    faults: Faults = field(repr=False)
    header: Header = field(repr=False)
    expected: float
    population_bits: int
    trial: int = 1

    @property
    def drawn(self) -> int:
        """The number of sites that were drawn; a pattern changes several words at each."""
        return self.faults.events

    def by_layer(self) -> dict[str, dict[str, int]]:
        """Count faults and changed words by layer, in file order, with targets and population of the selection."""
        table: dict[str, dict[str, int]] = {}
        selector, targets = self.header.selector, self.faults.targets
        counts = np.bincount(self.faults.sites.target, minlength=len(targets)).tolist()
        changed = self.faults.changed_by_target().tolist()
        kept = [t for t, many in zip(targets, counts, strict=True) if many or selector.selects(t)]
        space = FaultSpace.over(kept, fault_model(self.header.fault), bits=selector.bits, elements=selector.elements)
        sizes = {t.id: size for t, size in zip(space.targets, space.sizes, strict=True)}
        for target, many, differ in zip(targets, counts, changed, strict=True):
            if many or target.id in sizes:
                row = table.setdefault(target.layer, {"targets": 0, "population": 0, "faults": 0, "changed": 0})
                row["targets"] += 1
                row["population"] += sizes.get(target.id, 0)
                row["faults"] += many
                row["changed"] += differ
        return table

    def largest(self, most: int = 5) -> list[Any]:
        """Return the faults that change their number most, non-finite results first."""
        if not len(self.faults) or self.faults.before is None or self.faults.after is None:
            return []
        distance = np.zeros(len(self.faults))
        for ordinal in np.unique(self.faults.sites.target).tolist():
            here = self.faults.sites.target == ordinal
            word = self.faults.targets[ordinal].word
            with np.errstate(all="ignore"):
                old, new = (word.values(w[here]).astype(np.float64) for w in (self.faults.before, self.faults.after))
                if self.faults.real_values is not None and not np.isnan(self.faults.real_values[0, here]).any():
                    old, new = self.faults.real_values[:, here].astype(np.float64)
                distance[here] = np.nan_to_num(np.abs(new - old), nan=np.inf, posinf=np.inf)
        order = np.argsort(-distance, kind="stable")[:most]
        return [self.faults[int(row)] for row in order if distance[row] > 0]


def sample(
    model: ModelLike,
    *,
    ber: float | None = None,
    count: int | None = None,
    per_tensor: bool = False,
    voltage: float | None = None,
    temperature: float | None = None,
    sites: Sequence[str] = (),
    fault: str | FaultModel | type[FaultModel] = "flip",
    selector: Selector | None = None,
    seed: int = 0,
    trial: int = 1,
    **selection: Any,
) -> Sample:
    """Draw the faults of one trial, and look up the words that they change.

    Exactly one of `ber`, `count`, `voltage`, `temperature` and `sites` determines the number of faults.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The fault-free model.
    ber : float, optional
        Probability of a fault at each site.
    count : int, optional
        Number of distinct sites; with `per_tensor` in each tensor.
    per_tensor : bool
        Draw `count` sites in each selected tensor, rather than in all together.
    voltage, temperature : float, optional
        Voltage or temperature at which the cells of a fault map fail.
    sites : sequence of str
        Sites by name, as `conv1.weight[3]:30`.
    fault : str or FaultModel
        The fault model, as `flip` or `stuck-at-1`.
    selector : Selector, optional
        The selected targets, bits and elements; by default every weight.
    seed : int
        Seed of the draw.
    trial : int
        Number of the trial, from 1; each has faults of its own.
    **selection
        Fields of a selector in place of one: ``include="conv1"``, ``bits="exponent"``, ….

    Returns
    -------
    Sample
        The faults with their words before and after.

    Raises
    ------
    InputError
        If not exactly one of the three is given, or one is out of range.
    SelectorError
        If nothing is selected, or a site does not exist.

    Examples
    --------
    >>> model = load("models/fashion_cnn.onnx")
    >>> str(sample(model, count=2, seed=1).faults[0].site)
    'fc1.weight[28063]:14'
    """
    model = load(model)
    ways = {"ber": ber, "count": count, "voltage": voltage, "temperature": temperature, "sites": sites or None}
    how = Sampler.given(seed, per_tensor=per_tensor, **ways)
    if trial < 1:
        raise InputError(f"trial {trial} is out of range; trials count from 1, as trial 0 is the golden run")
    event, selector = fault_model(fault), Selector.given(selector, selection)
    if sites:
        faults = faults_at_named_sites(sites, model.targets, event, selector, seed)
        space = _space(model, selector, event, faults)
    else:
        space = selector.space(model.targets, event)
        faults = draw_faults(space, how, event, trial)
    faults = with_dequantized(model, look_up_words(model, faults)[0])
    header = Header("", str(event), selector, how, population=space.size, unit=event.unit, faulty=None)
    return Sample(faults, header, how.expected_count(space, event), space.bits, trial)


def _space(model: Model, selector: Selector, event: FaultModel, named: Faults) -> FaultSpace:
    """Return the population that named sites are a part of: the tensors in which they lie."""
    named_ids = tuple("=" + named.targets[k].id for k in np.unique(named.sites.target).tolist())
    named_alone = replace(selector, include=named_ids)
    kept = [t for t in model.targets if named_alone.selects(t)]
    return FaultSpace.over(kept, event, bits=selector.bits, elements=selector.elements)


@dataclass(frozen=True)
class Injection:
    """Faulty model that was written: its faults, its path, and both digests.

    Attributes
    ----------
    sample : Sample
        The injected faults.
    model : Model
        The fault-free model.
    faulty_digest : str
        SHA-256 of the faulty model.
    out : Path or None
        The written file.
    data : bytes or None
        The faulty model, where no output was named.
    resized : bool
        True if numbers of variable length have another length.
    """

    sample: Sample
    model: Model = field(repr=False)
    faulty_digest: str
    out: Path | None
    data: bytes | None = field(default=None, repr=False)
    resized: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the fault-free model. Unless a fault list was saved, the first call reads the model for it."""
        return self.model.digest


def inject(
    model: ModelLike,
    drawn: Sample,
    out: str | Path | None = None,
    *,
    save_faults: str | Path | None = None,
    progress: OnProgress | None = None,
) -> Injection:
    """Inject faults into weights, and write the faulty model; every other byte stays as it is.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The fault-free model.
    drawn : Sample
        Faults of this model, from `sample` or `replay`.
    out : str or Path, optional
        The faulty model; external data is written to `OUT.data`. Without it the result holds the bytes; a model with
        external data takes an output, or `save_faults` alone.
    save_faults : str or Path, optional
        The fault list to write.
    progress : callable, optional
        Called with the bytes done and the bytes in all.

    Returns
    -------
    Injection
        The written model.

    Raises
    ------
    OutputError
        If an output cannot be written; nothing is written then.
    InputError
        If the faults were drawn from another model.

    Examples
    --------
    >>> model = load("models/fashion_cnn.onnx")
    >>> inject(model, sample(model, sites=["conv1.weight[0]:31"])).faulty_digest[:8]
    '19e9da44'
    """
    model = load(model)
    for target in drawn.faults.targets:
        ordinal = model.by_id.get(target.id)
        if ordinal is None or model.targets[ordinal] != target:
            raise InputError(f"the faults were drawn from another model: {model.name} has no such target {target.id!r}")
    faults, final = look_up_words(model, drawn.faults)
    drawn, change = replace(drawn, faults=faults), find_edits(model, faults, final)
    if save_faults is None:
        return _injection(drawn, model, write_copy(model, change, _path(out), progress=progress))
    listed = Path(save_faults)
    check_output_files(model, [listed], copy=False)
    if out is not None and listed.resolve() in [
        file.resolve() for file in output_files(Path(out), len(model.external))
    ]:
        raise OutputError(f"the fault list and the faulty model cannot both be {str(listed)!r}; name another")
    with atomic_files([listed]) as (stream,):
        # The list comes first, with room for the digests: a disk that it fills is met before the model is there.
        how, ordinals = _recorded_draw(model, drawn)
        header = replace(drawn.header, model="0" * 64, faulty="0" * 64, sampler=how)
        for line in (header.line(), *trial_lines(drawn.trial, drawn.faults, how, ordinals)):
            stream.write((line + "\n").encode())
        stream.flush()
        copy = write_copy(model, change, _path(out), hash_model=True, progress=progress)
        done = _injection(drawn, model, copy)
        stream.seek(0)
        stream.write(replace(header, model=done.digest, faulty=done.faulty_digest).line().encode())
    return done


def _recorded_draw(model: Model, drawn: Sample) -> tuple[Sampler, list[int]]:
    """Return how the list records that the faults were drawn, and the ordinals of their targets.

    Where the draw does not give just these faults again (several trials together, rows removed by hand), and they are
    too many to be listed otherwise, they are recorded as named sites.
    """
    how, faults = drawn.header.sampler, drawn.faults
    ordinals = [model.by_id[t.id] for t in faults.targets]
    if len(faults) <= MAX_LINES or how.kind == "sites":
        return how, ordinals
    event = fault_model(drawn.header.fault)
    space = drawn.header.selector.space(model.targets, event)
    again = bind_models(model, draw_faults(space, how, event, drawn.trial))
    digest = sites_digest(again, [model.by_id[t.id] for t in space.targets])
    same = again.models == faults.models and digest == sites_digest(faults, ordinals)
    return how if same else Sampler("sites", n=len(faults), seed=how.seed), ordinals


def _injection(drawn: Sample, model: Model, copy: FaultyCopy) -> Injection:
    """Return the result of an injection."""
    return Injection(drawn, model, copy.faulty, copy.path, copy.data, copy.resized)


def _path(out: str | Path | None) -> Path | None:
    """Return an output as a path."""
    return None if out is None else Path(out)


def replay(model: ModelLike, faults: FaultList) -> Sample:
    """Return the faults of a list, all its trials together, on the model that the list is bound to.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The fault-free model.
    faults : FaultList
        The opened fault list.

    Returns
    -------
    Sample
        The faults with their words, ready for `inject`.

    Raises
    ------
    FaultListError
        For another model (with both digests), or where the model does not hold the recorded words.

    Examples
    --------
    >>> import tempfile
    >>> model, place = load("models/fashion_cnn.onnx"), Path(tempfile.mkdtemp())
    >>> _ = inject(model, sample(model, count=3), place / "faulty.onnx", save_faults=place / "faults.jsonl")
    >>> [str(fault.site) for fault in replay(model, FaultList.open(place / "faults.jsonl")).faults][0]
    'fc1.weight[26]:13'
    """
    model = load(model)
    faults.check_model(model.digest)
    trials = _trials(model, faults)
    listed = concatenate_faults([rows for _, rows in trials])
    placed, _ = look_up_words(model, listed)
    for recorded, found in ((listed.before, placed.before), (listed.after, placed.after)):
        if recorded is not None and found is not None and not np.array_equal(recorded, found):
            row = int(np.flatnonzero(recorded != found)[0])
            raise FaultListError(
                f"{faults.path}: {placed[row].site} is {found[row]:#x}, the list records {recorded[row]:#x}; "
                f"it was changed by hand, or holds trials that do not go together"
            )
    header, event = faults.header, fault_model(faults.header.fault)
    named = header.sampler.kind == "sites"
    space = _space(model, header.selector, event, placed) if named else header.selector.space(model.targets, event)
    return Sample(
        with_dequantized(model, placed), header, header.sampler.expected_count(space), space.bits, trials[0][0]
    )


def undo(model: ModelLike, faults: FaultList, out: str | Path, *, progress: OnProgress | None = None) -> Injection:
    """Restore the fault-free model from the faulty one and the list that made it.

    The result is checked against the digest of the original. A model with external data keeps the new name of its data,
    so there the words are checked.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The faulty model.
    faults : FaultList
        The list of its faults.
    out : str or Path
        The restored model.
    progress : callable, optional
        Called with the bytes done and the bytes in all.

    Returns
    -------
    Injection
        The written model.

    Raises
    ------
    FaultListError
        If the list is not that of this faulty model.
    OutputError
        If the output cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> model, place = load("models/fashion_cnn.onnx"), Path(tempfile.mkdtemp())
    >>> _ = inject(model, sample(model, count=3), place / "faulty.onnx", save_faults=place / "faults.jsonl")
    >>> faulty, listed = load(place / "faulty.onnx"), FaultList.open(place / "faults.jsonl")
    >>> undo(faulty, listed, place / "restored.onnx").faulty_digest == model.digest
    True
    """
    model = load(model)
    faults.check_model(model.digest, undo=True)
    rows, final = undo_words(model, [rows for _, rows in _trials(model, faults)])
    expect = None if model.external else faults.header.model
    copy = write_copy(model, find_edits(model, rows, final), Path(out), expect=expect, progress=progress)
    return _injection(Sample(rows, faults.header, len(rows), 0), model, copy)


def _trials(model: Model, faults: FaultList) -> list[tuple[int, Faults]]:
    """Return the trials of a list; a trial without faults is recognised by its unchanged model."""
    trials = list(faults.trials(model.targets))
    if trials:
        return trials
    if faults.header.faulty != faults.header.model:
        raise FaultListError(f"{faults.path} holds no trial; it was cut short, or there is nothing to inject")
    none = np.zeros(0, np.int64)
    event, words = fault_model(faults.header.fault), np.zeros(0, np.uint64)
    return [(1, Faults(model.targets, Sites(none, none, none.astype(np.int16)), (event,), words, words))]


def inspect(
    model: ModelLike, selector: Selector | None = None, *, neurons: str | Path | None = None, **selection: Any
) -> dict[str, Any]:
    """Describe what faults can be injected into, as plain values.

    Elements and bits are those that the selector leaves: the bits in all are the population of single flips. Integer
    tensors that only carry shapes or indices are counted in `left_out` unless the selector names them, tensors that no
    output depends on in `unused`.

    Parameters
    ----------
    model : str, Path, bytes, onnx.ModelProto or Model
        The model.
    selector : Selector, optional
        The selected targets; by default every weight.
    neurons : str or Path, optional
        Mapping file of spiking layers that no pattern finds.
    **selection
        Fields of a selector in place of one: ``include="conv1"``, ``bits="exponent"``, ….

    Returns
    -------
    dict
        Targets in file order, totals, opsets, digest and spiking layers, as docs/reference/json.md lists them.

    Raises
    ------
    SelectorError
        If a selection finds nothing.

    Examples
    --------
    >>> inspect(load("models/fashion_cnn.onnx"))["totals"]
    {'targets': 8, 'elements': 105866, 'bits': 3387712}
    """
    model = load(model)
    chosen = Selector.given(selector, selection)
    spiking = describe_neurons(model, neurons)
    kept = [t for t in model.targets if chosen.selects(t)]
    # A selection that finds nothing is an error here too; a whole model may well hold nothing.
    check_disjoint(kept)
    space = FaultSpace.over(kept, Flip()) if chosen == Selector() else chosen.space(model.targets)
    selected = {t.id: sizes for t, *sizes in zip(space.targets, space.element_counts, space.sizes, strict=True)}
    rows = [
        {
            "target": t.id, "layer": t.layer, "op": t.op, "node": t.node, "kind": t.kind, "dtype": t.dtype,
            "shape": list(t.shape), "elements": words // t.word.parts, "bits": bits, "role": t.role,
            "quantised": describe_scheme(model, t) or None, "aliases": list(t.aliases),
            "roles": list(t.roles or [t.role] * bool(t.role)),
            "users": [asdict(user) for user in t.consumers or [Consumer(t.op, t.node, t.layer)] * bool(t.op)],
        }
        for t in kept
        for words, bits in (selected.get(t.id, (0, 0)),)
    ]  # fmt: skip
    return {
        "model": model.name,
        "digest": model.digest,
        "ir": model.proto.ir_version,
        "opsets": [{"domain": o.domain, "version": o.version} for o in model.proto.opset_import],
        "producer": f"{model.proto.producer_name} {model.proto.producer_version}".strip(),
        "targets": rows,
        "totals": {
            "targets": len(kept),
            "elements": sum(r["elements"] for r in rows),
            "bits": sum(r["bits"] for r in rows),
        },
        "left_out": sum(t.structural and not chosen.selects(t) for t in model.targets),
        "unused": sum(t.unused and not t.structural and not chosen.selects(t) for t in model.targets),
        "spiking": spiking,
        "notes": [*model.notes, *spiking.pop("notes")],
    }
