"""What one run tells of values in flight: number formats, shapes, and how often loops turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxfi.errors import OnnxfiError
from onnxfi.faults.words import WORDS
from onnxfi.graph.activations import Activation, told
from onnxfi.graph.model import Model, parse
from onnxfi.graph.turns import count_steps
from onnxfi.runtime.data import Data, open_data
from onnxfi.runtime.engines import OrtEngine, OrtSession
from onnxfi.runtime.ports import Array

if TYPE_CHECKING:
    import onnx

#: Samples that are run.
_SAMPLES = 2


def asked(
    model: Model, proto: onnx.ModelProto, rows: Sequence[Activation], data: Data | None, custom_ops: Sequence[str] = ()
) -> tuple[Activation, ...]:
    """The activations with what one run tells of those that the file leaves open; what cannot be run stays open.

    `proto` is the model, whose opset may have been raised; `custom_ops` are libraries of operators.
    """
    import onnx

    wanted = [a for a in rows if not a.path and ("type is not known" in a.why_not or not a.shaped)]
    if not wanted:
        return tuple(rows)
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    have = {o.name for o in made.graph.output} | {i.name for i in made.graph.input}
    made.graph.output.extend(onnx.ValueInfoProto(name=a.name) for a in wanted if a.name not in have)
    made.ir_version = max(made.ir_version, 4)
    try:
        session = opened(model, made, custom_ops)
        feeds = first_feeds(session.inputs, data)
        found = session.run(feeds, [p.name for p in session.outputs])
    except OnnxfiError:
        return tuple(rows)
    found |= dict(feeds)
    batch = next((a.shape[0] for a in feeds.values() if a.ndim), None)
    types = {port.name: port.dtype for port in (*session.outputs, *session.inputs)}
    return tuple(
        told(a, WORDS.get(types[a.name]), found[a.name].shape, batch)
        if not a.path and a.name in found and a.name in types and a in wanted
        else a
        for a in rows
    )


def counted(model: Model, data: Data | None, custom_ops: Sequence[str] = ()) -> dict[str, int]:
    """How often loops turn on the first samples, by the path of each graph inside one; the most, if it is run often."""
    proto, counters = count_steps(parse(model))
    if not counters:
        return {}
    session = opened(model, proto, custom_ops)
    found = session.run(first_feeds(session.inputs, data), sorted(set(counters.values())))
    return {path: int(found[name]) for path, name in counters.items()}


def opened(model: Model, proto: onnx.ModelProto, custom_ops: Sequence[str] = ()) -> OrtSession:
    """A session of a changed copy of a model, on the CPU and without optimisation."""
    folder = model.path.parent if model.external and model.path is not None else None
    engine = OrtEngine(provider="cpu", optimization="off", custom_ops=tuple(custom_ops))
    return engine.prepare(proto.SerializeToString(), folder)


def first_feeds(ports: Any, data: Data | None) -> Mapping[str, Array]:
    """The first samples of the data, or made-up ones."""
    fed = data or open_data(None, ports, limit=_SAMPLES)
    return next(iter(fed.batches(fed.layout.fixed or min(_SAMPLES, fed.samples)))).feeds
