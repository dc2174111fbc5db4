"""Names: layers recorded with the nodes, weights called as in the source, open dimensions called N."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfi.graph.model.graph_index import all_graphs, read_names
from onnxfi.graph.model.layers import LAYER_KEY
from onnxfi.runtime.engine.model_io import Array

if TYPE_CHECKING:
    import onnx

#: Metadata of the PyTorch exporter that says where a node comes from; its stack traces hold paths of the machine.
_KEPT = {LAYER_KEY, "namespace", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes"}


def _things(graph: onnx.GraphProto) -> Iterator[Any]:
    """What has a name in a graph, nodes apart."""
    yield from (*graph.input, *graph.output, *graph.value_info, *graph.initializer)


def clean(proto: onnx.ModelProto) -> None:
    """Leave of the metadata only what tells layers, and import each operator set once."""
    del proto.metadata_props[:]
    for graph in all_graphs(proto.graph):
        del graph.metadata_props[:]
        graph.doc_string = ""
        for thing in _things(graph):
            del thing.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            kept = [entry for entry in node.metadata_props if entry.key in _KEPT]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
    imports = {opset.domain: opset.version for opset in proto.opset_import}
    del proto.opset_import[:]
    for domain, number in imports.items():
        proto.opset_import.add(domain=domain, version=number)


def record(proto: onnx.ModelProto, layer: Callable[[onnx.NodeProto], str]) -> None:
    """Write the layer of each node into it, where there is one to write."""
    for graph in all_graphs(proto.graph):
        for node in graph.node:
            if name := layer(node):
                node.metadata_props.add(key=LAYER_KEY, value=name)


def record_owners(proto: onnx.ModelProto, variables: Mapping[str, str]) -> None:
    """Record with nodes that have no layer yet that of the variable (`lstm/lstm_cell/kernel`) that they read."""
    for graph in all_graphs(proto.graph):
        for node in graph.node:
            owners = [variables[value].rpartition("/")[0] for value in node.input if value in variables]
            if any(owners) and all(entry.key != LAYER_KEY for entry in node.metadata_props):
                node.metadata_props.add(key=LAYER_KEY, value=next(owner for owner in owners if owner))


def rename(proto: onnx.ModelProto, new: Mapping[str, str]) -> None:
    """Rename values and nodes everywhere; a name that is taken already, or wanted twice, is left as it was."""
    taken = set(names(proto))
    allowed: dict[str, str] = {}
    for old, name in new.items():
        if old in taken and name not in taken:
            allowed[old] = name
            taken.add(name)
    for graph in all_graphs(proto.graph):
        for thing in _things(graph):
            thing.name = allowed.get(thing.name, thing.name)
        for node in graph.node:
            node.name = allowed.get(node.name, node.name)
            for values in (node.input, node.output):
                values[:] = [allowed.get(value, value) for value in values]


def names(proto: onnx.ModelProto) -> Iterator[str]:
    """The names of all values and nodes."""
    for graph in all_graphs(proto.graph):
        yield from (thing.name for thing in _things(graph))
        for node in graph.node:
            yield from (node.name, *node.output)


def sort_by_use(proto: onnx.ModelProto) -> None:
    """Put initializers into the order in which nodes use them, so that layers come in the order of the source."""
    place: dict[str, int] = {}
    for node in proto.graph.node:
        for value in read_names(node):
            place.setdefault(value, len(place))
    kept = sorted(proto.graph.initializer, key=lambda tensor: place.get(tensor.name, len(place)))
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(copies)


def stored(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every initializer of the model, those of inner graphs too."""
    for graph in all_graphs(proto.graph):
        yield from graph.initializer


def matched(proto: onnx.ModelProto, variables: Mapping[str, Array]) -> dict[str, str]:
    """Initializers and the source variables that they hold, in whatever order: exporters transpose kernels.

    Only where the values tell it: a tensor of one value, or one that two variables hold alike, stays unmatched, and so
    does one that has the name of a variable already.
    """
    from onnx import numpy_helper

    unnamed = [tensor for tensor in stored(proto) if tensor.name not in variables]
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
    """What does not change when axes are moved: the digest of the sorted values; '' where they are all alike."""
    flat = np.sort(values, axis=None)
    if not flat.size or (flat.size > 1 and flat[0] == flat[-1]):
        return ""
    return f"{flat.dtype.name} {hashlib.sha256(flat.tobytes()).hexdigest()}"


def open_first_dimension(proto: onnx.ModelProto, ports: Mapping[str, Any]) -> None:
    """Call open dimensions as the ports do; names that exporters make up (`unk__40`) go."""
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
