"""TensorFlow: a SavedModel, through tf2onnx. Keras models share what is done here (keras.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfi.errors import ConversionError, InputError
from onnxfi.graph.model.graph_index import all_graphs
from onnxfi.graph.model.layers import scope_in_name
from onnxfi.runtime.engine.model_io import Array, Port, one_line

from . import naming, shapes
from .conversion import (
    OPSET,
    Check,
    Converted,
    Exported,
    check_output,
    finish,
    foreign,
    named_outputs,
    shown,
)  # fmt: skip
from .frameworks import quiet, require, version
from .sources import existing, is_factory, made

if TYPE_CHECKING:
    import onnx

_WRAPPERS = ("StatefulPartitionedCall", "PartitionedCall")
_SIGNATURE = "serving_default"


def convert(
    source: Any,
    out: str | Path,
    *,
    input_shape: str | Sequence[str] = (),
    opset: int | None = None,
    data: str | Path | Mapping[str, Array] | None = None,
    samples: int = 8,
    tolerance: float = 1e-4,
) -> Converted:
    """Convert a SavedModel with tf2onnx, hold it against TensorFlow, and write it to `out`.

    `source` is a SavedModel's folder, a loaded one, or `module:factory` that gives one. Its signature `serving_default`
    is taken, or the only one. `input_shape` replaces the signature's shapes, as `N,28,28,1`. Weights bear the names of
    their variables, layers the paths of those. Loading a SavedModel runs no Python, but its operators may read and
    write files: open none that you would not run.

    Raises InputError for a source that cannot be used, ConversionError (with the foreign text) where TensorFlow or
    tf2onnx refuse.
    """
    require("tensorflow")
    place, check = check_output(out), Check(data, samples, tolerance)
    with quiet():
        import tensorflow as tf

        loaded = made(source) if is_factory(source) else source
        if isinstance(loaded, str | Path):
            path = existing(loaded)
            try:
                loaded = tf.saved_model.load(str(path))
            except Exception as error:
                raise foreign(error, f"{str(path)!r} is no SavedModel that loads", "give the folder") from error
        function = _signature(loaded)
        takes = function.structured_input_signature[1]
        ports = _ports(takes, shapes.tuple_of(input_shape))
        names = list(function.structured_outputs)

        def called(*values: Any) -> dict[str, Any]:
            found = function(**dict(zip(takes, values, strict=True)))
            return {name: found[name] for name in names}

        proto = traced(called, ports, opset or OPSET)
        variables = {v.name.removesuffix(":0"): v.numpy() for v in function.variables}
        _name_by_variables(proto, variables)
        outputs = [value.name for value in proto.graph.output]

        def run(feeds: Mapping[str, Array]) -> Mapping[str, Any]:
            found = called(*(tf.constant(feeds[name]) for name in takes))
            return named_outputs(outputs, [found[name].numpy() for name in names])

        exported = Exported("tensorflow", package_version(), shown(source), proto, run)
        return finish(exported, place, check)


def package_version() -> str:
    """TensorFlow's version, by whichever name it was installed."""
    return version("tensorflow-cpu|tensorflow")


def _signature(loaded: Any) -> Any:
    """The function that a SavedModel serves."""
    signatures = getattr(loaded, "signatures", None)
    if not signatures:
        raise InputError("the SavedModel has no signature; save it with signatures= or by keras' model.export")
    if _SIGNATURE in signatures:
        return signatures[_SIGNATURE]
    if len(signatures) > 1:
        raise InputError(
            f"the SavedModel has signatures {', '.join(signatures)}, none of them {_SIGNATURE!r}; save one"
        )
    return next(iter(signatures.values()))


def _ports(takes: Mapping[str, Any], texts: Sequence[str]) -> list[Port]:
    """What a signature takes, in the shapes asked for where there are any."""
    given = {port.name: port for port in shapes.ports(texts, list(takes))}
    ports = []
    for name, spec in takes.items():
        if name in given:
            ports.append(replace(given[name], dtype=spec.dtype.name))
        elif spec.shape.rank is None:
            raise InputError(f"input {name!r} has no shape in the source; give --input-shape N,28,28,1, say")
        else:
            ports.append(port_of(name, spec.dtype.name, spec.shape.as_list()))
    return ports


def port_of(name: str, dtype: str, dims: Sequence[int | None]) -> Port:
    """A port of TensorFlow's shape: a first open dimension counts samples, others may vary.

    >>> port_of("image", "float32", [None, 28, None, 1]).shape
    ('N', 28, 'd2', 1)
    """
    letters = ["N", *(f"d{k}" for k in range(1, len(dims)))]
    return Port(name, dtype, tuple(letter if dim is None else dim for letter, dim in zip(letters, dims, strict=False)))


def traced(function: Callable[..., Mapping[str, Any]], ports: Sequence[Port], opset: int) -> onnx.ModelProto:
    """The ONNX model of a function, by tf2onnx; InputError for an opset that it does not write."""
    import tensorflow as tf
    import tf2onnx

    if not 9 <= opset <= OPSET:
        raise InputError(f"tf2onnx does not write opset {opset}; it takes 9 to {OPSET}")
    signature = [
        tf.TensorSpec([dim if isinstance(dim, int) else None for dim in port.shape or ()], port.dtype, name=port.name)
        for port in ports
    ]
    try:
        proto: onnx.ModelProto = tf2onnx.convert.from_function(
            tf.function(function, input_signature=signature), input_signature=signature, opset=opset
        )[0]
    except Exception as error:
        raise foreign(
            error, "tf2onnx refuses the model", "use layers and operators that have a counterpart in ONNX"
        ) from error
    _check_operators(proto)
    naming.rename(proto, {value.name: value.name.removesuffix(":0") for value in proto.graph.input})
    naming.open_first_dimension(proto, {port.name: port.shape for port in ports})
    return proto


def _check_operators(proto: onnx.ModelProto) -> None:
    """Refuse what tf2onnx could not translate and left in as TensorFlow's own operator."""
    from onnx import defs

    known = {"", "ai.onnx", "ai.onnx.ml", *(function.domain for function in proto.functions)}
    foreign_ops = {
        node.op_type
        for graph in all_graphs(proto.graph)
        for node in graph.node
        if node.domain not in known or (node.domain == "" and not defs.has(node.op_type))
    }
    if foreign_ops:
        raise ConversionError(
            f"ONNX has no counterpart of {one_line(', '.join(sorted(foreign_ops)), limit=120)}; replace these operators"
        )


def _name_by_variables(proto: onnx.ModelProto, variables: Mapping[str, Array]) -> None:
    """Call weights as their variables, and layers by the paths of these; else by the scopes of the nodes."""
    heads = {name.partition("/")[0] for name in variables if name.count("/") > 1}
    model = f"{heads.pop()}/" if len(heads) == 1 else ""  # all in one model: its name says nothing
    matched = {old: name.removeprefix(model) for old, name in naming.matched(proto, variables).items()}
    owners: dict[str, str] = {}
    for graph in all_graphs(proto.graph):
        for node in graph.node:
            for value in node.input:
                owner, scope = matched.get(value, "").rpartition("/")[0], scope_in_name(node.name)
                if owner and scope:
                    owners.setdefault(scope, owner)

    def layer(node: onnx.NodeProto) -> str:
        scope = scope_in_name(node.name)
        return owners.get(scope) or scope

    naming.record(proto, layer)
    naming.record_owners(proto, matched)
    naming.rename(proto, matched)
    naming.rename(
        proto, {name: "/".join(p for p in name.split("/") if p not in _WRAPPERS) for name in naming.names(proto)}
    )
    naming.sort_by_use(proto)
