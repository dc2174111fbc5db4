"""Outputs that are added to be scored: spikes counted over time, and the scores in the maps of ZipMap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onnxfi.errors import ModelError, closest
from onnxfi.graph.dataflow.type_inference import infer_types
from onnxfi.graph.model.loading import Model, load, parse
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.passes.node_builder import opset_of

if TYPE_CHECKING:
    import onnx

#: Suffix of the name of the output of counts.
_SUFFIX = "/counts"
_FLOAT = 1
#: The attributes in which operators of ai.onnx.ml list classes, in the order of their scores.
_CLASS_LISTS = ("classlabels_ints", "classlabels_int64s", "classlabels_strings")


@dataclass(frozen=True)
class CountSpikes(ModelPass[str]):
    """The pass that adds a last output: the counts of spikes along the time axis of an output.

    `output` names the spikes (None: the only output of three dimensions or more). Its result is the name of the output.

    Examples
    --------
    >>> model = load("tests/graph/spiking/subtract_dynamo.onnx")
    >>> CountSpikes("spikes2", 0).run(parse(model))[1]
    'spikes2/counts'
    """

    output: str | None = None
    axis: int = 0
    name = "count-spikes"

    def requires(self, proto: onnx.ModelProto) -> None:
        """Raise ModelError for an output that does not exist, is ambiguous, or lacks the axis."""
        name, rank = self._spikes(proto)
        if rank is not None and self.axis >= rank:
            raise ModelError(
                f"time axis {self.axis} is beyond output {name!r} of {rank} dimensions: axes are 0 to {rank - 1}"
            )
        if any(value.name == name + _SUFFIX for value in proto.graph.output):
            raise ModelError(f"the spikes of {name!r} are counted already; score the output {name + _SUFFIX!r}")

    def apply(self, proto: onnx.ModelProto) -> str:
        """Add the nodes that count, and their output."""
        from onnx import helper, numpy_helper

        graph = proto.graph
        name, rank = self._spikes(proto)
        made, real = name + _SUFFIX, name + _SUFFIX + "/float"
        graph.node.append(helper.make_node("Cast", [name], [real], f"/time{real}", to=_FLOAT))
        if opset_of(proto) >= 13:
            # The last node but one, so that the numbers of other targets do not change.
            value = numpy_helper.from_array(np.array([self.axis]))
            graph.node.append(helper.make_node("Constant", [], [f"{made}/axis"], f"/time{made}/axis", value=value))
            node = helper.make_node("ReduceSum", [real, f"{made}/axis"], [made], f"/time{made}", keepdims=0)
        else:
            node = helper.make_node("ReduceSum", [real], [made], f"/time{made}", axes=[self.axis], keepdims=0)
        graph.node.append(node)
        dims = None if rank is None else [None] * (rank - 1)
        graph.output.append(helper.make_tensor_value_info(made, _FLOAT, dims))
        return made

    def _spikes(self, proto: onnx.ModelProto) -> tuple[str, int | None]:
        """Return the output of spikes and its rank, None if that is open."""
        kinds = {text(o.name): o.type.tensor_type for o in (*infer_types(proto).graph.output, *proto.graph.output)}
        sizes = {name: len(kind.shape.dim) for name, kind in kinds.items() if kind.HasField("shape")}
        ranks = {text(o.name): sizes.get(text(o.name)) for o in proto.graph.output}
        if self.output is not None and self.output not in ranks:
            raise ModelError(f"the model has no output {self.output!r}{closest(self.output, ranks)}")
        several = [name for name, rank in ranks.items() if (rank or 0) > 2]
        stacked = [self.output] if self.output is not None else several
        if len(stacked) != 1:
            what = "several outputs could" if stacked else "no output is sure to"
            raise ModelError(f"{what} be spikes over time; name one with --output: {', '.join(stacked or ranks)}")
        return stacked[0], ranks[stacked[0]]


def spike_count_output(proto: onnx.ModelProto) -> str:
    """Return the output of counts of a model in which spikes are counted."""
    return text(proto.graph.output[-1].name)


def with_spike_counts(model: Model, output: str | None, axis: int) -> Model:
    """Return the model with spike counts as a further output; its targets and its digest do not change."""
    if model.external:
        raise ModelError(
            f"{model.name} has external data, so spikes cannot be counted in it; write it as one file first"
        )
    return replace(load(CountSpikes(output, axis).run(parse(model))[0]), origin=model.digest)


@dataclass(frozen=True)
class MapScores(ModelPass[Mapping[str, str]]):
    """The pass that adds an output for each output of maps: the scores in them, [N,classes], by the order of the keys.

    Its result is the name of the scores by that of the maps.

    Examples
    --------
    >>> MapScores().run(parse(load("models/fashion_cnn.onnx")))[1]
    {}
    """

    name = "map-scores"

    def apply(self, proto: onnx.ModelProto) -> Mapping[str, str]:
        """Add the outputs that are not there yet."""
        from onnx import helper

        found = score_outputs(proto)
        known = {text(value.name) for value in proto.graph.output}
        kinds = {text(value.name): value.type.tensor_type.elem_type for value in infer_types(proto).graph.value_info}
        for name in dict.fromkeys(found.values()):
            if name not in known:
                proto.graph.output.append(helper.make_tensor_value_info(name, kinds.get(name) or _FLOAT, [None, None]))
        return found


def score_outputs(proto: onnx.ModelProto) -> dict[str, str]:
    """Return for each output of a ZipMap the tensor that it makes maps of."""
    made = {text(node.output[0]): text(node.input[0]) for node in proto.graph.node if text(node.op_type) == "ZipMap"}
    return {name: made[name] for value in proto.graph.output if (name := text(value.name)) in made}


def listed_classes(proto: onnx.ModelProto) -> tuple[int, ...] | tuple[str, ...]:
    """Return the classes of a classifier in the order of its scores, as its file lists them; none where it does not.

    The list of a ZipMap counts, else that of the node that puts out the label.

    >>> listed_classes(parse(load("models/fashion_cnn.onnx")))
    ()
    """
    outputs = {text(value.name) for value in proto.graph.output}
    makers = [node for node in proto.graph.node if outputs.intersection(map(text, node.output))]
    for node in sorted(makers, key=lambda node: text(node.op_type) != "ZipMap"):
        for attribute in node.attribute:
            numbers, names = tuple(attribute.ints), tuple(text(one) for one in attribute.strings)
            if text(attribute.name) in _CLASS_LISTS and (numbers or names):
                return numbers or names
    return ()


def with_map_scores(model: Model) -> tuple[Model, Mapping[str, str]]:
    """Return the model with the scores in maps as further outputs, and their names by those of the maps.

    Its faults and its digest stay its own; a model without such outputs, or with external data, stays as it is.
    """
    if model.external or not score_outputs(model.proto):
        return model, {}
    made, found = MapScores().run(parse(model))
    return replace(load(made), origin=model.digest), found
