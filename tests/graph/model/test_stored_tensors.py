"""Stored tensors: every data type in every form it is stored in, number lists, and bits that parsers skip."""

from __future__ import annotations

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
    model,
    model_bytes,
    node,
    scalar,
    tensor_bytes,
)
from hypothesis import given
from hypothesis import strategies as st
from loaded_models import by_id, ids, words
from onnx import ModelProto, TensorProto, helper

from onnxfi.errors import ModelError
from onnxfi.faults.words import WORDS
from onnxfi.graph.model.loading import load
from onnxfi.graph.model.stored_tensors import DATA_TYPES
from onnxfi.runtime.inject.weights import inject, sample


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


@pytest.mark.parametrize("data_type", [TensorProto.FLOAT, TensorProto.INT4, TensorProto.UINT8])
def test_words_are_the_same_read_together_or_one_by_one(data_type: int) -> None:
    held = [k * 2654435761 & ((1 << LAYOUT[data_type][1]) - 1) for k in range(1001)]
    found = load(model_bytes(tensor_bytes("w", data_type, [len(held)], held, "raw")))
    (target,) = found.targets
    for some in (range(1001), range(995, 1001), range(3, 40), (17,), (999, 998, 999, 991), (0, 1000), (13, 13)):
        assert found.words(target, np.array(some)).tolist() == [held[k] for k in some]


def test_words_that_are_read_together_may_lie_in_several_megabytes() -> None:
    held = np.arange(2_100_003, dtype=np.uint32)
    whole = helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(held.view(np.float32), "w")])
    found = load(helper.make_model(whole).SerializeToString())
    (target,) = found.targets
    for index in (held[5::7], held[1_048_570:1_048_590], held[-40:]):
        assert (found.words(target, index.astype(np.int64)) == index).all()


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
    # float16 words sign-extended into int32_data, as some writer might: nothing but the faulty bit changes.
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
