"""Files that a stranger hands over: refused with one clear line, or opened, and never anything else."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from build_models import chunk, floats, graph, ints, model, model_bytes, node, scalar, tensor_bytes, value, varint
from external_data import external, numbers, saved
from google.protobuf.message import EncodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loaded_models import refused
from onnx import ModelProto, helper, numpy_helper

from onnxfi.errors import ModelError, OnnxfiError
from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.weights import inject, inspect, sample

ROOT = Path(__file__).parents[3]


# Files that are no models


@pytest.mark.parametrize(
    "data",
    [
        b"hello, this is not a model at all\n",
        b"{}",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"\x7fELF" + bytes(100),
        b"\x80\x04\x95" + bytes(100),
        bytes(1000),
        b"\xff" * 1000,
        b"\x08",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "名前".encode("utf-16"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    refused(path, "not an ONNX model")
    refused(data, "not an ONNX model")


def test_protobuf_messages_that_are_no_models() -> None:
    held = graph([node("Mul", ["x", "w"])], [floats("w", 2)])
    for message in (held.initializer[0], held.node[0], value("x", [1]), helper.make_opsetid("", 20), ModelProto()):
        data = message.SerializeToString() or scalar(1, 8)
        with pytest.raises(ModelError):
            load(data)


def test_a_model_in_memory_that_is_too_large_to_serialise() -> None:
    class Large:  # what onnx says of two gigabytes, which take too long to make here
        def SerializeToString(self, **_: Any) -> bytes:
            raise EncodeError("Failed to serialize proto")

    refused(Large(), "too large to serialise .*; save it with external data")  # type: ignore[arg-type]


def rich_model() -> bytes:
    """A small model with a little of everything."""
    inner = graph([node("Constant", outputs=["k"], value_ints=[1, -2])], [floats("w", 2)], inputs=(), outputs=["k"])
    nodes = [
        node("If", ["c"], name="if", then_branch=inner, else_branch=inner),
        node("TreeEnsembleRegressor", ["x"], ["t"], domain="ai.onnx.ml", nodes_values=[0.5, 1.5]),
        node("Reshape", ["x", "q"], ["r"]),
    ]
    return model(
        nodes, [floats("w", 3), helper.make_tensor("q", 3, [3], [-1, 2, 3]), ints("i", [4])]
    ).SerializeToString()


def outcome(data: bytes) -> str:
    """Open, inspect, sample and inject: `accepted`, or the class of onnxfi's own error; anything else is raised."""
    try:
        held = load(data)
        inspect(held)
        drawn = sample(held, count=1)
        done = inject(held, drawn)
    except OnnxfiError as error:
        assert str(error).isprintable()
        return type(error).__name__
    assert done.data is not None
    if not done.resized:
        old, new = np.frombuffer(data, np.uint8), np.frombuffer(done.data, np.uint8)
        assert np.bitwise_count(old ^ new).sum() == 1
        again = load(done.data)
        assert inject(again, sample(again, sites=[str(drawn.faults[0].site)])).data == data
    return "accepted"


def test_a_model_cut_short_at_every_byte() -> None:
    data = rich_model()
    assert outcome(data) == "accepted"
    ends = [outcome(data[:end]) for end in range(len(data))]
    assert set(ends) == {"ModelError", "accepted"}
    assert ends.count("accepted") <= 3  # cut between two fields of the model itself, behind the graph


@pytest.mark.slow
def test_every_byte_of_a_model_changed() -> None:
    data = rich_model()
    ends = []
    for at in range(len(data)):
        for flip in (0x01, 0x80):
            ends.append(outcome(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]))
    assert set(ends) <= {"ModelError", "SelectorError", "accepted"}
    assert min(ends.count("accepted"), ends.count("ModelError")) > 100


# Sizes that ask for more than there is


SHAPES: list[list[int]] = [
    [-1], [3, -4], [-1, -1], [0, -1], [-(2**63)], [2**62], [2**31, 2**31], [10**12, 10**12], [2**63 - 1] * 40,
    [2] * 100_000, [1] * 100_000 + [2**60],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dims", SHAPES, ids=lambda dims: f"{dims[0]}x{len(dims)}")
@pytest.mark.parametrize("form", ["raw", "packed", "unpacked", "external"])
def test_shapes_that_no_tensor_has(tmp_path: Path, dims: list[int], form: str) -> None:
    if form == "external":
        path = saved(tmp_path, [external("w", "w.bin", dims)], w_dot_bin=numbers(4))
        refused(path, "no tensor has it|is too short")
    else:
        refused(model_bytes(tensor_bytes("w", 1, dims, [0] * 4, form)), r"declares the shape \[.*\]; no tensor has it")


def test_groups_that_a_runtime_would_divide_by() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", group=0)
    weight = numpy_helper.from_array(np.ones((1, 1, 2, 2), np.float32), "w")
    graph = helper.make_graph([node], "g", [], [], [weight])
    with pytest.raises(ModelError, match="node 'up' has group 0; it must be 1 or more"):
        load(helper.make_model(graph))


@pytest.mark.parametrize("dims", [[10**6, 10**6], [2**40], [2**55]])
def test_shapes_that_ask_for_terabytes(tmp_path: Path, dims: list[int]) -> None:
    for form in ("raw", "packed", "unpacked"):
        refused(
            model_bytes(tensor_bytes("w", 11, dims, [0] * 4, form)), "declares .* but holds .*; the file is damaged"
        )
    path = saved(tmp_path, [external("w", "w.bin", dims)], w_dot_bin=numbers(4))
    refused(path, "is too short: 'w' lies at 0 to .*, the file has 16 bytes")


def test_a_shape_of_size_0_is_a_tensor_of_size_0_however_large_its_other_axes_are() -> None:
    held = load(model_bytes(tensor_bytes("w", 1, [2**63 - 1, 0, 2**62], [], "raw")))
    assert [(t.size, t.bits) for t in held.targets] == [(0, 0)]


HOSTILE = """
import sys
from onnxfi.errors import OnnxfiError
from onnxfi.graph.model.loading import load
import onnx

def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))

data = sys.stdin.buffer.read()
load(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])))
before = peak()
try:
    load(data)
except OnnxfiError as error:
    print(type(error).__name__)
else:
    print("accepted")
print((peak() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        model_bytes(tensor_bytes("w", 1, [2**55], [0] * 4, "raw")),
        chunk(7, chunk(5, scalar(1, 2**50) + scalar(2, 3) + chunk(8, b"w") + varint(5 << 3 | 2) + varint(2**40))),
        chunk(7, chunk(5, scalar(1, 8) * 300_000 + scalar(2, 1))),
        chunk(7, chunk(1, chunk(5, chunk(1, b"a") + scalar(8, 1) * 1_000_000))),
        chunk(7, b"".join(chunk(5, scalar(1, 1) + scalar(2, 8) + chunk(6, b"text" * 100_000)) for _ in range(20))),
    ],
    ids=["shape", "length", "rank", "list", "strings"],
)
def test_memory_is_taken_for_what_is_there_not_for_what_is_declared(data: bytes) -> None:
    done = subprocess.run([sys.executable, "-c", HOSTILE], input=data, capture_output=True, check=True)
    end, memory_mb = done.stdout.decode().split()
    assert end in {"ModelError", "accepted"}
    assert int(memory_mb) < 40 + 8 * len(data) // 2**20


# Depth and number


def branches(levels: int, last: bytes = b"") -> bytes:
    body = last
    for _ in range(levels):
        body = chunk(1, chunk(4, b"If") + chunk(5, chunk(1, b"then_branch") + scalar(20, 5) + chunk(6, body)))
    return scalar(1, 10) + chunk(7, body)


def test_branches_as_deep_as_parsers_go() -> None:
    # 33 levels of three messages each, and in the last graph a tensor: the hundredth message.
    held = load(branches(32, chunk(5, tensor_bytes("w", 1, [1], [1], "raw"))))
    assert [t.id.count("::") for t in held.targets] == [32]
    (target,) = held.targets
    done = inject(held, sample(held, sites=[f"{target.id}[0]:31"]))
    assert load(done.data or b"").words(target, np.array([0])).tolist() == [0x80000001]
    for levels in (34, 100, 3000):
        refused(branches(levels), "more than 100 deep|not an ONNX model")


def test_types_nested_deep_in_a_declaration() -> None:
    kind = helper.make_tensor_type_proto(1, [1]).SerializeToString()
    for levels, good in ((10, True), (5000, False)):
        nested = kind
        for _ in range(levels):
            nested = chunk(4, chunk(1, nested))
        data = model_bytes(tensor_bytes("w", 1, [1], [1], "raw"), inside=chunk(11, chunk(1, b"x") + chunk(2, nested)))
        if good:
            assert [t.id for t in load(data).targets] == ["w"]
        else:
            refused(data, "not an ONNX model: .*MaxDepth")


def ratio(make: Callable[[int], bytes], few: int) -> float:
    """Return the CPU time of four times as many, as a multiple; 4 where it is linear."""

    def took(data: bytes) -> float:
        start = time.process_time()
        load(data)
        return time.process_time() - start

    small, large = make(few), make(4 * few)
    gc.collect()
    gc.disable()  # the collector walks all that the tests before this one left behind
    try:
        pairs = [(took(large), took(small)) for _ in range(5)]
    finally:
        gc.enable()
    return min(large for large, _ in pairs) / min(small for _, small in pairs)


def chain(count: int) -> bytes:
    nodes = b"".join(
        chunk(1, chunk(1, b"v%d" % k) + chunk(2, b"v%d" % (k + 1)) + chunk(4, b"Relu")) for k in range(count)
    )
    return scalar(1, 10) + chunk(7, nodes)


def many_branches(count: int) -> bytes:
    body = chunk(5, chunk(1, b"then_branch") + scalar(20, 5) + chunk(6, chunk(1, chunk(1, b"x") + chunk(2, b"y"))))
    nodes = b"".join(chunk(1, chunk(2, b"v%d" % k) + chunk(4, b"If") + body) for k in range(count))
    return scalar(1, 10) + chunk(7, nodes)


def many_tensors(name: bytes) -> Callable[[int], bytes]:
    def make(count: int) -> bytes:
        tensors = b"".join(
            chunk(5, tensor_bytes((name or b"w%d" % k).decode(), 1, [1], [1], "raw")) for k in range(count)
        )
        return scalar(1, 10) + chunk(7, tensors)

    return make


def same_named_nodes(count: int) -> bytes:
    body = chunk(5, chunk(1, b"b") + scalar(20, 5) + chunk(6, chunk(5, tensor_bytes("w", 1, [1], [1], "raw"))))
    return scalar(1, 10) + chunk(7, chunk(1, chunk(3, b"same") + chunk(4, b"If") + body) * count)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "few"),
    [
        (chain, 4000),
        (many_branches, 1000),
        (many_tensors(b""), 1500),
        (many_tensors(b"same"), 1500),
        (same_named_nodes, 1000),
    ],
    ids=["nodes", "branches", "tensors", "one name", "one label"],
)  # fmt: skip
def test_time_is_linear_in_nodes_branches_and_names(make: Callable[[int], bytes], few: int) -> None:
    assert ratio(make, few) < 9  # linear is 4, quadratic 16


# Names


def test_names_that_are_no_utf8() -> None:
    # ONNX Runtime loads such models; odd bytes are shown written out and stay in the file as they are.
    constant = [node("Constant", outputs=["b"], value_float=1.0)]
    held = model(
        [node("Mul", ["x", "weight_"], name="node_name", doc_string="doc_str"),
         node("TreeEnsembleRegressor", ["x"], ["z"], domain="ai.onnx.ml", nodes_values=[1.0])],
        [floats("weight_", 2)],
        functions=[helper.make_function("own", "func_name", [], ["b"], constant, [helper.make_opsetid("", 20)])],
    )  # fmt: skip
    held.producer_name, held.graph.name = "producer", "graphname"
    held.metadata_props.add(key="metakey", value="metaval")
    helper.set_metadata_props(held.graph.node[0], {"pkg.torch.onnx.name_scopes": "['', 'conv1', 'op']"})
    data = held.SerializeToString()
    names = ("node_name", "doc_str", "weight_", "func_name", "producer", "graphname", "metakey", "metaval", "conv1",
             "Mul", "nodes_values", "own", "name_scopes")  # fmt: skip
    for name in names:
        odd = b"\xff\xc3" + name.encode()[2:]
        changed = data.replace(name.encode(), odd)
        assert changed != data
        found = load(changed)
        drawn = sample(found, count=2)
        inspect(found)
        done = inject(found, drawn)
        assert (done.data or b"").count(odd) == changed.count(odd)
    found = load(data.replace(b"weight_", b"wei\xffht_"))
    assert found.targets[0].id == "wei\\xffht_"
    assert found.targets[0].op == "Mul"  # the node's input is the same odd name


# Fuzzing: a few hundred examples here, 100,000 in scripts/fuzz.py


def fuzz() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "scripts/fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


FUZZ = fuzz()


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Hundreds of small files need not reach the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.mark.slow
@given(st.integers(0, 2**32))
@settings(max_examples=300)
@example(646)
@example(678)
@pytest.mark.usefixtures("quick")
def test_mutated_models_are_accepted_or_refused(tmp_path_factory: pytest.TempPathFactory, number: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    for left in folder.iterdir():
        left.unlink()
    (folder / "w.bin").write_bytes(bytes(range(32)))
    _, data = FUZZ.mutation(number, seed=0)
    assert FUZZ.attempt(data, folder, number) in {"accepted", "ModelError", "SelectorError"}


edits = st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=6))


@given(st.lists(edits, min_size=1, max_size=4))
def test_a_rich_model_with_any_bytes_changed(changes: list[tuple[float, int, bytes]]) -> None:
    data = rich_model()
    for place, gone, new in changes:
        at = int(place * len(data))
        data = data[:at] + new + data[at + gone :]
    if data:
        assert outcome(data) in {"accepted", "ModelError", "SelectorError"}


@pytest.mark.slow
def test_the_fuzzers_own_limits_work() -> None:
    # A worker that takes too much memory or time, and one that dies, are findings: the fuzzer must see them.
    code = f"import sys; sys.argv = ['fuzz']; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import fuzz\n"
    for attempt, wanted in (
        ("bytearray(1 << 30)", "finding: MemoryError"),
        ("[None for _ in iter(int, 1)]", "finding: "),
        ("1 / 0", "finding: ZeroDivisionError"),
    ):
        more = f"fuzz.LIMIT_S = 1\nfirst = []\nfuzz.attempt = lambda *a: {attempt} if first else first.append(1)\n"
        done = subprocess.run(
            [sys.executable, "-c", code + more + "fuzz.work(0, 1, 0)"], capture_output=True, text=True, check=True
        )
        assert wanted in done.stdout, done
    assert onnx.__version__


def test_a_model_in_the_runtimes_own_format_is_named(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    model = Path(__file__).parents[3] / "models" / "fashion_cnn.onnx"
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with pytest.raises(ModelError, match=r"m\.ort': it is in the format of ONNX Runtime .*give the \.onnx file"):
        load(tmp_path / "m.ort")
