"""The CUDA and TensorRT providers on a simulated device: options, placement, memory, devices, what stays on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import parser
from simulated_cuda import ILLEGAL, Simulation, install

from onnxfi.errors import DeviceError, EngineError, InputError, ProviderError
from onnxfi.runtime.engine import cuda
from onnxfi.runtime.engine.device_array import DeviceArray
from onnxfi.runtime.engine.device_errors import out_of_memory
from onnxfi.runtime.engine.onnx_runtime import OrtEngine, OrtSession

MODEL = parser.parse_model(
    '<ir_version: 10, opset_import: ["": 21]> g (float[N,3] x) => (float[N,3] y) { z = Sin(x) y = Mul(z, z) }'
).SerializeToString()
ROWS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
Device = Callable[..., Simulation]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A function that puts a simulated device in place."""
    return lambda **given: install(Simulation(**given), monkeypatch.setattr)


def engine(provider: str = "cuda", **options: str) -> OrtEngine:
    return OrtEngine(provider=provider, provider_options=tuple(options.items()))


def sessions(simulation: Simulation) -> list[dict[str, Any]]:
    return [event for event in simulation.events if event["what"] == "session"]


# The same bits in every session


def test_sessions_ask_for_kernels_of_one_order_and_no_tf32(device: Device) -> None:
    simulation = device()
    engine().prepare(MODEL)
    [opened] = sessions(simulation)
    assert opened["deterministic"]
    [(name, options), (behind, _)] = opened["providers"]
    assert (name, behind) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert (options["cudnn_conv_algo_search"], options["use_tf32"]) == ("HEURISTIC", "0")


def test_golden_bits_agree_across_sessions_only_with_these_options(device: Device) -> None:
    """The simulation rounds as the provider may without them, so the options are what makes bits agree."""
    device()
    golden = engine().prepare(MODEL).run({"x": ROWS})["y"].tobytes()
    assert engine().prepare(MODEL).run({"x": ROWS})["y"].tobytes() == golden
    assert OrtEngine(provider="cpu").prepare(MODEL).run({"x": ROWS})["y"].tobytes() == golden
    loose = [engine(cudnn_conv_algo_search="EXHAUSTIVE").prepare(MODEL).run({"x": ROWS})["y"] for _ in range(2)]
    assert loose[0].tobytes() != loose[1].tobytes()
    assert engine(use_tf32="1").prepare(MODEL).run({"x": ROWS})["y"].tobytes() != golden


def test_settings_that_fix_the_bits_are_reported(device: Device) -> None:
    assert engine().arithmetic["use_tf32"] == "0"
    assert engine(use_tf32="1", device_id="1").arithmetic == {
        "use_deterministic_compute": "1", "cudnn_conv_algo_search": "HEURISTIC", "cudnn_conv_use_max_workspace": "0",
        "use_tf32": "1",
    }  # fmt: skip
    assert engine("tensorrt", trt_fp16_enable="1").arithmetic["trt_fp16_enable"] == "1"
    assert "trt_timing_cache_path" not in engine("tensorrt", trt_timing_cache_path="here").arithmetic
    assert OrtEngine(provider="cpu").arithmetic == {}


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"enable_cuda_graph": "1"}, "enable_cuda_graph replays the buffers of its first run"),
        ({"trt_cuda_graph_enable": "True"}, "trt_cuda_graph_enable replays"),
        ({"trt_engine_cache_enable": "1"}, "finds engines by the graph and not by its weights"),
        ({"device_id": "first"}, "device_id takes a number"),
        ({"gpu_mem_limit": "4GB"}, "gpu_mem_limit takes a number of bytes"),
    ],
)
def test_options_under_which_no_fault_would_be_seen_are_refused(option: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        engine(**option)
    engine(enable_cuda_graph="0")


# TensorRT


def test_tensorrt_hands_its_device_and_the_arithmetic_to_the_provider_behind_it(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    simulation = device(devices=2)
    session = engine("tensorrt", device_id="1", trt_fp16_enable="1", gpu_mem_limit="4096").prepare(MODEL)
    [(first, own), (second, behind), (third, _)] = sessions(simulation)[0]["providers"]
    assert [first, second, third] == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert own == {"device_id": "1", "trt_fp16_enable": "1"}
    assert (behind["device_id"], behind["use_tf32"], behind["gpu_mem_limit"]) == ("1", "0", "4096")
    assert session.note.startswith("TensorrtExecutionProvider on device 1 (Simulated 1, compute capability 9.0)")
    import os

    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_kernels_that_are_chosen_by_measured_time_are_named_as_the_remedy() -> None:
    fixed = cuda.arithmetic("CUDAExecutionProvider", {"tunable_op_enable": "1", "tunable_op_tuning_enable": "1"})
    assert fixed["tunable_op_tuning_enable"] == "1"
    remedy = cuda.same_bits_remedy(fixed)
    assert remedy.startswith("leave --provider-option tunable_op_enable=1, tunable_op_tuning_enable=1 out")


def test_tensorrt_runs_no_segments(device: Device) -> None:
    assert not engine("tensorrt").in_segments
    assert engine().in_segments


# What stays on the device


def test_outputs_go_into_the_next_session_without_the_host(device: Device) -> None:
    simulation = device()
    first, second = engine().prepare(MODEL), engine().prepare(MODEL)
    between = first.run({"x": ROWS})["y"]
    assert isinstance(between, DeviceArray)
    assert (simulation.count("upload"), simulation.count("stayed")) == (1, 0)
    answer = second.run({"x": between})["y"]
    assert (simulation.count("upload"), simulation.count("stayed")) == (1, 1)
    host = OrtEngine(provider="cpu").prepare(MODEL)
    assert answer.tobytes() == host.run({"x": host.run({"x": ROWS})["y"]})["y"].tobytes()


def test_a_patched_activation_is_copied_from_the_host(device: Device) -> None:
    simulation, session = device(), engine().prepare(MODEL)
    between = session.run({"x": ROWS})["y"]
    patched = np.array(between)
    patched[0, 0] = np.inf
    with pytest.raises(ValueError, match="read-only"):
        between[0, 0] = np.inf
    got = session.run({"x": patched})["y"]
    assert np.isnan(got[0, 0]) and np.isfinite(got[0, 1])
    assert simulation.count("stayed") == 0
    session.run({"x": between[:2]})
    assert simulation.count("stayed") == 0, "a part of an output is of the host alone"


def test_a_value_stays_on_its_own_device(device: Device) -> None:
    device(devices=2)
    first, second = engine(device_id="0").prepare(MODEL), engine(device_id="1").prepare(MODEL)
    passed_on = second.run({"x": first.run({"x": ROWS})["y"]})["y"]  # the simulation refuses a value of another device
    whole = engine(device_id="0").prepare(MODEL)
    assert np.array_equal(passed_on, whole.run({"x": np.asarray(whole.run({"x": ROWS})["y"])})["y"])


# Placement, devices, memory


def test_where_nodes_run_is_what_the_runtime_says(device: Device) -> None:
    device(cpu_ops=("Mul",))
    note = engine().prepare(MODEL).note
    assert "nodes: 1 on CUDAExecutionProvider, 1 on CPUExecutionProvider (Mul)" in note


def test_placement_of_a_session_of_the_cpu_is_its_own() -> None:
    """The real runtime, not the simulation: its record of the assignment has the nodes of the model."""

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("this release of ONNX Runtime does not record it")
    assert cuda.node_placement(session) == {"CPUExecutionProvider": {"Sin": 1, "Mul": 1}}
    assert cuda.node_placement(onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])) == {}


def test_devices_of_workers(device: Device) -> None:
    device(devices=3)
    assert engine().devices == (0, 1, 2)
    assert engine(device_id="2").devices == (2,)
    assert OrtEngine(provider="cpu").devices == ()
    assert [str(one) for one in cuda.devices()][1] == "Simulated 1, compute capability 9.0"


def test_one_arena_holds_the_limit_of_all_sessions(device: Device) -> None:
    simulation = device()
    limited = engine(gpu_mem_limit=str(1 << 20))
    for _ in range(3):
        limited.prepare(MODEL)
    assert [event["bytes"] for event in simulation.events if event["what"] == "arena"] == [1 << 20]
    assert limited.device_memory_bytes == 1 << 20
    assert engine().device_memory_bytes == 1 << 40
    big = np.zeros((1 << 17, 3), np.float32)
    with pytest.raises(EngineError, match="is smaller than requested bytes") as caught:
        limited.prepare(MODEL).run({"x": big})
    assert out_of_memory(caught.value)
    limited.prepare(MODEL).run({"x": ROWS})  # the device is as good as before


# Errors


def test_an_error_that_ends_the_process_is_no_refusal_of_a_model(device: Device, tmp_path: Any) -> None:
    once = tmp_path / "once"
    simulation = device(single_error_file=str(once))
    session = engine().prepare(MODEL)
    once.touch()
    with pytest.raises(DeviceError, match=r"can no longer use its device under CUDA.*illegal memory access.*--workers"):
        session.run({"x": ROWS})
    assert simulation.lost
    for later in (lambda: session.run({"x": ROWS}), lambda: engine().prepare(MODEL)):
        with pytest.raises(DeviceError):
            later()


def test_an_error_without_a_name_ends_the_process_where_nothing_runs_any_more(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = device()
    session = engine().prepare(MODEL)
    monkeypatch.setattr(simulation, "error", "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0")
    with pytest.raises(DeviceError):
        session.run({"x": ROWS})


def test_an_error_of_one_model_stays_that(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device()
    session = engine().prepare(MODEL)
    ran = onnxruntime.InferenceSession.run_with_iobinding  # of the simulation

    def fails(self: Any, binding: Any) -> None:
        raise RuntimeError("CUBLAS failure 7: CUBLAS_STATUS_INVALID_VALUE ; GPU=0")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", fails)
    with pytest.raises(EngineError, match="failed on this batch: CUBLAS failure 7"):
        session.run({"x": ROWS})
    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", ran)
    session.run({"x": ROWS})


def test_memory_that_runs_out_is_no_lost_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = device()
    session = engine().prepare(MODEL)
    monkeypatch.setattr(simulation, "error", "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0")
    with pytest.raises(EngineError) as caught:
        session.run({"x": ROWS})
    assert out_of_memory(caught.value)


def test_a_device_that_no_process_can_use(device: Device) -> None:
    device(dead=(0,))
    with pytest.raises(DeviceError):
        engine().prepare(MODEL)
    session = OrtEngine().prepare(MODEL)
    assert session.provider == "CPUExecutionProvider" and ILLEGAL[:16] in session.note
    device(devices=0)
    with pytest.raises(ProviderError, match="finds no device"):
        engine().prepare(MODEL)


def test_a_wrapped_session_of_another_owner_takes_its_provider_for_working() -> None:

    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    assert OrtSession.over(session, "CUDAExecutionProvider").provider_works()
