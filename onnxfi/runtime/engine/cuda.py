"""NVIDIA devices under ONNX Runtime: the options that give each session the same bits, the devices, their memory.

Two sessions of one model give the same bits only if nothing is chosen by measured time or free memory, and kernels add
in a fixed order. So deterministic kernels are requested, cuDNN ranks its algorithms by a heuristic on shapes alone, and
TF32, which rounds factors to 10 bits of mantissa, is off. Options of the provider that a user gives take precedence.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from onnxfi.errors import InputError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
#: Providers that run on an NVIDIA device.
ON_CUDA = (CUDA, TENSORRT)
#: Options of the CUDA provider that fix its arithmetic. With EXHAUSTIVE, its default, builds before cuDNN's graph API
#: measure algorithms in each session; DEFAULT takes slow fallback engines. The workspace would depend on free memory.
_FIXED = {"cudnn_conv_algo_search": "HEURISTIC", "cudnn_conv_use_max_workspace": "0", "use_tf32": "0"}
#: Beginnings of options that choose kernels, by measured time where the user says so.
_CHOOSING = ("trt_", "tunable_op")
#: Sessions come and go, so an arena that doubles would soon hold the device.
_ARENA = {"arena_extend_strategy": "kSameAsRequested"}
#: Options under which a session would not compute what it is given, and the reason.
_REPLAYED = "replays the buffers of its first run, so no fault would be seen"
_FOUND_AGAIN = "finds engines by the graph and not by its weights, so faulty weights would not be seen"
_REFUSED = {
    "enable_cuda_graph": _REPLAYED,
    "trt_cuda_graph_enable": _REPLAYED,
    "trt_engine_cache_enable": _FOUND_AGAIN,
    "trt_dump_ep_context_model": _FOUND_AGAIN,
}
#: The variable in which a worker process has its number among those of its pool, from 0.
WORKER_NUMBER = "ONNXFI_WORKER_NUMBER"
#: The driver's numbers of the compute capability of a device.
_MAJOR, _MINOR = 75, 76
#: Operators on the CPU that are named.
_MOST_NAMES = 8


def check_options(options: Mapping[str, str]) -> None:
    """Raise InputError for options under which faults would not be seen, and for a device that is not a number."""
    for name, why in _REFUSED.items():
        if options.get(name, "0").lower() not in ("0", "false"):
            raise InputError(f"the provider option {name} {why}; leave it out")
    if not options.get("device_id", "0").isdecimal():
        raise InputError("the provider option device_id takes a number, 0 or more")
    if not options.get("gpu_mem_limit", "1").isdecimal():
        raise InputError("the provider option gpu_mem_limit takes a number of bytes")


def provider_list(name: str, options: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Return the providers of a session with their options: the one asked for, and those for nodes that it lacks.

    >>> [provider for provider, _ in provider_list(TENSORRT, {"trt_fp16_enable": "1", "device_id": "1"})]
    ['TensorrtExecutionProvider', 'CUDAExecutionProvider', 'CPUExecutionProvider']
    >>> provider_list(TENSORRT, {"device_id": "1"})[1][1]["device_id"]
    '1'
    """
    if name == CPU:
        return [(CPU, dict(options))]
    if name not in ON_CUDA:
        return [(name, dict(options)), (CPU, {})]
    of_cuda = {key: value for key, value in options.items() if not key.startswith("trt_")}
    found = [(CUDA, _ARENA | _FIXED | of_cuda), (CPU, {})]
    if name == TENSORRT:
        own = {key: value for key, value in options.items() if key.startswith("trt_") or key == "device_id"}
        found.insert(0, (TENSORRT, own))
    return found


def arithmetic(provider: str, options: Mapping[str, str]) -> dict[str, str]:
    """Return what fixes the bits that a provider gives, beyond the model: nothing for one that is not on a device.

    >>> arithmetic("CUDAExecutionProvider", {"use_tf32": "1"})["use_tf32"]
    '1'
    """
    if provider not in ON_CUDA:
        return {}
    given = {key: value for key, value in options.items() if key in _FIXED or key.startswith(_CHOOSING)}
    given = {key: value for key, value in given.items() if not is_place(key)}
    return {"use_deterministic_compute": "1"} | _FIXED | given


def same_bits_remedy(fixed: Mapping[str, str]) -> str:
    """Return what to do where fault-free runs differ; `fixed` is the `arithmetic` of a session.

    >>> same_bits_remedy({})
    'use --threads 1 or another --provider'
    >>> same_bits_remedy(arithmetic(CUDA, {"use_tf32": "1"}))
    'leave --provider-option use_tf32=1 out, which lets kernels of the device differ, or use --provider cpu'
    """
    if not fixed:
        return "use --threads 1 or another --provider"
    given = [f"{name}={value}" for name, value in fixed.items() if name in _FIXED and value != _FIXED[name]]
    given += [f"{name}={value}" for name, value in fixed.items() if name.startswith("tunable_op") and value == "1"]
    if given:
        return (
            f"leave --provider-option {', '.join(given)} out, which lets kernels of the device differ, or use "
            f"--provider cpu"
        )
    return (
        f"the device ran with {', '.join(f'{name}={value}' for name, value in fixed.items())}, so an operator has no "
        f"kernel that adds in one order, or TensorRT chose other kernels when it built again (--provider-option "
        f"trt_timing_cache_enable=1); use --provider cpu"
    )


def is_place(option: str) -> bool:
    """Return True for an option that says where a session runs or keeps files, and not what it computes.

    >>> is_place("device_id"), is_place("trt_timing_cache_path"), is_place("use_tf32")
    (True, True, False)
    """
    return option in ("device_id", "gpu_mem_limit", "arena_extend_strategy") or option.endswith("_path")


def device_id(options: Mapping[str, str]) -> int:
    """Return the number of the device that these options name."""
    return int(options.get("device_id", "0"))


def with_device(options: Mapping[str, str]) -> dict[str, str]:
    """Return the options with the device of this process: workers take the devices in turn, unless one is named.

    >>> with_device({"device_id": "3"})
    {'device_id': '3'}
    """
    if "device_id" in options or WORKER_NUMBER not in os.environ:
        return dict(options)
    return {**options, "device_id": str(int(os.environ[WORKER_NUMBER]) % max(1, len(devices())))}


@cache
def share_device_arena(ort: Any, device: int, limit_bytes: int) -> None:
    """Let all sessions of this process allocate from one arena of a device, of so many bytes at most (0: any).

    The provider's own limit is that of one session, and a process has many.
    """
    info = ort.OrtMemoryInfo("Cuda", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, device, ort.OrtMemType.DEFAULT)
    arena = ort.OrtArenaCfg({"max_mem": limit_bytes, "arena_extend_strategy": 1})
    with contextlib.suppress(Exception):  # there is one, or none can be shared: then each session has the limit
        ort.create_and_register_allocator_v2(CUDA, info, {}, arena)


@dataclass(frozen=True)
class Device:
    """A device, as NVIDIA's driver describes it.

    >>> str(Device("NVIDIA H200", (9, 0), 150 << 30))
    'NVIDIA H200, compute capability 9.0'
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.capability[0]}.{self.capability[1]}"


def no_cuda() -> str | None:
    """Return why no CUDA device can be used, asked of NVIDIA's driver, once a process; None if there is one."""
    driver, why = _driver()
    return why if driver is None else None


def devices() -> tuple[Device, ...]:
    """Return the devices that this process sees, in the order of their numbers; none where there is no driver."""
    driver, _ = _driver()
    if driver is None:
        return ()
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    return tuple(_described(driver, number) for number in range(count.value))


def _driver() -> tuple[Any, str]:
    """Return the driver, or None and why it cannot be used."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return None, f"no NVIDIA driver found ({library})"
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        return None, f"the NVIDIA driver finds no device (code {code})"
    return driver, ""


def _described(driver: Any, number: int) -> Device:
    device, value, size = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Device(name.value.decode(errors="replace"), (capability[0], capability[1]), size.value)


def node_placement(session: Any) -> dict[str, Counter[str]]:
    """Return the operators of a session by the provider that runs them, as ONNX Runtime assigned them.

    Empty where the session did not record it, or the release does not record it.
    """
    found: dict[str, Counter[str]] = {}
    with contextlib.suppress(Exception):  # RuntimeError if it was not recorded, AttributeError before 1.24
        for part in session.get_provider_graph_assignment_info():
            found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return found


def placement_text(placement: Mapping[str, Counter[str]]) -> str:
    """Return how many nodes run on each provider, and which of them on the CPU.

    >>> placement_text({"CUDAExecutionProvider": Counter(Conv=5, Relu=4), "CPUExecutionProvider": Counter(NonZero=1)})
    'nodes: 9 on CUDAExecutionProvider, 1 on CPUExecutionProvider (NonZero)'
    >>> placement_text({})
    'nodes: the runtime does not say where they run'
    """
    parts = []
    for provider, ops in sorted(placement.items(), key=lambda item: (item[0] == CPU, item[0])):
        names = sorted(ops) if provider == CPU else []
        more = ", …" if len(names) > _MOST_NAMES else ""
        which = f" ({', '.join(names[:_MOST_NAMES])}{more})" if names else ""
        parts.append(f"{ops.total()} on {provider}{which}")
    return "nodes: " + (", ".join(parts) or "the runtime does not say where they run")
