"""Facts about activations from a run: number formats, shapes, and iterations of loops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from onnxfi.errors import EngineError, OnnxfiError
from onnxfi.faults.words import WORDS
from onnxfi.graph.dataflow.activation_targets import (
    Activation,
    of_single_sample_model,
    placed_after_run,
    with_observed_facts,
)
from onnxfi.graph.dataflow.batch_layout import BatchLayout, graph_batch_layout
from onnxfi.graph.dataflow.sample_placement import SamplePlacement, Sizes, model_placements
from onnxfi.graph.model.loading import Model, parse
from onnxfi.graph.passes.probes import CountIterations, OutputShapes, ScopedName
from onnxfi.runtime.data.dry_run import dry_run
from onnxfi.runtime.data.open_data import Data, open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine, OrtSession
from onnxfi.runtime.engine.ports import Array

if TYPE_CHECKING:
    import onnx

#: Samples that are run, and where those do not run.
_SAMPLES, _MOST_SAMPLES = 2, 32


def complete_by_running(
    model: Model, proto: onnx.ModelProto, rows: Sequence[Activation], data: Data | None, custom_ops: Sequence[str] = ()
) -> tuple[Activation, ...]:
    """Return the activations with the formats and shapes that runs show where the file leaves them open.

    One run shows formats and shapes, another with one sample more where samples lie; what cannot be run stays open.
    `proto` is the model, whose opset may have been raised; `custom_ops` are libraries of operators.
    """
    layout = data.layout if data is not None else graph_batch_layout(model.proto.graph)
    if not any(_open(a, layout) for a in rows):
        return tuple(rows)
    for inside in (True, False):  # shapes inside bodies may be what does not run
        here = [a for a in rows if inside or not a.path]
        with suppress(OnnxfiError):
            found = _observed(model, proto, here, data, layout, custom_ops)
            return placed_after_run(model, [found.get(a.target.id, a) for a in rows])
    return tuple(rows)


def _open(a: Activation, layout: BatchLayout) -> bool:
    """Return whether the file leaves something of an activation open that a run may show."""
    axis_unknown_reason = bool(a.axis_unknown_reason) and layout.fixed is None and not a.unsupported_reason
    return "type is not known" in a.unsupported_reason or not a.shape_known or axis_unknown_reason


def _observed(
    model: Model, proto: onnx.ModelProto, rows: Sequence[Activation], data: Data | None, layout: BatchLayout,
    custom_ops: Sequence[str],
) -> dict[str, Activation]:  # fmt: skip
    """Return the activations that runs complete, by target id."""
    wanted = {a.name for a in rows if not a.path and "type is not known" in a.unsupported_reason}
    probed = {(a.path, a.name): a for a in rows if (_open(a, layout) or not a.path) and a.name not in wanted}
    ranks = {place: None if a.dims is None else len(a.dims) for place, a in probed.items()}
    session, shapes = _probing_session(model, proto, wanted, ranks, custom_ops)
    runs = [*_run_with_one_more(session, data, sorted({*shapes.values(), *wanted}))]
    types = {port.name: port.dtype for port in (*session.outputs, *session.inputs)}
    shapes_by_run = [{place: _one_shape(run[name]) for place, name in shapes.items()} for _, run in runs]
    for (_, run), known in zip(runs, shapes_by_run, strict=True):
        known |= {("", name): array.shape for name, array in run.items() if name not in shapes.values()}
    places = _places(model, layout, [size for size, _ in runs], shapes_by_run)
    out = {}
    for a in rows:
        dims = [known.get((a.path, a.name)) for known in shapes_by_run]
        if _open(a, layout) and dims[0] is not None:
            word = WORDS.get(types[a.name]) if a.name in wanted and not a.path else None
            found = places.get(a.path, {}).get(a.name)
            one = with_observed_facts(a, word, _common_shape(a, found, dims), found)
            out[a.target.id] = of_single_sample_model(one) if layout.fixed == 1 else one
    return out


def _common_shape(
    a: Activation, found: SamplePlacement | None, dims: Sequence[tuple[int, ...] | None]
) -> tuple[int | None, ...]:
    """Return the shape of a value in all runs, None if it grows."""
    first, last = dims[0] or (), dims[-1]
    place = a.place if a.place is not None or found is None else found.place
    if last is None or len(last) != len(first):
        return (None,) * len(first)
    alike = [one if one == other else None for one, other in zip(first, last, strict=True)]
    if place is not None and place.axis < len(alike):
        alike[place.axis] = None
    return tuple(alike)


def _places(
    model: Model,
    layout: BatchLayout,
    sizes: Sequence[int],
    known: Sequence[Mapping[ScopedName, tuple[int, ...] | None]],
) -> dict[str, dict[str, SamplePlacement]]:
    """Return where samples lie by the shapes of two runs; nothing if there is one."""
    if len(sizes) < 2:
        return {}
    shapes: dict[str, dict[str, tuple[tuple[int, ...] | None, ...]]] = {}
    for (path, name), one in known[0].items():
        shapes.setdefault(path, {})[name] = (one, known[1].get((path, name)))
    every = [(scope.path, scope.graph) for scope in model.index.graphs]
    return model_placements(every, layout, cast("Any", shapes), Sizes((sizes[0], sizes[1])))


def _run_with_one_more(
    session: OrtSession, data: Data | None, names: Sequence[str]
) -> Iterator[tuple[int, Mapping[str, Array]]]:
    """Yield the outputs on the first samples, then with the last of them once more where the batch is not fixed."""
    feeds, found, layout = run_first_samples(session, data, names)
    yield layout.rows(feeds), {**feeds, **found}
    if layout.fixed is None and layout.axes:
        more = layout.pad(feeds, layout.rows(feeds) + 1)
        with suppress(EngineError):
            yield layout.rows(more), {**more, **session.run(more, names)}


def _probing_session(
    model: Model,
    proto: onnx.ModelProto,
    names: Set[str],
    ranks: Mapping[ScopedName, int | None],
    custom_ops: Sequence[str],
) -> tuple[OrtSession, dict[ScopedName, str]]:
    """Return a session that outputs these values too, and the shapes of others; and the names of those shapes."""
    import onnx

    made, shapes = OutputShapes(ranks).run(proto)
    have = {o.name for o in made.graph.output} | {i.name for i in made.graph.input}
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - have))
    made.ir_version = max(made.ir_version, 4)
    return open_session(model, made, custom_ops), shapes


def _one_shape(rows: Array) -> tuple[int, ...] | None:
    """Return the shape that a value has in every iteration; None if it has several, or is not computed."""
    if not rows.shape[-1]:
        return () if rows.ndim == 1 else None
    flat = rows.reshape(-1, rows.shape[-1])
    flat = flat[(flat >= 0).all(axis=1)]
    return tuple(flat[0].tolist()) if len(flat) and (flat == flat[0]).all() else None


def loop_iterations(
    model: Model, data: Data | None, custom_ops: Sequence[str] = (), *, steady: bool = False
) -> dict[str, int]:
    """Count the iterations of loops on the first samples, by the path of each graph in one; the most, if it runs often.

    `steady` leaves out loops that run differently with one sample more, as a scan over the samples does.
    """
    proto, counters = CountIterations().run(parse(model))
    if not counters:
        return {}
    runs = _run_with_one_more(open_session(model, proto, custom_ops), data, sorted(set(counters.values())))
    iterations = [{path: int(found[name]) for path, name in counters.items()} for _, found in islice(runs, 1 + steady)]
    return {path: many for path, many in iterations[0].items() if many == iterations[-1][path]}


def open_session(model: Model, proto: onnx.ModelProto, custom_ops: Sequence[str] = ()) -> OrtSession:
    """Return a session of a changed copy of a model, on the CPU and without optimisation."""
    folder = model.path.parent if model.external and model.path is not None else None
    engine = OrtEngine(provider="cpu", optimization="off", custom_ops=tuple(custom_ops))
    dry_run(engine, model.stored_form)
    return engine.prepare(proto.SerializeToString(), folder)


def run_first_samples(
    session: OrtSession, data: Data | None, names: Sequence[str] | None = None
) -> tuple[Mapping[str, Array], dict[str, Array], BatchLayout]:
    """Return the first samples of the data, or made-up ones, the outputs on them, and which inputs hold samples.

    `names` are the outputs (None: all). Two samples, where the batch is not fixed; more where those cannot run, as
    beside states that come with the data.
    """
    fed = data or open_data(None, session.inputs, limit=_SAMPLES)
    few, more = (fed.layout.fixed or min(n, fed.samples) for n in (_SAMPLES, _MOST_SAMPLES))
    try:
        return _run(session, fed, few, names)
    except EngineError:
        if few == more:
            raise
    return _run(session, fed, more, names)


def _run(
    session: OrtSession, fed: Data, size: int, names: Sequence[str] | None
) -> tuple[Mapping[str, Array], dict[str, Array], BatchLayout]:
    """Return one batch, its outputs, and its layout."""
    feeds = next(iter(fed.batches(size))).feeds
    return feeds, session.run(feeds, names), fed.layout
