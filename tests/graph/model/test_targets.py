"""Targets: what is found, under which id, in which order, and what its words are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import protobuf_reader
import pytest
from build_models import (
    FORMATS,
    LAYOUT,
    SIGNED,
    chunk,
    floats,
    graph,
    ints,
    model,
    model_bytes,
    node,
    scalar,
    tensor_bytes,
    value,
)
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxfi.errors import ModelError, SelectorError
from onnxfi.faults.space import Selector, Target
from onnxfi.faults.words import WORDS
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.model.stored_tensors import DATA_TYPES
from onnxfi.runtime.inject.weights import inject, sample


def ids(held: Model) -> list[str]:
    return [target.id for target in held.targets]


def by_id(held: ModelProto | bytes) -> dict[str, Target]:
    return {target.id: target for target in load(held).targets}


def words(held: Model, name: str) -> list[int]:
    target = held.targets[held.by_id[name]]
    return held.words(target, np.arange(target.size)).tolist()


def sparse(name: str, numbers: Sequence[float]) -> onnx.SparseTensorProto:
    values = onnx.numpy_helper.from_array(np.array(numbers, np.float32), name)
    return helper.make_sparse_tensor(values, ints("", range(len(numbers))), [100])


# Ids, order, kinds


def test_every_place_where_numbers_lie_in_the_order_of_targets() -> None:
    inner = graph(
        [node("Constant", outputs=["deep"], value_float=2.0)], [floats("own", 1)], inputs=(), outputs=["deep"]
    )
    then = graph(
        [node("If", ["c"], ["r"], name="inner", then_branch=inner, else_branch=inner)],
        [floats("w", 2), floats("b", 1)],
        inputs=(),
        outputs=["r"],
    )
    other = graph([node("Constant", outputs=["k"], value_ints=[1, 2])], inputs=(), outputs=["k"])
    body = graph([node("Relu", ["x"])], [floats("in_loop", 3)], inputs=["i", "c", "x"], outputs=["c", "y"])
    function = helper.make_function(
        "own", "Twice", ["x"], ["y"],
        [node("Constant", outputs=["two"], value=floats("t", 1)), node("Mul", ["x", "two"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    overloaded = helper.make_function(
        "own", "Twice", ["x"], ["y"], [node("Constant", outputs=["two"], value_floats=[2.0])],
        [helper.make_opsetid("", 20)], overload="other",
    )  # fmt: skip
    nodes = [
        node("If", ["c"], ["z"], then_branch=then, else_branch=other),
        node("Constant", outputs=["late"], value=floats("ignored", 2)),
        node("Loop", ["", "c", "x"], name="loop:1", body=body),
        node("LinearRegressor", ["x"], ["v"], name="linear", domain="ai.onnx.ml", coefficients=[0.5], intercepts=[1.0]),
        node("Constant", outputs=["s"], sparse_value=sparse("", [1.0, 2.0])),
        node("Scan", ["x"], ["u"], body=body, num_scan_inputs=1),
    ]
    held = load(
        model(
            nodes, [floats("w", 4), floats("a", 1)], functions=[function, overloaded],
            sparse_initializer=[sparse("sp", [3.0])],
        )
    )  # fmt: skip
    assert ids(held) == [
        "w", "a", "sp", "late", "linear.coefficients", "linear.intercepts", "s",
        "If#0.else_branch::k",
        "If#0.then_branch::w", "If#0.then_branch::b",
        "If#0.then_branch::inner.else_branch::own", "If#0.then_branch::inner.else_branch::deep",
        "If#0.then_branch::inner.then_branch::own", "If#0.then_branch::inner.then_branch::deep",
        "loop:1.body::in_loop", "Scan#5.body::in_loop",
        "function:own:Twice::two", "function:own:Twice:other::two",
    ]  # fmt: skip
    kinds = {t.id: t.kind for t in held.targets}
    assert (kinds["w"], kinds["sp"], kinds["late"], kinds["s"]) == ("initializer", "sparse", "constant", "sparse")
    assert kinds["linear.coefficients"] == "attribute"
    assert words(held, "If#0.else_branch::k") == [1, 2]
    assert all("unused" in note for note in held.notes)


def test_the_attributes_of_a_node_are_walked_in_file_order() -> None:
    # helper.make_node sorts attributes by name, files need not: then_branch comes first here.
    then, other = (graph([], [floats("w", 1)], inputs=(), outputs=["w"]) for _ in range(2))
    branch = NodeProto(op_type="If", input=["c"], output=["y"])
    branch.attribute.extend([helper.make_attribute("then_branch", then), helper.make_attribute("else_branch", other)])
    assert ids(load(model([branch]))) == ["If#0.then_branch::w", "If#0.else_branch::w"]


def test_a_list_of_graphs_has_a_number_in_its_path() -> None:
    bodies = [graph([], [floats("w", 1)], inputs=(), outputs=["w"]) for _ in range(2)]
    many, one = (helper.make_attribute("branches", some) for some in (bodies, bodies[:1]))
    switch, single = node("Switch", ["x"], name="s", domain="own"), node("Switch", ["x"], ["z"], domain="own")
    switch.attribute.append(many)
    single.attribute.append(one)
    assert ids(load(model([switch, single]))) == ["s.branches#0::w", "s.branches#1::w", "Switch#1.branches::w"]


def test_a_shared_initializer_is_listed_once_and_belongs_to_its_first_user() -> None:
    nodes = [node("Gemm", ["x", "w"], ["a"], name="first"), node("MatMul", ["a", "w"], name="second")]
    (target,) = load(model(nodes, [floats("w", 2, 2)])).targets
    assert (target.op, target.node, target.layer) == ("Gemm", "first", "first")


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


def test_a_node_that_takes_a_tensor_twice_is_one_user() -> None:
    (target,) = load(model([node("MatMul", ["w", "w"], name="square")], [floats("w", 2, 2)])).targets
    assert (target.node, target.consumers) == ("square", ())


def test_layers_of_equal_names_in_several_graphs_are_several_layers() -> None:
    def body(name: str) -> onnx.GraphProto:
        nodes = [node("MatMul", ["x", name], ["h"], name="fc"), node("Add", ["h", "own.weight"], ["z"])]
        return graph(nodes, [floats(name, 2, 2), floats("own.weight", 2)], inputs=(), outputs=["z"])

    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="fc"),
        node("If", ["c"], ["i"], name="if", then_branch=body("w"), else_branch=body("v")),
        node("Mul", ["i", "only"], ["j"], name="alone"),
        node("Add", ["j", "h"]),
    ]
    found = load(model(nodes, [floats("w", 2, 2), floats("only", 1)])).targets
    assert {t.id: t.layer for t in found} == {
        "w": "fc", "only": "alone",
        "if.else_branch::v": "if.else_branch::fc", "if.else_branch::own.weight": "if.else_branch::own",
        "if.then_branch::w": "if.then_branch::fc", "if.then_branch::own.weight": "if.then_branch::own",
    }  # fmt: skip
    assert len(Selector(include=("fc",)).space(found).layers()) == 3


def test_a_layer_that_the_framework_names_is_one_wherever_it_stands() -> None:
    inside = node("MatMul", ["x", "w"], ["z"], name="/fc/MatMul_1")
    body = graph([inside], [floats("w", 2, 2)], inputs=(), outputs=["z"])
    nodes = [node("MatMul", ["x", "w"], ["h"], name="/fc/MatMul"), node("If", ["h"], name="if", then_branch=body)]
    assert {t.layer for t in load(model(nodes, [floats("w", 2, 2)])).targets} == {"fc"}


# What no output depends on


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


def test_what_is_unused_is_struck_only_when_it_is_named() -> None:
    held = load(model([node("Mul", ["x", "w"])], [floats("w", 2), floats("aux", 3)]))
    assert Selector().space(held.targets).size == 64
    assert Selector(include=("=aux",)).space(held.targets).size == 96
    assert sample(held, sites=["aux[0]:1"]).header.population == 96
    for selector in (Selector(include=("aux",)), Selector(include=("au*",), bits="sign")):
        with pytest.raises(SelectorError, match=r"is unused: no output of the model depends on 'aux'.*select others"):
            selector.space(held.targets)


def test_of_a_graph_that_puts_nothing_out_nothing_is_said_to_be_unused() -> None:
    assert not load(model([node("Mul", ["x", "w"])], [floats("w", 2)], outputs=())).targets[0].unused


def test_a_tensor_that_nobody_uses_is_its_own_layer() -> None:
    found = by_id(model([node("Relu", ["x"])], [floats("w", 2)]))["w"]
    assert (found.op, found.node, found.layer, found.structural) == ("", "", "w", False)


def test_outer_names_are_seen_from_branches_and_hidden_by_inner_ones() -> None:
    then = graph([node("MatMul", ["x", "outer"], name="user")], inputs=(), outputs=["y"])
    hidden = graph([node("Mul", ["x", "outer"], name="other")], [floats("outer", 1)], inputs=(), outputs=["y"])
    nodes = [node("If", ["c"], name="if", then_branch=then, else_branch=hidden)]
    found = by_id(model(nodes, [floats("outer", 2)]))
    assert {name: target.node for name, target in found.items()} == {"outer": "user", "if.else_branch::outer": "other"}


def test_an_initializer_that_is_also_an_input_is_a_target() -> None:
    held = model([node("Gemm", ["x", "w"])], [floats("w", 2)], inputs=["x", value("w", [2])])
    assert ids(load(held)) == ["w"]


# Names


@pytest.mark.parametrize("name", ["a:b/c[0]:7", "a::b", "::", "[3]", "x[1,2]@step=3", " ", "名前", "a\nb", "\x1b[31m"])
def test_any_name_can_be_struck_by_its_site(name: str) -> None:
    held = load(model([node("Mul", ["x", name])], [floats(name, 2, 2)]))
    assert ids(held) == [name]
    done = inject(held, sample(held, sites=[f"{name}[1,0]:31"]))
    faulty = protobuf_reader.read(done.data or b"")
    assert faulty[name].words.tolist() == [0x3F800000, 0x40000000, 0xC0400000, 0x40800000]


def test_nameless_nodes_are_numbered_in_file_order() -> None:
    body = graph([node("Constant", outputs=["k"], value_float=1.0)], inputs=(), outputs=["k"])
    nodes = [node("Relu", ["x"], ["r"]), *(node("If", ["c"], [f"y{k}"], then_branch=body) for k in range(2))]
    assert ids(load(model(nodes))) == ["If#1.then_branch::k", "If#2.then_branch::k"]


def test_nodes_of_one_name_are_told_apart() -> None:
    body = graph([], [floats("w", 1)], inputs=(), outputs=["w"])
    nodes = [node("If", ["c"], [f"y{k}"], name="same", then_branch=body) for k in range(3)]
    nodes.append(node("SVMRegressor", ["x"], ["v"], name="same", domain="ai.onnx.ml", coefficients=[1.0]))
    held = load(model(nodes))
    assert ids(held) == ["same#3.coefficients", *(f"same{k}.then_branch::w" for k in ("", "#1", "#2"))]
    assert held.notes == ()


def test_ids_are_unique_whatever_the_names_say() -> None:
    # A node whose name spells the path into another one's body.
    inner = graph([], [floats("w", 1)], inputs=(), outputs=["w"])
    body = graph([node("If", ["c"], ["w"], name="b", then_branch=inner)], inputs=(), outputs=["w"])
    nodes = [
        node("If", ["c"], ["y"], name="a", then_branch=body),
        node("If", ["c"], ["z"], name="a.then_branch::b", then_branch=inner),
    ]
    held = load(model(nodes))
    assert len(held.targets) == 2
    assert ids(held)[0] == "a.then_branch::b.then_branch::w"
    assert ids(held)[1].startswith("a.then_branch::b.then_branch::w#")


def test_of_two_initializers_of_one_name_the_last_counts() -> None:
    # ONNX Runtime: "Duplicate initializer … the model will use the latest encountered initializer".
    held = load(model([node("Mul", ["x", "w"])], [floats("w", 2), floats("v", 1), floats("w", 3)]))
    assert [(t.id, t.shape) for t in held.targets] == [("v", (1,)), ("w", (3,))]
    assert "'w' is there twice" in held.notes[0]
    assert held.targets[1].op == "Mul"
    constant = node("Constant", outputs=["w"], value=floats("", 4))
    held = load(model([constant, node("Mul", ["x", "w"])], [floats("w", 2)]))
    assert [(t.id, t.shape, t.kind) for t in held.targets] == [("w", (4,), "constant")]


def test_tensors_without_a_name_are_numbered() -> None:
    # Nothing can use them, but they are there, and each can be struck by its site.
    nodes = [node("Constant", outputs=[""], value_float=1.0), NodeProto(op_type="Constant")]
    nodes[1].attribute.append(helper.make_attribute("value_ints", [3]))
    held = load(model(nodes, [floats("", 1), floats("w", 1), floats("", 2)], sparse_initializer=[sparse("", [1.0])]))
    assert ids(held) == ["initializer#0", "w", "initializer#2", "sparse#0", "Constant#0", "Constant#1"]
    assert held.notes == ()
    done = inject(held, sample(held, sites=["initializer#2[1]:31", "Constant#1[0]:0"]))
    assert words(load(done.data or b""), "initializer#2") == [0x3F800000, 0xC0000000]
    assert words(load(done.data or b""), "Constant#1") == [2]


def test_equal_names_in_several_bodies_are_several_targets() -> None:
    bodies = [graph([node("Mul", ["x", "w"])], [floats("w", 1)], inputs=(), outputs=["y"]) for _ in range(2)]
    held = load(model([node("If", ["c"], name="if", then_branch=bodies[0], else_branch=bodies[1])], [floats("w", 1)]))
    assert ids(held) == ["w", "if.else_branch::w", "if.then_branch::w"]
    assert [t.unused for t in held.targets] == [True, False, False]
    assert len(held.notes) == 1


# Formats and forms


def corner_words(data_type: int) -> list[int]:
    """Words of a format, its corners among them; an odd number, so that packed ones do not fill their last byte."""
    parts, bits = LAYOUT[data_type]
    full = (1 << (1 if data_type == 9 else bits)) - 1
    some = [0, full, 1, full >> 1, (full >> 1) + 1, full - 1, 0x5A5A5A5A5A5A5A5A & full]
    return some if parts == 1 else some[:6]


@pytest.mark.parametrize("form", ["raw", "packed", "unpacked"])
@pytest.mark.parametrize("data_type", FORMATS)
def test_every_format_in_every_form(data_type: int, form: str) -> None:
    parts, _ = LAYOUT[data_type]
    held = corner_words(data_type)
    data = model_bytes(tensor_bytes("w", data_type, [len(held) // parts], held, form))
    found = load(data)
    (target,) = found.targets
    assert target.word == DATA_TYPES[data_type]
    assert (target.shape, target.size) == ((len(held) // parts,), len(held))
    assert words(found, "w") == held
    assert found.words(target, np.array([4, 0, 4])).tolist() == [held[4], held[0], held[4]]
    assert protobuf_reader.read(data)["w"].words.tolist() == held


@pytest.mark.parametrize(
    "form", ["raw", *(pytest.param(some, marks=pytest.mark.slow) for some in ("packed", "unpacked"))]
)
@pytest.mark.parametrize("data_type", FORMATS)
def test_bits_of_every_format_can_be_flipped_and_back(data_type: int, form: str) -> None:
    held = corner_words(data_type)
    data = model_bytes(tensor_bytes("w", data_type, [len(held) // LAYOUT[data_type][0]], held, form))
    found = load(data)
    (target,) = found.targets
    top = target.word.bits - 1
    for bit in {0, 1, 6, 7, 13, 14, top // 2, top - 1, top} & set(range(top + 1)):
        for at in range(bit % 2, len(held), 2):
            done = inject(found, sample(found, sites=[f"w[{at}]:{bit}"]))
            assert done.data is not None
            expected = [*held]
            expected[at] ^= 1 << bit
            assert protobuf_reader.read(done.data)["w"].words.tolist() == expected
            assert done.resized == (len(done.data) != len(data))
            signed_varint = form != "raw" and data_type in SIGNED
            if not done.resized:
                changed = np.frombuffer(done.data, np.uint8) ^ np.frombuffer(data, np.uint8)
                assert np.bitwise_count(changed).sum() == 1
            else:
                assert form != "raw"
                assert signed_varint or data_type not in (1, 11, 14, 15)
            faulty = load(done.data)
            assert inject(faulty, sample(faulty, sites=[f"w[{at}]:{bit}"])).data == data


def test_every_data_type_of_onnx_has_a_word_strings_aside() -> None:
    known = {k for name, k in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")}
    assert set(DATA_TYPES) == set(FORMATS)
    assert known == set(LAYOUT)
    assert {WORDS[name] for name in WORDS} == set(DATA_TYPES.values())
    for k, word in DATA_TYPES.items():
        assert helper.tensor_dtype_to_np_dtype(k).itemsize == max(1, word.storage // 8) * word.parts
        assert word.name == TensorProto.DataType.Name(k).lower().replace("_", "") or word.is_float or word.parts == 2


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,), (1, 1, 1, 1), (2, 3)])
@pytest.mark.parametrize("form", ["raw", "packed", "unpacked"])
@pytest.mark.parametrize("data_type", [1, 3, 22, 14])
def test_any_rank_and_size(shape: tuple[int, ...], form: str, data_type: int) -> None:
    parts, _ = LAYOUT[data_type]
    held = [1] * (int(np.prod(shape)) * parts)
    found = load(model_bytes(tensor_bytes("w", data_type, shape, held, form)))
    (target,) = found.targets
    assert (target.shape, target.size, target.bits) == (shape, len(held), len(held) * target.word.bits)
    assert words(found, "w") == held


def test_unused_bits_of_a_stored_word_stay_as_they_are() -> None:
    # A bool lives in a byte, and a writer may leave anything in the seven others; so may the last byte of packed ones.
    for data_type, payload, bits in ((9, b"\xff\x00\x81", 8), (22, b"\x21\xf3", 4), (25, b"\xe4\xff", 2)):
        count = {9: 3, 22: 3, 25: 5}[data_type]
        tensor = scalar(1, count) + scalar(2, data_type) + chunk(8, b"w") + chunk(9, payload)
        data = model_bytes(tensor)
        found = load(data)
        done = inject(found, sample(found, sites=["w[0]:0", "w[2]:0"]))
        assert done.data is not None
        a, b = (np.frombuffer(x, np.uint8) for x in (data, done.data))
        assert np.bitwise_count(a ^ b).sum() == 2
        faulty = load(done.data)
        assert inject(faulty, sample(faulty, sites=["w[2]:0", "w[0]:0"])).data == data
        assert len(words(found, "w")) == count, bits


def test_odd_upper_bits_of_a_typed_number_stay_as_they_are() -> None:
    # float16 words sign-extended into int32_data, as some writer might: nothing but the struck bit changes.
    tensor = scalar(1, 1) + scalar(2, 10) + chunk(8, b"w") + scalar(5, -1)
    data = model_bytes(tensor)
    found = load(data)
    assert words(found, "w") == [0xFFFF]
    done = inject(found, sample(found, sites=["w[0]:15"]))
    assert list(ModelProto.FromString(done.data or b"").graph.initializer[0].int32_data) == [-0x8001]
    faulty = load(done.data or b"")
    assert inject(faulty, sample(faulty, sites=["w[0]:15"])).data == data


def test_typed_numbers_that_no_writer_of_onnx_makes_are_read_as_parsers_read_them() -> None:
    # int32 −1 in five bytes instead of ten, and 1 in two bytes instead of one: valid protobuf, seldom seen.
    tensor = scalar(1, 2) + scalar(2, 6) + chunk(8, b"w") + chunk(5, b"\xff\xff\xff\xff\x0f" + b"\x81\x00")
    data = model_bytes(tensor)
    assert list(ModelProto.FromString(data).graph.initializer[0].int32_data) == [-1, 1]
    found = load(data)
    assert words(found, "w") == [0xFFFFFFFF, 1]
    for site, expected in (("w[0]:0", [-2, 1]), ("w[0]:31", [0x7FFFFFFF, 1]), ("w[1]:3", [-1, 9])):
        done = inject(found, sample(found, sites=[site]))
        assert list(ModelProto.FromString(done.data or b"").graph.initializer[0].int32_data) == expected


def test_bits_that_parsers_skip_stay_as_they_are() -> None:
    # The tenth byte of a varint holds one bit; a writer may leave anything in the six others.
    for form, number in ((5, b"\xff" * 9 + b"\x7f"), (7, b"\x80" * 9 + b"\x7e")):
        data = model_bytes(scalar(1, 1) + scalar(2, {5: 3, 7: 7}[form]) + chunk(8, b"w") + chunk(form, number))
        found = load(data)
        assert words(found, "w") == [{5: 0xFF, 7: 0}[form]]
        done = inject(found, sample(found, sites=["w[0]:1"]))
        if form == 5:
            assert np.bitwise_count(np.frombuffer(done.data or b"", "u1") ^ np.frombuffer(data, "u1")).sum() == 1
            assert inject(load(done.data or b""), sample(found, sites=["w[0]:1"])).data == data
        assert words(load(done.data or b""), "w") == [{5: 0xFD, 7: 2}[form]]


def test_raw_data_comes_before_typed_fields_and_the_last_raw_data_counts() -> None:
    head = scalar(1, 1) + scalar(2, 1) + chunk(8, b"w")
    one, two = np.float32(1).tobytes(), np.float32(2).tobytes()
    for tail in (chunk(9, two) + chunk(4, one), chunk(9, one) + chunk(9, two), chunk(4, one) + chunk(9, two)):
        data = model_bytes(head + tail)
        held = onnx.numpy_helper.to_array(ModelProto.FromString(data).graph.initializer[0])
        assert held.tolist() == [2.0]
        assert words(load(data), "w") == [0x40000000]


@pytest.mark.parametrize("data_type", FORMATS)
@pytest.mark.parametrize("form", ["raw", "packed", "unpacked"])
def test_a_tensor_that_holds_more_or_less_than_it_declares_is_refused(data_type: int, form: str) -> None:
    parts, _ = LAYOUT[data_type]
    for declared in (8, 3, 0):
        with pytest.raises(ModelError, match=rf"'w' declares .* {DATA_TYPES[data_type].name}.* holds .* is damaged"):
            load(model_bytes(tensor_bytes("w", data_type, [declared], [0] * 16 * parts, form)))


def test_strings_and_unknown_formats_are_left_out() -> None:
    strings = helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"b"])
    odd = TensorProto(name="odd\x1b", data_type=99, dims=[1], raw_data=b"1234")
    held = load(model([node("Mul", ["x", "w"])], [strings, odd, floats("w", 1)]))
    assert ids(held) == ["w"]
    assert held.notes == (
        "'odd\\x1b' has the number format 99, which onnxfi does not know; faults cannot be injected into it",
    )


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20), st.integers(0, 63), st.data())
def test_lists_of_integers_in_attributes(numbers: list[int], bit: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(numbers) - 1))
    held = load(model([node("Constant", value_ints=numbers), node("Constant", outputs=["z"], value_int=numbers[0])]))
    assert [(t.id, t.shape, t.dtype) for t in held.targets] == [("y", (len(numbers),), "int64"), ("z", (), "int64")]
    assert words(held, "y") == [n % (1 << 64) for n in numbers]
    assert words(held, "z") == [numbers[0] % (1 << 64)]
    done = inject(held, sample(held, sites=[f"y[{at}]:{bit}", f"z[0]:{bit}"]))
    found = protobuf_reader.read(done.data or b"")
    expected = [n % (1 << 64) for n in numbers]
    assert found["z"].words.tolist() == [expected[0] ^ 1 << bit]
    expected[at] ^= 1 << bit
    assert found["y"].words.tolist() == expected


def test_float_constants_in_attributes() -> None:
    nodes = [node("Constant", outputs=["one"], value_float=1.5), node("Constant", value_floats=[1.0, -2.0])]
    held = load(model([*nodes, node("Constant", outputs=["none"], value_string="text")]))
    assert [(t.id, t.shape, t.dtype, t.kind) for t in held.targets] == [
        ("one", (), "float32", "constant"),
        ("y", (2,), "float32", "constant"),
    ]
    done = inject(held, sample(held, sites=["one[0]:31", "y[1]:31"]))
    assert [s.words.tolist() for s in protobuf_reader.read(done.data or b"").values()] == [
        [0xBFC00000],
        [0x3F800000, 0x40000000],
    ]


def test_a_signalling_nan_keeps_its_bits() -> None:
    held = load(model_bytes(*(tensor_bytes(f, 1, [1], [0x7F800001], f) for f in ("raw", "packed", "unpacked"))))
    assert [words(held, name) for name in ids(held)] == [[0x7F800001]] * 3
    drawn = sample(held, sites=[f"{name}[0]:3" for name in ids(held)])
    found = protobuf_reader.read(inject(held, drawn).data or b"")
    assert {s.words.tolist()[0] for s in found.values()} == {0x7F800009}


# Classical models


def test_number_lists_of_classical_models() -> None:
    tree = node(
        "TreeEnsembleRegressor", ["x"], name="trees", domain="ai.onnx.ml",
        nodes_values=[0.5, 1.5], nodes_treeids=[0, 0], nodes_modes=["LEAF", "LEAF"], target_weights=[1.0],
        n_targets=1, nodes_values_as_tensor=floats("any", 2), post_transform="NONE",
    )  # fmt: skip
    found = by_id(model([tree]))
    assert list(found) == [
        "trees.nodes_treeids", "trees.nodes_values", "trees.nodes_values_as_tensor", "trees.target_weights",
    ]  # fmt: skip
    assert {t.kind for t in found.values()} == {"attribute"}
    assert {t.op for t in found.values()} == {"TreeEnsembleRegressor"}
    assert [t.structural for t in found.values()] == [True, False, False, False]
    assert found["trees.nodes_values"].node == "trees"
    assert found["trees.nodes_values_as_tensor"].shape == (2,)


def test_number_lists_of_other_operators_are_no_weights() -> None:
    held = load(model([node("Conv", ["x", "w"], strides=[1, 1]), node("Upsample", ["x"], ["z"], scales=[1.0])]))
    assert ids(held) == []


# Shapes and indices


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


def test_shapes_are_struck_only_when_they_are_named() -> None:
    nodes = [node("Reshape", ["x", "shape"], ["r"]), node("Mul", ["r", "w"])]
    held = load(model(nodes, [ints("shape", [2, 3]), floats("w", 1)]))
    assert Selector().space(held.targets).size == 32
    assert Selector(include=("shape",)).selects(held.targets[0]) is False
    assert Selector(include=("=shape",)).space(held.targets).size == 128


# Odd files


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


def test_versions_newer_than_onnx_knows_are_noted_and_not_refused() -> None:
    held = model([node("Mul", ["x", "w"])], [floats("w", 1)], opsets=[("", 9999), ("ai.onnx", 9998), ("com.future", 7)])
    held.ir_version = 999
    found = load(held)
    assert ids(found) == ["w"]
    text = "\n".join(found.notes)
    assert "IR version 999 is newer" in text
    assert "opset 9999 is newer" in text
    assert "the default opset is imported 2 times: 9999, 9998" in text


def test_a_file_without_an_opset_is_noted_and_not_refused() -> None:
    held = model([node("Mul", ["x", "w"])], [floats("w", 1)])
    del held.opset_import[:]
    assert any("no default opset is imported" in text for text in load(held).notes)


def test_training_graphs_are_kept_and_not_struck() -> None:
    held = model([node("Mul", ["x", "w"])], [floats("w", 1)])
    held.training_info.add().algorithm.CopyFrom(graph([node("Sub", ["w", "step"])], [floats("step", 1)]))
    found = load(held)
    assert ids(found) == ["w"]
    done = inject(found, sample(found, count=3))
    faulty = ModelProto.FromString(done.data or b"")
    assert faulty.training_info == held.training_info
    assert faulty.graph.initializer != held.graph.initializer


def test_unknown_fields_and_metadata_stay_byte_for_byte(tmp_path: Path) -> None:
    unknown = scalar(2000, 7) + chunk(2001, b"\x00\xffunknown") + bytes([0x83, 0x7D, 0x08, 0x01, 0x84, 0x7D])
    tensor = tensor_bytes("w", 3, [3], [0xFF, 1, 0x80], "packed") + unknown
    held = model_bytes(tensor, inside=unknown, behind=unknown + chunk(14, chunk(1, b"key") + chunk(2, b"v" * 3000)))
    found = load(held)
    for sites in (["w[1]:0"], ["w[0]:7", "w[2]:7"], ["w[1]:7"]):  # the last two change the lengths of numbers
        done = inject(found, sample(found, sites=sites))
        assert done.data is not None
        assert done.data.count(unknown) == held.count(unknown) == 3
        faulty, whole = (ModelProto.FromString(data) for data in (done.data, held))
        assert list(faulty.graph.initializer[0].int32_data) != list(whole.graph.initializer[0].int32_data)
        for proto in (faulty, whole):
            proto.graph.initializer[0].ClearField("int32_data")
        assert faulty.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)


def test_merged_fields_are_read_as_protobuf_merges_them() -> None:
    # The graph in two pieces, as parsers allow: the second goes on where the first ended.
    first = model_bytes(tensor_bytes("a", 1, [1], [5], "raw"))
    second = chunk(7, chunk(5, tensor_bytes("b", 1, [2], [6, 7], "packed")))
    found = load(first + second)
    assert ids(found) == ["a", "b"]
    assert words(found, "b") == [6, 7]
    done = inject(found, sample(found, sites=["b[1]:0", "a[0]:0"]))
    assert [s.words.tolist() for s in protobuf_reader.read(done.data or b"").values()] == [[4], [6, 6]]


def test_every_selected_target_says_where_it_belongs() -> None:
    path = Path(__file__).parents[3] / "models/fashion_cnn.onnx"
    found = load(path)
    assert all(t.op and t.node and t.layer for t in found.targets)
    rows: list[tuple[str, Any]] = [(t.layer, t.op) for t in found.targets if not t.structural]
    assert rows[0] == ("conv1", "Conv")
    assert {t.word for t in found.targets if not t.structural} == {WORDS["float32"]}
