"""Downstream: what a fault can change, and a model of that alone.

Only nodes that a struck tensor reaches can change. A *cut* names them, and the values that cross into them, which are
golden whatever the fault. A node with bodies counts as one: what its bodies capture, it reads. Two kinds of nodes are
taken along although no fault reaches them: those made of stored values alone, since operators want their shapes and
axes constant, and a DequantizeLinear before a reached node, since runtimes fuse it with that node. Values of 16-bit
floats are no place to cut for a processor that computes in float32 and rounds where it must: the whole would round less
often than the parts.
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
from onnxfi.graph.partition.hollow_model import hollow, where_it_lies
from onnxfi.graph.passes.insert_nodes import used_names
from onnxfi.graph.write.byte_edits import ByteSplice
from onnxfi.graph.write.faulty_copy import FileEdits, faulty_bytes

if TYPE_CHECKING:
    import onnx

_TWO = 2
#: Operators that runtimes make one with the convolution in front of them.
ADDS = frozenset(("Add", "Sum"))
#: TensorProto's numbers of float16 and bfloat16.
_HALVES = frozenset((10, 16))
#: Where a tensor stands inside a node: attribute, graph in it, inner node, …, and at last its place among the
#: initializers or, negative, the Constant node.
_Path = tuple[int, ...]


@dataclass(frozen=True)
class Home:
    """Where a stored tensor is: the name under which it can be fed, and where it lies inside a node's body.

    `node` is the top node around it (−1: it is at the top), `path` its place in there.
    """

    fed: str
    node: int = -1
    path: _Path = ()


@dataclass(frozen=True)
class Cut:
    """What faults can change: nodes in file order, what crosses into them, and the outputs that they reach."""

    nodes: tuple[int, ...]
    crossings: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Wiring:
    """A model's top graph as a net: who makes, who reads.

    `proto` is the whole model but for the large stored tensors: of these `weights` say where they lie. `uncut` are
    values at which it must not be cut. Where it runs, images lie in `blocks` of channels, or they do not.
    """

    proto: onnx.ModelProto = field(repr=False)
    main: Scope = field(repr=False)
    stored: Mapping[str, onnx.TensorProto] = field(repr=False)
    homes: Mapping[int, Home] = field(repr=False)
    weights: Mapping[str, StoredArray] = field(repr=False)
    uncut: frozenset[str] = field(default=frozenset(), repr=False)
    blocks: bool = False

    @property
    def reads(self) -> tuple[tuple[str, ...], ...]:
        """By node the names that it reads, itself or in its bodies."""
        return self.main.reads

    @property
    def makers(self) -> Mapping[str, int]:
        """The node that makes each name."""
        return self.main.producers

    @property
    def users(self) -> Mapping[str, tuple[int, ...]]:
        """The nodes that read each name, in file order."""
        return self.main.consumers

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """By node the nodes that read what it puts out."""
        nodes = self.proto.graph.node
        return tuple(
            tuple(dict.fromkeys(k for name in node.output for k in self.users.get(name, ()))) for node in nodes
        )

    @cached_property
    def before(self) -> tuple[tuple[tuple[str, int], ...], ...]:
        """By node what it reads of others, each name with the node that makes it."""
        return tuple(tuple((name, self.makers[name]) for name in names if name in self.makers) for names in self.reads)

    @cached_property
    def dequantisers(self) -> frozenset[int]:
        """The nodes that turn integers into the real numbers that they stand for."""
        return frozenset(k for k, node in enumerate(self.proto.graph.node) if node.op_type == "DequantizeLinear")

    @cached_property
    def joined(self) -> dict[int, tuple[int, str]]:
        """The convolutions that runtimes make one with the addition behind them, where images lie in blocks: for each
        the node that adds, and what it adds. What they give by themselves is then never made."""
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
        """What the model declares of the values between its nodes: a runtime goes by it, in the whole and in parts."""
        return {value.name: value for value in self.proto.graph.value_info}

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """The model's outputs."""
        return tuple(o.name for o in self.proto.graph.output)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """What the model must be fed."""
        return tuple(i.name for i in self.proto.graph.input if i.name not in self.stored)

    @cached_property
    def constant(self) -> frozenset[int]:
        """Nodes that are functions of stored values alone."""
        found: set[int] = set()
        known = {*self.stored, ""}
        for k, node in enumerate(self.proto.graph.node):
            if node.op_type not in RANDOM_OPERATORS and known.issuperset(self.reads[k]):
                found.add(k)
                known.update(node.output)
        return frozenset(found)

    @cached_property
    def in_order(self) -> bool:
        """Whether each node comes after those that it needs, as in nearly all files."""
        return all(maker < k for k, needs in enumerate(self.before) for _, maker in needs)

    def along(self, name: str, maker: int, reader: int, *, joined: bool = True) -> bool:
        """Whether the node that makes a name is taken along with one that reads it."""
        return (
            maker in self.constant
            or self.dequantises(maker)
            or name in self.uncut
            or (joined and self.joined.get(maker, (-1, ""))[0] == reader)
        )

    def dequantises(self, node: int) -> bool:
        """Whether a node turns integers into the real numbers that they stand for."""
        return node in self.dequantisers


def wire(model: Model, *, halves: bool = False, blocks: bool = False) -> Wiring:
    """The net of a model, which may be cut at 16-bit floats (`halves`) or not, and runs in `blocks` of channels or not.

    Raises ModelError where it is too large for one message.
    """
    homes = dict(_homes(model.proto))
    proto, weights = _hollowed(model, homes)
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored |= dict.fromkeys((tensor.values.name for tensor in graph.sparse_initializer), None)  # type: ignore[arg-type]
    uncut = frozenset() if halves else half_floats(model.proto)
    return Wiring(proto, model.index.main, stored, homes, weights, uncut, blocks)


def _hollowed(model: Model, homes: Mapping[int, Home]) -> tuple[onnx.ModelProto, dict[str, StoredArray]]:
    """The whole model but for its large tensors, and these; what else lies in external data is taken into it."""
    found, payloads = dict[str, StoredArray](), list[ByteSplice]()
    for tensor in {tensor.name: tensor for tensor in model.proto.graph.initializer}.values():
        if (lies := where_it_lies(model, tensor)) is not None:
            found[tensor.name], splices = lies
            payloads += splices
    proto = parsed(faulty_bytes(model, FileEdits(splices=payloads))) if payloads else parse(model)
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output if name}
    for name, kept in found.items():
        hollow(stored[name], kept.nbytes)
    for number, where in homes.items():
        if where.node >= 0:
            tensor = at(graph.node[where.node], where.path)
        else:
            tensor = stored[where.fed] if where.fed in stored else makers[where.fed].attribute[0].t
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

    A processor computes them in float32 and rounds them where something takes 16 bits, as the end of a part does: cut
    at one of them, a model gives other numbers.
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
    # A value of which nothing follows may be one.
    made = (name for node in graph.node for name in node.output if name and name not in ends)
    return frozenset(name for name in made if known.get(name, 0) in (*_HALVES, 0))


def _homes(skeleton: onnx.ModelProto) -> Iterator[tuple[int, Home]]:
    """The home of each dense tensor by its record's number, which the skeleton bears."""
    names = used_names(skeleton)
    prefix = next(name for k in count(1) for name in [f"onnxfi.inside{k}"] if name not in names)
    for tensor in skeleton.graph.initializer:
        yield record_number(tensor.doc_string), Home(tensor.name)
    for k, node in enumerate(skeleton.graph.node):
        if (number := _constant(node)) is not None:
            yield number, Home(node.output[0])
        for number, path in _inside(node):
            yield number, Home(f"{prefix}.{number}", k, path)


def _constant(node: onnx.NodeProto) -> int | None:
    """The record of a Constant node's tensor; None for any other node."""
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


def home(wiring: Wiring, model: Model, target: Target) -> Home | None:
    """Where a target can be fed from outside; None where it cannot (functions, lists, packed or sparse tensors, bytes
    that are other tensors too)."""
    place = model.places[model.by_id[target.id]]
    found = wiring.homes.get(place.record)
    fits = target.word.storage >= 8 and target.word.parts == 1 and target.kind in ("initializer", "constant")
    if found is None or not fits or target.structural or target.aliases or target.span:
        return None
    tensor = payload(wiring, found)
    alike = DATA_TYPES.get(tensor.data_type) == target.word and tuple(tensor.dims) == target.shape
    return found if alike else None


def array_of(wiring: Wiring, where: Home) -> NDArray[Any]:
    """The tensor at a home, in memory of its own."""
    from onnx import numpy_helper

    held = wiring.weights.get(where.fed) if where.node < 0 else None
    return np.array(numpy_helper.to_array(payload(wiring, where)), order="C") if held is None else held.read()


def payload(wiring: Wiring, where: Home) -> onnx.TensorProto:
    """The tensor at a home; a large one is hollow."""
    if where.node < 0 and where.fed in wiring.stored:
        return wiring.stored[where.fed]
    if where.node < 0:
        return wiring.proto.graph.node[wiring.makers[where.fed]].attribute[0].t
    return at(wiring.proto.graph.node[where.node], where.path)


def at(node: onnx.NodeProto, path: _Path) -> onnx.TensorProto:
    """The tensor at this place inside a node."""
    graph, place = body(node, path)
    return graph.initializer[place] if place >= 0 else graph.node[-1 - place].attribute[0].t


def body(node: onnx.NodeProto, path: _Path) -> tuple[onnx.GraphProto, int]:
    """The innermost graph of a path, and the place in it."""
    attribute = node.attribute[path[0]]
    graph = attribute.g if path[1] < 0 else attribute.graphs[path[1]]
    return (graph, path[2]) if len(path) == 3 else body(graph.node[path[2]], path[3:])


def cut(wiring: Wiring, struck: Iterable[str], *, inside: Iterable[int] = (), outputs: Sequence[str] = ()) -> Cut:
    """What these tensors, and the nodes whose bodies are struck, can change of the outputs (all by default).

        >>> from onnxfi.graph.model.byte_source import quoted
    from onnxfi.graph.model.loading import load
        >>> wiring = wire(load("models/fashion_cnn.onnx"))
        >>> found = cut(wiring, ["fc2.weight"])
        >>> [wiring.proto.graph.node[k].op_type for k in found.nodes], found.crossings
        (['Gemm'], ('relu_2',))
    """
    # In files that are in order no node behind the outputs matters.
    last = max((wiring.makers.get(name, -1) for name in outputs), default=-1) if wiring.in_order else -1
    reached = forward(wiring, struck, inside, range(last + 1 if last >= 0 else len(wiring.reads)))
    wanted = tuple(name for name in (outputs or wiring.outputs) if wiring.makers.get(name, -1) in reached)
    return Cut(*crossing(wiring, backward(wiring, wanted, reached), frozenset(struck)), wanted)


def forward(wiring: Wiring, struck: Iterable[str], inside: Iterable[int], among: Container[int]) -> set[int]:
    """Those nodes that these names reach, and the nodes `inside` which something is struck."""
    reached: set[int] = set()
    todo = [*inside, *(k for name in struck for k in wiring.users.get(name, ()))]
    while todo:
        k = todo.pop()
        if k not in reached and k in among:
            reached.add(k)
            todo += wiring.after[k]
    return reached


def backward(wiring: Wiring, names: Iterable[str], among: Container[int], fed: Container[str] = ()) -> set[int]:
    """Those nodes that these names need, where those that are `fed` need none."""
    needed: set[int] = set()
    todo = [k for name in names if name not in fed and (k := wiring.makers.get(name, -1)) in among]
    while todo:
        k = todo.pop()
        if k not in needed:
            needed.add(k)
            todo += [maker for name, maker in wiring.before[k] if name not in fed and maker in among]
    return needed


def crossing(
    wiring: Wiring, nodes: set[int], fed: frozenset[str], *, joined: bool = False
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The nodes with those that are taken along, also convolutions that are `joined` with one of them, and the names
    that cross into them."""
    every, crossings, todo = set(nodes), dict[str, None](), sorted(nodes)
    for k in todo:  # grows while it is read
        for name in wiring.reads[k]:
            maker = wiring.makers.get(name)
            if not name or name in fed or name in wiring.stored or maker in every:
                continue
            if maker is not None and wiring.along(name, maker, k, joined=joined):
                every.add(maker)
                todo.append(maker)
            else:
                crossings[name] = None
    return tuple(sorted(every)), tuple(sorted(crossings))
