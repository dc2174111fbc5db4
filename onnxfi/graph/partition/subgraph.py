"""The graph of a model, and the subgraph that a fault can change.

Only nodes that a faulty tensor reaches can change. A *subgraph* lists them, and its inputs, which have their golden
values under every fault. A node with bodies counts as one node, which reads the values that its bodies capture. Two
kinds of nodes are included although no fault reaches them: constant ones, since operators need constant shapes and
axes, and a DequantizeLinear before a reached node, since runtimes fuse the two. A model is not cut at 16-bit floats
if the processor computes in float32: it rounds only where 16 bits are needed, so the whole model rounds less often
than its parts.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import ModelError
from onnxfi.faults.space import Target
from onnxfi.graph.dataflow.random_nodes import RANDOM_OPERATORS
from onnxfi.graph.dataflow.type_inference import infer_types
from onnxfi.graph.model.byte_source import StoredArray, quoted
from onnxfi.graph.model.graph_index import Scope
from onnxfi.graph.model.loading import Model, parse, parsed
from onnxfi.graph.model.protobuf_scan import record_number
from onnxfi.graph.model.stored_tensors import DATA_TYPES
from onnxfi.graph.partition.blocked_layout import ADDS, images_in_blocks
from onnxfi.graph.partition.stripped_tensors import stored_location, strip_numbers
from onnxfi.graph.passes.graph_edit import used_names
from onnxfi.graph.write.byte_edits import ByteSplice
from onnxfi.graph.write.faulty_copy import FileEdits, faulty_bytes

if TYPE_CHECKING:
    import onnx

_TWO = 2
#: TensorProto's numbers of float16 and bfloat16.
_HALVES = frozenset((10, 16))
#: The path of a tensor inside a node: attribute, graph in it, inner node, …, and at last its number among the
#: initializers or, negative, the Constant node.
_Path = tuple[int, ...]


@dataclass(frozen=True)
class TensorLocation:
    """The location of a weight: the name under which it can be fed, and its path inside a node's body.

    `node` is the top node around it (−1: it is in the top graph).
    """

    fed: str
    node: int = -1
    path: _Path = ()


@dataclass(frozen=True)
class Subgraph:
    """Some nodes of a graph in file order, their inputs, and the outputs that they compute."""

    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class PartitionGraph:
    """The top graph of a model: the producer and the readers of each tensor.

    Attributes
    ----------
    proto : ModelProto
        The whole model but for its large weights.
    main : Scope
        The producers and readers of each tensor.
    stored : mapping of str to TensorProto
        The weights, large ones without their numbers.
    locations : mapping of int to TensorLocation
        The location of each weight by the number of its record.
    weights : mapping of str to StoredArray
        The places of the large weights in their files.
    uncut : frozenset of str
        Activations at which the model must not be cut.
    blocks : bool
        Whether the runtime lays images in blocks of channels.
    split_at : frozenset of str
        Activations into which faults are injected between segments, so that only one segment computes them.
    """

    proto: onnx.ModelProto = field(repr=False)
    main: Scope = field(repr=False)
    stored: Mapping[str, onnx.TensorProto] = field(repr=False)
    locations: Mapping[int, TensorLocation] = field(repr=False)
    weights: Mapping[str, StoredArray] = field(repr=False)
    uncut: frozenset[str] = field(default=frozenset(), repr=False)
    blocks: bool = False
    split_at: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def reads(self) -> tuple[tuple[str, ...], ...]:
        """Return the names that each node reads, itself or in its bodies."""
        return self.main.reads

    @property
    def makers(self) -> Mapping[str, int]:
        """Return the node that computes each name."""
        return self.main.producers

    @property
    def users(self) -> Mapping[str, tuple[int, ...]]:
        """Return the nodes that read each name, in file order."""
        return self.main.consumers

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """Return the nodes that read the outputs of each node."""
        nodes = self.proto.graph.node
        return tuple(
            tuple(dict.fromkeys(k for name in node.output for k in self.users.get(name, ()))) for node in nodes
        )

    @cached_property
    def before(self) -> tuple[tuple[tuple[str, int], ...], ...]:
        """Return the activations that each node reads, with the nodes that compute them."""
        return tuple(tuple((name, self.makers[name]) for name in names if name in self.makers) for names in self.reads)

    @cached_property
    def dequantisers(self) -> frozenset[int]:
        """Return the DequantizeLinear nodes."""
        return frozenset(k for k, node in enumerate(self.proto.graph.node) if node.op_type == "DequantizeLinear")

    @cached_property
    def joined(self) -> dict[int, tuple[int, str]]:
        """Return the convolutions that runtimes fuse with the addition after them, if images lie in blocks.

        Each has the number of the Add node and its other input. The convolution's own output is then never computed.
        """
        found: dict[int, tuple[int, str]] = {}
        nodes = self.proto.graph.node
        for k, node in enumerate(nodes):
            if not self.blocks or node.op_type not in ADDS or len(node.input) != _TWO:
                continue
            for name, other in (node.input, reversed(node.input)):
                maker = self.makers.get(name, -1) if other not in self.stored else -1
                alone = self.users.get(name) == (k,) and name not in self.outputs and name != other
                if alone and maker >= 0 and nodes[maker].op_type == "Conv" and maker not in found:
                    found[maker] = k, other
                    break
        return found

    @cached_property
    def declared(self) -> dict[str, onnx.ValueInfoProto]:
        """Return the declared types of the activations, which a runtime relies on."""
        return {value.name: value for value in self.proto.graph.value_info}

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Return the outputs of the model."""
        return tuple(o.name for o in self.proto.graph.output)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Return the inputs of the model."""
        return tuple(i.name for i in self.proto.graph.input if i.name not in self.stored)

    @cached_property
    def constant(self) -> frozenset[int]:
        """Return the nodes that are functions of stored tensors alone."""
        found: set[int] = set()
        known = {*self.stored, ""}
        for k, node in enumerate(self.proto.graph.node):
            if node.op_type not in RANDOM_OPERATORS and known.issuperset(self.reads[k]):
                found.add(k)
                known.update(node.output)
        return frozenset(found)

    @cached_property
    def constant_names(self) -> frozenset[str]:
        """Return the names of stored tensors, and of what is computed of them alone."""
        nodes = self.proto.graph.node
        return frozenset({*self.stored, ""}.union(*(nodes[k].output for k in self.constant)))

    @cached_property
    def in_blocks(self) -> frozenset[str]:
        """Return the activations that a runtime lays in blocks of channels, if it does so."""
        nodes = (node for k, node in enumerate(self.proto.graph.node) if k not in self.constant)
        return images_in_blocks(nodes, self.constant_names) if self.blocks else frozenset()

    @cached_property
    def in_order(self) -> bool:
        """Return whether each node comes after those that it needs, as in nearly all files."""
        return all(maker < k for k, needs in enumerate(self.before) for _, maker in needs)

    def along(self, name: str, maker: int, reader: int, *, joined: bool = True) -> bool:
        """Return whether the producer of a name is included in a subgraph with its consumer."""
        return name not in self.split_at and (
            maker in self.constant
            or self.dequantises(maker)
            or name in self.uncut
            or (joined and self.joined.get(maker, (-1, ""))[0] == reader)
        )

    def dequantises(self, node: int) -> bool:
        """Return whether a node is a DequantizeLinear."""
        return node in self.dequantisers


def partition_graph(model: Model, *, halves: bool = False, blocks: bool = False) -> PartitionGraph:
    """Return the graph of a model.

    Parameters
    ----------
    model : Model
        The model.
    halves : bool
        Whether the model may be cut at 16-bit floats.
    blocks : bool
        Whether the runtime lays images in blocks of channels.

    Raises
    ------
    ModelError
        If the model is too large for one message.
    """
    locations = dict(_homes(model.proto))
    proto, weights = _hollowed(model, locations)
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored |= dict.fromkeys((tensor.values.name for tensor in graph.sparse_initializer), None)  # type: ignore[arg-type]
    uncut = frozenset() if halves else half_floats(model.proto)
    return PartitionGraph(proto, model.index.main, stored, locations, weights, uncut, blocks)


def _hollowed(model: Model, locations: Mapping[int, TensorLocation]) -> tuple[onnx.ModelProto, dict[str, StoredArray]]:
    """Return the model without its large weights, and the locations of these; other external data is loaded into it."""
    found, payloads = dict[str, StoredArray](), list[ByteSplice]()
    for tensor in {tensor.name: tensor for tensor in model.proto.graph.initializer}.values():
        if (lies := stored_location(model, tensor)) is not None:
            found[tensor.name], splices = lies
            payloads += splices
    proto = parsed(faulty_bytes(model, FileEdits(splices=payloads))) if payloads else parse(model)
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    producers = model.index.main.producers
    for name, kept in found.items():
        strip_numbers(stored[name], kept.nbytes)
    for number, where in locations.items():
        if where.node >= 0:
            tensor = at(graph.node[where.node], where.path)
        else:
            constant = where.fed not in stored
            tensor = graph.node[producers[where.fed]].attribute[0].t if constant else stored[where.fed]
        if tensor.data_location == 1 and (where.node >= 0 or where.fed not in found):
            place = model.by_record.get(number)
            if place is None:
                raise ModelError(f"{quoted(tensor.name)} lies in external data in a way that cannot be followed")
            with model.sources[place.file].reading() as read:
                tensor.raw_data = read(*place.runs[0][:2])
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return proto, found


def half_floats(skeleton: onnx.ModelProto) -> frozenset[str]:
    """Return the activations of the top graph that are 16-bit floats.

    A processor computes them in float32 and rounds where 16 bits are needed, as at the end of a subgraph: cut at one of
    them, a model gives other numbers.
    """
    graph = skeleton.graph
    casts = (a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to")
    types = (i.type.tensor_type.elem_type for i in graph.input)
    stored = (t.data_type for t in graph.initializer)
    constants = (a.t.data_type for node in graph.node if node.op_type == "Constant" for a in node.attribute)
    if _HALVES.isdisjoint((*casts, *types, *stored, *constants)):
        return frozenset()
    known = {v.name: v.type.tensor_type.elem_type for v in infer_types(skeleton).graph.value_info}
    ends = {o.name for o in graph.output}
    # An activation of unknown type may be one.
    made = (name for node in graph.node for name in node.output if name and name not in ends)
    return frozenset(name for name in made if known.get(name, 0) in (*_HALVES, 0))


def _homes(skeleton: onnx.ModelProto) -> Iterator[tuple[int, TensorLocation]]:
    """Yield the location of each dense tensor by the number of its record, which the skeleton holds."""
    names = used_names(skeleton)
    prefix = next(name for k in count(1) for name in [f"onnxfi.inside{k}"] if name not in names)
    for tensor in skeleton.graph.initializer:
        yield record_number(tensor.doc_string), TensorLocation(tensor.name)
    for k, node in enumerate(skeleton.graph.node):
        if (number := _constant(node)) is not None:
            yield number, TensorLocation(node.output[0])
        for number, path in _inside(node):
            yield number, TensorLocation(f"{prefix}.{number}", k, path)


def _constant(node: onnx.NodeProto) -> int | None:
    """Return the record number of a Constant node's tensor; None for any other node."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or not node.attribute:
        return None
    return record_number(node.attribute[0].t.doc_string) if node.attribute[0].HasField("t") else None


def _graphs(node: onnx.NodeProto) -> Iterator[tuple[_Path, onnx.GraphProto]]:
    for a, attribute in enumerate(node.attribute):
        if attribute.HasField("g"):
            yield (a, -1), attribute.g
        for g, graph in enumerate(attribute.graphs):
            yield (a, g), graph


def _inside(node: onnx.NodeProto, before: _Path = ()) -> Iterator[tuple[int, _Path]]:
    for step, graph in _graphs(node):
        here = (*before, *step)
        for k, tensor in enumerate(graph.initializer):
            yield record_number(tensor.doc_string), (*here, k)
        for k, inner in enumerate(graph.node):
            if (number := _constant(inner)) is not None:
                yield number, (*here, -1 - k)
            yield from _inside(inner, (*here, k))


def location(net: PartitionGraph, model: Model, target: Target) -> TensorLocation | None:
    """Return the location at which a target can be fed; None if it cannot.

    Tensors in functions, lists, packed or sparse ones, and bytes of several tensors cannot.
    """
    place = model.places[model.by_id[target.id]]
    found = net.locations.get(place.record)
    fits = target.word.storage >= 8 and target.word.parts == 1 and target.kind in ("initializer", "constant")
    if found is None or not fits or target.structural or target.aliases or target.span:
        return None
    tensor = tensor_at(net, found)
    alike = DATA_TYPES.get(tensor.data_type) == target.word and tuple(tensor.dims) == target.shape
    return found if alike else None


def array_at(net: PartitionGraph, where: TensorLocation) -> NDArray[Any]:
    """Return the tensor at a location, for changes that no one else sees."""
    from onnx import numpy_helper

    held = net.weights.get(where.fed) if where.node < 0 else None
    return np.array(numpy_helper.to_array(tensor_at(net, where)), order="C") if held is None else held.mapped()


def tensor_at(net: PartitionGraph, where: TensorLocation) -> onnx.TensorProto:
    """Return the tensor at a location; a large one without its numbers."""
    if where.node < 0 and where.fed in net.stored:
        return net.stored[where.fed]
    if where.node < 0:
        return net.proto.graph.node[net.makers[where.fed]].attribute[0].t
    return at(net.proto.graph.node[where.node], where.path)


def at(node: onnx.NodeProto, path: _Path) -> onnx.TensorProto:
    """Return the tensor at this path inside a node."""
    graph, place = body(node, path)
    return graph.initializer[place] if place >= 0 else graph.node[-1 - place].attribute[0].t


def body(node: onnx.NodeProto, path: _Path) -> tuple[onnx.GraphProto, int]:
    """Return the innermost graph of a path, and the number in it."""
    attribute = node.attribute[path[0]]
    graph = attribute.g if path[1] < 0 else attribute.graphs[path[1]]
    return (graph, path[2]) if len(path) == 3 else body(graph.node[path[2]], path[3:])


def reachable_subgraph(net: PartitionGraph, faulty: Iterable[str], *, outputs: Sequence[str] = ()) -> Subgraph:
    """Return what faulty tensors can change of the outputs (all by default).

    >>> from onnxfi.graph.model.loading import load
    >>> net = partition_graph(load("models/fashion_cnn.onnx"))
    >>> found = reachable_subgraph(net, ["fc2.weight"])
    >>> [net.proto.graph.node[k].op_type for k in found.nodes], found.inputs
    (['Gemm'], ('relu_2',))
    """
    # In files that are in order no node after the outputs matters.
    last = max((net.makers.get(name, -1) for name in outputs), default=-1) if net.in_order else -1
    reached = nodes_reached(net, faulty, (), range(last + 1 if last >= 0 else len(net.reads)))
    wanted = tuple(name for name in (outputs or net.outputs) if net.makers.get(name, -1) in reached)
    return Subgraph(*with_inputs(net, nodes_needed(net, wanted, reached), frozenset(faulty)), wanted)


def nodes_reached(net: PartitionGraph, faulty: Iterable[str], inside: Iterable[int], among: Container[int]) -> set[int]:
    """Return the nodes that these names reach, and those that the nodes `inside` with faulty bodies reach."""
    reached: set[int] = set()
    todo = [*inside, *(k for name in faulty for k in net.users.get(name, ()))]
    while todo:
        k = todo.pop()
        if k not in reached and k in among:
            reached.add(k)
            todo += net.after[k]
    return reached


def nodes_needed(
    net: PartitionGraph, names: Iterable[str], among: Container[int], fed: Container[str] = ()
) -> set[int]:
    """Return the nodes that these names need; those that are `fed` need none."""
    needed: set[int] = set()
    todo = [k for name in names if name not in fed and (k := net.makers.get(name, -1)) in among]
    while todo:
        k = todo.pop()
        if k not in needed:
            needed.add(k)
            todo += [maker for name, maker in net.before[k] if name not in fed and maker in among]
    return needed


def with_inputs(
    net: PartitionGraph, nodes: set[int], fed: frozenset[str], *, joined: bool = False
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the nodes with the nodes that must be included with them, and their inputs.

    `joined` includes convolutions that runtimes fuse with one of them.
    """
    every, inputs, todo = set(nodes), dict[str, None](), sorted(nodes)
    for k in todo:  # grows in the loop
        for name in net.reads[k]:
            maker = net.makers.get(name)
            if not name or name in fed or name in net.stored or maker in every:
                continue
            if maker is not None and net.along(name, maker, k, joined=joined):
                every.add(maker)
                todo.append(maker)
            else:
                inputs[name] = None
    return tuple(sorted(every)), tuple(sorted(inputs))


#: The names of faulty weights, and the nodes in whose bodies faulty weights lie.
Start = tuple[Sequence[str], Sequence[int]]


def reached(net: PartitionGraph, starts: Iterable[Start], among: Container[int]) -> list[int]:
    """Return for each node which of the starts reach it through these nodes, as the bits of a number."""
    marks = [0] * len(net.reads)
    for number, (names, inside) in enumerate(starts):
        for k in (*inside, *(user for name in names for user in net.users.get(name, ()))):
            marks[k] |= 1 << number
    for k in range(len(marks)):
        if k not in among:
            marks[k] = 0
        for user in net.after[k] if marks[k] else ():
            marks[user] |= marks[k]
    return marks


def boundary_tensors(net: PartitionGraph, marks: Sequence[int]) -> set[str]:
    """Return the inputs of the subgraphs that the starts mark, of all starts together.

    The union of `subgraph.with_inputs` of each start.
    """
    every = list(marks)
    for k in reversed(range(len(every))):
        for name, maker in net.before[k] if every[k] else ():
            if name not in net.stored and net.along(name, maker, k):
                every[maker] |= every[k]
    return {
        name
        for k, mine in enumerate(every)
        if mine
        for name, maker in net.before[k]
        if mine & ~every[maker] and name not in net.stored and not net.along(name, maker, k)
    }
