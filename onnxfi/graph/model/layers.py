"""Layers: the module of the source framework from which a node was exported.

Sources, the most reliable first: the records of onnxfi's converters, the scopes that the PyTorch exporter writes into a
node's `metadata_props`, the scopes that other exporters write into node names (`/layer1/conv/Conv`,
`model/conv2d_3/Conv2D`), the parameter's own dotted name, and the node itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from onnxfi.graph.model.protobuf_scan import text

if TYPE_CHECKING:
    import onnx

#: Metadata key under which a converter records the layer of a node.
LAYER_KEY = "onnxfi.layer"
_SCOPES = "pkg.torch.onnx.name_scopes"
_PARAMETER = re.compile(
    r"weight|bias|gamma|beta|running_(mean|var)|\w+_proj_(weight|bias)|(weight|bias)_(ih|hh)\w*|threshold"
)
_NAMESPACE = "namespace"
#: A string in a Python list as the exporter prints it; never evaluated, since the file is untrusted.
_QUOTED = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")
_WRAPPERS = ("StatefulPartitionedCall", "PartitionedCall")


def layer_of(node: onnx.NodeProto, label: str, parameter: str = "") -> str:
    """Return the layer of a node, or of a parameter that it uses; else the node's label.

    An exporter that folds a normalisation into the convolution before it leaves the names of both: the parameter's
    where they are siblings (`block.conv.weight` in `block.norm`).
    """
    layer, own = _layer_of(node), module_in_parameter_name(parameter)
    if own and (not layer or layer.rpartition(".")[0] == own.rpartition(".")[0]):
        return own
    return layer or label


def layer_scope(node: onnx.NodeProto, layer: str, label: str, path: str, stored_in: str) -> str:
    """Return the path of the graph that a layer name from `layer_of` belongs to.

    A label names a layer of the node's own graph, at `path`; a parameter one of the graph that it is `stored_in`; a
    name from the framework is one layer in every graph, so ''.
    """
    if layer == _layer_of(node):
        return ""
    return path if layer == label else stored_in


def _layer_of(node: onnx.NodeProto) -> str:
    for entry in node.metadata_props:
        if entry.key == LAYER_KEY and entry.value:
            return text(entry.value)
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = _scopes(text(entry.value))
            if scopes:
                return scopes
    for entry in node.metadata_props:
        if entry.key == _NAMESPACE:
            parts = [p.split(":")[0].strip() for p in text(entry.value).split("/")]
            if any(parts[:-1]):
                return join_scopes(parts[:-1], ".")
    return scope_in_name(text(node.name))


def module_in_parameter_name(parameter: str) -> str:
    """Return the module in a parameter's name, '' if there is none.

    >>> module_in_parameter_name("layer1.0.conv1.weight"), module_in_parameter_name("val_11")
    ('layer1.0.conv1', '')
    """
    owner, _, name = parameter.rpartition(".")
    return owner if _PARAMETER.fullmatch(name) else ""


def _scopes(listed: str) -> str:
    """Return the innermost module of `['', 'layer1', 'layer1.conv', 'conv2d']`, which ends with the operator."""
    if len(listed) > 10_000 or not listed.startswith("["):
        return ""
    names = [single or double for single, double in _QUOTED.findall(listed)]
    return next((name for name in reversed(names[:-1]) if name), "")


def scope_in_name(name: str) -> str:
    """Return the module path in a node name, '' if there is none.

    >>> scope_in_name("/layer1/layer1.0/conv1/Conv"), scope_in_name("model/conv2d_3/Conv2D"), scope_in_name("Conv_7")
    ('layer1.0.conv1', 'model/conv2d_3', '')
    """
    parts = [p for p in name.split("/") if p and p not in _WRAPPERS]
    return join_scopes(parts[:-1], "." if name.startswith("/") else "/")


def join_scopes(parts: Iterable[str], separator: str) -> str:
    """Join nested scopes; one that repeats the path above it (`layer1`, `layer1.0`) replaces it.

    >>> join_scopes(["layer1", "layer1.0", "conv1"], ".")
    'layer1.0.conv1'
    """
    path = ""
    for part in parts:
        if not part:
            continue
        path = part if not path or part.startswith(path + separator) else path + separator + part
    return path
