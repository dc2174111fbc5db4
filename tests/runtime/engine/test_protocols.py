"""Every engine keeps one promise: the answers of onnx's evaluator, errors in one line. A new engine is tested unasked."""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from offered_engines import needs_openvino, offer
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from own_engine import LeanEngine

from onnxfi import Engine, engine_of, load
from onnxfi.errors import DataError, EngineError, ModelError
from onnxfi.graph.model.byte_source import ByteSource, StoredArray
from onnxfi.graph.partition.subgraph import partition_graph
from onnxfi.graph.partition.subgraph_model import extract_model
from onnxfi.runtime.engine import protocols
from onnxfi.runtime.engine.protocols import embedded, smallest_model
from onnxfi.runtime.engine.registry import engine_names
from onnxfi.runtime.inject.activations import inject_activations

HEADER = '<ir_version: 9, opset_import: ["": 19]>'
NAMES = (*engine_names(), "lean")


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Each engine in turn, the example of CONTRIBUTING.md among them."""
    if request.param == "openvino":
        needs_openvino()
    offer(monkeypatch, LeanEngine)
    settings = {"provider": "cpu"} if request.param == "onnxruntime" else {}
    return engine_of(request.param, **settings)


def graph(text: str) -> onnx.ModelProto:
    return parser.parse_model(f"{HEADER} {text}")


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cnn() -> onnx.ModelProto:
    made = graph("""g (float[N,3,8,8] x) => (float[N,5] y) {
        c = Conv<pads = [1,1,1,1]>(x, k, b) r = Relu(c) p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r)
        f = Flatten(p) z = Gemm<transB = 1>(f, w) y = Softmax(z) }""")
    given = {"k": random(4, 3, 3, 3), "b": random(4, seed=1), "w": random(5, 64, seed=2)}
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in given.items())
    return made


GRAPHS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, Any]]] = {
    "convolution": (cnn, {"x": random(2, 3, 8, 8)}),
    "attention": (
        lambda: graph("""g (float[N,4,6] q, float[N,6,4] k) => (float[N,4,6] y)
            { m = MatMul(q, k) s = Softmax<axis = -1>(m) t = Transpose<perm = [0,2,1]>(k) y = MatMul(s, t) }"""),
        {"q": random(3, 4, 6), "k": random(3, 6, 4, seed=1)},
    ),
    "embedding": (
        lambda: graph("g (int64[N,3] i) => (float[N,3,2] y) <float[4,2] w = {1,2,3,4,5,6,7,8}> { y = Gather(w, i) }"),
        {"i": np.array([[0, 3, -1], [1, 1, 2]])},
    ),
    "integers": (
        lambda: graph("""g (float[N,4] x) => (uint8[N,4] q, float[N,4] y) <float s = {0.5}, uint8 z = {7}>
            { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"""),
        {"x": random(3, 4) * 9},
    ),
    "booleans": (
        lambda: graph("g (float[N] x, bool[N] b) => (bool[N] y) <float t = {0.1}> { g = Less(x, t) y = And(g, b) }"),
        {"x": random(5), "b": np.array([True, False, True, True, False])},
    ),
    "half": (lambda: graph("g (float16[N,4] x) => (float16[N,4] y) { y = Add(x, x) }"), {"x": random(2, 4).astype("f2")}),
    "scalar": (lambda: graph("g (float x) => (float y) { y = Neg(x) }"), {"x": np.float32(3)}),
    "not finite": (
        lambda: graph("g (float[N] x) => (float[N] y) { y = Mul(x, x) }"), {"x": np.float32([np.nan, -np.inf, 1e30, 0])},
    ),
    "functions": (
        lambda: parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "own": 1]>
            g (float[N] x) => (float[N] y) { a = own.twice(x) y = own.twice(a) }
            <domain: "own", opset_import: ["": 17]> twice (v) => (w) { w = Add(v, v) }"""),
        {"x": random(4)},
    ),
    "loop": (
        lambda: graph("""g (float[N] x) => (float[N] y) <int64 n = {3}, bool go = {1}> {
            y = Loop(n, go, x) <body = b (int64 i, bool c, float[N] v) => (bool d, float[N] w)
            { d = Identity(c) w = Add(v, v) }> }"""),
        {"x": random(4)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_answers_are_those_of_the_operators_definitions(engine: Engine, name: str) -> None:
    build, feeds = GRAPHS[name]
    model = build()
    with np.errstate(all="ignore"):
        evaluated = ReferenceEvaluator(model).run(None, feeds)
    known = dict(zip((o.name for o in model.graph.output), evaluated, strict=True))
    session = engine.prepare(model.SerializeToString())
    found = session.run(feeds)
    assert [port.name for port in session.outputs] == [*known] == [*found]
    assert {port.name for port in session.inputs} == feeds.keys()
    for port in session.outputs:
        answer = found[port.name]
        assert answer.dtype == known[port.name].dtype == np.dtype(port.dtype)
        np.testing.assert_allclose(answer, known[port.name], rtol=1e-4, atol=1e-5)
    assert session.provider and session.note and session.non_tensors == {}


def test_bytes_path_and_external_data_are_the_same_model(engine: Engine, tmp_path: Path) -> None:
    model, feeds = cnn(), {"x": random(4, 3, 8, 8)}
    onnx.save(model, tmp_path / "m.onnx")
    onnx.save(cnn(), tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    sources = (model.SerializeToString(), tmp_path / "m.onnx", str(tmp_path / "e.onnx"), tmp_path / "m.onnx")
    sessions = [engine.prepare(source) for source in sources]
    for file in (*tmp_path.glob("*.onnx"), tmp_path / "e.data"):
        file.unlink()  # as that of a faulty model is
    found = [session.run(feeds)["y"].tobytes() for session in sessions for _ in range(2)]
    assert len(set(found)) == 1, "bit for bit, in every session and run"


def test_a_batch_of_any_size_and_any_outputs(engine: Engine) -> None:
    session = engine.prepare(
        graph("g (float[N,2] x) => (float[N,2] a, float[N,2] b) { a = Neg(x) b = Abs(x) }").SerializeToString()
    )
    for rows in (1, 5, 2):
        x = random(rows, 2)
        assert session.run({"x": x}, ["b"]).keys() == {"b"} and session.run({"x": x}, []) == {}
        assert [*session.run({"x": x}, ["b", "a"])] == ["b", "a"]
        assert np.array_equal(session.run({"x": x})["a"], -x) and session.run({"x": x[::-1]})["b"].shape == (rows, 2)
    assert session.inputs[0].shape == ("N", 2)


def test_a_result_is_not_overwritten_by_the_next_run(engine: Engine) -> None:
    session = engine.prepare(graph("g (float[2] x) => (float[2] y) { y = Neg(x) }").SerializeToString())
    first = session.run({"x": np.float32([1, 2])})["y"]
    session.run({"x": np.float32([5, 6])})
    assert first.tolist() == [-1, -2]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "is not fed; fed are none"),
        ({"x": np.float32([[1, 2]]), "z": np.float32(1)}, "no input 'z'; closest: 'x'|no input 'z'"),
        ({"x": np.float64([[1, 2, 3]])}, r"takes float32 \[N,3\], given float64 \[1,3\]"),
        ({"x": np.float32([[1, 2]])}, r"takes float32 \[N,3\], given float32 \[1,2\]"),
        ({"x": np.array([["a", "b", "c"]])}, "given string"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(engine: Engine, feeds: dict[str, Any], message: str) -> None:
    session = engine.prepare(graph("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }").SerializeToString())
    with pytest.raises(DataError, match=message):
        session.run(feeds)
    with pytest.raises(EngineError, match="the model has no output 'z'"):
        session.run({"x": np.float32([[1, 2, 3]])}, ["z"])


def test_text_is_answered_or_refused_in_one_line(engine: Engine) -> None:
    model = graph("g (string[N] s) => (string[N] t) { t = Identity(s) }").SerializeToString()
    try:
        found = engine.prepare(model).run({"s": np.array(["a", "bc"])})["t"]
    except (EngineError, DataError) as error:
        assert "string" in str(error) and "\n" not in str(error)
    else:
        assert found.tolist() == ["a", "bc"]


def test_what_is_no_model_is_refused_in_one_line(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model at all")
    unknown = graph("g (float[N] x) => (float[N] y) { y = NoSuchOperator(x) }").SerializeToString()
    for source in (tmp_path / "bad.onnx", b"no model", unknown):
        with pytest.raises(EngineError) as caught:
            engine.prepare(source)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert "NoSuchOperator" in str(caught.value)
    with pytest.raises(ModelError, match=r"'.*none.onnx' is not a file; give the path of an .onnx file"):
        engine.prepare(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        engine.prepare(tmp_path)


def test_a_run_that_fails_says_so_in_one_line(engine: Engine) -> None:
    model = graph("g (float[N] x, float[M] z) => (float[K] y) { y = Add(x, z) }").SerializeToString()
    session = engine.prepare(model)
    with pytest.raises(EngineError) as caught:
        session.run({"x": random(2), "z": random(3)})
    assert "\n" not in str(caught.value)


def test_a_part_gets_its_larger_tensors_beside_it(engine: Engine) -> None:
    made = graph("g (float[N,256] x) => (float[N,64] y) { h = MatMul(x, w) y = Relu(h) }")
    made.graph.initializer.append(numpy_helper.from_array(random(256, 64), "w"))
    net = partition_graph(load(made.SerializeToString()))
    part = extract_model(net, range(2), {"x": (1, ["N", 256])}, ["y"])
    assert part.stored.keys() == {"w"}, "it lies beside"
    x = random(3, 256)
    found = engine.prepare_part(part.data, part.stored).run({"x": x})["y"]
    np.testing.assert_allclose(found, np.maximum(x @ random(256, 64), 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bit", [0, 11, 22, 23, 29, 30, 31])
def test_fault_operators_flip_that_bit(engine: Engine, bit: int) -> None:
    model = load(
        graph("g (float[N,3] x) => (float[N,3] y) { a = Neg(x) y = Add(a, z) } ".replace("z", "a")).SerializeToString()
    )
    faulty = inject_activations(model, sites=[f"a[1]:{bit}"], all=True)
    x = np.float32([[1.5, 0.75, -2.0]])
    a = -x
    a.view(np.uint32)[0, 1] ^= np.uint32(1 << bit)
    found = engine.prepare(faulty.data).run({"x": x})["y"]
    with np.errstate(over="ignore"):
        assert found.tobytes() == (a + a).tobytes()


def test_an_engine_is_a_value_that_workers_get(engine: Engine) -> None:
    assert pickle.loads(pickle.dumps(engine)) == engine  # noqa: S301
    assert hash(engine) == hash(dataclasses.replace(engine))  # type: ignore[type-var]
    assert engine.name in (*engine_names(), "lean") and engine.version
    assert engine.unoptimized().prepare(cnn().SerializeToString()).inputs[0].shape == ("N", 3, 8, 8)


# What the base class and the module do


@pytest.mark.parametrize("name", NAMES)
def test_every_engine_runs_the_smallest_model(name: str, engine: Engine) -> None:
    session = engine.prepare(smallest_model())
    assert session.run({"x": np.array([5], np.float32)})["y"].tolist() == [5] and not session.non_tensors


def test_a_model_that_holds_what_lay_beside_it_is_the_model(tmp_path: Path) -> None:
    made = graph("g (float[N,3] x) => (float[N,3] y) { h = Mul(x, v) y = Add(h, w) }")
    arrays = {"v": random(3), "w": random(3, seed=1)}
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    plain = made.SerializeToString()
    assert embedded(plain, {}) is plain, "nothing is copied where nothing lies beside it"
    for tensor in made.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="given")
    (tmp_path / "w.bin").write_bytes(arrays["w"].tobytes())
    stored = StoredArray(ByteSource.file(tmp_path / "w.bin"), 0, np.dtype(np.float32), (3,))
    whole = onnx.ModelProto.FromString(embedded(made.SerializeToString(), {"v": arrays["v"], "w": stored}))
    assert {t.name: numpy_helper.to_array(t).tobytes() for t in whole.graph.initializer} == {
        name: array.tobytes() for name, array in arrays.items()
    }


def test_a_model_that_no_message_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = graph("g (float[N,3] x) => (float[N,3] y) { y = Mul(x, v) }")
    made.graph.initializer.append(numpy_helper.from_array(random(3), "v"))
    monkeypatch.setattr(protocols, "LARGEST_MODEL_BYTES", 50)
    with pytest.raises(EngineError, match="bytes is too large for one message; run it with route full"):
        embedded(made.SerializeToString(), {"v": random(3)})


def test_a_path_that_is_no_file_is_named(tmp_path: Path) -> None:
    for place, what in ((tmp_path, "a directory"), (tmp_path / "none.onnx", "not a file")):
        with pytest.raises(ModelError, match=f"'{re.escape(str(place))}' is {what}; give the path of an .onnx file"):
            Engine.file(place)
