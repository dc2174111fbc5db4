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
from external_data import external, numbers, saved
from loaded_models import by_id, ids, words
from onnx import ModelProto, NodeProto, helper

from onnxfi.errors import ModelError, SelectorError
from onnxfi.faults.space import Selector
from onnxfi.faults.words import WORDS
from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.weights import inject, inspect, sample


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


def test_unused_tensors_are_faulty_only_when_they_are_named() -> None:
    held = load(model([node("Mul", ["x", "w"])], [floats("w", 2), floats("aux", 3)]))
    assert Selector().space(held.targets).size == 64
    assert Selector(include=("=aux",)).space(held.targets).size == 96
    assert sample(held, sites=["aux[0]:1"]).header.population == 96
    for selector in (Selector(include=("aux",)), Selector(include=("au*",), bits="sign")):
        with pytest.raises(SelectorError, match=r"is unused: no output of the model depends on 'aux'.*select others"):
            selector.space(held.targets)


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
def test_any_name_can_have_a_fault_by_its_site(name: str) -> None:
    held = load(model([node("Mul", ["x", name])], [floats(name, 2, 2)]))
    assert ids(held) == [name]
    done = inject(held, sample(held, sites=[f"{name}[1,0]:31"]))
    faulty = protobuf_reader.read(done.data or b"")
    assert faulty[name].words.tolist() == [0x3F800000, 0x40000000, 0xC0400000, 0x40800000]


def test_nameless_nodes_are_numbered_in_file_order() -> None:
    body = graph([node("Constant", outputs=["k"], value_float=1.0)], inputs=(), outputs=["k"])
    nodes = [node("Relu", ["x"], ["r"]), *(node("If", ["c"], [f"y{k}"], then_branch=body) for k in range(2))]
    assert ids(load(model(nodes))) == ["If#1.then_branch::k", "If#2.then_branch::k"]


def test_nodes_of_one_name_are_distinguished() -> None:
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
    # Nothing can use them, but they are there, and each can have a fault by its site.
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


# Classical models


# Shapes and indices


# Odd files


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


def test_training_graphs_are_kept_without_faults() -> None:
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
    # The graph in two records, as parsers allow: the second continues the first.
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


def test_tensors_that_share_their_bytes_are_noted_and_never_have_contradictory_faults(tmp_path: Path) -> None:
    path = saved(tmp_path, [external("a", "w.bin", [2]), external("b", "w.bin", [2], offset=4)], w_dot_bin=numbers(3))
    held = load(path)
    assert [n for n in held.notes if "'b'" in n and "'a'" in n and "share" in n]
    with pytest.raises(ModelError, match="change byte 4 through two of them"):
        inject(held, sample(held, sites=["a[1]:0", "b[0]:1"]), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
    for selector in (Selector(), Selector(include=("=b", "=a"))):  # the word that is both would count twice
        with pytest.raises(SelectorError, match=r"'a' and 'b' share some of their bytes.*leave one of them out"):
            sample(held, ber=0.5, selector=selector)
        with pytest.raises(SelectorError, match="share some of their bytes"):
            inspect(held, selector)
    assert inspect(held, Selector(exclude=("=b",)))["totals"]["bits"] == 64
    inject(held, sample(held, sites=["a[1]:31", "b[1]:31"]), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == np.array([1, -2, -3], "<f4").tobytes()


def test_one_weight_under_several_names_counts_once_and_is_found_by_each(tmp_path: Path) -> None:
    body = graph(
        [node("Mul", ["x", "c"], ["z"], name="inner")], [external("c", "w.bin", [4])], inputs=(), outputs=["z"]
    )
    nodes = [
        node("MatMul", ["x", "a"], ["h"], name="first"), node("Add", ["h", "b"], ["i"], name="second"),
        node("If", ["i"], name="if", then_branch=body, else_branch=body),
    ]  # fmt: skip
    stored = [external(name, "w.bin", shape) for name, shape in (("dead", [4]), ("a", [2, 2]), ("b", [4]))]
    held = load(saved(tmp_path, [*stored, external("d", "w.bin", [4], offset=16)], nodes, w_dot_bin=numbers(8)))
    one, other = held.targets
    assert (one.id, one.aliases) == ("dead", ("a", "b", "if.else_branch::c", "if.then_branch::c"))
    assert (one.op, one.layer, one.unused, other.unused) == ("MatMul", "first", False, True)
    assert one.ops == ("MatMul", "Add", "Mul")
    for selector in ("=b", "if.then_branch::c", "second", "inner"):
        assert Selector(include=(selector,)).space(held.targets).targets == (one,)
    assert inspect(held)["totals"]["bits"] == 4 * 32
    assert "also 'a'" in held.notes[0] and "'d'" in held.notes[1]
    done = inject(held, sample(held, sites=["b[3]:31"]), tmp_path / "out.onnx")
    assert (done.sample.faults[0].target, done.sample.header.population) == ("dead", 128)
    assert (
        protobuf_reader.read(tmp_path / "out.onnx")["a"].words.tolist()[3]
        == protobuf_reader.read(tmp_path / "out.onnx")["b"].words[3]
    )
    with pytest.raises(SelectorError, match="named twice"):
        sample(held, sites=["b[3]:31", "a[3]:31"])


def test_bytes_read_as_two_number_formats_are_not_one_weight(tmp_path: Path) -> None:
    held = load(saved(tmp_path, [external("a", "w.bin", [2]), external("b", "w.bin", [2], 12)], w_dot_bin=numbers(2)))
    assert [t.aliases for t in held.targets] == [(), ()]
    with pytest.raises(SelectorError, match="share some of their bytes"):
        sample(held, count=1)
