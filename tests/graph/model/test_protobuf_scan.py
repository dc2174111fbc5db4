"""The file's own bytes: what the scan finds, against onnx's parser, and what it refuses."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from build_models import chunk, entries, floats, graph, ints, model, model_bytes, node, scalar, tensor_bytes, varint
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, TensorProto
from strategies import U64

from onnxfi.errors import ModelError
from onnxfi.graph.model import protobuf_scan
from onnxfi.graph.model.byte_source import ByteSource
from onnxfi.graph.model.protobuf_scan import read_varints, scan, split_varints, text

ROOT = Path(__file__).parents[3]
lists = st.lists(st.sampled_from([0, 1, 127, 128, 2**63, 2**64 - 1]) | U64, max_size=40)
GROUP = 100 << 3


def skeleton(data: bytes) -> ModelProto:
    return ModelProto.FromString(scan(ByteSource.memory(data))[0])


def recorded(data: bytes) -> list[protobuf_scan.TensorRecord]:
    return [*scan(ByteSource.memory(data))[1].values()]


def values(data: bytes, run: protobuf_scan.ByteRun) -> tuple[list[int], list[bytes]]:
    """The numbers of a run, and the bytes that each takes."""
    with ByteSource.memory(data).reading() as read:
        chunks = [*read_varints(read, run)]
    spans = [(a, b) for _, starts, ends in chunks for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    return [n for numbers, _, _ in chunks for n in numbers.tolist()], [data[a:b] for a, b in spans]


@given(lists)
def test_varints_are_those_of_protobuf(numbers: list[int]) -> None:
    packed = b"".join(protobuf_scan.varint(n) for n in numbers)
    there = TensorProto(uint64_data=numbers).SerializeToString()
    assert there.endswith(packed)
    assert packed == b"".join(map(varint, numbers))
    found, starts = split_varints(packed)
    assert found.tolist() == numbers
    assert np.diff(starts).tolist() == [len(varint(n)) for n in numbers]


def test_negative_numbers_take_ten_bytes() -> None:
    assert protobuf_scan.varint(-1) == b"\xff" * 9 + b"\x01"
    assert TensorProto(int32_data=[-1]).SerializeToString().endswith(protobuf_scan.varint(-1))


@pytest.mark.parametrize("data", [b"\x80", b"\x01\x80", b"\x80" * 10 + b"\x01", b"\x01" + b"\xff" * 10 + b"\x00"])
def test_a_damaged_list_of_varints_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="varint runs over its end"):
        split_varints(data)
    with pytest.raises(ModelError, match="varint runs over its end"):
        values(data, (0, len(data), 0))


@given(lists, st.booleans(), st.integers(11, 30))
def test_lists_are_read_in_chunks_of_any_size(numbers: list[int], unpacked: bool, window: int) -> None:
    before, lead = b"before", scalar(7, 0)[:1] if unpacked else b""
    data = before + b"".join(lead + varint(n) for n in numbers) + b"\x80behind"
    end = len(data) - len(b"\x80behind")
    old = protobuf_scan.WINDOW_BYTES
    try:
        protobuf_scan.WINDOW_BYTES = window
        assert values(data, (len(before), end, len(lead))) == (numbers, [varint(n) for n in numbers])
    finally:
        protobuf_scan.WINDOW_BYTES = old


def test_text_that_is_no_utf8_is_written_out() -> None:
    assert text("conv") == "conv"
    assert text(b"a\xff\x1bz").encode() == b"a\\xff\x1bz"


def test_the_skeleton_is_the_message_without_its_large_payloads() -> None:
    small, large = floats("small", 256), floats("large", 257)
    strings = TensorProto(name="words", data_type=8, dims=[2], string_data=[b"a" * 1025, b"b"])
    held = model(
        [node("Add", ["small", "large"], doc_string="kept"), node("LabelEncoder", ["x"], ["z"], domain="ai.onnx.ml",
              keys_floats=[0.5] * 3000, values_floats=[1.5] * 10)],
        [small, large, strings],
    )  # fmt: skip
    found = skeleton(held.SerializeToString())
    assert [len(t.raw_data) for t in found.graph.initializer] == [1024, 0, 0]
    assert list(found.graph.initializer[2].string_data) == [b"b"]
    lists = {a.name: list(a.floats) for a in found.graph.node[1].attribute}
    assert len(lists["keys_floats"]) < 1000
    assert lists["values_floats"] == [1.5] * 10
    for proto in (found, held):  # all else is the same
        for tensor in proto.graph.initializer:
            for name in ("raw_data", "string_data", "doc_string"):
                tensor.ClearField(name)
        for attribute in proto.graph.node[1].attribute:
            for name in ("floats", "doc_string"):
                attribute.ClearField(name)
    assert found == held


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.onnx")), ids=lambda path: path.stem)
def test_the_skeleton_of_a_real_model_is_small_and_complete(path: Path) -> None:
    data, records = scan(ByteSource.file(path))
    proto, whole = ModelProto.FromString(data), ModelProto.FromString(path.read_bytes())
    kept = sum(len(t.raw_data) for t in whole.graph.initializer)
    assert len(data) < path.stat().st_size - 0.9 * kept
    assert len(records) >= len(whole.graph.initializer)
    assert [n.name for n in proto.graph.node] == [n.name for n in whole.graph.node]
    assert [(t.name, t.dims, t.data_type) for t in proto.graph.initializer] == [
        (t.name, t.dims, t.data_type) for t in whole.graph.initializer
    ]
    for key in ("opset_import", "metadata_props", "producer_name", "ir_version"):
        assert getattr(proto, key) == getattr(whole, key)


def test_a_doc_string_of_the_file_is_never_taken_for_a_records_number() -> None:
    # The scan writes each record's number where the doc_string was; one that the file brings along must not pass.
    for spoof in ("onnxfi:99", "onnxfi:x", "onnxfi:0"):
        held = model([node("Constant", value_string="s"), node("Conv", ["x", "w"], strides=[1, 1])], [floats("w", 2)])
        held.graph.initializer[0].doc_string = spoof
        for each in held.graph.node:
            each.attribute[0].doc_string = spoof
        found = skeleton(held.SerializeToString())
        assert found.graph.node[0].attribute[0].doc_string == ""
        assert found.graph.initializer[0].doc_string == "onnxfi:1"
        assert found.graph.node[1].attribute[0].doc_string == "onnxfi:0"


def test_fields_of_another_wire_type_are_unknown_fields_as_for_every_parser() -> None:
    # raw_data (9) as a varint, float_data (4) as doubles, dims aside; AttributeProto.i (3) as bytes.
    odd = scalar(9, 5) + varint(4 << 3 | 1) + bytes(8) + varint(5 << 3 | 5) + bytes(4)
    data = model_bytes(tensor_bytes("w", 1, [2], [1, 2], "raw") + odd)
    records = recorded(data)
    assert [*records[-1].fields] == [9]
    assert len(ModelProto.FromString(data).graph.initializer[0].raw_data) == 8
    (a, b, _) = records[-1].fields[9][-1]
    assert data[a:b] == bytes([1, 0, 0, 0, 2, 0, 0, 0])


def test_packed_and_unpacked_parts_of_one_list_follow_each_other() -> None:
    numbers = [3, -1, 300, -(2**31)]
    parts = chunk(5, varint(3) + varint(-1)) + scalar(5, 300) + scalar(5, -(2**31))
    data = model_bytes(scalar(1, 4) + scalar(2, 6) + chunk(8, b"w") + parts)
    records = recorded(data)
    record = records[-1]
    assert record.counts == {5: 4}
    assert [run[2] for run in record.fields[5]] == [0, 1]  # the two unpacked ones are one run
    found = [n for run in record.fields[5] for n in values(data, run)[0]]
    assert found == [n % (1 << 64) for n in numbers]
    assert list(ModelProto.FromString(data).graph.initializer[0].int32_data) == numbers


@pytest.mark.parametrize("count", [1, 2, 50, 51, 52, 1000, 60_000, 200_000])
def test_long_unpacked_lists_are_one_run(count: int) -> None:
    weights = (np.arange(count) % 1000 - 500).tolist()
    attribute = AttributeProto(name="floats", type=6, floats=np.arange(count, dtype=np.float32).tolist())
    whole = AttributeProto(name="ints", type=7, ints=weights)
    held = model([node("TreeEnsembleRegressor", ["x"], domain="ai.onnx.ml")])
    held.graph.node[0].attribute.extend([attribute, whole])
    data = held.SerializeToString()
    records = recorded(data)
    assert [record.counts for record in records] == [{7: count}, {8: count}]
    assert [len(run) for record in records for run in record.fields.values()] == [1, 1]
    (a, b, lead) = records[0].fields[7][0]
    stored = np.frombuffer(data[a:b], np.uint8).reshape(-1, 5)[:, 1:].copy().view("<f4").ravel()
    assert lead == 1
    assert np.array_equal(stored, np.arange(count, dtype=np.float32))
    assert values(data, records[1].fields[8][0])[0] == [w % (1 << 64) for w in weights]


def test_attributes_of_other_operators_need_no_record() -> None:
    inner = graph([], [floats("w", 1)], inputs=(), outputs=["w"])
    nodes = [
        node("Conv", ["x", "w"], strides=[1, 1], kernel_shape=[3, 3]),
        node("If", ["c"], then_branch=inner, some=[1, 2]),
        node("Constant", value_ints=[1]),
        node("LinearRegressor", ["x"], domain="ai.onnx.ml", coefficients=[1.0]),
    ]
    assert [[*record.counts] for record in recorded(model(nodes).SerializeToString())] == [[9], [8], [7]]


def test_lists_that_alternate_take_linear_time() -> None:
    # The search for a run must not look at the whole window for each number of a run that ends at once.
    def took(pairs: int) -> float:
        body = (scalar(8, 1) * 3 + varint(7 << 3 | 5) + bytes(4)) * pairs
        held = chunk(1, chunk(5, chunk(1, b"a") + body) + chunk(7, b"ai.onnx.ml"))
        data = scalar(1, 10) + chunk(7, held)
        start = time.process_time()
        records = recorded(data)
        assert records[0].counts == {8: 3 * pairs, 7: pairs}
        return time.process_time() - start

    few, many = min(took(4000) for _ in range(3)), min(took(16_000) for _ in range(3))
    assert many < 12 * few  # linear is 4, quadratic 16


@pytest.mark.parametrize("width", [4, 10])
def test_a_packed_list_that_ends_inside_a_number_is_refused(width: int) -> None:
    data = model_bytes(inside=chunk(5, scalar(1, 1) + scalar(2, 1) + chunk(8, b"w") + chunk(width, bytes(6))))
    with pytest.raises(ModelError, match="ends inside a number"):
        scan(ByteSource.memory(data))


def nested(depth: int, inner: bytes = b"") -> bytes:
    return varint(GROUP | 3) * depth + inner + varint(GROUP | 4) * depth


@pytest.mark.parametrize("depth", [1, 2, 100])
def test_unknown_groups_are_skipped_as_parsers_do(depth: int) -> None:
    data = model_bytes(tensor_bytes("w", 1, [1], [7], "raw"), behind=nested(depth, chunk(3, b"text") + scalar(4, 9)))
    assert [t.name for t in skeleton(data).graph.initializer] == ["w"]


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (nested(101), "groups more than 100 deep"),
        (nested(100_000), "groups more than 100 deep"),
        (varint(GROUP | 3), "runs over its end"),
        (varint(GROUP | 3) + varint(808 | 4), "never began"),
        (varint(GROUP | 4), "no protobuf field"),
        (varint(GROUP | 6), "no protobuf field"),
        (varint(GROUP | 7) + b"1234", "no protobuf field"),
        (scalar(0, 1), "runs over its end"),
        (chunk(100, b"text")[:-1], "runs over its end"),
        (varint(GROUP | 2) + varint(2**63), "runs over its end"),
        (varint(GROUP | 2) + varint(-1), "runs over its end"),
        (varint(GROUP | 5) + bytes(3), "runs over its end"),
        (varint(GROUP | 1) + bytes(7), "runs over its end"),
        (varint(GROUP) + b"\xff" * 11, "runs over its end"),
        (b"\xff" * 12, "runs over its end"),
    ],
)
def test_what_is_no_protobuf_message_is_refused(tail: bytes, message: str) -> None:
    data = model_bytes(tensor_bytes("w", 1, [1], [7], "raw"), behind=tail)
    with pytest.raises(ModelError, match=message):
        scan(ByteSource.memory(data))


def deep_graph(levels: int) -> bytes:
    """An If in an If in an If: the serialised graph."""
    body = chunk(2, b"g")
    for _ in range(levels):
        body = chunk(1, chunk(4, b"If") + chunk(5, chunk(1, b"then_branch") + scalar(20, 5) + chunk(6, body)))
    return body


def test_graphs_nest_as_deep_as_the_parser_goes_and_no_deeper() -> None:
    # Each level is three messages: graph, node, attribute; onnx's parser gives up at a hundred.
    scan(ByteSource.memory(chunk(7, deep_graph(33))))
    ModelProto.FromString(chunk(7, deep_graph(33)))
    with pytest.raises(ModelError, match="more than 100 deep"):
        scan(ByteSource.memory(chunk(7, deep_graph(2000))))


def test_fields_that_are_larger_than_the_window_and_lie_across_its_border() -> None:
    # Tensors of all sizes around the window's, so that tags and lengths fall on either side of every border.
    sizes = [protobuf_scan.WINDOW_BYTES - 40 + k for k in range(0, 80, 3)]
    held = model([], [ints(f"t{k}", np.arange(n) % 251, "uint8") for k, n in enumerate(sizes)])
    data = held.SerializeToString()
    found, records = scan(ByteSource.memory(data))[0], recorded(data)
    assert len(found) < 10_000
    for record, size in zip(records, sizes, strict=True):
        (a, b, _) = record.fields[9][0]
        assert np.array_equal(np.frombuffer(data[a:b], np.uint8), np.arange(size) % 251)
        for start, first, last in record.frames:  # every enclosing length says what lies behind it
            assert varint(last - first) == data[start:first]


def test_a_structure_of_more_than_a_gigabyte_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf_scan, "LARGEST_SKELETON", 2000)
    data = model([node("Relu", ["x"], doc_string="d" * 3000)]).SerializeToString()
    with pytest.raises(ModelError, match="structure alone"):
        scan(ByteSource.memory(data))


def test_words_of_a_typed_field_are_where_onnx_reads_them() -> None:
    # The oracle of the tests' own builder: what it writes, onnx reads back as these numbers.
    for data_type, words in ((3, [0xFF, 0x7F, 0x80]), (10, [0x3C00, 0xFFFF]), (22, [1, 0xF, 7]), (13, [2**64 - 1])):
        for form in ("raw", "packed", "unpacked"):
            tensor = TensorProto.FromString(tensor_bytes("w", data_type, [len(words)], words, form))
            assert (tensor.dims, tensor.data_type, tensor.name) == ([len(words)], data_type, "w")
            field = {13: "uint64_data"}.get(data_type, "int32_data")
            if form != "raw":
                assert list(getattr(tensor, field)) == entries(data_type, words)
