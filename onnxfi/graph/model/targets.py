"""Targets: every stored tensor and number list of a model, with the nodes and the layer that use it.

Targets are in the order of `StoredTensors`; roles and layer names never change it, so that seeds stay valid. If
layers of several graphs share a name, it is prefixed with the path of the graph. Stored tensors in the same bytes of
external data are one target under several names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from onnxfi.errors import ModelError
from onnxfi.faults.space import Consumer, Target
from onnxfi.graph.model.byte_source import quoted
from onnxfi.graph.model.graph_index import GraphIndex, Node
from onnxfi.graph.model.layers import layer_of, layer_scope
from onnxfi.graph.model.neuron_table import neuron_roles
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.model.stored_tensors import StoredTensor, StoredTensors, WordLocation
from onnxfi.graph.model.tensor_roles import assign_roles
from onnxfi.graph.model.used_values import consuming_nodes, data_values, live_values_and_nodes
from onnxfi.graph.model.weight_dataflow import TensorRole

#: AttributeProto.INT.
_WHOLE_NUMBER = 2
_INTEGERS = ("int64", "int32")


@dataclass(frozen=True)
class ComputedValue:
    """A value that is computed at run time: an input of the model (`op` is ""), or an output of a node."""

    path: str
    name: str
    op: str
    node: str
    layer: str
    is_data: bool


def find_targets(index: GraphIndex, stored: StoredTensors) -> list[tuple[Target, WordLocation]]:
    """Return the targets of a model in order, each with its location; notes are added to those of `stored`.

    Raises ModelError for an attribute that would end the process of the runtime.
    """
    _check_groups(index)
    layers, roles, neurons = _LayerNames(index, stored), assign_roles(index, stored), neuron_roles(index.proto)
    used_values, used_nodes = live_values_and_nodes(index)
    data = data_values(index)
    found = []
    for tensor, value in stored.tensors.items():
        nodes = layers.users.get(tensor, [])
        users: tuple[Consumer, ...] = (Consumer("", "", tensor.id),)
        structural, used = False, value is None or value in used_values or not index.main.outputs
        if nodes:
            users = tuple(Consumer(node.op, node.label, layers.of(node, tensor)) for node in nodes)
            structural = tensor.word.name in _INTEGERS and value not in data
        elif tensor.owner is not None:
            owner, used = tensor.owner, tensor.owner in used_nodes
            users = (Consumer(owner.op, tensor.id.rpartition(".")[0], layers.of(owner)),)
            structural = tensor.word.name == "int64"
        role = roles.get(tensor, TensorRole())
        word, location = role.word or tensor.word, tensor.location
        if word != tensor.word and location.varint:
            location = replace(location, per_entry=location.per_entry * tensor.word.bits // word.bits)
        target = Target(
            tensor.id, word, role.shape or tensor.shape, tensor.kind,
            users[0].op, users[0].node, users[0].layer, structural, neurons.get(tensor.id, role.role), role.scheme,
            consumers=users if len(users) > 1 else (), roles=role.roles if len(role.roles) > 1 else (), unused=not used,
            stored=_one_run(location),
        )  # fmt: skip
        found.append((target, location))
    return found


def _one_run(location: WordLocation) -> tuple[int, ...]:
    """Return the file and the offset of words that lie one behind the other, () if there is something between."""
    alone = len(location.runs) == 1 and not location.varint and not location.runs[0][2]
    return (location.file, location.runs[0][0]) if alone else ()


def computed_values(index: GraphIndex, stored: StoredTensors) -> Iterator[ComputedValue]:
    """Yield the computed values of a model: its inputs, then the outputs of its nodes, without constants."""
    layers, data = _LayerNames(index, stored), data_values(index)
    for name in dict.fromkeys(text(declared.name) for declared in index.proto.graph.input):
        value = index.main.values[name]
        if value not in stored.by_value:
            yield ComputedValue("", name, "", "", name, value in data)
    for node in index.nodes:
        if node.op != "Constant":
            layer = layers.of(node)
            for value in node.outputs:
                yield ComputedValue(node.path, value.name, node.op, node.label, layer, value in data)


def _check_groups(index: GraphIndex) -> None:
    """Refuse a group below 1: ONNX Runtime divides by it and crashes."""
    for node in index.nodes:
        for attribute in node.proto.attribute:
            if attribute.name == "group" and attribute.type == _WHOLE_NUMBER and attribute.i < 1:
                raise ModelError(f"node {quoted(node.label)} has group {attribute.i}; it must be 1 or more")


@dataclass(frozen=True)
class _LayerNames:
    """The layers of nodes and of the stored tensors that they use."""

    index: GraphIndex
    stored: StoredTensors

    @cached_property
    def users(self) -> dict[StoredTensor, list[Node]]:
        """The nodes that use each tensor."""
        return {tensor: consuming_nodes(value) for value, tensor in self.stored.by_value.items()}

    @cached_property
    def _paths(self) -> dict[str, set[str]]:
        """The paths of the graphs that have a layer of each name."""
        found: dict[str, set[str]] = {}
        uses = ((node, tensor) for tensor, nodes in self.users.items() for node in nodes)
        for node, tensor in (*((node, None) for node in self.index.nodes), *uses):
            layer, path = _layer_and_path(node, tensor)
            found.setdefault(layer, set()).add(path)
        return found

    def of(self, node: Node, tensor: StoredTensor | None = None) -> str:
        """Return the layer of a node, or of a tensor that it uses; with its path where several graphs have the name."""
        layer, path = _layer_and_path(node, tensor)
        return path + layer if len(self._paths[layer]) > 1 else layer


def _layer_and_path(node: Node, tensor: StoredTensor | None = None) -> tuple[str, str]:
    layer = layer_of(node.proto, node.label, "" if tensor is None else tensor.name)
    return layer, layer_scope(node.proto, layer, node.label, node.path, "" if tensor is None else tensor.path)


_Row = tuple[Target, WordLocation]


def merge_aliases(rows: Sequence[_Row]) -> list[_Row]:
    """Return the targets, those in exactly the same bytes merged into the first, with the ids and users of all.

    Targets that share some of their bytes, or all in another number format, have these in `span`.
    """
    groups: dict[object, list[Target]] = {}
    for target, place in rows:
        groups.setdefault(_bytes_of(target, place), []).append(target)
    out: list[_Row] = []
    for target, place in rows:
        group = groups[_bytes_of(target, place)]
        if group[0] is target:
            out.append((_as_one(group), place))
    return _with_spans(out)


def target_notes(targets: Sequence[Target]) -> list[str]:
    """Return notes on the population: aliases that count once, tensors that overlap, tensors that are unused."""
    out = []
    aliased = [t for t in targets if t.aliases]
    if aliased:
        one = aliased[0]
        out.append(
            f"external data holds {len(aliased):,} weights under several names, as {quoted(one.id)}, which is also "
            f"{quoted(one.aliases[0])}: their bits count once"
        )
    crossed = [t for t in targets if t.span]
    if crossed:
        one, other = sorted(crossed, key=lambda t: t.span)[:2]  # the first is never alone
        out.append(
            f"{len(crossed):,} tensors share some of their bytes of external data with another, as {quoted(other.id)} "
            f"with {quoted(one.id)}; faults are drawn where no two of those are selected"
        )
    unused = [t for t in targets if t.unused and t.size and not t.structural]
    if unused:
        many = f"{len(unused):,} tensors are" if len(unused) > 1 else "1 tensor is"
        out.append(
            f"{many} unused ({sum(t.size for t in unused):,} words): no output of the model depends on "
            f"{', '.join(quoted(t.id) for t in unused[:3])}{', …' if unused[3:] else ''}; left out unless named, as by "
            f"--include '={unused[0].id}'"
        )
    return out


def _bytes_of(target: Target, place: WordLocation) -> object:
    """Return a key of a target's bytes, the same for aliases, which only external data has."""
    if not place.file or not target.size:
        return target.id
    return place.file, place.runs, target.word.name, target.size


def _as_one(group: Sequence[Target]) -> Target:
    """Merge aliases into one target, whose node and layer are those of the first alias that is used."""
    if len(group) == 1:
        return group[0]
    used = next((t for t in group if t.op), group[0])
    users = [user for t in group if t.op for user in (t.consumers or (Consumer(t.op, t.node, t.layer),))]
    roles = tuple(dict.fromkeys(role for t in group for role in (t.roles or (t.role,)) if role))
    schemes = [one for t in group if t.scheme for one in (replace(t.scheme, others=()), *t.scheme.others)]
    return replace(
        group[0],
        op=used.op,
        node=used.node,
        layer=used.layer,
        consumers=tuple(dict.fromkeys(users)) if len(users) > 1 else (),
        role=next(iter(roles), ""),
        roles=roles if len(roles) > 1 else (),
        scheme=replace(schemes[0], others=tuple(dict.fromkeys(schemes[1:]))) if schemes else None,
        aliases=tuple(t.id for t in group[1:]),
        structural=all(t.structural for t in group),
        unused=all(t.unused for t in group),
    )


def _with_spans(rows: Sequence[_Row]) -> list[_Row]:
    """Return the targets, those that share some of their bytes with another with their `span` of bytes."""
    spans = sorted(
        (place.file, *place.runs[0][:2], number)
        for number, (target, place) in enumerate(rows)
        if place.file and target.size
    )
    shared: dict[int, tuple[int, int, int]] = {}
    last = (0, 0, 0, 0)
    for span in spans:
        if last[0] == span[0] and span[1] < last[2]:
            shared |= {one[3]: one[:3] for one in (last, span)}
        last = max(last, span, key=lambda one: (one[0], one[2]))
    return [
        (replace(target, span=shared[number]) if number in shared else target, place)
        for number, (target, place) in enumerate(rows)
    ]
