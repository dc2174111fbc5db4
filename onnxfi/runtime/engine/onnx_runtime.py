"""ONNX Runtime as an engine; it is imported when a model is prepared."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import io
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onnxfi.errors import DeviceError, EngineError, InputError, ProviderError, closest
from onnxfi.graph.model.byte_source import StoredArray
from onnxfi.runtime.engine.cuda import (
    CPU,
    CUDA,
    ON_CUDA,
    TENSORRT,
    arithmetic,
    check_options,
    device_id,
    devices,
    no_cuda,
    node_placement,
    placement_text,
    provider_list,
    share_device_arena,
    with_device,
)
from onnxfi.runtime.engine.device_array import DeviceArray
from onnxfi.runtime.engine.device_errors import ends_process, out_of_memory
from onnxfi.runtime.engine.external_files import part_in_files
from onnxfi.runtime.engine.external_initializers import ExternalInitializers
from onnxfi.runtime.engine.installed_runtime import installed_runtimes, onnxruntime
from onnxfi.runtime.engine.ports import (
    ONNX_NUMBER,
    ORT_TYPES,
    Array,
    Port,
    checked_feeds,
    checked_outputs,
    element_type,
    one_line,
)
from onnxfi.runtime.engine.protocols import Engine, smallest_model
from onnxfi.runtime.engine.worker_thread_lock import released

_LOG = logging.getLogger(__name__)
_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}
_MOST_THREADS = 1024  # ONNX Runtime starts as many as it is given, each with its own memory
#: Remedies, by words with which the runtime refuses a model.
_REMEDIES = {
    "not a registered function/op": "; --custom-ops names the library that has it",
    "Could not find an implementation": (
        "; it has no kernel here for this operator in its number format, as for most of bfloat16: --engine openvino "
        "has, and quantize --mode bf16 stores bfloat16 that is computed as float32"
    ),
}
_FATAL = 4  # ONNX Runtime's log level for what ends the process; all else reaches us as an exception


def available_providers() -> tuple[str, ...]:
    """Return the short names of the execution providers that the installed ONNX Runtime has, the preferred one first.

    >>> available_providers()[-1]
    'cpu'
    """
    return tuple(short_name(name) for name in onnxruntime().get_available_providers())


@dataclass(frozen=True)
class OrtEngine(Engine):
    """ONNX Runtime.

    Its log is silenced for the whole process: what it reports arrives as exceptions.

    Parameters
    ----------
    provider : str
        `auto` or the name of an execution provider in any case (`cpu`, `cuda`, `tensorrt`, `openvino`, …). A named
        provider that does not load is an `EngineError`; `auto` takes CUDA where it loads, else the CPU, and says so in
        the session's `note`.
    provider_options : tuple of (str, str)
        Options of the named provider. On a device they go before those that give each session the same bits
        (`cudnn_conv_algo_search=HEURISTIC`, `cudnn_conv_use_max_workspace=0`, `use_tf32=0`). InputError for those under
        which faults would not be seen: graphs of CUDA that are replayed, engines of TensorRT that are found again.
    optimization : str
        Graph optimisation: all, extended, basic or off.
    threads : int
        Threads that work inside one node; nodes run one after the other.
    custom_ops : tuple of str
        Shared libraries of operators.

    Examples
    --------
    >>> from onnx import parser
    >>> model = parser.parse_model('''<ir_version: 10, opset_import: ["": 21]>
    ...     double (float[N] x) => (float[N] y) { y = Add(x, x) }''')
    >>> session = OrtEngine(provider="cpu").prepare(model.SerializeToString())
    >>> session.run({"x": np.array([1, 2], np.float32)})
    {'y': array([2., 4.], dtype=float32)}
    """

    name: ClassVar[str] = "onnxruntime"
    cuts: ClassVar[bool] = True
    thread_safe: ClassVar[bool] = True

    provider: str = "auto"
    provider_options: tuple[tuple[str, str], ...] = ()
    optimization: str = "all"
    threads: int = 1
    custom_ops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.optimization not in _LEVELS:
            raise InputError(f"no optimization {self.optimization!r}{closest(self.optimization, _LEVELS)}")
        if not 1 <= self.threads <= _MOST_THREADS:
            raise InputError(f"threads is {self.threads}; it takes 1 to {_MOST_THREADS}")
        if self.provider_options and self.provider.lower() in ("auto", "cpu"):
            raise InputError(f"provider {self.provider!r} takes no options: name the provider they are for")
        check_options(dict(self.provider_options))
        for library in self.custom_ops:
            if not Path(library).is_file():
                raise InputError(f"no library of custom operators at {library!r}")

    @property
    def in_segments(self) -> bool:
        """Return whether segments of a model may run: not under TensorRT, which would build an engine for each."""
        return short_name(self.provider) != short_name(TENSORRT)

    @property
    def arithmetic(self) -> Mapping[str, str]:
        """Return the options that fix the bits of a device, as the sessions of this provider get them."""
        known = {short_name(name): name for name in ON_CUDA}
        return arithmetic(known.get(short_name(self.provider), ""), dict(self.provider_options))

    @property
    def devices(self) -> tuple[int, ...]:
        """Return the devices that workers take in turn: the one that is named, or all; none for another provider."""
        if short_name(self.provider) == "auto":  # a driver alone makes no provider: its libraries may be missing
            on_device = bool(devices()) and self.prepare(smallest_model()).provider in ON_CUDA
        else:
            on_device = bool(self.arithmetic)
        if not on_device:
            return ()
        given = dict(self.provider_options)
        return (device_id(given),) if "device_id" in given else tuple(range(len(devices())))

    @property
    def device_memory_bytes(self) -> int:
        """Return the memory of a device that this process may take; 0 without one."""
        options, found = with_device(dict(self.provider_options)), devices() if self.arithmetic else ()
        if device_id(options) >= len(found):
            return 0
        return min(int(options.get("gpu_mem_limit", 1 << 62)), found[device_id(options)].memory_bytes)

    @property
    def version(self) -> str:
        """Return the installed package and its release."""
        return " ".join(f"{name} {importlib.metadata.version(name)}" for name in installed_runtimes())

    def prepare(self, model: str | Path | bytes, folder: Path | None = None) -> OrtSession:
        """Load a model file, or a serialised model whose external data lies in `folder`.

        Raises
        ------
        ModelError
            If a path is not a file.
        InputError
            If the provider does not exist.
        EngineError
            If ONNX Runtime refuses the model, or the provider does not load.
        """
        return self._prepare(model if isinstance(model, bytes) else self.file(model), {}, folder)

    def prepare_part(self, model: bytes, stored: Mapping[str, Array | StoredArray]) -> OrtSession:
        """Load a serialised model whose larger initializers are given beside it, by name."""
        placed = part_in_files(model, stored) if short_name(self.provider) == short_name(CPU) else None
        if placed is not None:
            with contextlib.suppress(EngineError):  # as where links lead out of the folder
                return self._prepare(placed.model, placed.rest, placed.folder)
        return self._prepare(model, stored)

    def unoptimized(self) -> OrtEngine:
        """Return the same engine without graph optimisation."""
        return replace(self, optimization="off")

    def for_dry_run(self) -> OrtEngine:
        """Return the same engine on the CPU: a copy of the process cannot use a GPU that the process uses."""
        onnxruntime()  # here, so that the copy need not import it
        return replace(self, provider="cpu", provider_options=())

    def _prepare(
        self, model: str | bytes, stored: Mapping[str, Array | StoredArray], folder: Path | None = None
    ) -> OrtSession:
        if self.provider.lower() == "auto":
            return self._prepare_auto(model, stored, folder)
        ort = onnxruntime()
        ort.set_default_logger_severity(_FATAL)
        name = self._provider_name(ort)
        options = self._options(ort, name)
        given = ExternalInitializers(stored)
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in given.arrays]
        if stored:
            options.add_external_initializers(list(stored), values)
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        try:
            session = self._load(ort, model, options, name)
        except Exception as error:
            if name in ON_CUDA and ends_process(error):
                raise _device_lost(name, error) from error
            if name != CPU and not self._works(ort, name):
                raise ProviderError(f"provider {self.provider!r} does not load: {one_line(error)}") from error
            remedy = next((text for sign, text in _REMEDIES.items() if sign in str(error)), "")
            raise EngineError(f"ONNX Runtime refuses the model under {name}: {one_line(error)}{remedy}") from error
        used = session.get_providers()[0]
        _LOG.info("session under %s, optimization %s, threads %d", used, self.optimization, self.threads)
        if used != name:
            raise ProviderError(f"provider {self.provider!r} did not load: {_why_missing(ort, name)}")
        made = OrtSession.over(session, used, device_id(self._on_device(used)))
        if used == CPU:  # others may copy to a device when they first run
            given.release()
        return replace(made, _external=(given, values), provider_works=partial(self._works, ort, name))

    def _prepare_auto(
        self, model: str | bytes, stored: Mapping[str, Array | StoredArray], folder: Path | None
    ) -> OrtSession:
        """CUDA, or the CPU with a note that says why not CUDA, where this build has it."""
        reason = ""
        if short_name(CUDA) in available_providers():
            try:
                return replace(self, provider="cuda")._prepare(model, stored, folder)
            except (EngineError, DeviceError) as error:
                reason = f" ({no_cuda() or str(error)})"
        session = replace(self, provider="cpu")._prepare(model, stored, folder)
        return replace(session, note=f"{session.provider}{reason}")

    def _provider_name(self, ort: Any) -> str:
        """ONNX Runtime's name of the provider asked for, which this build has and which has a device."""
        here = ort.get_available_providers()
        known = {short_name(name): name for name in (*ort.get_all_providers(), *here)}
        name: str | None = known.get(short_name(self.provider))
        if name is None:
            near = closest(self.provider.lower(), ["auto", *known])
            raise InputError(f"no provider {self.provider!r}{near}")
        if name not in here:
            has = ", ".join(short_name(one) for one in here)
            raise EngineError(f"provider {self.provider!r} is not in the installed ONNX Runtime, which has {has}")
        if name in ON_CUDA and (missing := no_cuda()):
            raise ProviderError(f"provider {self.provider!r} did not load: {missing}")
        return name

    def _options(self, ort: Any, name: str) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        _share_arena(ort)
        options.add_session_config_entry("session.use_env_allocators", "1")
        if name in ON_CUDA:
            options.use_deterministic_compute = True
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[self.optimization])
        for library in self.custom_ops:
            try:
                options.register_custom_ops_library(os.fspath(Path(library).resolve()))
            except Exception as error:
                raise EngineError(f"custom operators {library!r} do not load: {one_line(error)}") from error
        return options

    def _on_device(self, name: str) -> dict[str, str]:
        """Return the options of a provider, with the device that this process takes."""
        given = dict(self.provider_options)
        return with_device(given) if name in ON_CUDA else given

    def _works(self, ort: Any, name: str) -> bool:
        """Return True if a provider still runs a model that every provider runs."""
        try:
            session = self._load(ort, smallest_model(), self._options(ort, name), name)
            session.run(None, {"x": np.zeros(1, np.float32)})
            return bool(session.get_providers()[0] == name)
        except Exception:
            return False

    def _load(self, ort: Any, model: str | bytes, options: Any, name: str) -> Any:
        given = self._on_device(name)
        if name in ON_CUDA:
            if name == TENSORRT and arithmetic(name, given)["use_tf32"] == "0":
                # TensorRT's builder has no option for it here; NVIDIA's libraries read this when they are loaded.
                os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                ort.preload_dlls()
            share_device_arena(ort, device_id(given), int(given.get("gpu_mem_limit", "0")))
        # Its fall-back would print, and run on another provider than the one asked for.
        with released():
            return ort.InferenceSession(model, options, providers=provider_list(name, given), enable_fallback=0)


@cache
def _share_arena(ort: Any) -> None:
    """Let all sessions of this process allocate from one arena, so that one reuses what another frees."""
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with contextlib.suppress(Exception):  # it is registered already, by an earlier session or by the program around
        ort.create_and_register_allocator(info, None)


@dataclass(frozen=True, eq=False)
class OrtSession:
    """A model that ONNX Runtime has loaded.

    `provider` is the one really in use (`CPUExecutionProvider`), `note` the same with the reason where a better one was
    not taken, or with its device and where the runtime placed the nodes. `overridable` are initializers that a feed may
    replace. Outputs that are no tensors (sequences, maps, optionals, packed 4-bit types) are left out of `outputs`.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    overridable: tuple[Port, ...]
    provider: str
    note: str
    #: Outputs that are no tensors, by name their type.
    non_tensors: Mapping[str, str] = field(repr=False)
    _device_id: int = field(repr=False)
    _ort: Any = field(repr=False)
    #: The tensors that were given beside the model: the runtime keeps their addresses.
    _external: Any = field(default=(), repr=False)
    #: True while the provider still runs any model in this process; asked where a run on a device fails.
    provider_works: Callable[[], bool] = field(default=lambda: True, repr=False)

    @classmethod
    def over(cls, ort_session: Any, provider: str, device_id: int = 0) -> OrtSession:
        """Wrap a loaded `onnxruntime.InferenceSession`."""
        given = [_port(arg) for arg in ort_session.get_outputs()]
        return cls(
            inputs=tuple(_port(arg) for arg in ort_session.get_inputs()),
            outputs=tuple(port for port in given if port.is_tensor),
            overridable=tuple(_port(arg) for arg in ort_session.get_overridable_initializers()),
            provider=provider,
            note=_note(ort_session, provider, device_id) if provider in ON_CUDA else provider,
            non_tensors={port.name: port.dtype for port in given if not port.is_tensor},
            _device_id=device_id,
            _ort=ort_session,
        )

    @cached_property
    def _types(self) -> Mapping[str, str]:
        """Return the element type of each input and output, by name."""
        return {port.name: port.dtype for port in (*self.inputs, *self.overridable, *self.outputs)}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once on `feeds`, an array per input; `outputs` names what to compute, all tensors by default.

        Raises `DataError` for feeds that do not match the inputs, and `EngineError` where the runtime fails
        or an output does not exist or is not a tensor.
        """
        wanted = checked_outputs(outputs, self.outputs, self.non_tensors)
        checked = checked_feeds(feeds, self.inputs, self.overridable)
        if not wanted:
            return {}
        types = self._types
        touched = {types[name] for name in (*checked, *wanted)}
        try:
            on_cuda = self.provider in ON_CUDA and "string" not in touched
            if on_cuda or touched & ONNX_NUMBER.keys():
                device = ("cuda", self._device_id) if on_cuda else ("cpu", 0)
                return self.run_bound(checked, wanted, types, device, feeds)
            with released():
                return dict(zip(wanted, self._ort.run(wanted, checked), strict=True))
        except Exception as error:
            on_device = self.provider in ON_CUDA and not out_of_memory(error)
            if on_device and (ends_process(error) or not self.provider_works()):
                raise _device_lost(self.provider, error) from error
            raise EngineError(f"ONNX Runtime failed on this batch: {one_line(error)}") from error

    def run_bound(
        self,
        feeds: Mapping[str, Array],
        wanted: list[str],
        types: Mapping[str, str],
        device: tuple[str, int],
        given: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Run with bound buffers: an input that is on the device is taken from there, outputs stay there too."""
        ort = onnxruntime()
        binding = self._ort.io_binding()
        optional = {port.name for port in self.overridable}
        for name, array in feeds.items():
            source = (given or feeds)[name]
            if isinstance(source, DeviceArray) and (value := source.value_on(device)) is not None:
                binding.bind_ortvalue_input(name, value)
            elif types[name] in ONNX_NUMBER:  # numpy's binding has no such type: pass its words
                words = array.view(f"u{array.itemsize}")
                value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(words, ONNX_NUMBER[types[name]])
                binding.bind_ortvalue_input(name, value)
            elif name in optional:  # bind_cpu_input does not know initializers that may be fed
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
            else:
                binding.bind_cpu_input(name, array)
        for name in wanted:
            binding.bind_output(name, *(("cpu", 0) if types[name] in ONNX_NUMBER else device))
        with released():
            self._ort.run_with_iobinding(binding)
            found = dict(zip(wanted, binding.get_outputs(), strict=True))
            return {name: _of_host(value, types[name], device) for name, value in found.items()}


def _of_host(value: Any, dtype: str, device: tuple[str, int]) -> Array:
    """Return an output as an array, which keeps its value on the device."""
    if dtype in ONNX_NUMBER:
        return _words(value, dtype)
    return value.numpy() if device[0] == "cpu" else DeviceArray.over(value.numpy(), value, device)


def _device_lost(provider: str, error: Exception) -> DeviceError:
    return DeviceError(
        f"this process can no longer use its device under {provider}: {one_line(error)}; with --workers 1 or more "
        f"the trial that causes it is run again in a process of its own"
    )


def _note(ort_session: Any, provider: str, number: int) -> str:
    """Return a provider with its device, and where the runtime placed the nodes of a session."""
    found = devices()
    name = f" ({found[number]})" if number < len(found) else ""
    return f"{provider} on device {number}{name}; {placement_text(node_placement(ort_session))}"


def _port(arg: Any) -> Port:
    match = re.fullmatch(r"tensor\((\w+)\)", arg.type)
    known = ORT_TYPES.get(match.group(1)) if match else None
    return Port(arg.name, known[0] if known else arg.type, tuple(arg.shape) or None)


def _words(value: Any, dtype: str) -> Array:
    """Return a CPU tensor of a type that numpy lacks, copied out by its address."""
    element = element_type(dtype)
    shape = tuple(value.shape())
    count = math.prod(shape)
    raw = ctypes.string_at(value.data_ptr(), count * element.itemsize) if count else b""
    return np.frombuffer(bytearray(raw), np.uint8).view(element).reshape(shape)


def short_name(provider: str) -> str:
    """Return a provider's name as it is given on the command line."""
    return provider.lower().removesuffix("executionprovider")


def _why_missing(ort: Any, provider: str) -> str:
    """Return the reason why ONNX Runtime left a provider out, which it prints on stderr only."""
    pattern = {"win32": "onnxruntime_providers_{}.dll", "darwin": "libonnxruntime_providers_{}.dylib"}
    name = pattern.get(sys.platform, "libonnxruntime_providers_{}.so").format(short_name(provider))
    library = Path(ort.__file__).parent / "capi" / name
    if library.is_file():
        try:
            ctypes.CDLL(os.fspath(library))
        except OSError as error:
            if "undefined symbol" not in str(error):  # that is the runtime's own, which it brings itself
                return one_line(error)
    return "ONNX Runtime left it out without saying why"
