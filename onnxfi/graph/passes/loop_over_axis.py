"""A model that runs once for each place along an axis, with a state that it hands on: one model with a Scan.

Weights stay at the top of the graph under their names, so that a target of the model is one of the loop. Tensors named
as inputs and outputs of the model get another name inside of the body, where the loop has theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxfi.errors import ModelError, closest
from onnxfi.graph.model.protobuf_scan import text
from onnxfi.graph.passes.node_builder import opset_of

if TYPE_CHECKING:
    import onnx

#: The names of a step's own inputs and outputs, and of the dimensions of samples and of steps.
STEP, SAMPLES, STEPS = "/step", "N", "steps"
#: The first opset whose Scan has no batches.
_OPSET = 9


@dataclass(frozen=True)
class _Looped:
    """A model, and the axis and the inputs of a loop over it."""

    proto: onnx.ModelProto
    axis: int
    over: Sequence[str]
    carry: Mapping[str, str]

    def refuse(self) -> None:
        """Raise ModelError if the model cannot run so."""
        graph = self.proto.graph
        inputs, outputs = ({text(v.name) for v in values} for values in (graph.input, graph.output))
        for name in (*self.over, *self.carry):
            if name not in inputs:
                raise ModelError(f"the loop names input {name!r}, which the model does not have{closest(name, inputs)}")
        for name in self.carry.values():
            if name not in outputs:
                raise ModelError(f"the loop carries output {name!r}, which the model has not{closest(name, outputs)}")
        if self.axis < 1:
            raise ModelError(f"the loop goes over axis {self.axis}; axis 0 counts the samples, so give 1 or more")
        if opset_of(self.proto) < _OPSET:
            raise ModelError(f"the model has opset {opset_of(self.proto)}, and a loop needs {_OPSET} or later")
        for value in graph.input:
            rank = len(value.type.tensor_type.shape.dim)
            if text(value.name) in self.over and not (value.type.tensor_type.HasField("shape") and self.axis <= rank):
                raise ModelError(f"input {text(value.name)!r} of {rank} dimensions has no axis {self.axis} in a loop")

    def made(self) -> onnx.ModelProto:
        """Return the model with the loop."""
        import onnx
        from onnx import helper

        old = self.proto.graph
        by_input, by_output = ({text(v.name): v for v in values} for values in (old.input, old.output))
        stacked = [name for name in by_output if name not in self.carry.values()]
        ends = {name: name + STEP for name in (*self.over, *self.carry, *by_output)}
        body = onnx.GraphProto(name=f"{text(old.name)}{STEP}")
        body.node.extend(old.node)
        _rename(body, ends)
        for values, found, names in (
            (body.input, by_input, (*self.carry, *self.over)),
            (body.output, by_output, (*self.carry.values(), *stacked)),
        ):
            for name in names:
                value = values.add()
                value.CopyFrom(found[name])
                value.name = ends[name]
        loop = helper.make_node(
            "Scan", [*self.carry, *self.over], [*self.carry.values(), *stacked], name=STEPS, body=body,
            num_scan_inputs=len(self.over), scan_input_axes=[self.axis] * len(self.over),
            scan_output_axes=[self.axis] * len(stacked) or None,  # None: helper.make_node leaves the attribute out
        )  # fmt: skip
        new = onnx.ModelProto()
        new.CopyFrom(self.proto)
        for field in ("node", "input", "output", "value_info"):
            new.graph.ClearField(field)
        new.graph.node.append(loop)
        new.graph.input.extend(self._outer(value, text(value.name) in self.over) for value in old.input)
        new.graph.output.extend(self._outer(value, text(value.name) in stacked) for value in old.output)
        return new

    def _outer(self, value: onnx.ValueInfoProto, steps: bool) -> onnx.ValueInfoProto:
        """Return an input or output of the loop: with an axis of steps, or a state with its axis of samples."""
        import onnx

        new = onnx.ValueInfoProto()
        new.CopyFrom(value)
        kind = new.type.tensor_type
        if not kind.HasField("shape") or not kind.shape.dim:
            return new
        dims = list(kind.shape.dim)
        is_state = text(value.name) in (*self.carry, *self.carry.values())
        open_ = [k for k, dim in enumerate(dims) if not dim.HasField("dim_value")]
        samples = open_[0] if is_state and len(open_) == 1 else 0
        if steps or is_state:
            dims[samples] = onnx.TensorShapeProto.Dimension(dim_param=SAMPLES)
        if steps:
            dims.insert(min(self.axis, len(dims)), onnx.TensorShapeProto.Dimension(dim_param=STEPS))
        del kind.shape.dim[:]
        kind.shape.dim.extend(dims)
        return new


def loop_over_axis(proto: onnx.ModelProto, axis: int, over: Sequence[str], carry: Mapping[str, str]) -> onnx.ModelProto:
    """Return a model that runs this one for each place along an axis of some inputs, in order.

    Parameters
    ----------
    proto : onnx.ModelProto
        The model of one step, which stays as it is.
    axis : int
        The axis of the steps in the inputs `over` and in the outputs that are not carried.
    over : sequence of str
        The inputs that hold a part for each step.
    carry : mapping of str to str
        Inputs, and the outputs that feed them at the next step. The inputs of the loop are the first state, its
        outputs the last one.

    Returns
    -------
    onnx.ModelProto
        The model with the loop.

    Raises
    ------
    ModelError
        If the model lacks such an input or output, or has an opset before 9.

    Examples
    --------
    >>> from onnx import parser
    >>> step = parser.parse_model(
    ...     '<ir_version: 8, opset_import: ["": 13]> g (float[N,2] x, float[N,2] s) => (float[N,2] t) { t = Add(x, s) }'
    ... )
    >>> looped = loop_over_axis(step, 1, ["x"], {"s": "t"})
    >>> dims = looped.graph.input[0].type.tensor_type.shape.dim
    >>> looped.graph.node[0].op_type, [dim.dim_param or dim.dim_value for dim in dims]
    ('Scan', ['N', 'steps', 2])
    """
    found = _Looped(proto, axis, over, carry)
    found.refuse()
    return found.made()


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors other names wherever a graph makes or reads them, in its subgraphs as well."""
    for node in graph.node:
        for values in (node.input, node.output):
            for k, name in enumerate(values):
                if name in names:
                    values[k] = names[name]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)
                for value in inner.output:
                    value.name = names.get(value.name, value.name)
