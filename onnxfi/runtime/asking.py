"""What one run tells of values in flight: number formats, shapes, and how often loops turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

from onnxfi.errors import EngineError, OnnxfiError
from onnxfi.faults.words import WORDS
from onnxfi.graph.activations import Activation, told
from onnxfi.graph.model import Model, parse
from onnxfi.graph.probes import Place, with_shapes
from onnxfi.graph.turns import count_steps
from onnxfi.runtime.data import Data, open_data
from onnxfi.runtime.engines import OrtEngine, OrtSession
from onnxfi.runtime.ports import Array

if TYPE_CHECKING:
    import onnx

#: Samples that are run, and where those do not run.
_SAMPLES, _MOST_SAMPLES = 2, 32


def asked(
    model: Model, proto: onnx.ModelProto, rows: Sequence[Activation], data: Data | None, custom_ops: Sequence[str] = ()
) -> tuple[Activation, ...]:
    """The activations with what one run tells of those that the file leaves open; what cannot be run stays open.

    `proto` is the model, whose opset may have been raised; `custom_ops` are libraries of operators.
    """
    wanted = {a.name for a in rows if not a.path and ("type is not known" in a.why_not or not a.shaped)}
    inside = {(a.path, a.name): None if a.dims is None else len(a.dims) for a in rows if a.path and not a.shaped}
    if not wanted and not inside:
        return tuple(rows)
    try:
        session, shapes = _telling(model, proto, wanted, inside, custom_ops)
        feeds, found = first_run(session, data, [p.name for p in session.outputs])
    except OnnxfiError:
        if not inside:
            return tuple(rows)
        outside = asked(model, proto, [a for a in rows if not a.path], data, custom_ops)
        by_id = {a.target.id: a for a in outside}  # what is asked inside may be what does not run
        return tuple(by_id.get(a.target.id, a) for a in rows)
    found |= dict(feeds)
    batch = next((a.shape[0] for a in feeds.values() if a.ndim), None)
    types = {port.name: port.dtype for port in (*session.outputs, *session.inputs)}
    known = {place: _one_shape(found[name]) for place, name in shapes.items()}

    def answered(a: Activation) -> Activation:
        if (shape := known.get((a.path, a.name))) is not None:
            return told(a, None, shape, batch)
        if not a.path and a.name in wanted and a.name in found and a.name in types:
            return told(a, WORDS.get(types[a.name]), found[a.name].shape, batch)
        return a

    return tuple(answered(a) for a in rows)


def _telling(
    model: Model, proto: onnx.ModelProto, names: Set[str], inside: Mapping[Place, int | None], custom_ops: Sequence[str]
) -> tuple[OrtSession, dict[Place, str]]:
    """A session that puts out these values too, and the shapes of those in bodies."""
    import onnx

    made, shapes = with_shapes(proto, inside)
    have = {o.name for o in made.graph.output} | {i.name for i in made.graph.input}
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - have))
    made.ir_version = max(made.ir_version, 4)
    return opened(model, made, custom_ops), shapes


def _one_shape(rows: Array) -> tuple[int, ...] | None:
    """The shape that a value in a body has in every iteration; None where it has several, or was not reached."""
    if not rows.shape[-1]:
        return () if rows.ndim == 1 else None
    flat = rows.reshape(-1, rows.shape[-1])
    flat = flat[(flat >= 0).all(axis=1)]
    return tuple(flat[0].tolist()) if len(flat) and (flat == flat[0]).all() else None


def counted(model: Model, data: Data | None, custom_ops: Sequence[str] = ()) -> dict[str, int]:
    """How often loops turn on the first samples, by the path of each graph inside one; the most, if it is run often."""
    proto, counters = count_steps(parse(model))
    if not counters:
        return {}
    session = opened(model, proto, custom_ops)
    _, found = first_run(session, data, sorted(set(counters.values())))
    return {path: int(found[name]) for path, name in counters.items()}


def opened(model: Model, proto: onnx.ModelProto, custom_ops: Sequence[str] = ()) -> OrtSession:
    """A session of a changed copy of a model, on the CPU and without optimisation."""
    folder = model.path.parent if model.external and model.path is not None else None
    engine = OrtEngine(provider="cpu", optimization="off", custom_ops=tuple(custom_ops))
    return engine.prepare(proto.SerializeToString(), folder)


def first_run(
    session: OrtSession, data: Data | None, names: Sequence[str] | None = None
) -> tuple[Mapping[str, Array], dict[str, Array]]:
    """What the first samples of the data, or made-up ones, are as inputs, and what these outputs (None: all) are then.

    Two samples, where the batch is not fixed; more where those cannot run, as beside states that come with the data.
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
) -> tuple[Mapping[str, Array], dict[str, Array]]:
    feeds = next(iter(fed.batches(size))).feeds
    return feeds, session.run(feeds, names)
