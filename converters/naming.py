"""Names in an exported model: layers in the nodes' metadata, weights as in the source, open dimensions `N`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfi.graph.model.graph_index import all_graphs, read_names
from onnxfi.graph.model.layers import LAYER_KEY
from onnxfi.runtime.engine.ports import Array

if TYPE_CHECKING:
    import onnx

#: Metadata of the PyTorch exporter that names a node's origin; its stack traces, which hold local paths, are removed.
_ORIGIN_KEYS = {LAYER_KEY, "namespace", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes"}


def _values(graph: onnx.GraphProto) -> Iterator[Any]:
    """Yield the inputs, outputs, value infos and initializers of a graph."""
    yield from (*graph.input, *graph.output, *graph.value_info, *graph.initializer)


def clean(proto: onnx.ModelProto) -> None:
    """Remove all metadata but the origin of nodes, and import each operator set once."""
    del proto.metadata_props[:]
    for graph in all_graphs(proto.graph):
        del graph.metadata_props[:]
        graph.doc_string = ""
        for value in _values(graph):
            del value.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            origin = [entry for entry in node.metadata_props if entry.key in _ORIGIN_KEYS]
            del node.metadata_props[:]
            node.metadata_props.extend(origin)
    imports = {opset.domain: opset.version for opset in proto.opset_import}
    del proto.opset_import[:]
    for domain, number in imports.items():
        proto.opset_import.add(domain=domain, version=number)


def record_layers(proto: onnx.ModelProto, layer: Callable[[onnx.NodeProto], str]) -> None:
    """Write the layer of each node into its metadata; nodes with an empty layer are skipped."""
    for graph in all_graphs(proto.graph):
        for node in graph.node:
            if name := layer(node):
                node.metadata_props.add(key=LAYER_KEY, value=name)


def record_owners(proto: onnx.ModelProto, variables: Mapping[str, str]) -> None:
    """Record for nodes without a layer the layer of a variable (`lstm/lstm_cell/kernel`) that they read."""
    for graph in all_graphs(proto.graph):
        for node in graph.node:
            owners = [variables[value].rpartition("/")[0] for value in node.input if value in variables]
            if any(owners) and all(entry.key != LAYER_KEY for entry in node.metadata_props):
                node.metadata_props.add(key=LAYER_KEY, value=next(owner for owner in owners if owner))


def rename(proto: onnx.ModelProto, new: Mapping[str, str]) -> None:
    """Rename values and nodes everywhere; a rename to a name already in use is skipped."""
    taken = set(names(proto))
    allowed: dict[str, str] = {}
    for old, name in new.items():
        if old in taken and name not in taken:
            allowed[old] = name
            taken.add(name)
    for graph in all_graphs(proto.graph):
        for value in _values(graph):
            value.name = allowed.get(value.name, value.name)
        for node in graph.node:
            node.name = allowed.get(node.name, node.name)
            for values in (node.input, node.output):
                values[:] = [allowed.get(value, value) for value in values]


def names(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield the names of all values and nodes."""
    for graph in all_graphs(proto.graph):
        yield from (value.name for value in _values(graph))
        for node in graph.node:
            yield from (node.name, *node.output)


def sort_by_use(proto: onnx.ModelProto) -> None:
    """Sort initializers by their first use, so that layers come in the order of the source."""
    order: dict[str, int] = {}
    for node in proto.graph.node:
        for value in read_names(node):
            order.setdefault(value, len(order))
    tensors = sorted(proto.graph.initializer, key=lambda tensor: order.get(tensor.name, len(order)))
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in tensors]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(copies)


def initializers(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every initializer of the model, also those of nested graphs."""
    for graph in all_graphs(proto.graph):
        yield from graph.initializer


def match_variables(proto: onnx.ModelProto, variables: Mapping[str, Array]) -> dict[str, str]:
    """Return the source variable of each initializer with the same values, in any order: exporters transpose kernels.

    Tensors of a single value, of the values of two variables, or with the name of a variable stay unmatched.
    """
    from onnx import numpy_helper

    unnamed = [tensor for tensor in initializers(proto) if tensor.name not in variables]
    sizes = {math.prod(tensor.dims) for tensor in unnamed}
    known: dict[str, list[str]] = {}
    for name, values in variables.items():
        if np.size(values) in sizes:
            known.setdefault(_content(np.asarray(values)), []).append(name)
    found = {}
    for tensor in unnamed:
        key = _content(numpy_helper.to_array(tensor))
        if key and len(known.get(key, ())) == 1:
            found[tensor.name] = known[key][0]
    return found


def _content(values: Array) -> str:
    """Return the digest of the sorted values, which no transposition changes; '' if all are equal."""
    flat = np.sort(values, axis=None)
    if not flat.size or (flat.size > 1 and flat[0] == flat[-1]):
        return ""
    return f"{flat.dtype.name} {hashlib.sha256(flat.tobytes()).hexdigest()}"


def name_open_dimensions(proto: onnx.ModelProto, ports: Mapping[str, Any]) -> None:
    """Name open dimensions as the ports do, the first one `N` by default, instead of exporters' names (`unk__40`)."""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        shape = ports.get(value.name)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            wanted = shape[axis] if shape is not None and axis < len(shape) else None
            dim.Clear()
            if isinstance(wanted, str):
                dim.dim_param = wanted
            elif axis == 0:
                dim.dim_param = "N"
