"""Which operators take, and which hand on, the integers that carry shapes and indices instead of data."""

from __future__ import annotations

#: Inputs that are shapes, axes, indices or counts, by operator.
INDEX_INPUTS: dict[str, frozenset[int]] = {
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
HAND_ON = frozenset((
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Div", "Equal", "Expand", "Flatten", "Floor", "Gather",
    "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "If", "Less", "LessOrEqual", "Max", "Min",
    "Mod", "Mul", "Neg", "Not", "Or", "Pow", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape",
    "ScatterElements", "ScatterND", "Sign", "Slice", "Split", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze",
    "Where",
))  # fmt: skip
