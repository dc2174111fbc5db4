"""Uses of values: the nodes that consume a stored tensor, and the values on which the outputs of a model depend.

A value is *data* if some use of it reaches an output other than as a shape or an index, and *used* if an output depends
on it at all.
"""

from __future__ import annotations

from onnxfi.graph.model.graph_index import GraphIndex, Node, Value

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
#: Operators whose inputs carry a shape where their outputs do.
_SHAPE_ARITHMETIC = frozenset((
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Div", "Equal", "Expand", "Flatten", "Floor", "Gather",
    "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "If", "Less", "LessOrEqual", "Max", "Min",
    "Mod", "Mul", "Neg", "Not", "Or", "Pow", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape",
    "ScatterElements", "ScatterND", "Sign", "Slice", "Split", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze",
    "Where",
))  # fmt: skip
#: Operators that only convert a stored tensor before the layer that it belongs to.
_CONVERSIONS = frozenset(("DequantizeLinear", "Cast", "Transpose", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
#: The longest chain of conversions that is followed.
_MOST_CONVERSIONS = 8
#: Inputs of which only the shape or the number format counts.
_SHAPE_ONLY_INPUTS = {
    "Shape": 0,
    "Size": 0,
    "EyeLike": 0,
    "RandomNormalLike": 0,
    "RandomUniformLike": 0,
    "CastLike": 1,
}


def consuming_nodes(value: Value) -> list[Node]:
    """Return the nodes that a stored tensor belongs to, in file order, past nodes that only convert it."""
    found: dict[Node, None] = {}
    seen: set[Node] = set()

    def follow(one: Value, depth: int) -> None:
        for node in one.consumers:
            followed = node.op in _CONVERSIONS and depth < _MOST_CONVERSIONS and node.outputs
            converted = node.outputs[0] if followed else None
            if converted is None or not converted.consumers:
                found.setdefault(node)
            elif node not in seen:
                seen.add(node)
                follow(converted, depth + 1)

    follow(value, 0)
    return list(found)


def live_values_and_nodes(index: GraphIndex) -> tuple[set[Value], set[Node]]:
    """Return the values and nodes that the outputs depend on; of a graph without outputs, all.

    The output of a function is used if a node that calls the function is used.
    """
    pending = list(index.main.outputs or index.values)
    values, nodes = set[Value](), set[Node]()
    while pending:
        value = pending.pop()
        values.add(value)
        node = value.producer
        if node is None or node in nodes:
            continue
        nodes.add(node)
        ignored = _SHAPE_ONLY_INPUTS.get(node.op, -1) if node.proto.domain in ("", "ai.onnx") else -1
        pending += [one for k, one in enumerate(node.inputs) if one is not None and k != ignored]
        pending += node.subgraph_outputs
        function = index.called(node)
        pending += function.outputs if function is not None else ()
    return values, nodes


def data_values(index: GraphIndex) -> set[Value]:
    """Return the values that are data, found from the outputs back; each edge is followed once."""
    nodes = index.nodes
    found = {
        value
        for node in nodes
        if node.op not in _SHAPE_ARITHMETIC
        for k, value in enumerate(node.inputs)
        if value is not None and k not in _INDEX_INPUTS.get(node.op, ())
    }
    for scope in (index.main, *index.functions.values()):
        found.update(scope.outputs)
    # The outputs of a loop's body are data; those of an If's branch are data if the If's output is.
    for node in nodes:
        if node.op != "If":
            found.update(node.subgraph_outputs)
    pending = list(found)
    while pending:
        producer = pending.pop().producer
        if producer is None or producer.op not in _SHAPE_ARITHMETIC:
            continue
        positions = _INDEX_INPUTS.get(producer.op, ())
        reached = [v for k, v in enumerate(producer.inputs) if v is not None and k not in positions]
        if producer.op == "If":
            reached = producer.subgraph_outputs
        fresh = [value for value in reached if value not in found]
        found.update(fresh)
        pending += fresh
    return found
