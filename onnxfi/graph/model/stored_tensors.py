"""The stored tensors of a model: initializers, sparse values, constants and the number lists of classical models.

They are found in file order: initializers before nodes, outer graphs before inner ones and functions last. That order
never changes, so that seeds stay valid. Ids are unique: a tensor without a name is `initializer#k` or `sparse#k`, and
any id that is taken has a `#k` appended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import ModelError
from onnxfi.faults.words import WORDS, Word
from onnxfi.graph.model.byte_source import quoted
from onnxfi.graph.model.graph_index import GraphIndex, Node, Scope, Value
from onnxfi.graph.model.protobuf_scan import ByteRun, TensorRecord, record_number, text

if TYPE_CHECKING:
    import onnx

_NAMES = (
    "float32 uint8 int8 uint16 int16 int32 int64 - bool float16 float64 uint32 uint64 complex64 complex128 bfloat16 "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz uint4 int4 float4_e2m1fn float8_e8m0fnu uint2 int2 "
    "float6_e2m3fn float6_e3m2fn"
)
#: Word of each TensorProto.DataType; strings (8) have none.
DATA_TYPES: dict[int, Word] = {k: WORDS[n] for k, n in enumerate(_NAMES.split(), 1) if n in WORDS}
_STRING = 8

#: Fields of TensorProto and AttributeProto (onnx.proto) that hold numbers.
_RAW, _VARINTS = 9, (5, 7, 11)
_FLOAT, _INT, _FLOATS, _INTS = 2, 3, 7, 8
#: The field of a Constant's attribute, and of a list by its AttributeType.
_CONSTANTS = {"value_float": _FLOAT, "value_int": _INT, "value_floats": _FLOATS, "value_ints": _INTS}
_LISTS = {6: _FLOATS, 7: _INTS}
#: Larger than any memory, while the count of bits fits into 64.
_MOST_ELEMENTS = 1 << 56


def stored_tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> dict[str, onnx.TensorProto]:
    """Return the tensors that a graph stores, in initializers and in Constant nodes, by name as nodes have it."""
    constants = {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant" and node.output
        for attribute in node.attribute
        if attribute.HasField("t")
    }
    return constants | {t.name: t for t in getattr(graph, "initializer", ())}


def stored_numbers(tensor: onnx.TensorProto, folder: Path | None) -> NDArray[Any]:
    """Return the numbers of a stored tensor, wherever they lie; ModelError where its external data has no folder."""
    from onnx import numpy_helper

    if tensor.external_data and folder is None:
        raise ModelError(f"the weight {tensor.name!r} lies in external data, whose folder is not known; give folder")
    return np.asarray(numpy_helper.to_array(tensor, str(folder or "")))


@dataclass(frozen=True)
class WordLocation:
    """The bytes of a tensor's words: `file` 0 is the model, 1… its external data files in order of first reference.

    `runs` are the byte ranges in order. A `varint` list holds `per_entry` words in each of its numbers; otherwise the
    words lie as they are, packed. `record` numbers the tensor in the scan.
    """

    file: int
    runs: tuple[ByteRun, ...]
    record: int
    varint: bool = False
    per_entry: int = 1


#: Locates a tensor in external data: the tensor, its id, its size in bytes, the number of its record.
LocateExternal = Callable[["onnx.TensorProto", str, int, int], WordLocation]


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A stored tensor or number list: its id, the path of the graph that stores it, and the node of a number list."""

    id: str
    path: str
    word: Word
    shape: tuple[int, ...]
    kind: str
    location: WordLocation
    owner: Node | None = None

    @property
    def name(self) -> str:
        """The id without the path."""
        return self.id.rpartition("::")[2]


@dataclass
class StoredTensors:
    """The stored tensors of a model in file order, each with its value in the graph (None: it has none).

    `by_value` finds the tensor of a value; `notes` lists tensors that are left out.
    """

    records: Mapping[int, TensorRecord] = field(repr=False)
    locate_external: LocateExternal = field(repr=False)
    tensors: dict[StoredTensor, Value | None] = field(default_factory=dict)
    by_value: dict[Value, StoredTensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set, repr=False)
    _count: int = 0

    @classmethod
    def find(
        cls, index: GraphIndex, records: Mapping[int, TensorRecord], locate_external: LocateExternal
    ) -> StoredTensors:
        """Find the stored tensors of a model.

        Raises ModelError if one is damaged, or where its bytes cannot be located.
        """
        found = cls(records, locate_external)
        for scope in index.scopes:
            found._add_scope(scope)
        return found

    def _add_scope(self, scope: Scope) -> None:
        for k, tensor in enumerate(getattr(scope.graph, "initializer", ())):
            self._add_named(tensor, scope, f"initializer#{k}", "initializer")
        for k, sparse in enumerate(getattr(scope.graph, "sparse_initializer", ())):
            self._add_named(sparse.values, scope, f"sparse#{k}", "sparse")
        for node in scope.nodes:
            if node.op == "Constant" and node.proto.domain in ("", "ai.onnx"):
                self._add_constant(node, scope)
            elif node.proto.domain == "ai.onnx.ml":
                self._add_lists(node)

    def _add_named(self, tensor: onnx.TensorProto, scope: Scope, unnamed: str, kind: str) -> None:
        name = text(tensor.name)
        value = scope.values[name] if name else Value("")
        self._drop(value)
        self._bind(self._add_tensor(tensor, scope.path, name or unnamed, kind), value)

    def _add_constant(self, node: Node, scope: Scope) -> None:
        name = text(node.proto.output[0]) if node.proto.output else ""
        value = scope.values[name] if name else Value("")
        self._drop(value)
        added: StoredTensor | None = None
        for attribute in node.proto.attribute:
            if attribute.HasField("t"):
                added = self._add_tensor(attribute.t, scope.path, name or node.label, "constant")
            elif attribute.HasField("sparse_tensor"):
                added = self._add_tensor(attribute.sparse_tensor.values, scope.path, name or node.label, "sparse")
            elif attribute.name in _CONSTANTS:
                number = _CONSTANTS[attribute.name]
                added = self._add_list(attribute, scope.path, name or node.label, "constant", number)
        if name:
            self._bind(added, value)

    def _add_lists(self, node: Node) -> None:
        """Add the number lists of a classical model: float lists and tensors are weights, integers their structure."""
        for attribute in node.proto.attribute:
            name = f"{node.label}.{text(attribute.name)}"
            if attribute.HasField("t"):
                self._add_tensor(attribute.t, node.path, name, "attribute", node)
            elif attribute.type in _LISTS:
                self._add_list(attribute, node.path, name, "attribute", _LISTS[attribute.type], node)

    def _drop(self, value: Value) -> None:
        """Leave out a stored tensor whose name a later tensor takes, as runtimes do."""
        old = self.by_value.pop(value, None)
        if old is not None:
            self.notes.append(f"{quoted(old.id)} is there twice; runtimes use the last one, so the first is left out")
            del self.tensors[old]
            self._ids.discard(old.id)

    def _bind(self, tensor: StoredTensor | None, value: Value) -> None:
        if tensor is not None:
            self.tensors[tensor] = value
            self.by_value[value] = tensor

    def _add_tensor(
        self, tensor: onnx.TensorProto, path: str, name: str, kind: str, owner: Node | None = None
    ) -> StoredTensor | None:
        word, id_ = DATA_TYPES.get(tensor.data_type), path + name
        if word is None:
            if tensor.data_type != _STRING:
                what = f"the number format {tensor.data_type}, which onnxfi does not know"
                self.notes.append(f"{quoted(id_)} has {what}; faults cannot be injected into it")
            return None
        shape = tuple(tensor.dims)
        elements = _elements(shape, id_) * word.parts
        number = record_number(tensor.doc_string)
        if tensor.data_location == 1:
            location = self.locate_external(tensor, id_, word.size_bytes(elements), number)
        else:
            location = _location_in_model(self.records[number], number, word, elements, id_)
        return self._add(path, name, word, shape, kind, location, owner)

    def _add_list(
        self, attribute: onnx.AttributeProto, path: str, name: str, kind: str, number: int, owner: Node | None = None
    ) -> StoredTensor | None:
        """Add the numbers in an attribute's field of this number, where it has any."""
        record = record_number(attribute.doc_string)
        runs = self.records[record].fields.get(number, ()) if record >= 0 else ()
        if not runs:
            return None
        word = WORDS["float32" if number in (_FLOAT, _FLOATS) else "int64"]
        scalar = number in (_FLOAT, _INT)
        location = WordLocation(0, tuple(runs[-1:] if scalar else runs), record, varint=number in (_INT, _INTS))
        shape = () if scalar else (self.records[record].counts[number],)
        return self._add(path, name, word, shape, kind, location, owner)

    def _add(
        self,
        path: str,
        name: str,
        word: Word,
        shape: tuple[int, ...],
        kind: str,
        location: WordLocation,
        owner: Node | None,
    ) -> StoredTensor:
        unique = path + name
        while unique in self._ids:
            unique += f"#{self._count}"
        self._ids.add(unique)
        self._count += 1
        tensor = StoredTensor(unique, path, word, shape, kind, location, owner)
        self.tensors[tensor] = None
        return tensor


def _elements(shape: tuple[int, ...], name: str) -> int:
    """Return the elements of a shape; ModelError if it is impossible, before it is used."""
    elements = 0 if 0 in shape else 1
    for n in shape:
        elements *= n
        if n < 0 or elements > _MOST_ELEMENTS:
            raise ModelError(f"{quoted(name)} declares the shape {list(shape[:16])}; no tensor has it")
    return elements


def _location_in_model(record: TensorRecord, number: int, word: Word, elements: int, name: str) -> WordLocation:
    """Locate the words of a tensor in the model file itself; ModelError if they do not fit the declared shape."""
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
    """Return the TensorProto field that holds words of this format when they are not raw."""
    fields = {"float32": 4, "complex64": 4, "float64": 10, "complex128": 10, "int64": 7, "uint32": 11, "uint64": 11}
    return fields.get(word.name, 5)
