"""Fusions of the runtime that are lost by a change of the graph, counted in the optimised graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from onnxfi.errors import EngineError
from onnxfi.graph.write.scratch_folder import scratch_folder
from onnxfi.runtime.data.dry_run import dry_run
from onnxfi.runtime.engine.installed_runtime import onnxruntime
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.ports import one_line

_FATAL = 4
_MOST_SITES = 300


def fusions_lost(plain: bytes, changed: bytes, custom_ops: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """Return the numbers of fused nodes in the plain and in the changed model, for operators that lost some.

    Only those that became fewer, by operator; a fused activation function stands after it, as `Conv+Relu`.
    `custom_ops` are libraries of operators. Raises EngineError if the runtime refuses one of the two.

    >>> from onnxfi.graph.model.loading import load, parse
    >>> model = parse(load("models/fashion_cnn.onnx")).SerializeToString()
    >>> fusions_lost(model, model)
    {}
    """
    before, after = fused(plain, custom_ops), fused(changed, custom_ops)
    return {name: (n, after.get(name, 0)) for name, n in sorted(before.items()) if after.get(name, 0) < n}


def fused(model: bytes, custom_ops: Sequence[str] = ()) -> Counter[str]:
    """Return the nodes that the runtime makes by fusing, by operator, in the graph that it optimised."""
    ort = onnxruntime()
    dry_run(OrtEngine(custom_ops=tuple(custom_ops)), model)
    own = {node.op_type for node in onnx.ModelProto.FromString(model).graph.node}
    with scratch_folder() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.optimized_model_filepath = str(folder / "optimised.onnx")
        try:
            for library in custom_ops:
                options.register_custom_ops_library(library)
            ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(f"ONNX Runtime refuses the model: {one_line(error)}") from error
        made = onnx.load(options.optimized_model_filepath, load_external_data=False)
    names = (_name(node, own) for node in made.graph.node)
    return Counter(name for name in names if name)


def _name(node: Any, own: set[str]) -> str:
    """Return the name of a fused node; '' for one that is as in the file."""
    said: Mapping[str, Any] = {a.name: a for a in node.attribute}
    activation = said["activation"].s.decode() if "activation" in said else ""
    if activation:
        return f"{node.op_type.removeprefix('Fused')}+{activation}"
    return node.op_type if node.domain == "com.microsoft" and node.op_type not in own else ""


def fusions_note(plain: bytes, changed: bytes, sites: int, custom_ops: Sequence[str] = ()) -> tuple[str, ...]:
    """Return a note on the fusions that `sites` operators cost; nothing if they cost none."""
    if sites > _MOST_SITES:
        return (f"fusions lost are counted for up to {_MOST_SITES} sites; more take the runtime long to load",)
    try:
        lost = fusions_lost(plain, changed, custom_ops)
    except EngineError:
        return ()
    if not lost:
        return ()
    counts = ", ".join(f"{name} {before} to {after}" for name, (before, after) in lost.items())
    return (f"fusions of the runtime that are lost: {counts}",)
