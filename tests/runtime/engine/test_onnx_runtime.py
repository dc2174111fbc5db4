"""ONNX Runtime through `OrtEngine`: what runs, and how every refusal reads."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from onnx import parser

from onnxfi.errors import DataError, EngineError, InputError, ModelError
from onnxfi.runtime.engine import onnx_runtime
from onnxfi.runtime.engine.onnx_runtime import OrtEngine, OrtSession
from onnxfi.runtime.engine.ports import Port, one_line

CPU = OrtEngine(provider="cpu")
NO_CUDA = onnx_runtime.no_cuda()


def model(graph: str) -> bytes:
    """A serialised model of a graph in ONNX's text form, at an IR and opset that any runtime takes."""
    head = '<ir_version: 10, opset_import: ["": 21, "ai.onnx.ml": 3]>'
    return bytes(parser.parse_model(head + graph).SerializeToString())


RELU = model("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
ROWS = np.array([[-1, 0, 2], [3, -4, 5]], np.float32)


def session(graph: str) -> OrtSession:
    return CPU.prepare(model(graph))


# What a session gives


def test_runs_a_serialised_model() -> None:
    np.testing.assert_array_equal(CPU.prepare(RELU).run({"x": ROWS})["y"], np.maximum(ROWS, 0))


def test_runs_a_file_given_as_path_or_text(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(RELU)
    for given in (path, str(path)):
        np.testing.assert_array_equal(CPU.prepare(given).run({"x": ROWS})["y"], np.maximum(ROWS, 0))


def test_ports_have_names_types_and_shapes() -> None:
    prepared = session("g (bfloat16[N,?,3] x, bool b) => (bfloat16[N,?,3] y, bool c) {y=Identity(x) c=Not(b)}")
    assert prepared.inputs == (Port("x", "bfloat16", ("N", None, 3)), Port("b", "bool", None))
    assert [port.dtype for port in prepared.outputs] == ["bfloat16", "bool"]


@pytest.mark.parametrize("level", ["all", "extended", "basic", "off"])
def test_every_optimization_level_runs(level: str) -> None:
    got = OrtEngine(provider="cpu", optimization=level, threads=2).prepare(RELU).run({"x": ROWS})
    np.testing.assert_array_equal(got["y"], np.maximum(ROWS, 0))


def test_only_the_outputs_asked_for_are_given() -> None:
    prepared = session("g (float[N] x) => (float[N] a, float[N] b) { a = Abs(x) b = Neg(x) }")
    feeds = {"x": np.array([-1], np.float32)}
    assert list(prepared.run(feeds, ["b"])) == ["b"]
    assert list(prepared.run(feeds)) == ["a", "b"]
    assert prepared.run(feeds, []) == {}


@pytest.mark.parametrize(
    ("onnx_type", "element"),
    [
        ("float", np.float32),
        ("double", np.float64),
        ("float16", np.float16),
        ("int64", np.int64),
        ("uint8", np.uint8),
        ("bool", np.bool_),
        ("bfloat16", ml_dtypes.bfloat16),
        ("float8e4m3fn", ml_dtypes.float8_e4m3fn),
        ("float8e4m3fnuz", ml_dtypes.float8_e4m3fnuz),
        ("float8e5m2", ml_dtypes.float8_e5m2),
        ("float8e5m2fnuz", ml_dtypes.float8_e5m2fnuz),
    ],
)
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), ()])
def test_every_type_goes_in_and_comes_out(onnx_type: str, element: Any, shape: tuple[int, ...]) -> None:
    dims = {(): "", (2, 3): "[N,3]", (0, 3): "[N,3]"}[shape]
    prepared = session(f"g ({onnx_type}{dims} x) => ({onnx_type}{dims} y) {{ y = Identity(x) }}")
    given = (np.arange(math.prod(shape)) % 2).reshape(shape).astype(element)
    got = prepared.run({"x": given})["y"]
    assert got.dtype == given.dtype
    assert got.shape == given.shape
    assert got.tobytes() == given.tobytes()


@pytest.mark.parametrize(
    "given",
    [np.array(["a", "bcd"]), np.array(["a", "bcd"], object), np.array([b"a", b"bcd"])],
    ids=["fixed", "objects", "bytes"],
)
def test_text_goes_in_whatever_array_holds_it(given: np.ndarray) -> None:
    prepared = session("g (string[N] x) => (string[N] y) { y = Identity(x) }")
    assert prepared.run({"x": given})["y"].tolist() == ["a", "bcd"]


def test_text_that_is_not_utf8_is_refused() -> None:
    prepared = session("g (string[N] x) => (string[N] y) { y = Identity(x) }")
    with pytest.raises(DataError, match="'x' has text that is not UTF-8"):
        prepared.run({"x": np.array([b"\xff"])})


def test_byte_order_strides_and_alignment_do_not_matter() -> None:
    prepared = CPU.prepare(RELU)
    words = np.frombuffer(b"\0" + ROWS.tobytes(), np.uint8)[1:].view(np.float32).reshape(2, 3)
    assert not words.flags.aligned
    for given in (ROWS.astype(">f4"), np.asfortranarray(ROWS), np.tile(ROWS, 2)[:, :3], words):
        np.testing.assert_array_equal(prepared.run({"x": given})["y"], np.maximum(ROWS, 0))


def test_bound_buffers_give_the_same_as_the_plain_way() -> None:
    prepared = session("g (float[N,3] x) => (float[N,3] y, float z) { y=Relu(x) z=ReduceSum<keepdims=0>(x) }")
    types = {"x": "float32", "y": "float32", "z": "float32"}
    plain, bound = prepared.run({"x": ROWS}), prepared.run_bound({"x": ROWS}, ["y", "z"], types, ("cpu", 0))
    assert bound.keys() == plain.keys()
    for name, array in plain.items():
        np.testing.assert_array_equal(bound[name], array)
    again = prepared.run_bound({"x": ROWS + 1}, ["y"], types, ("cpu", 0))
    np.testing.assert_array_equal(bound["y"], np.maximum(ROWS, 0))  # the first answer is its own memory
    assert (again["y"] != bound["y"]).any()


def test_an_initializer_that_is_an_input_too_may_be_fed() -> None:
    graph = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[N,3] x, float[3] w) => (float[N,3] y) <float[3] w = {1, 1, 1}> { y = Mul(x, w) }"""
    )
    prepared = CPU.prepare(graph.SerializeToString())
    assert [port.name for port in prepared.inputs] == ["x"]
    assert [port.name for port in prepared.overridable] == ["w"]
    np.testing.assert_array_equal(prepared.run({"x": ROWS})["y"], ROWS)
    np.testing.assert_array_equal(prepared.run({"x": ROWS, "w": np.full(3, 2, np.float32)})["y"], 2 * ROWS)


@pytest.mark.parametrize(
    ("declared", "node", "kind"),
    [
        ("seq(float[N,3]) s", "s = SequenceConstruct(x)", r"seq\(tensor\(float\)\)"),
        ("optional(float[N,3]) s", "s = Optional(x)", r"optional\(tensor\(float\)\)"),
    ],
)
def test_outputs_that_are_no_tensors_are_left_out(declared: str, node: str, kind: str) -> None:
    prepared = session(f"g (float[N,3] x) => ({declared}, float[N,3] y) {{ {node} y = Relu(x) }}")
    assert [port.name for port in prepared.outputs] == ["y"]
    assert list(prepared.run({"x": ROWS})) == ["y"]
    with pytest.raises(EngineError, match=f"output 's' is a {kind}; only plain tensors"):
        prepared.run({"x": ROWS}, ["s"])


def test_a_map_output_is_left_out() -> None:
    prepared = session(
        "g (float[N,3] x) => (seq(map(int64, float)) s, float[N,3] y)"
        "{ s = ai.onnx.ml.ZipMap<classlabels_int64s: ints = [0, 1, 2]>(x) y = Relu(x) }"
    )
    assert list(prepared.run({"x": ROWS})) == ["y"]


def test_a_model_with_no_tensor_output_gives_nothing() -> None:
    prepared = session("g (float[N] x) => (seq(float[N]) s) { s = SequenceConstruct(x) }")
    assert prepared.run({"x": np.zeros(1, np.float32)}) == {}


# Feeds that do not match


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({}, "input 'x' (float32 [N,3]) is not fed; fed are none"),
        ({"x": ROWS, "z": ROWS}, "the model has no input 'z'; known: 'x'"),
        ({"x": ROWS.astype(np.float64)}, "input 'x' takes float32 [N,3], given float64 [2,3]"),
        ({"x": ROWS[:, :2]}, "input 'x' takes float32 [N,3], given float32 [2,2]"),
        ({"x": ROWS[0]}, "input 'x' takes float32 [N,3], given float32 [3]"),
    ],
)
def test_feeds_that_do_not_match_are_named(feeds: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(DataError) as caught:
        CPU.prepare(RELU).run(feeds)
    assert str(caught.value) == says


def test_an_input_that_is_no_tensor_cannot_be_fed() -> None:
    prepared = session("g (seq(float[N]) x) => (int64 y) { y = SequenceLength(x) }")
    with pytest.raises(DataError, match=r"'x' is a seq\(tensor\(float\)\); only tensors can be fed"):
        prepared.run({"x": ROWS})


def test_an_optional_input_may_stay_away() -> None:
    prepared = session("g (optional(float[N]) x) => (bool y) { y = OptionalHasElement(x) }")
    assert not prepared.run({})["y"]


def test_an_unknown_output_names_the_closest() -> None:
    with pytest.raises(EngineError, match="the model has no output 'yy'; closest: 'y'"):
        CPU.prepare(RELU).run({"x": ROWS}, ["yy"])


# Refusals


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"", "ONNX Runtime refuses the model under CPUExecutionProvider: "),
        (b"\x00garbage", "ONNX Runtime refuses the model under CPUExecutionProvider: "),
        (RELU[: len(RELU) // 2], "ONNX Runtime refuses the model under CPUExecutionProvider: "),
        (model("g (float[N] x) => (float[N] y) { y = Bar(x) }"), "Bar"),
        (model("g (float[N] x) => (float[N] y) { y = Reshape(x, x) }"), "Type 'tensor(float)' of input"),
        (RELU.replace(b"\x08\x0a", b"\x08\x63", 1), "Unsupported model IR version: 99"),
        (
            model("g (bfloat16[N,2] x) => (bfloat16[N,N] y) { t = Transpose(x)\n y = MatMul(x, t) }"),
            "--engine openvino",
        ),
    ],
    ids=["empty", "garbage", "truncated", "unknown operator", "wrong type", "new IR", "bfloat16"],
)
def test_a_model_that_the_runtime_refuses_is_one_short_line(bad: bytes, says: str) -> None:
    with pytest.raises(EngineError) as caught:
        CPU.prepare(bad)
    line = str(caught.value)
    assert says in line
    assert len(line) < 400
    assert line.isprintable()
    assert "onnxruntime_src" not in line


def test_a_run_that_fails_is_one_short_line(capfd: pytest.CaptureFixture[str]) -> None:
    prepared = session("g (float[N,3] x, int64[2] s) => (float[a,b] y) { y = Reshape(x, s) }")
    with pytest.raises(EngineError) as caught:
        prepared.run({"x": ROWS, "s": np.array([4, 4])})
    line = str(caught.value)
    assert line.startswith("ONNX Runtime failed on this batch: ")
    assert "Input shape:{2,3}, requested shape:{4,4}" in line
    assert line.isprintable()
    assert "onnxruntime_src" not in line
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "what"), [("gone.onnx", "not a file"), (".", "a directory")])
def test_a_path_that_is_no_file(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(ModelError, match=f"is {what}; give the path of an .onnx file"):
        CPU.prepare(tmp_path / name)


def test_settings_are_checked_before_anything_runs() -> None:
    with pytest.raises(InputError, match="no optimization 'fast'; known: 'all', 'extended', 'basic', 'off'"):
        OrtEngine(optimization="fast")
    with pytest.raises(InputError, match="threads is 0; it takes 1 to 1024"):
        OrtEngine(threads=0)
    with pytest.raises(InputError, match="provider 'auto' takes no options"):
        OrtEngine(provider_options=(("device_id", "1"),))
    with pytest.raises(InputError, match="device_id takes a number"):
        OrtEngine(provider="cuda", provider_options=(("device_id", "first"),))
    with pytest.raises(InputError, match=r"no library of custom operators at 'gone\.so'"):
        OrtEngine(custom_ops=("gone.so",))


def test_a_library_that_does_not_load_says_why(tmp_path: Path) -> None:
    library = tmp_path / "ops.so"
    library.write_text("no library")
    with pytest.raises(EngineError, match=r"custom operators .*ops\.so' do not load: .*ops\.so"):
        OrtEngine(provider="cpu", custom_ops=(str(library),)).prepare(RELU)


# Providers


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_a_provider_is_known_by_its_short_and_its_full_name(name: str) -> None:
    prepared = OrtEngine(provider=name).prepare(RELU)
    assert prepared.provider == prepared.note == "CPUExecutionProvider"


def test_an_unknown_provider_names_the_closest() -> None:
    with pytest.raises(InputError, match="no provider 'cudda'; closest: 'cuda'"):
        OrtEngine(provider="cudda").prepare(RELU)


def test_a_provider_that_this_build_lacks() -> None:
    with pytest.raises(EngineError, match=r"'coreml' is not in the installed ONNX Runtime, which has .*cpu"):
        OrtEngine(provider="coreml").prepare(RELU)


@pytest.mark.skipif(NO_CUDA is None, reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_provider_without_its_device_is_an_error_that_says_why(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError) as caught:
        OrtEngine(provider=name).prepare(RELU)
    assert str(caught.value).startswith(f"provider '{name}' ")
    assert "driver" in str(caught.value) or "not in the installed ONNX Runtime" in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(NO_CUDA is None, reason="there is a CUDA device")
def test_auto_without_a_device_takes_the_cpu_and_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    prepared = OrtEngine().prepare(RELU)
    assert prepared.provider == "CPUExecutionProvider"
    assert prepared.note.startswith("CPUExecutionProvider (")
    np.testing.assert_array_equal(prepared.run({"x": ROWS})["y"], np.maximum(ROWS, 0))
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(NO_CUDA is None, reason="there is a CUDA device")
def test_a_provider_that_falls_back_silently_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a driver but without its libraries, ONNX Runtime lists CUDA and then runs on the CPU."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has no CUDA provider")
    monkeypatch.setattr(onnx_runtime, "no_cuda", lambda: None)
    with pytest.raises(EngineError, match=r"provider 'cuda' did not load: |refuses the model under CUDA"):
        OrtEngine(provider="cuda").prepare(RELU)
    assert OrtEngine().prepare(RELU).note.startswith("CPUExecutionProvider (provider 'cuda' did not load: ")
    assert capfd.readouterr() == ("", "")


def test_a_model_that_only_cuda_refuses_runs_on_the_cpu_under_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    load = onnxruntime.InferenceSession

    def refuse(model: Any, options: Any, providers: Any, **how: Any) -> Any:
        if providers[0][0] != "CPUExecutionProvider":
            raise RuntimeError("no such kernel")
        return load(model, options, providers=providers, **how)

    monkeypatch.setattr(onnx_runtime, "no_cuda", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    prepared = OrtEngine().prepare(RELU)
    assert prepared.provider == "CPUExecutionProvider"
    assert "cuda" in prepared.note.lower()


def test_a_driver_that_finds_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def __init__(self, name: str) -> None: ...

        def cuInit(self, flags: int) -> int:
            return 100

    monkeypatch.setattr("ctypes.CDLL", Driver)
    assert onnx_runtime.no_cuda() == "the NVIDIA driver finds no device (code 100)"


@pytest.mark.cuda
@pytest.mark.skipif(NO_CUDA is not None, reason=str(NO_CUDA))
def test_cuda_runs_and_agrees_with_the_cpu() -> None:
    for engine in (OrtEngine(provider="cuda"), OrtEngine()):
        prepared = engine.prepare(RELU)
        assert prepared.provider == "CUDAExecutionProvider"
        np.testing.assert_array_equal(prepared.run({"x": ROWS})["y"], np.maximum(ROWS, 0))


@pytest.mark.cuda
@pytest.mark.skipif(NO_CUDA is not None, reason=str(NO_CUDA))
@pytest.mark.parametrize("onnx_type", ["float16", "bfloat16", "int64", "bool"])
def test_cuda_takes_and_gives_every_type(onnx_type: str) -> None:
    element = ml_dtypes.bfloat16 if onnx_type == "bfloat16" else np.dtype(onnx_type)
    given = np.array([0, 1, 1]).astype(element)
    graph = f"g ({onnx_type}[N] x) => ({onnx_type}[N] y) {{ y = Identity(x) }}"
    got = OrtEngine(provider="cuda").prepare(model(graph)).run({"x": given})["y"]
    assert (got.dtype, got.tobytes()) == (given.dtype, given.tobytes())


# The installation, and messages


def test_importing_this_floor_loads_neither_the_runtime_nor_pillow() -> None:
    program = (
        "import sys, onnxfi.runtime.engine.onnx_runtime, onnxfi.runtime.data.open_data, onnxfi.tasks.kinds.classification;"
        "print(*{'onnxruntime', 'PIL', 'scipy', 'onnx', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("\n", "")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("two\n lines\tand \x1b[31mred", "two lines and \\x1b[31mred"),
        ("x" * 400, "x" * 299 + "…"),
        ("[ONNXRuntimeError] : 1 : FAIL : why", "why"),
        ("/a/b.cc:7 int f<g(h)>(const std::map<A, B>&, C (*)(D)) const [with T = int] why", "why"),
        ("/a/b.cc:7 operator() /a/c.h:9 virtual void k() why (really)", "why (really)"),
        ("why\nStacktrace:\n#0 f()", "why"),
    ],
)
def test_foreign_messages_become_one_line(text: str, line: str) -> None:
    assert one_line(text) == line
