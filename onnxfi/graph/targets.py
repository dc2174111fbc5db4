"""Targets: every stored tensor and number list of a model, with the node and layer that use it.

The walk is in file order, initializers before nodes, outer graphs before inner ones and functions last; roles and
layer names never change that order, so that seeds stay valid. Integers that only carry shapes or indices are found by
data flow: a value is *data* where some use of it reaches an output of the model other than as a shape or an index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnxfi.errors import ModelError
from onnxfi.faults.space import Target
from onnxfi.faults.words import WORDS, Word
from onnxfi.graph.layers import layer_of, node_label
from onnxfi.graph.wire import TOKEN, Record

if TYPE_CHECKING:
    import onnx

_NAMES = (
    "float32 uint8 int8 uint16 int16 int32 int64 - bool float16 float64 uint32 uint64 complex64 complex128 bfloat16 "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz uint4 int4 float4_e2m1fn float8_e8m0fnu uint2 int2"
)
#: Word of each TensorProto.DataType; strings (8) have none.
DATA_TYPES: dict[int, Word] = {k: WORDS[n] for k, n in enumerate(_NAMES.split(), 1) if n != "-"}

_FLOATS, _INTS = 7, 8
_LISTS = {2: "float32", 3: "int64", _FLOATS: "float32", _INTS: "int64"}
#: Inputs that are shapes, axes, indices or counts, by operator.
_INDEX_INPUTS: dict[str, frozenset[int]] = {
    op: frozenset(at)
    for ops, at in (
        ("Reshape Expand Tile Unsqueeze Squeeze Gather GatherElements GatherND Split Trilu TopK CumSum OneHot "
         "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
         "ReduceSumSquare ScatterElements ScatterND Scatter Upsample DFT TensorScatter AffineGrid CenterCropPad", {1}),
        ("Slice", {1, 2, 3, 4}),
        ("Pad", {1, 3}),
        ("Resize", {3}),
        ("ConstantOfShape Loop Shape Size RandomNormalLike RandomUniformLike EyeLike", {0}),
        ("Range", {0, 1, 2}),
        ("MaxUnpool", {1, 2}),
        ("Col2Im", {1, 2}),
        ("NonMaxSuppression", {2}),
        ("LSTM GRU RNN", {4}),
        ("RoiAlign", {2}),
    )
    for op in ops.split()
}  # fmt: skip
#: Operators that hand a value on: their inputs carry a shape where their outputs do.
_HAND_ON = frozenset(
    [
        "Concat",
        "Cast",
        "Identity",
        "Squeeze",
        "Unsqueeze",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Neg",
        "Abs",
        "Min",
        "Max",
        "Reshape",
        "Transpose",
        "Gather",
        "Slice",
        "Split",
        "Expand",
        "Tile",
        "Where",
        "Equal",
        "Greater",
        "Less",
        "GreaterOrEqual",
        "LessOrEqual",
        "Not",
        "And",
        "Or",
        "ReduceProd",
        "ReduceMax",
        "ReduceMin",
        "ReduceSum",
        "Floor",
        "Ceil",
        "Clip",
        "Flatten",
        "If",
        "Sign",
        "Pow",
        "ScatterElements",
        "ScatterND",
        "GatherElements",
        "GatherND",
    ]
)
#: Operators between a stored word and the layer that it belongs to.
_LOOK_THROUGH = frozenset(["DequantizeLinear", "Cast", "Transpose", "Identity", "Reshape", "Squeeze", "Unsqueeze"])


External = Callable[["onnx.TensorProto", str, int, int], "Place"]
_Owner = tuple[str, str] | None


@dataclass(frozen=True)
class Place:
    """Where a target's words lie: `file` 0 is the model, 1… its external data files in order of first reference.

    `spans` are the byte ranges in order. A `varint` list holds `per_entry` words in each of its numbers; otherwise the
    words lie as they are, packed. `record` numbers the tensor in the scan, −1 for external data.
    """

    file: int
    spans: tuple[tuple[int, int], ...]
    record: int
    varint: bool = False
    per_entry: int = 1


@dataclass
class _Value:
    """A name in one graph: its target, where it is used, and what hands it on."""

    target: int = -1
    uses: list[tuple[_Node, int]] = field(default_factory=list)
    maker: _Node | None = None
    data: bool = False


@dataclass(eq=False)
class _Node:
    proto: onnx.NodeProto
    label: str
    inputs: list[_Value | None]
    outputs: list[_Value]
    bodies: list[list[_Value]] = field(default_factory=list)


@dataclass(frozen=True)
class _Draft:
    name: str
    word: Word
    shape: tuple[int, ...]
    kind: str
    place: Place
    #: Operator and layer of a number list, which belongs to its own node.
    owner: tuple[str, str] | None = None


class Walk:
    """One walk over a model's skeleton. `external` gives the place of a tensor in another file."""

    def __init__(self, proto: onnx.ModelProto, records: Sequence[Record], external: External) -> None:
        self.records, self.external = records, external
        self.drafts: list[_Draft] = []
        self.values: list[_Value] = []
        self.every: list[_Node] = []
        self.notes: list[str] = []
        self._seen: dict[str, int] = {}
        outputs = self.graph(proto.graph, "", {})
        for function in proto.functions:
            name = f"{function.domain}:{function.name}" if function.domain else function.name
            outputs += self.nodes(function.node, f"function:{name}::", {}, function.output)
        self._data_flow(outputs)

    def targets(self) -> Iterator[tuple[Target, Place]]:
        """The targets in order, each with its place."""
        values = {v.target: v for v in self.values if v.target >= 0}
        for number, draft in enumerate(self.drafts):
            value = values.get(number)
            node = _consumer(value) if value else None
            op, label, layer, structural = "", "", draft.name, False
            if node is not None and value is not None:
                op, label, layer = (
                    node.proto.op_type,
                    node.label,
                    layer_of(node.proto, node.label, draft.name.rpartition("::")[2]),
                )
                structural = draft.word.name in ("int64", "int32") and not value.data
            elif draft.owner:
                op, layer = draft.owner
                label, structural = draft.name.rpartition(".")[0], draft.word.name == "int64"
            yield (
                Target(draft.name, draft.word, draft.shape, draft.kind, op, label, layer, structural),
                draft.place,
            )

    def graph(self, graph: onnx.GraphProto, path: str, scope: dict[str, _Value]) -> list[_Value]:
        """Walk one graph; returns the values of its outputs."""
        scope = dict(scope)
        for tensor in graph.initializer:
            self._declare(tensor, path, tensor.name, "initializer", scope)
        for sparse in graph.sparse_initializer:
            self._declare(sparse.values, path, sparse.values.name, "sparse", scope)
        for value in graph.input:
            scope.setdefault(value.name, self._value())
        return self.nodes(graph.node, path, scope, [o.name for o in graph.output])

    def nodes(
        self, protos: Iterable[onnx.NodeProto], path: str, scope: dict[str, _Value], outputs: Sequence[str]
    ) -> list[_Value]:
        """Walk a node list: constants and number lists first, then uses and inner graphs."""
        listed = [(proto, node_label(proto, k)) for k, proto in enumerate(protos)]
        for proto, label in listed:
            if proto.op_type == "Constant" and proto.domain in ("", "ai.onnx"):
                self._constant(proto, path, label, scope)
            elif proto.domain == "ai.onnx.ml":
                self._lists(proto, path, label)
            for name in proto.output:
                if name and name not in scope:
                    scope[name] = self._value()
        made: list[_Node] = []
        for proto, label in listed:
            node = _Node(proto, label, [scope.get(n) if n else None for n in proto.input], [])
            for k, value in enumerate(node.inputs):
                if value is not None:
                    value.uses.append((node, k))
            for name in proto.output:
                if name:
                    node.outputs.append(scope[name])
                    scope[name].maker = node
            made.append(node)
        self.every += made
        for node in made:
            for attribute in node.proto.attribute:
                bodies = [attribute.g] if attribute.HasField("g") else []
                for k, body in enumerate([*bodies, *attribute.graphs]):
                    step = f"{node.label}.{attribute.name}" + (f"#{k}" if len(attribute.graphs) > 1 else "")
                    node.bodies.append(self.graph(body, f"{path}{step}::", scope))
        return [scope[name] for name in outputs if name in scope]

    def _value(self, target: int = -1) -> _Value:
        value = _Value(target)
        self.values.append(value)
        return value

    def _declare(self, tensor: onnx.TensorProto, path: str, name: str, kind: str, scope: dict[str, _Value]) -> None:
        number = self._add_tensor(tensor, path + name, kind)
        scope[name] = self._value(number)

    def _add_tensor(self, tensor: onnx.TensorProto, name: str, kind: str, owner: _Owner = None) -> int:
        word = DATA_TYPES.get(tensor.data_type)
        if word is None:
            if tensor.data_type != 8:
                self.notes.append(f"{name!r} has the unknown number format {tensor.data_type} and cannot be struck")
            return -1
        shape = tuple(tensor.dims)
        if any(n < 0 for n in shape) or math.prod(shape) > 1 << 62:
            raise ModelError(f"{name!r} declares the shape {list(shape)}; no tensor has it")
        number = _token(tensor.doc_string)
        elements = math.prod(shape) * word.parts
        if tensor.data_location == 1:
            place = self.external(tensor, name, word.size_bytes(elements), number)
        else:
            place = _inside(self.records[number], number, word, elements, name)
        return self._add(name, word, shape, kind, place, owner)

    def _add(self, name: str, word: Word, shape: tuple[int, ...], kind: str, place: Place, owner: _Owner = None) -> int:
        if name in self._seen:
            self.notes.append(f"{name!r} is there twice; runtimes use the last one, so the first is left out")
            old = self._seen[name]
            self.drafts[old] = replace(self.drafts[old], name=f"{name}#unused{old}")
        self._seen[name] = len(self.drafts)
        self.drafts.append(_Draft(name, word, shape, kind, place, owner))
        return len(self.drafts) - 1

    def _constant(self, proto: onnx.NodeProto, path: str, label: str, scope: dict[str, _Value]) -> None:
        name = proto.output[0] if proto.output else label
        number = -1
        for attribute in proto.attribute:
            if attribute.HasField("t"):
                number = self._add_tensor(attribute.t, path + name, "constant")
            elif attribute.HasField("sparse_tensor"):
                number = self._add_tensor(attribute.sparse_tensor.values, path + name, "sparse")
            elif attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
                number = self._number_list(attribute, path + name, "constant", scalar=not attribute.name.endswith("s"))
        scope[name] = self._value(number)

    def _lists(self, proto: onnx.NodeProto, path: str, label: str) -> None:
        """Number lists of classical models: float lists and tensors are their weights, integers their structure."""
        layer = layer_of(proto, label)
        for attribute in proto.attribute:
            name = f"{path}{label}.{attribute.name}"
            owner = (proto.op_type, layer)
            if attribute.HasField("t"):
                self._add_tensor(attribute.t, name, "attribute", owner)
            elif attribute.type in (6, 7) and attribute.doc_string.startswith(TOKEN):
                self._number_list(attribute, name, "attribute", scalar=False, owner=owner)

    def _number_list(
        self, attribute: onnx.AttributeProto, name: str, kind: str, *, scalar: bool, owner: _Owner = None
    ) -> int:
        number = _token(attribute.doc_string) if attribute.doc_string.startswith(TOKEN) else -1
        wanted = {"value_float": (2,), "value_int": (3,)}.get(attribute.name, (_FLOATS, _INTS))
        for at in wanted if number >= 0 else ():
            spans = tuple(self.records[number].fields.get(at, ()))[-1 if scalar else None :]
            if not spans or (at == _INTS and attribute.type == 6) or (at == _FLOATS and attribute.type == 7):
                continue
            word = WORDS[_LISTS[at]]
            varint = word.name == "int64"
            place = Place(0, spans, number, varint)
            length = self.records[number].counts[at] if varint else sum(b - a for a, b in spans) // 4
            return self._add(name, word, () if scalar else (length,), kind, place, owner)
        return -1

    def _data_flow(self, outputs: Iterable[_Value]) -> None:
        """Mark the values that are data, from the outputs back; each edge is looked at once."""
        todo = [*outputs, *(v for v in self.values if any(_is_data(node, k) for node, k in v.uses))]
        # What a loop's body puts out is data; what an If's branch puts out is what the If hands on.
        todo += [v for n in self.every if n.proto.op_type != "If" for body in n.bodies for v in body]
        for value in todo:
            value.data = True
        while todo:
            node = todo.pop().maker
            if node is None or node.proto.op_type not in _HAND_ON:
                continue
            index = _INDEX_INPUTS.get(node.proto.op_type, frozenset())
            reached = [v for k, v in enumerate(node.inputs) if v is not None and k not in index]
            if node.proto.op_type == "If":
                reached = [v for body in node.bodies for v in body]
            fresh = [v for v in reached if not v.data]
            for v in fresh:
                v.data = True
            todo += fresh


def _is_data(node: _Node, position: int) -> bool:
    op = node.proto.op_type
    return op not in _HAND_ON and position not in _INDEX_INPUTS.get(op, frozenset())


def _consumer(value: _Value) -> _Node | None:
    """The node that a stored tensor belongs to: its first user, looking through what only converts it."""
    node = value.uses[0][0] if value.uses else None
    for _ in range(8):
        if node is None or node.proto.op_type not in _LOOK_THROUGH or not node.outputs or not node.outputs[0].uses:
            break
        node = node.outputs[0].uses[0][0]
    return node


def _token(text: str) -> int:
    return int(text[len(TOKEN) :])


def _inside(record: Record, number: int, word: Word, elements: int, name: str) -> Place:
    """Where the words of a tensor lie in the model file itself; checked against the declared shape."""
    if 9 in record.fields:
        place = Place(0, (record.fields[9][-1],), number)
        held = record.fields[9][-1][1] - record.fields[9][-1][0]
        if held != word.size_bytes(elements):
            raise ModelError(
                f"{name!r} declares {elements:,} × {word.name}, {word.size_bytes(elements):,} bytes, but holds {held:,}; "
                f"the file is damaged"
            )
        return place
    typed, width = _typed_field(word)
    spans = tuple(record.fields.get(typed, ()))
    per_entry = max(1, 8 // word.storage)
    place = Place(0, spans, number, varint=width == 0, per_entry=per_entry)
    held = record.counts.get(typed, 0) if width == 0 else sum(b - a for a, b in spans) // width
    if held != -(-elements // per_entry):
        raise ModelError(f"{name!r} declares {elements:,} × {word.name}, but holds {held:,}; the file is damaged")
    return place


def _typed_field(word: Word) -> tuple[int, int]:
    """The TensorProto field that holds words of this format when they are not raw, and its width (0: varints)."""
    if word.name in ("float32", "complex64"):
        return 4, 4
    if word.name in ("float64", "complex128"):
        return 10, 8
    if word.name == "int64":
        return 7, 0
    return (11, 0) if word.name in ("uint32", "uint64") else (5, 0)
