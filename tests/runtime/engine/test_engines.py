"""Every engine keeps one promise: the answers of onnx's evaluator, errors in one line. A new engine is tested unasked."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from offered_engines import needs_openvino, offer
from onnx import helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from own_engine import LeanEngine

from onnxfi import Engine, engine_of, load
from onnxfi.errors import DataError, EngineError, InputError, ModelError
from onnxfi.graph.partition.subgraph import partition_graph
from onnxfi.graph.partition.subgraph_model import extract_model
from onnxfi.runtime.engine import registry
from onnxfi.runtime.engine.registry import engine_class, engine_names, setting_names
from onnxfi.runtime.inject.activations import inject_activations, instrument

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
    with pytest.raises(ModelError, match=r"'.*none.onnx' is no file; give the path of an .onnx file"):
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


# The registry


def test_an_own_engine_takes_at_most_twenty_five_lines() -> None:
    text = (Path(__file__).parents[2] / "support" / "own_engine.py").read_text()
    assert len(text.partition("@dataclass")[2].splitlines()) <= 25


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda: dict, "is not a frozen dataclass derived from onnxfi.Engine"),
        (lambda: Engine, "is not a frozen dataclass derived from onnxfi.Engine"),
        (lambda: LeanEngine, "entry point 'pack:Own' says 'other', its class 'lean'; give both one name"),
        (lambda: int("x"), r"entry point 'pack:Own' does not load: .*; repair or remove its package"),
    ],
)
def test_bad_entry_points_are_named(load: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="other", value="pack:Own", load=load)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(EngineError, match=message):
        engine_of("other")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point, point])
    with pytest.raises(EngineError, match="two installed packages offer an engine 'other'"):
        engine_of("other")
    assert engine_of("reference").name == "reference", "others are not touched"


def test_names_and_settings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="no engine 'openvno'; closest: 'openvino'"):
        engine_of("openvno")
    with pytest.raises(
        InputError, match=r"engine 'openvino' has no setting provider; leave it out \(it takes threads\)"
    ):
        engine_of("openvino", provider="cpu")
    with pytest.raises(InputError, match=r"threads must be in \[1, 1024\], got 0"):
        engine_of("openvino", threads=0)
    assert setting_names(engine_class("onnxruntime"))[:2] == ("provider", "provider_options")


# OpenVINO alone


@pytest.fixture
def openvino() -> None:
    needs_openvino()


@pytest.mark.usefixtures("openvino")
def test_openvino_refuses_integers_that_it_would_clip() -> None:
    session = engine_of("openvino").prepare(
        graph("g (int64[N] x) => (int64[N] y) { y = Add(x, x) }").SerializeToString()
    )
    assert session.run({"x": np.array([3])})["y"].tolist() == [6]
    with pytest.raises(DataError, match="OpenVINO computes int64 as int32; input 'x' holds numbers beyond that"):
        session.run({"x": np.array([1 << 40])})
    double = engine_of("openvino").prepare(
        graph("g (double[N] x) => (double[N] y) { y = Add(x, x) }").SerializeToString()
    )
    assert double.note == "OpenVINO, CPU; float64 is computed as float32"


@pytest.mark.usefixtures("openvino")
def test_openvino_reports_nothing_to_its_maker(tmp_path: Path) -> None:
    program = (
        "import sys; from onnxfi import engine_of; from onnxfi.runtime.engine.protocols import smallest_model;"
        "engine_of('openvino').prepare(smallest_model());"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert (ran.stdout, os.listdir(tmp_path)) == ("[]\n", []), "no identifier is left in the home folder"


def test_openvino_that_is_not_installed_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxfi.runtime.engine.openvino.is_installed", lambda: False)
    with pytest.raises(EngineError, match=r"^openvino is not installed; pip install 'onnxfi\[openvino\]'$"):
        engine_of("openvino").prepare(b"")
    assert engine_of("openvino").version == "openvino, not installed"


@pytest.mark.usefixtures("openvino")
def test_formats_that_numpy_lacks_go_in_and_out_of_openvino() -> None:
    import ml_dtypes

    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", ["x", "x"], ["y"])], "g", [value("x", 16, ["N"])], [value("y", 16, ["N"])]
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    x = np.array([1.5, -3], ml_dtypes.bfloat16)
    assert engine_of("openvino").prepare(model.SerializeToString()).run({"x": x})["y"].tolist() == [3, -6]


@pytest.mark.usefixtures("openvino")
def test_openvino_refuses_a_model_whose_faults_are_fed() -> None:
    done = instrument(
        load(graph("g (float[N,3] x) => (float[N,3] y) { a = Neg(x) y = Abs(a) }").SerializeToString()), all=True
    )
    with pytest.raises(EngineError, match=r"OpenVINO refuses the model: .*Gather") as caught:
        engine_of("openvino").prepare(done.data)
    assert "\n" not in str(caught.value)
