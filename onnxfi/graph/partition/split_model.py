"""Stages: a model cut behind some of its tensors, so that between two stages a value in flight can be changed.

Every node runs in exactly one stage. What a later stage needs of an earlier one is handed on, so that nothing is
computed twice and no value but those that are cut can change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxfi.errors import ModelError, closest
from onnxfi.graph.model.graph_index import read_names

if TYPE_CHECKING:
    import onnx

#: The least IR version at which weights need not be listed as inputs.
_LEAST_IR = 4


@dataclass(frozen=True)
class Stage:
    """A part of a model: what it takes and gives, and the tensors that are cut behind it.

    `proto` is None where it has no node to run.
    """

    proto: onnx.ModelProto | None = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cuts: tuple[str, ...]


def crossing(proto: onnx.ModelProto, cuts: Sequence[str]) -> tuple[str, ...]:
    """The tensors that go from one stage into another, and those that are cut behind."""
    given = {i.name for i in proto.graph.input}
    return tuple(sorted({name for piece in _pieces(proto, cuts) for name in piece.inputs} - given | set(cuts)))


def stages(proto: onnx.ModelProto, cuts: Sequence[str], types: Mapping[str, onnx.TypeProto]) -> tuple[Stage, ...]:
    """A model cut behind these tensors of its top graph (inputs of the graph among them), in the order of its nodes.

    `types` says the types of what crosses from one stage into another. Raises ModelError for a tensor that is not
    there.
    """
    known = dict(types) | {i.name: i.type for i in proto.graph.input}
    out = []
    for piece in _pieces(proto, cuts):
        part = _part(proto, piece, known) if piece.outputs else None
        out.append(Stage(part, piece.inputs if part is not None else (), piece.outputs, piece.cuts))
    return tuple(out)


@dataclass(frozen=True)
class _Piece:
    """The nodes of one stage, and what they take and give."""

    nodes: list[onnx.NodeProto]
    cuts: tuple[str, ...]
    used: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def _pieces(proto: onnx.ModelProto, cuts: Sequence[str]) -> list[_Piece]:
    """The stages: each up to and with the node that puts out the next cuts; the last one has none."""
    rows = list(_rows(proto, cuts))
    stored = {t.name for t in proto.graph.initializer} | {t.values.name for t in proto.graph.sparse_initializer}
    ends = [o.name for o in proto.graph.output]
    used = [frozenset(n for node in nodes for n in read_names(node) if n) for nodes, _ in rows]
    at_hand, out = {i.name for i in proto.graph.input} - stored, []
    for k, (nodes, behind) in enumerate(rows):
        made = [name for node in nodes for name in node.output if name]
        wanted = {*ends, *behind}.union(*used[k + 1 :])
        outputs = [name for name in dict.fromkeys(made) if name in wanted]
        if k == len(rows) - 1:  # a graph may put out what no node makes
            outputs += [name for name in ends if name in stored]
        out.append(_Piece(nodes, behind, used[k], tuple(sorted((used[k] - set(made)) & at_hand)), tuple(outputs)))
        at_hand |= set(made)
    return out


def _rows(proto: onnx.ModelProto, cuts: Sequence[str]) -> Iterator[tuple[list[onnx.NodeProto], tuple[str, ...]]]:
    """The nodes up to and with the one that puts out the next cuts, and these; the last piece has none."""
    nodes = _sorted(proto.graph.node)
    place = {i.name: -1 for i in proto.graph.input} | {
        name: k for k, node in enumerate(nodes) for name in node.output if name
    }
    for name in cuts:
        if name not in place:
            raise ModelError(f"no tensor {name!r} in the top graph{closest(name, [*place])}")
    start = 0
    for at in sorted({place[name] for name in cuts}):
        yield nodes[start : at + 1], tuple(name for name in dict.fromkeys(cuts) if place[name] == at)
        start = at + 1
    yield nodes[start:], ()


def _sorted(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, each after those that it needs; the order of the file wherever that is one."""
    maker = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    needs = [
        sorted({maker[n] for n in read_names(node) if n in maker and maker[n] != k}) for k, node in enumerate(nodes)
    ]
    if all(not need or need[-1] < k for k, need in enumerate(needs)):
        return list(nodes)
    done: dict[int, None] = {}
    for first in range(len(nodes)):
        waiting = [first]
        while waiting:
            k = waiting[-1]
            left = [n for n in needs[k] if n not in done]
            if left and len(waiting) <= len(nodes):
                waiting += left[:1]
            else:
                done[waiting.pop()] = None
    return [nodes[k] for k in done]


def _part(proto: onnx.ModelProto, piece: _Piece, types: Mapping[str, onnx.TypeProto]) -> onnx.ModelProto:
    """A model of some of the nodes."""
    import onnx

    made, used = onnx.ModelProto(), piece.used | set(piece.outputs)
    made.ir_version = max(proto.ir_version, _LEAST_IR)
    made.opset_import.extend(proto.opset_import)
    made.functions.extend(proto.functions)
    graph = made.graph
    graph.name = proto.graph.name or "stage"
    graph.node.extend(piece.nodes)
    graph.initializer.extend(t for t in proto.graph.initializer if t.name in used)
    graph.sparse_initializer.extend(t for t in proto.graph.sparse_initializer if t.values.name in used)
    graph.quantization_annotation.extend(proto.graph.quantization_annotation)
    for name in piece.inputs:
        graph.input.add(name=name).type.CopyFrom(types[name])
    for name in piece.outputs:
        graph.output.add(name=name)
    return made
