"""Uses of values: the operators behind a tensor, tensors that no output depends on, shapes and indices."""

from __future__ import annotations

import pytest
from build_models import (
    floats,
    graph,
    ints,
    model,
    node,
    value,
)
from loaded_models import by_id, ids
from onnx import NodeProto, helper

from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import load


def test_a_tensor_belongs_to_the_operator_behind_what_only_converts_it() -> None:
    nodes = [
        node("DequantizeLinear", ["q", "scale"], ["w"], name="dq"),
        node("Transpose", ["w"], ["wt"], name="t"),
        node("MatMul", ["x", "wt"], name="/layer1/fc/MatMul"),
    ]
    found = by_id(model(nodes, [ints("q", [[1, 2]], "int8"), floats("scale")]))
    assert (found["q"].op, found["q"].node, found["q"].layer) == ("MatMul", "/layer1/fc/MatMul", "layer1.fc")
    assert (found["scale"].op, found["scale"].layer) == ("MatMul", "layer1.fc")


def test_every_user_of_a_shared_weight_selects_it() -> None:
    nodes = [
        node("Gather", ["e", "x"], ["a"], name="embed"),
        node("Transpose", ["e"], ["et"], name="t"),
        node("Identity", ["et"], ["again"]),
        node("If", ["c"], ["b"], name="if", then_branch=graph(
            [node("Add", ["et", "e"], ["z"], name="inside")], inputs=(), outputs=["z"]
        )),
        node("MatMul", ["a", "again"], name="lm_head"),
    ]  # fmt: skip
    (target,) = load(model([*nodes], [floats("e", 2, 2)], outputs=["y", "b"])).targets
    assert [user.node for user in target.consumers] == ["embed", "lm_head", "inside"]
    assert (target.op, target.node, target.layer) == ("Gather", "embed", "embed")
    for selector in (
        *(Selector(op=(op,)) for op in ("Gather", "MatMul", "Add")),
        *(Selector(include=(name,)) for name in ("embed", "lm_head", "=inside", "=e")),
    ):
        assert selector.selects(target)
    assert not Selector(op=("Transpose",)).selects(target)
    assert not Selector(exclude=("lm_head",)).selects(target)


def test_what_no_output_depends_on_is_unused() -> None:
    own = [helper.make_opsetid("", 20)]
    functions = [
        helper.make_function("own", name, ["x"], ["y"], [
            node("Constant", outputs=["k"], value=floats("k", 1)), node("Constant", outputs=["dead"], value_float=1.0),
            node("Inner" if name == "Called" else "Add", ["x", "k"], domain="own" if name == "Called" else ""),
        ], own)
        for name in ("Called", "Inner", "Never")
    ]  # fmt: skip
    then = graph([node("Add", ["outer", "in_then"], ["z"]), node("Neg", ["in_dead"], ["dead"])],
                 [floats("in_then", 1), floats("in_dead", 1)], inputs=(), outputs=["z"])  # fmt: skip
    nodes = [
        node("Shape", ["only_its_shape"], ["s"]), node("Reshape", ["x", "s"], ["r"]),
        node("CastLike", ["r", "only_its_type"], ["q"]),
        node("If", ["c"], ["p"], name="if", then_branch=then, else_branch=then),
        node("Called", ["p"], ["o"], domain="own"), node("Mul", ["o", "q"]),
        node("Gemm", ["x", "aux"], ["head"]), node("Never", ["head"], ["gone"], domain="own"),
        node("LinearRegressor", ["head"], ["v"], name="linear", domain="ai.onnx.ml", coefficients=[0.5]),
    ]  # fmt: skip
    stored = [floats(n, 1) for n in ("only_its_shape", "only_its_type", "c", "outer", "aux", "nothing", "put_out")]
    held = load(model(nodes, stored, outputs=["y", "put_out"], functions=functions))
    assert {t.id for t in held.targets if not t.unused} == {
        "c", "outer", "put_out", "if.else_branch::in_then", "if.then_branch::in_then",
        "function:own:Called::k", "function:own:Inner::k",
    }  # fmt: skip
    space = Selector().space(held.targets)
    assert space.size == 7 * 32 and not any(t.unused for t in space.targets)
    assert [note for note in held.notes if "unused" in note and "'only_its_shape'" in note]


def test_of_a_graph_that_puts_nothing_out_nothing_is_said_to_be_unused() -> None:
    assert not load(model([node("Mul", ["x", "w"])], [floats("w", 2)], outputs=())).targets[0].unused


SHAPES: dict[str, list[NodeProto]] = {
    "Reshape": [node("Reshape", ["x", "i"])],
    "Gather's indices": [node("Gather", ["x", "i"])],
    "Slice": [node("Slice", ["x", "i", "i", "i"])],
    "Expand": [node("Expand", ["x", "i"])],
    "through Concat, Cast and Unsqueeze": [
        node("Unsqueeze", ["i", "axes"], ["a"]),
        node("Cast", ["a"], ["b"], to=7),
        node("Concat", ["b", "b"], ["c"], axis=0),
        node("Reshape", ["x", "c"]),
    ],
    "arithmetic on shapes": [
        node("Shape", ["x"], ["s"]),
        node("Mul", ["s", "i"], ["m"]),
        node("Gather", ["m", "axes"], ["g"]),
        node("Expand", ["x", "g"]),
    ],
    "the table of shapes from which Gather picks": [node("Gather", ["i", "axes"], ["g"]), node("Reshape", ["x", "g"])],
    "two uses, both shapes": [node("Reshape", ["x", "i"], ["r"]), node("Tile", ["r", "i"])],
    "the count of a Loop": [
        node("Loop", ["i", "", "x"], body=graph([node("Relu", ["x"])], inputs=["n", "c", "x"], outputs=["c", "y"]))
    ],
    "out of both branches of an If": [
        node(
            "If", ["c"], ["s"],
            then_branch=graph([node("Identity", ["i"], ["t"])], inputs=(), outputs=["t"]),
            else_branch=graph([node("Cast", ["i"], ["e"], to=7)], inputs=(), outputs=["e"]),
        ),
        node("Reshape", ["x", "s"]),
    ],
    "used inside a branch": [
        node("If", ["c"], then_branch=graph([node("Reshape", ["x", "i"], ["t"])], inputs=(), outputs=["t"]))
    ],
    "the axes of a reduction": [node("ReduceMean", ["x", "i"])],
    "the depth of OneHot": [node("OneHot", ["labels", "i", "x"])],
}  # fmt: skip


DATA: dict[str, list[NodeProto]] = {
    "an output": [node("Identity", ["i"])],
    "converted to floats for a product": [node("Cast", ["i"], ["f"], to=1), node("MatMul", ["x", "f"])],
    "a table that Gather picks data from": [
        node("Gather", ["i", "axes"], ["g"]),
        node("Cast", ["g"], ["f"], to=1),
        node("Mul", ["x", "f"]),
    ],
    "a shape here and data there": [node("Reshape", ["x", "i"], ["r"]), node("MatMul", ["r", "i"])],
    "out of a Loop": [
        node("Loop", ["", "c"], body=graph([node("Identity", ["i"], ["t"])], inputs=["n", "c"], outputs=["c", "t"]))
    ],
    "out of one branch of an If": [
        node("If", ["c"], ["s"], then_branch=graph([node("Identity", ["i"], ["t"])], inputs=(), outputs=["t"])),
        node("Add", ["x", "s"]),
    ],
    "an integer convolution": [node("ConvInteger", ["x", "i"])],
    "the argument of a function of the model's own": [node("Own", ["x", "i"], domain="own")],
    "quantised": [node("DequantizeLinear", ["i", "scale"], ["d"]), node("MatMul", ["x", "d"])],
}


@pytest.mark.parametrize(
    ("nodes", "structural"),
    [*((n, True) for n in SHAPES.values()), *((n, False) for n in DATA.values())],
    ids=[*SHAPES, *DATA],
)
def test_shapes_and_indices_are_found_by_data_flow(nodes: list[NodeProto], structural: bool) -> None:
    for dtype in ("int64", "int32"):
        held = model(nodes, [ints("i", [1, 2], dtype), ints("axes", [0])], inputs=["x", "c", "labels"])
        assert by_id(held)["i"].structural is structural
    constant = [node("Constant", outputs=["i"], value_ints=[1, 2]), *nodes]
    assert by_id(model(constant, [ints("axes", [0])], inputs=["x", "c", "labels"]))["i"].structural is structural


def test_floats_and_narrow_integers_are_never_left_out() -> None:
    held = model([node("Resize", ["x", "", "scales"], ["r"]), node("Reshape", ["r", "q"])],
                 [floats("scales", 4), ints("q", [1], "int8")])  # fmt: skip
    assert not any(t.structural for t in by_id(held).values())


def test_embedding_tables_are_data_and_their_indices_are_not() -> None:
    found = by_id(model([node("Gather", ["table", "rows"])], [floats("table", 4, 2), ints("rows", [0, 3])]))
    assert (found["table"].structural, found["rows"].structural) == (False, True)


def test_shapes_are_faulty_only_when_they_are_named() -> None:
    nodes = [node("Reshape", ["x", "shape"], ["r"]), node("Mul", ["r", "w"])]
    held = load(model(nodes, [ints("shape", [2, 3]), floats("w", 1)]))
    assert Selector().space(held.targets).size == 32
    assert Selector(include=("shape",)).selects(held.targets[0]) is False
    assert Selector(include=("=shape",)).space(held.targets).size == 128


def test_sequences_and_optionals_around_do_not_disturb() -> None:
    kind = helper.make_tensor_type_proto(1, ["batch", None])
    odd = [
        helper.make_value_info("seq", helper.make_sequence_type_proto(kind)),
        helper.make_value_info("opt", helper.make_optional_type_proto(helper.make_sequence_type_proto(kind))),
        helper.make_value_info("sp", helper.make_sparse_tensor_type_proto(1, [2])),
        helper.make_value_info("map", helper.make_map_type_proto(7, kind)),
    ]
    nodes = [node("SequenceAt", ["seq", "k"], ["t"]), node("MatMul", ["t", "w"])]
    held = model(nodes, [floats("w", 2, 2), ints("k", 0)], inputs=odd)
    assert ids(load(held)) == ["w", "k"]
    assert by_id(held)["w"].op == "MatMul"


def test_declared_shapes_are_not_believed() -> None:
    wrong = [value("w", [7, "batch * heads - 1", None]), value("x", ["N + 2", -5])]
    held = model([node("MatMul", ["x", "w"])], [floats("w", 2, 3)], inputs=wrong, value_info=[value("w", [10**12])])
    assert by_id(held)["w"].shape == (2, 3)
