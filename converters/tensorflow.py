"""Conversion from TensorFlow: a SavedModel, with tf2onnx; keras.py uses its functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfi.errors import ConversionError, InputError
from onnxfi.graph.model.graph_index import all_graphs
from onnxfi.graph.model.layers import scope_in_name
from onnxfi.runtime.engine.ports import Array, Port, one_line

from . import naming, shapes
from .conversion import (
    OPSET,
    Check,
    Converted,
    Exported,
    check_output,
    conversion_error,
    named_outputs,
    source_name,
    write_checked,
)  # fmt: skip
from .installed_frameworks import quiet, require, version
from .sources import call_factory, existing_path, is_factory

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
    """Convert a SavedModel with tf2onnx, compare it with TensorFlow, and write it to `out`.

    Weights get the names of their variables, layers the paths of these. Loading a SavedModel runs no Python, but its
    operators may read and write files: load none that you would not run.

    Parameters
    ----------
    source
        The folder of a SavedModel, a loaded one, or `module:factory` that returns one. Its signature `serving_default`
        is used, or the only one.
    out
        The file to write.
    input_shape
        Shapes that replace those of the signature, as `N,28,28,1`.
    opset
        Opset of the file; None is 18.
    data, samples, tolerance
        The check: on the first `samples` of `data` (None: synthetic), to a relative `tolerance`.

    Returns
    -------
    Converted
        The file that was written, and its largest difference from TensorFlow.

    Raises
    ------
    InputError
        For a source that cannot be used.
    ConversionError
        If TensorFlow or tf2onnx fail, with their error text, or the outputs differ by more than the tolerance.
    """
    require("tensorflow")
    path, check = check_output(out), Check(data, samples, tolerance)
    with quiet():
        import tensorflow as tf

        loaded = call_factory(source) if is_factory(source) else source
        if isinstance(loaded, str | Path):
            folder = existing_path(loaded)
            try:
                loaded = tf.saved_model.load(str(folder))
            except Exception as error:
                raise conversion_error(
                    error, f"{str(folder)!r} is not a loadable SavedModel", "give its folder"
                ) from error
        function = _signature(loaded)
        inputs = function.structured_input_signature[1]
        ports = _ports(inputs, shapes.as_tuple(input_shape))
        names = list(function.structured_outputs)

        def call(*values: Any) -> dict[str, Any]:
            found = function(**dict(zip(inputs, values, strict=True)))
            return {name: found[name] for name in names}

        proto = export_function(call, ports, opset or OPSET)
        variables = {v.name.removesuffix(":0"): v.numpy() for v in function.variables}
        _name_by_variables(proto, variables)
        outputs = [value.name for value in proto.graph.output]

        def run(feeds: Mapping[str, Array]) -> Mapping[str, Any]:
            found = call(*(tf.constant(feeds[name]) for name in inputs))
            return named_outputs(outputs, [found[name].numpy() for name in names])

        exported = Exported("tensorflow", package_version(), source_name(source), proto, run)
        return write_checked(exported, path, check)


def package_version() -> str:
    """Return the version of TensorFlow, of whichever package is installed."""
    return version("tensorflow-cpu|tensorflow")


def _signature(loaded: Any) -> Any:
    """Return the serving function of a SavedModel."""
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


def _ports(inputs: Mapping[str, Any], texts: Sequence[str]) -> list[Port]:
    """Return the inputs of a signature, in the given shapes where there are any."""
    given = {port.name: port for port in shapes.parse_ports(texts, list(inputs))}
    ports = []
    for name, spec in inputs.items():
        if name in given:
            ports.append(replace(given[name], dtype=spec.dtype.name))
        elif spec.shape.rank is None:
            raise InputError(f"input {name!r} has no shape in the source; give --input-shape, as N,28,28,1")
        else:
            ports.append(port_of(name, spec.dtype.name, spec.shape.as_list()))
    return ports


def port_of(name: str, dtype: str, dims: Sequence[int | None]) -> Port:
    """Return a port of a TensorFlow shape: a first open dimension counts samples, others may vary.

    >>> port_of("image", "float32", [None, 28, None, 1]).shape
    ('N', 28, 'd2', 1)
    """
    letters = ["N", *(f"d{k}" for k in range(1, len(dims)))]
    return Port(name, dtype, tuple(letter if dim is None else dim for letter, dim in zip(letters, dims, strict=False)))


def export_function(function: Callable[..., Mapping[str, Any]], ports: Sequence[Port], opset: int) -> onnx.ModelProto:
    """Return the ONNX model of a function, by tf2onnx; raise InputError for an opset that it does not write."""
    import tensorflow as tf
    import tf2onnx

    if not 9 <= opset <= OPSET:
        raise InputError(f"tf2onnx cannot write opset {opset}; use 9 to {OPSET}")
    signature = [
        tf.TensorSpec([dim if isinstance(dim, int) else None for dim in port.shape or ()], port.dtype, name=port.name)
        for port in ports
    ]
    try:
        proto: onnx.ModelProto = tf2onnx.convert.from_function(
            tf.function(function, input_signature=signature), input_signature=signature, opset=opset
        )[0]
    except Exception as error:
        raise conversion_error(
            error, "tf2onnx fails on the model", "use layers and operators that have a counterpart in ONNX"
        ) from error
    _check_operators(proto)
    naming.rename(proto, {value.name: value.name.removesuffix(":0") for value in proto.graph.input})
    naming.name_open_dimensions(proto, {port.name: port.shape for port in ports})
    return proto


def _check_operators(proto: onnx.ModelProto) -> None:
    """Refuse a model in which tf2onnx left operators of TensorFlow."""
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
    """Name weights after their variables, and layers after the paths of these or else the scopes of the nodes."""
    prefixes = {name.partition("/")[0] for name in variables if name.count("/") > 1}
    model = f"{prefixes.pop()}/" if len(prefixes) == 1 else ""  # the name of the only model is left out
    matched = {old: name.removeprefix(model) for old, name in naming.match_variables(proto, variables).items()}
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

    naming.record_layers(proto, layer)
    naming.record_owners(proto, matched)
    naming.rename(proto, matched)
    naming.rename(
        proto, {name: "/".join(p for p in name.split("/") if p not in _WRAPPERS) for name in naming.names(proto)}
    )
    naming.sort_by_use(proto)
