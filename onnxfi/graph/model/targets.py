"""Targets: every stored tensor and number list of a model, with the node and layer that use it.

The walk is in file order, initializers before nodes, outer graphs before inner ones and functions last; roles and
layer names never change that order, so that seeds stay valid. Integers that only carry shapes or indices are found by
data flow: a value is *data* where some use of it reaches an output of the model other than as a shape or an index.

Ids are unique: a nameless node is `OpType#k` in its path, one whose name is taken `NAME#k` (k counts the nodes of its
graph), a tensor without a name `initializer#k` or `sparse#k`, and any other id that is taken has a `#k` appended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnxfi.errors import ModelError
from onnxfi.faults.space import Target, User
from onnxfi.faults.words import WORDS, Word
from onnxfi.graph.model.byte_source import quoted
from onnxfi.graph.model.index_operands import HAND_ON, INDEX_INPUTS
from onnxfi.graph.model.layers import layer_of, layer_scope, node_label
from onnxfi.graph.model.neuron_table import neuron_roles
from onnxfi.graph.model.protobuf_scan import ByteRun, TensorRecord, record_number, text
from onnxfi.graph.model.tensor_roles import assign_roles
from onnxfi.graph.model.weight_dataflow import TensorRole
from onnxfi.graph.model.weight_uses import Key, consumers, key, mark_used

if TYPE_CHECKING:
    import onnx

_NAMES = (
    "float32 uint8 int8 uint16 int16 int32 int64 - bool float16 float64 uint32 uint64 complex64 complex128 bfloat16 "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz uint4 int4 float4_e2m1fn float8_e8m0fnu uint2 int2 "
    "float6_e2m3fn float6_e3m2fn"
)
#: Word of each TensorProto.DataType; strings (8) have none.
DATA_TYPES: dict[int, Word] = {k: WORDS[n] for k, n in enumerate(_NAMES.split(), 1) if n in WORDS}

#: Fields of TensorProto and AttributeProto (onnx.proto) that hold numbers.
_RAW, _VARINTS = 9, (5, 7, 11)
_FLOAT, _INT, _FLOATS, _INTS = 2, 3, 7, 8
#: The field of a Constant's attribute, and of a list by its AttributeType.
_CONSTANTS = {"value_float": _FLOAT, "value_int": _INT, "value_floats": _FLOATS, "value_ints": _INTS}
#: AttributeProto.INT.
_WHOLE_NUMBER = 2
_LISTS = {6: _FLOATS, 7: _INTS}
#: More than any memory holds, and its bits still count in 64.
_MOST_ELEMENTS = 1 << 56


External = Callable[["onnx.TensorProto", str, int, int], "WordLocation"]


@dataclass(frozen=True)
class WordLocation:
    """Where a target's words lie: `file` 0 is the model, 1… its external data files in order of first reference.

    `runs` are the byte ranges in order. A `varint` list holds `per_entry` words in each of its numbers; otherwise the
    words lie as they are, packed. `record` numbers the tensor in the scan.
    """

    file: int
    runs: tuple[ByteRun, ...]
    record: int
    varint: bool = False
    per_entry: int = 1


@dataclass(slots=True, eq=False)
class _Value:
    """A name in one graph: its target, its users, the node that puts it out; whether it is data, and used at all."""

    target: int = -1
    users: list[_Node] = field(default_factory=list)
    maker: _Node | None = None
    data: bool = False
    used: bool = False


@dataclass(slots=True, eq=False)
class _Node:
    proto: onnx.NodeProto
    op: str
    label: str
    inputs: list[_Value | None]
    outputs: list[_Value]
    #: What the inner graphs put out.
    bodies: tuple[_Value, ...] = ()
    path: str = ""
    used: bool = False


@dataclass(slots=True, eq=False)
class _Scope:
    """The names of one graph, and the scope around it."""

    names: dict[str, _Value]
    outer: _Scope | None = None

    def find(self, name: str) -> _Value | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return None


@dataclass(frozen=True)
class _Draft:
    name: str
    word: Word
    shape: tuple[int, ...]
    kind: str
    place: WordLocation
    #: Where it is stored: the path of the graph.
    path: str
    #: The node of a number list, which belongs to it.
    owner: _Node | None = None


class Walk:
    """One walk over a model's skeleton. `external` gives the place of a tensor in another file."""

    def __init__(self, proto: onnx.ModelProto, records: Mapping[int, TensorRecord], external: External) -> None:
        self.records, self.external = records, external
        #: None where a later tensor of the same name took its place.
        self.drafts: list[_Draft | None] = []
        self.values: list[_Value] = []
        self.every: list[_Node] = []
        self.notes: list[str] = []
        self._ids: set[str] = set()
        self._inputs: dict[str, _Value] = {}
        outputs = self.graph(proto.graph, "", None)
        functions: dict[Key, list[_Value]] = {}
        for function in proto.functions:
            names = (text(function.domain), text(function.name), text(function.overload))
            path = f"function:{':'.join(name for name in names if name)}::"
            functions[key(*names)] = self.nodes(function.node, path, _Scope({}), function.output)
        if outputs:  # of a graph that puts nothing out, nothing can be said
            mark_used(outputs, functions)
        else:
            mark_used(self.values, functions)
        self._data_flow([*outputs, *(value for some in functions.values() for value in some)])
        self._users = {v.target: consumers(v) for v in self.values if v.target >= 0}
        self._paths: dict[str, set[str]] = {}
        uses = [(node, self.drafts[number]) for number, nodes in self._users.items() for node in nodes]
        for node, draft in (*((node, None) for node in self.every), *uses):
            layer, path = self._layer_in(node, draft)
            self._paths.setdefault(layer, set()).add(path)
        self._neurons = neuron_roles(proto)

    def targets(self) -> Iterator[tuple[Target, WordLocation]]:
        """The targets in order, each with its place."""
        values, parts = {v.target: v for v in self.values if v.target >= 0}, assign_roles(self)
        for number, draft in enumerate(self.drafts):
            if draft is None:
                continue
            value = values.get(number)
            nodes = self._users.get(number, [])
            users: tuple[User, ...] = (User("", "", draft.name),)
            structural, used = False, value is None or value.used
            if nodes and value is not None:
                users = tuple(User(n.op, n.label, self._layer(n, draft)) for n in nodes)
                structural = draft.word.name in ("int64", "int32") and not value.data
            elif draft.owner:
                owner, used = draft.owner, draft.owner.used
                users = (User(owner.op, draft.name.rpartition(".")[0], self._layer(owner)),)
                structural = draft.word.name == "int64"
            part = parts.get(number, TensorRole())
            word, shape, place = part.word or draft.word, part.shape or draft.shape, draft.place
            if word != draft.word and place.varint:
                place = replace(place, per_entry=place.per_entry * draft.word.bits // word.bits)
            role = self._neurons.get(draft.name, part.role)
            first, several = users[0], users if len(users) > 1 else ()
            yield Target(
                draft.name, word, shape, draft.kind, first.op, first.node, first.layer, structural, role, part.scheme,
                users=several, roles=part.roles if len(part.roles) > 1 else (), unused=not used,
            ), place  # fmt: skip

    def _layer_in(self, node: _Node, draft: _Draft | None = None) -> tuple[str, str]:
        layer = layer_of(node.proto, node.label, "" if draft is None else draft.name.rpartition("::")[2])
        return layer, layer_scope(node.proto, layer, node.label, node.path, "" if draft is None else draft.path)

    def _layer(self, node: _Node, draft: _Draft | None = None) -> str:
        """The layer of a node, or of a tensor that it uses; one of several graphs' layers of one name by its path."""
        layer, path = self._layer_in(node, draft)
        return path + layer if len(self._paths[layer]) > 1 else layer

    def flowing(self) -> Iterator[tuple[str, str, str, str, str, bool]]:
        """The values in flight: inputs, then what nodes put out, constants left out.

        Each as (path, name, operator, node, layer, whether it is data); an input has no operator.
        """
        for name, value in self._inputs.items():
            if value.target < 0:
                yield "", name, "", "", name, value.data
        for node in self.every:
            if node.op == "Constant":
                continue
            layer = self._layer(node)
            named = [text(name) for name in node.proto.output if name]
            for name, value in zip(named, node.outputs, strict=True):
                yield node.path, name, node.op, node.label, layer, value.data

    def graph(self, graph: onnx.GraphProto, path: str, outer: _Scope | None) -> list[_Value]:
        """Walk one graph; returns the values of its outputs."""
        scope = _Scope({}, outer)
        for k, tensor in enumerate(graph.initializer):
            self._declare(tensor, path, f"initializer#{k}", "initializer", scope)
        for k, sparse in enumerate(graph.sparse_initializer):
            self._declare(sparse.values, path, f"sparse#{k}", "sparse", scope)
        for value in graph.input:
            made = scope.names.setdefault(text(value.name), self._value())
            if outer is None:
                self._inputs[text(value.name)] = made
        return self.nodes(graph.node, path, scope, [o.name for o in graph.output])

    def nodes(self, protos: Iterable[onnx.NodeProto], path: str, scope: _Scope, outputs: Iterable[str]) -> list[_Value]:
        """Walk a node list: constants and number lists first, then uses and inner graphs."""
        names = scope.names
        made: list[_Node] = []
        labels: set[str] = set()
        for k, proto in enumerate(protos):
            label = node_label(proto, k)
            while label in labels:
                label += f"#{k}"
            labels.add(label)
            node = _Node(proto, text(proto.op_type), label, [], [], path=path)
            made.append(node)
            puts_out = [text(name) for name in proto.output]
            if node.op == "Constant" and proto.domain in ("", "ai.onnx"):
                self._constant(node, path, puts_out, scope)
            elif proto.domain == "ai.onnx.ml":
                self._lists(node, path)
            for name in puts_out:
                if name:
                    node.outputs.append(names[name] if name in names else names.setdefault(name, self._value()))
                    names[name].maker = node
        for node in made:
            node.inputs = [scope.find(text(name)) if name else None for name in node.proto.input]
            for k, value in enumerate(node.inputs):
                if value is not None:
                    if node not in value.users[-1:]:
                        value.users.append(node)
                    value.data = value.data or _is_data(node, k)
        self.every += made
        for node in made:
            for attribute in node.proto.attribute:
                if attribute.name == "group" and attribute.type == _WHOLE_NUMBER and attribute.i < 1:
                    # ONNX Runtime divides by it, which ends the process with a signal.
                    raise ModelError(f"node {quoted(node.label)} has group {attribute.i}; it must be 1 or more")
                bodies = [attribute.g] if attribute.HasField("g") else []
                for k, body in enumerate([*bodies, *attribute.graphs]):
                    step = f"{node.label}.{text(attribute.name)}" + (f"#{k}" if len(attribute.graphs) > 1 else "")
                    node.bodies += (*self.graph(body, f"{path}{step}::", scope),)
        return [value for value in (scope.find(text(name)) for name in outputs) if value is not None]

    def _value(self, target: int = -1) -> _Value:
        value = _Value(target)
        self.values.append(value)
        return value

    def _drop(self, scope: _Scope, name: str) -> None:
        """Leave out what a graph has stored under a name, where another tensor takes the name, as runtimes do."""
        old = scope.names.get(name)
        draft = self.drafts[old.target] if old is not None and old.target >= 0 else None
        if old is not None and draft is not None:
            self.notes.append(
                f"{quoted(draft.name)} is there twice; runtimes use the last one, so the first is left out"
            )
            self.drafts[old.target] = None
            self._ids.discard(draft.name)

    def _declare(self, tensor: onnx.TensorProto, path: str, unnamed: str, kind: str, scope: _Scope) -> None:
        name = text(tensor.name)
        self._drop(scope, name)
        value = self._value(self._add_tensor(tensor, path, name or unnamed, kind))
        if name:
            scope.names[name] = value

    def _add_tensor(self, tensor: onnx.TensorProto, path: str, name: str, kind: str, owner: _Node | None = None) -> int:
        word, id_ = DATA_TYPES.get(tensor.data_type), path + name
        if word is None:
            if tensor.data_type != 8:
                what = f"the number format {tensor.data_type}, which onnxfi does not know"
                self.notes.append(f"{quoted(id_)} has {what}; it cannot be struck")
            return -1
        shape = tuple(tensor.dims)
        elements = _elements(shape, id_) * word.parts
        number = record_number(tensor.doc_string)
        if tensor.data_location == 1:
            place = self.external(tensor, id_, word.size_bytes(elements), number)
        else:
            place = _inside(self.records[number], number, word, elements, id_)
        return self._add(path, name, word, shape, kind, place, owner)

    def _add(
        self,
        path: str,
        name: str,
        word: Word,
        shape: tuple[int, ...],
        kind: str,
        place: WordLocation,
        owner: _Node | None,
    ) -> int:
        unique = path + name
        while unique in self._ids:
            unique += f"#{len(self.drafts)}"
        self._ids.add(unique)
        self.drafts.append(_Draft(unique, word, shape, kind, place, path, owner))
        return len(self.drafts) - 1

    def _constant(self, node: _Node, path: str, outputs: Sequence[str], scope: _Scope) -> None:
        name, number = outputs[0] if outputs else "", -1
        self._drop(scope, name)
        named = name or node.label
        for attribute in node.proto.attribute:
            if attribute.HasField("t"):
                number = self._add_tensor(attribute.t, path, named, "constant")
            elif attribute.HasField("sparse_tensor"):
                number = self._add_tensor(attribute.sparse_tensor.values, path, named, "sparse")
            elif attribute.name in _CONSTANTS:
                number = self._number_list(attribute, path, named, "constant", _CONSTANTS[attribute.name])
        if name:
            scope.names[name] = self._value(number)

    def _lists(self, node: _Node, path: str) -> None:
        """Number lists of classical models: float lists and tensors are their weights, integers their structure."""
        for attribute in node.proto.attribute:
            name = f"{node.label}.{text(attribute.name)}"
            if attribute.HasField("t"):
                self._add_tensor(attribute.t, path, name, "attribute", node)
            elif attribute.type in _LISTS:
                self._number_list(attribute, path, name, "attribute", _LISTS[attribute.type], node)

    def _number_list(
        self, attribute: onnx.AttributeProto, path: str, name: str, kind: str, number: int, owner: _Node | None = None
    ) -> int:
        """Add the numbers in an attribute's field of this number, where it has any."""
        record = record_number(attribute.doc_string)
        runs = self.records[record].fields.get(number, ()) if record >= 0 else ()
        if not runs:
            return -1
        word = WORDS["float32" if number in (_FLOAT, _FLOATS) else "int64"]
        scalar = number in (_FLOAT, _INT)
        place = WordLocation(0, tuple(runs[-1:] if scalar else runs), record, varint=number in (_INT, _INTS))
        shape = () if scalar else (self.records[record].counts[number],)
        return self._add(path, name, word, shape, kind, place, owner)

    def _data_flow(self, outputs: Iterable[_Value]) -> None:
        """Mark the values that are data, from the outputs back; each edge is looked at once."""
        todo = [*outputs, *(v for v in self.values if v.data)]
        # What a loop's body puts out is data; what an If's branch puts out is what the If hands on.
        todo += [v for n in self.every if n.op != "If" for v in n.bodies]
        for value in todo:
            value.data = True
        while todo:
            node = todo.pop().maker
            if node is None or node.op not in HAND_ON:
                continue
            index = INDEX_INPUTS.get(node.op, frozenset())
            reached = [v for k, v in enumerate(node.inputs) if v is not None and k not in index]
            if node.op == "If":
                reached = list(node.bodies)
            fresh = [v for v in reached if not v.data]
            for v in fresh:
                v.data = True
            todo += fresh


def _is_data(node: _Node, position: int) -> bool:
    return node.op not in HAND_ON and position not in INDEX_INPUTS.get(node.op, frozenset())


def _elements(shape: tuple[int, ...], name: str) -> int:
    """The elements of a shape; ModelError where no tensor can have it, before anything is computed with it."""
    elements = 0 if 0 in shape else 1
    for n in shape:
        elements *= n
        if n < 0 or elements > _MOST_ELEMENTS:
            raise ModelError(f"{quoted(name)} declares the shape {list(shape[:16])}; no tensor has it")
    return elements


def _inside(record: TensorRecord, number: int, word: Word, elements: int, name: str) -> WordLocation:
    """Where the words of a tensor lie in the model file itself; checked against the declared shape."""
    if _RAW in record.fields:
        run = record.fields[_RAW][-1]
        held = run[1] - run[0]
        if held != word.size_bytes(elements):
            raise ModelError(
                f"{quoted(name)} declares {elements:,} × {word.name}, {word.size_bytes(elements):,} bytes, "
                f"but holds {held:,}; the file is damaged"
            )
        return WordLocation(0, (run,), number)
    typed = _typed_field(word)
    per_entry = max(1, 8 // word.storage)
    held = record.counts.get(typed, 0)
    if held != -(-elements // per_entry):
        raise ModelError(f"{quoted(name)} declares {elements:,} × {word.name}, but holds {held:,}; the file is damaged")
    return WordLocation(0, tuple(record.fields.get(typed, ())), number, typed in _VARINTS, per_entry)


def _typed_field(word: Word) -> int:
    """The TensorProto field that holds words of this format when they are not raw."""
    fields = {"float32": 4, "complex64": 4, "float64": 10, "complex128": 10, "int64": 7, "uint32": 11, "uint64": 11}
    return fields.get(word.name, 5)
