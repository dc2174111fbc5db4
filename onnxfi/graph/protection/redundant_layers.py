"""Redundant layers: computed twice, with an alarm where the two differ, or thrice, with the majority.

Copies of a layer read their input through a Max or Min of one operand, which keeps every bit and hinders the runtime
from merging them with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxfi.errors import ModelError, SelectorError, closest
from onnxfi.faults.space import Selector
from onnxfi.graph.dataflow.activation_targets import Activation, activations
from onnxfi.graph.dataflow.batch_layout import declared_types
from onnxfi.graph.dataflow.random_nodes import RANDOM_OPERATORS
from onnxfi.graph.dataflow.type_inference import infer_types
from onnxfi.graph.model.graph_index import GraphIndex
from onnxfi.graph.model.loading import Model
from onnxfi.graph.model.stored_tensors import DATA_TYPES
from onnxfi.graph.passes.graph_edit import FreeNames, GraphEdit
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.passes.node_builder import NodeBuilder, opset_of
from onnxfi.graph.protection.alarms import ALARM, Flag, add_alarm, by_sample
from onnxfi.graph.protection.loop_and_branch_bodies import (
    check_unprotected,
    edited_graphs,
    made_by,
    marked,
    result_between,
)
from onnxfi.graph.protection.range_restriction import FORMATS, restrictable
from onnxfi.graph.protection.reach import check_names, left_outside, stored_in_reach

if TYPE_CHECKING:
    import onnx

#: Operators that compute: copies of these find faults in the computation.
COMPUTING = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
#: The least opset: comparisons of floats, Max and Min of every float format.
LEAST_OPSET = 13


@dataclass(frozen=True)
class Layer:
    """A layer's result: its name, format, whether its first axis counts samples, and the path of its graph.

    In a body no axis counts: an alarm there is one of all samples.
    """

    name: str
    dtype: str
    samples: bool
    path: str = ""

    @property
    def id(self) -> str:
        """The name behind the path."""
        return self.path + self.name

    @classmethod
    def of(cls, a: Activation) -> Layer:
        """Return the layer of an activation."""
        samples = not a.path and a.axis == 0 and a.place is not None and a.place.rows == 1
        return cls(a.name, a.target.dtype, samples, a.path)


@dataclass(frozen=True)
class RepeatLayers(ModelPass[tuple[str, ...]]):
    """The pass that computes layers twice, and raises an alarm where the two differ, or thrice, and takes the majority.

    The copies read the same weights. Its result are the names of the layers.
    """

    layers: tuple[Layer, ...]
    copies: Literal[2, 3] = 2
    name = "repeat-layers"

    def requires(self, proto: onnx.ModelProto) -> None:
        """Refuse layers that do not exist or cannot be copied."""
        kind = _KINDS[self.copies]
        check_layers(proto, self.layers, kind)
        made, guards = made_by(proto), _guarded_inputs(proto)
        for layer in self.layers:
            node = made[layer.id]
            why = ""
            if node.op_type in RANDOM_OPERATORS:
                why = "draws random numbers"
            elif any(a.HasField("g") or a.graphs for a in node.attribute):
                why = "holds a graph"
            elif guards(layer.path, node) is None:
                why = f"reads no computed numbers of {', '.join(_GUARDED)}"
            if why:
                raise ModelError(
                    f"{layer.id!r} cannot be computed again: {node.op_type} {why}; leave it out with --exclude"
                )

    def apply(self, proto: onnx.ModelProto) -> tuple[str, ...]:
        """Add the copies, and what compares them."""
        import onnx

        names, flags, guards = FreeNames(proto), list[Flag](), _guarded_inputs(proto)
        for edit, layer in edits_of(proto, self.layers):
            at = edit.maker[layer.name]
            value, result = layer.name, layer.name
            if self.copies == 3:
                value, result = result_between(edit, names, layer.name, "voted")
            g = NodeBuilder(opset_of(proto), names.new(f"{layer.name}.{_KINDS[self.copies]}") + ".")
            copies = []
            for guard in ("Max", "Min")[: self.copies - 1]:
                copy = onnx.NodeProto()
                copy.CopyFrom(edit.graph.node[at])
                copy.name = names.new(f"onnxfi/{_KINDS[self.copies]}/{layer.name}")
                place = guards(layer.path, copy)
                assert place is not None  # `requires` has seen to it
                copy.input[place] = g.add(guard, copy.input[place])
                outputs = [names.new(f"{name}.copy") if name else "" for name in copy.output]
                copies.append(outputs[list(edit.graph.node[at].output).index(value)])
                del copy.output[:]
                copy.output.extend(outputs)
                g.nodes.append(copy)
            if self.copies == 3:
                agree = g.add("Equal", *copies)
                g.add("Where", agree, copies[0], value, name=result)
            else:
                flags.append(Flag(_unequal(g, value, copies[0], layer), layer.samples, layer.path))
            edit.put_behind(at, g.nodes)
        if flags:
            add_alarm(proto, flags)
        return tuple(layer.id for layer in self.layers)


_KINDS: Mapping[int, str] = {2: "duplicate", 3: "triplicate"}
#: Formats that Max and Min take in ONNX Runtime.
_GUARDED = ("float16", "float32", "float64", "int32", "int64", "uint32", "uint64")


def edits_of(proto: onnx.ModelProto, layers: Iterable[Layer]) -> Iterator[tuple[GraphEdit, Layer]]:
    """Yield each layer with the edit of its graph, which is written when the next graph's turn comes."""
    for path, edit in edited_graphs(proto):
        yield from ((edit, layer) for layer in layers if layer.path == path)


def _guarded_inputs(proto: onnx.ModelProto) -> Callable[[str, onnx.NodeProto], int | None]:
    """Return a function that gives the input of a node through which its copies read: the first computed one.

    It takes the path of the node's graph. Stored inputs are no choice, since the runtime computes a Max of these when
    it loads the model. None: there is none.
    """
    inferred, graphs = GraphIndex.of(infer_types(proto)).by_path, GraphIndex.of(proto).graphs
    types: dict[str, dict[str, onnx.TypeProto]] = {}
    stored: dict[str, set[str]] = {}
    for scope in graphs:
        path, outer = scope.path, {} if scope.outer is None else types[scope.outer.path]
        types[path] = {**outer, **declared_types(inferred[path].graph)} if path in inferred else dict(outer)
        stored[path] = set(stored_in_reach(scope))

    def guarded(path: str, node: onnx.NodeProto) -> int | None:
        for place, name in enumerate(node.input):
            kind = types.get(path, {}).get(name)
            word = None if kind is None else DATA_TYPES.get(kind.tensor_type.elem_type)
            if (
                name
                and name not in stored.get(path, ())
                and (kind is None or (word is not None and word.name in _GUARDED))
            ):
                return place
        return None

    return guarded


def find_layers(model: Model, selector: Selector | None = None) -> tuple[Layer, ...]:
    """Return the layers of a selection: all convolutions and products, or those that it names.

    Raises
    ------
    SelectorError
        If the selector names nothing that can be copied.

    Examples
    --------
    >>> from onnxfi.graph.model.loading import load
    >>> [layer.name for layer in find_layers(load("models/fashion_cnn.onnx"))]
    ['conv2d', 'conv2d_1', 'linear', 'logits']
    """
    selector = selector or Selector()
    rows = [a for a in activations(model) if restrictable(a)]
    explicit = bool(selector.include or selector.op)
    chosen = [a for a in rows if (explicit or a.target.op in COMPUTING) and selector.selects(a.target)]
    for field in ("include", "op"):
        check_names(model, getattr(selector, field), field, [a.target for a in rows], "layer")
    if not chosen:
        raise SelectorError(
            f"the selection takes no layer whose results are of the formats {', '.join(FORMATS)}; "
            f"{next(left_outside(model, COMPUTING, selector), 'name layers with --include')}"
        )
    return tuple(Layer.of(a) for a in chosen)


def check_layers(proto: onnx.ModelProto, layers: Iterable[Layer], kind: str) -> None:
    """Raise ModelError if detectors cannot go after these layers."""
    check_unprotected(proto, kind, LEAST_OPSET)
    mine = any(marked(proto, other) for other in ("duplicate", "checksum"))
    if not mine and any(output.name == ALARM for output in proto.graph.output):
        raise ModelError(f"the model has an output {ALARM!r} of another meaning; give it another name")
    made = made_by(proto)
    for layer in layers:
        if layer.id not in made:
            raise ModelError(f"no layer {layer.id!r} in the model{closest(layer.id, made)}")


def _unequal(g: NodeBuilder, one: str, other: str, layer: Layer) -> str:
    """Append what says for each sample, or for all, whether two values differ: 1 or 0."""
    return by_sample(g, g.cast(g.add("Not", g.add("Equal", one, other)), "float32"), samples=layer.samples)
