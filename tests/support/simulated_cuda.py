"""A simulated NVIDIA device: ONNX Runtime's CPU kernels behind the interface of its CUDA provider.

What the provider's options, errors and bindings mean for onnxfi is tried with it where there is no device. Kernels give
equal bits in every session only with the options that the real provider needs for it: TF32 rounds, a search by measured
time differs between sessions, and kernels without a fixed order between runs. It stands in for no measurement.

`install` puts it in the place of the provider in this process, `environment` in processes that are started with it.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

VARIABLE = "ONNXFI_SIMULATED_CUDA"
STARTUP = Path(__file__).with_name("simulated_cuda_startup")
ILLEGAL = (
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=simulated ; "
    "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_stream_handle.cc ; line=88 ; expr=cudaStreamSynchronize(s)"
)
_REAL: dict[str, Any] = {}


@dataclass
class Simulation:
    """The device: how many, how much memory, what breaks, and a log of what was asked of it."""

    devices: int = 1
    #: The largest tensor that fits, where no smaller limit is given.
    memory_bytes: int = 1 << 40
    #: Sessions of the CUDA provider that load; then memory has run out.
    loads: int = 1 << 40
    #: Outputs that are not finite end the process' use of the device.
    sticky_nonfinite: bool = False
    #: A file that stands for one error: the first run that finds it removes it, and the device is lost to the process.
    single_error_file: str = ""
    #: Devices that no process can use.
    dead: tuple[int, ...] = ()
    #: An error of the next runs that a session survives.
    error: str = ""
    cpu_ops: tuple[str, ...] = ()
    log: str = ""

    def __post_init__(self) -> None:
        self.lost = False
        self.arenas: dict[int, int] = {}
        self.events: list[dict[str, Any]] = []

    def note(self, **event: Any) -> None:
        """Keep an event, also in the log file that processes share."""
        event["pid"] = os.getpid()
        self.events.append(event)
        if self.log:
            with open(self.log, "a") as stream:
                stream.write(json.dumps(event) + "\n")

    def count(self, what: str) -> int:
        """Return how often something was asked for in this process."""
        return sum(event["what"] == what for event in self.events)


class _Value:
    """A value of the runtime that counts as being on a device."""

    def __init__(self, real: Any, device: tuple[str, int], simulation: Simulation) -> None:
        self.real, self.device, self._simulation = real, device, simulation

    def numpy(self) -> Any:
        self._simulation.note(what="download")
        return self.real.numpy()

    def device_name(self) -> str:
        return self.device[0]


class _Binding:
    """Bound inputs and outputs; the device is the host under another name."""

    def __init__(self, session: Any, simulation: Simulation, device: int) -> None:
        self.real, self._simulation, self._device = session.io_binding(), simulation, device
        self._wanted: list[tuple[str, int]] = []

    def bind_cpu_input(self, name: str, array: Any) -> None:
        self._simulation.note(what="upload", bytes=int(array.nbytes))
        self.real.bind_cpu_input(name, array)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        if isinstance(value, _Value):
            assert value.device == ("cuda", self._device), "a value of another device"
            self._simulation.note(what="stayed")
        self.real.bind_ortvalue_input(name, value.real if isinstance(value, _Value) else value)

    def bind_output(self, name: str, device_type: str = "cpu", device_id: int = 0) -> None:
        self._wanted.append((device_type, device_id))
        self.real.bind_output(name, "cpu", 0)

    def get_outputs(self) -> list[Any]:
        found = zip(self.real.get_outputs(), self._wanted, strict=True)
        return [value if device[0] == "cpu" else _Value(value, device, self._simulation) for value, device in found]


class _Session:
    """A session of the CUDA provider, computed on the CPU."""

    def __init__(self, model: Any, options: Any, providers: Any, **how: Any) -> None:
        self._simulation = simulation = _REAL["simulation"]
        names = [one if isinstance(one, str) else one[0] for one in providers]
        self._names, self._real = names, None
        own = {one[0]: one[1] for one in providers if not isinstance(one, str)}
        self._options = own.get("CUDAExecutionProvider", {})
        self._on_device = "CUDAExecutionProvider" in names
        self._device = int(self._options.get("device_id", "0"))
        self._deterministic = bool(options.use_deterministic_compute)
        if self._on_device:
            self._check()
            simulation.loads -= 1
            if simulation.loads < 0:
                raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=simulated")
            if self._device >= simulation.devices:
                raise RuntimeError(f"Invalid device ID: {self._device}, must be between 0 and {simulation.devices}")
            simulation.note(what="session", providers=providers, deterministic=self._deterministic)
        self._real = _REAL["session"](model, options, providers=["CPUExecutionProvider"], **how)
        self._runs, self._serial = 0, simulation.count("session")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        return self._names

    def _check(self) -> None:
        if self._simulation.lost or self._device in self._simulation.dead:
            raise RuntimeError(ILLEGAL)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        """Return each node by itself, as ONNX Runtime lists those of its own providers."""
        found = self._real.get_provider_graph_assignment_info()
        nodes = [node for part in found for node in part.get_nodes()]
        return [
            SimpleNamespace(
                ep_name="CPUExecutionProvider" if node.op_type in self._simulation.cpu_ops else self._names[0],
                get_nodes=lambda node=node: [node],
            )
            for node in nodes
        ]

    def io_binding(self) -> Any:
        return _Binding(self._real, self._simulation, self._device) if self._on_device else self._real.io_binding()

    def run(self, names: Any, feeds: Any, options: Any = None) -> list[Any]:
        if not self._on_device:
            return self._real.run(names, feeds, options)
        self._before()
        return self._after(self._real.run(names, feeds, options))

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        if not self._on_device:
            self._real.run_with_iobinding(binding, options)
            return
        self._before()
        self._real.run_with_iobinding(binding.real, options)
        for value in binding.real.get_outputs():
            if value.element_type() not in (4, 5, 16):  # without uint16, int16 and bfloat16, which no kernel rounds
                self._after([value.numpy()], value)

    def _before(self) -> None:
        self._check()
        self._simulation.note(what="run", device=self._device)
        self._runs += 1
        if self._simulation.error:
            raise RuntimeError(self._simulation.error)
        once = Path(self._simulation.single_error_file)
        if self._simulation.single_error_file and once.exists():
            once.unlink()
            self._simulation.lost = True
            raise RuntimeError(ILLEGAL)

    def _after(self, outputs: Sequence[Any], value: Any = None) -> list[Any]:
        """Return outputs as the options round them, and refuse those that do not fit or are not finite."""
        simulation, options = self._simulation, self._options
        limit = min(simulation.memory_bytes, simulation.arenas.get(self._device) or 1 << 62)
        found = []
        for given in outputs:
            array = np.array(given)
            if array.nbytes > limit:
                raise RuntimeError(
                    f"BFCArena::AllocateRawInternal Available memory of {limit} is smaller than requested bytes of "
                    f"{array.nbytes}"
                )
            if array.dtype == np.float32 and array.size:
                words = array.reshape(-1).view(np.uint32)
                if options.get("use_tf32", "1") == "1":
                    words &= np.uint32(0xFFFFE000)
                if options.get("cudnn_conv_algo_search", "EXHAUSTIVE") == "EXHAUSTIVE":
                    words ^= np.uint32(self._serial % 2)
                if not self._deterministic:
                    words ^= np.uint32(2 * (self._runs % 2))
                if simulation.sticky_nonfinite and not np.isfinite(array).all():
                    simulation.lost = True
                    raise RuntimeError(ILLEGAL)
                if value is not None and not np.array_equal(array, given, equal_nan=True):
                    value.update_inplace(array)
            found.append(array)
        return found


class _Driver:
    """NVIDIA's driver, as far as onnxfi asks it."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def cuInit(self, flags: int) -> int:
        return 0 if self._simulation.devices else 100

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self._simulation.devices
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = f"Simulated {device.value}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:
        size._obj.value = min(self._simulation.memory_bytes, 1 << 40)
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        return 0

    def cuModuleLoadData(self, module: Any, image: Any) -> int:
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: Any) -> int:
        return 0

    def cuLaunchKernel(self, *given: Any) -> int:
        self._simulation.lost = True  # the one kernel that anybody launches here writes where it must not
        return 0

    def cuCtxSynchronize(self) -> int:
        return 700 if self._simulation.lost else 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def install(simulation: Simulation, patch: Any = setattr) -> Simulation:
    """Put a simulation in the place of the CUDA provider; `patch` sets an attribute, as monkeypatch's `setattr`."""
    import onnxruntime

    from onnxfi.runtime.engine.cuda import share_device_arena

    share_device_arena.cache_clear()
    library = ctypes.CDLL
    _REAL.setdefault("session", onnxruntime.InferenceSession)
    _REAL["simulation"] = simulation

    def registered(provider: str, info: Any, options: Any, arena: Any) -> None:
        if info.device_id in simulation.arenas:
            raise RuntimeError("An allocator for this device has already been registered")
        simulation.arenas[info.device_id] = arena.max_mem
        simulation.note(what="arena", bytes=arena.max_mem)

    def found(name: Any, *rest: Any, **more: Any) -> Any:
        return _Driver(simulation) if name in ("libcuda.so.1", "nvcuda.dll") else library(name, *rest, **more)

    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    patch(onnxruntime, "InferenceSession", _Session)
    patch(onnxruntime, "get_available_providers", lambda: providers)
    patch(onnxruntime, "preload_dlls", lambda: None)
    patch(onnxruntime, "create_and_register_allocator_v2", registered)
    patch(ctypes, "CDLL", found)
    return simulation


def environment(simulation: Simulation) -> dict[str, str]:
    """Return the variables of a process, and of those that it starts, in which this simulation is in place."""
    path = os.pathsep.join(filter(None, (str(STARTUP), os.environ.get("PYTHONPATH", ""))))
    return {VARIABLE: json.dumps(asdict(simulation)), "PYTHONPATH": path}
