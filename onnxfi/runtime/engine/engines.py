"""Running a model: an engine prepares it once, the session it gives runs it often.

`Engine` and `Session` are protocols, so another runtime plugs in with two methods. `OrtEngine` is ONNX
Runtime, which this floor alone imports, and only when a model is prepared.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxfi.errors import DataError, EngineError, InputError, ModelError, ProviderError, closest
from onnxfi.graph.model.byte_source import StoredArray
from onnxfi.runtime.engine.installed_runtime import both_runtimes_warning, installed_runtimes
from onnxfi.runtime.engine.lending import Loan
from onnxfi.runtime.engine.model_io import (
    ONNX_NUMBER,
    ORT_TYPES,
    Array,
    Port,
    element_type,
    fits,
    native,
    one_line,
    shape_text,
    type_name,
)
from onnxfi.runtime.engine.turn_taking import others

__all__ = [
    "Engine",
    "OrtEngine",
    "OrtSession",
    "Port",
    "Session",
    "both_runtimes_warning",
    "installed_runtimes",
    "no_cuda",
]

_LOG = logging.getLogger(__name__)
_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}
_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_ON_CUDA = (_CUDA, "TensorrtExecutionProvider")
_MOST_THREADS = 1024  # ONNX Runtime makes as many as it is told, each with memory of its own
_FATAL = 4  # ONNX Runtime's log level for what ends the process; all else reaches us as an exception


class Session(Protocol):
    """A prepared model."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What `run` must be fed."""

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What `run` can give."""

    @property
    def provider(self) -> str:
        """What computes, by the runtime's own name."""

    @property
    def note(self) -> str:
        """The provider, and why no better one was taken."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; `outputs` None means all of them."""


class Engine(Protocol):
    """What prepares models."""

    def prepare(self, model: str | Path | bytes) -> Session:
        """Load a model file, or a serialised model, for running."""


@dataclass(frozen=True)
class OrtEngine:
    """ONNX Runtime.

    `provider` is `auto` or any provider's name without regard to case (`cpu`, `cuda`, `tensorrt`,
    `openvino`, …). A named one that does not load is an `EngineError`; `auto` takes CUDA where it loads, else
    the CPU, and says so in the session's `note`. `optimization` is all, extended, basic or off. `threads`
    work inside one node; nodes run one after the other. `custom_ops` are shared libraries of operators.

    ONNX Runtime's own log is silenced, for the whole process: what it says comes as exceptions.

    >>> from onnx import parser
    >>> model = parser.parse_model('''<ir_version: 10, opset_import: ["": 21]>
    ...     double (float[N] x) => (float[N] y) { y = Add(x, x) }''')
    >>> session = OrtEngine(provider="cpu").prepare(model.SerializeToString())
    >>> session.run({"x": np.array([1, 2], np.float32)})
    {'y': array([2., 4.], dtype=float32)}
    """

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
        if not dict(self.provider_options).get("device_id", "0").isdecimal():
            raise InputError("the provider option device_id takes a number, 0 or more")
        for library in self.custom_ops:
            if not Path(library).is_file():
                raise InputError(f"no library of custom operators at {library!r}")

    def prepare(self, model: str | Path | bytes, folder: Path | None = None) -> OrtSession:
        """Load a model file, or a serialised model, for running; `folder` is where the latter's external data lies.

        Raises `ModelError` for a path that is no file, `InputError` for a provider that does not exist, and
        `EngineError` for a model that ONNX Runtime refuses or a provider that does not load.
        """
        if not isinstance(model, bytes):
            model = str(model)
            if not Path(model).is_file():
                what = "a directory" if Path(model).is_dir() else "no file"
                raise ModelError(f"{model!r} is {what}; give the path of an .onnx file")
        return self._prepare(model, {}, folder)

    def prepare_part(self, model: bytes, stored: Mapping[str, Array | StoredArray]) -> OrtSession:
        """Load a serialised model whose larger tensors, or the places where they lie, are given beside it by name.

        For the model they lie in external data, which need not be there. Raises as `prepare` does.
        """
        return self._prepare(model, stored)

    def _prepare(
        self, model: str | bytes, stored: Mapping[str, Array | StoredArray], folder: Path | None = None
    ) -> OrtSession:
        if self.provider.lower() == "auto":
            return self._prepare_auto(model, stored, folder)
        import onnxruntime as ort

        ort.set_default_logger_severity(_FATAL)
        name = self._provider_name(ort)
        options = self._options(ort)
        loan = Loan(stored)
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in loan.arrays]
        if stored:
            options.add_external_initializers(list(stored), values)
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        try:
            session = self._load(ort, model, options, name)
        except Exception as error:
            if name != _CPU and not self._loads(ort, name):
                raise ProviderError(f"provider {self.provider!r} does not load: {one_line(error)}") from error
            own = "; --custom-ops names the library that has it" if "not a registered function/op" in str(error) else ""
            raise EngineError(f"ONNX Runtime refuses the model under {name}: {one_line(error)}{own}") from error
        used = session.get_providers()[0]
        _LOG.info("session under %s, optimization %s, threads %d", used, self.optimization, self.threads)
        if used != name:
            raise ProviderError(f"provider {self.provider!r} did not load: {_why_missing(ort, name)}")
        made = OrtSession.over(session, used, int(dict(self.provider_options).get("device_id", "0")))
        if used == _CPU:  # others may copy to a device when they first run
            loan.end()
        return replace(made, _lent=(loan, values))

    def _prepare_auto(
        self, model: str | bytes, stored: Mapping[str, Array | StoredArray], folder: Path | None
    ) -> OrtSession:
        """CUDA, or the CPU with a note that says why not CUDA."""
        try:
            return replace(self, provider="cuda")._prepare(model, stored, folder)
        except EngineError as error:
            reason = str(error)
        session = replace(self, provider="cpu")._prepare(model, stored, folder)
        return replace(session, note=f"{session.provider}; {reason}")

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
        if name in _ON_CUDA and (missing := no_cuda()):
            raise ProviderError(f"provider {self.provider!r} did not load: {missing}")
        return name

    def _options(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.use_env_allocators", _one_arena(ort))
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[self.optimization])
        for library in self.custom_ops:
            try:
                options.register_custom_ops_library(os.fspath(Path(library).resolve()))
            except Exception as error:
                raise EngineError(f"custom operators {library!r} do not load: {one_line(error)}") from error
        return options

    def _loads(self, ort: Any, name: str) -> bool:
        """Whether a provider still loads a model that every provider runs."""
        try:
            return bool(self._load(ort, smallest(), self._options(ort), name).get_providers()[0] == name)
        except Exception:
            return False

    def _load(self, ort: Any, model: str | bytes, options: Any, name: str) -> Any:
        if name in _ON_CUDA:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                ort.preload_dlls()
        behind = {"TensorrtExecutionProvider": [_CUDA, _CPU], _CPU: []}.get(name, [_CPU])
        providers = [(name, dict(self.provider_options)), *behind]
        # Its fall-back would print, and run on another provider than the one asked for.
        with others():
            return ort.InferenceSession(model, options, providers=providers, enable_fallback=0)


@cache
def _one_arena(ort: Any) -> str:
    """Let all sessions of this process take memory from one arena: what one gives back, another one takes; "1"."""
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with contextlib.suppress(Exception):  # the program that we are part of has registered one already
        ort.create_and_register_allocator(info, None)
    return "1"


@dataclass(frozen=True, eq=False)
class OrtSession:
    """A model that ONNX Runtime has loaded.

    `provider` is the one really in use (`CPUExecutionProvider`), `note` the same with the reason where a
    better one was not taken. `overridable` are initializers that a feed may replace. Outputs that are no
    tensors (sequences, maps, optionals, packed 4-bit types) are left out of `outputs`.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    overridable: tuple[Port, ...]
    provider: str
    note: str
    #: Outputs that are no tensors, by name their type.
    unread: Mapping[str, str] = field(repr=False)
    _device_id: int = field(repr=False)
    _ort: Any = field(repr=False)
    #: What was given beside the model: the runtime knows where it lay.
    _lent: Any = field(default=(), repr=False)

    @classmethod
    def over(cls, ort_session: Any, provider: str, device_id: int = 0) -> OrtSession:
        """Wrap a loaded `onnxruntime.InferenceSession`."""
        given = [_port(arg) for arg in ort_session.get_outputs()]
        return cls(
            inputs=tuple(_port(arg) for arg in ort_session.get_inputs()),
            outputs=tuple(port for port in given if port.is_tensor),
            overridable=tuple(_port(arg) for arg in ort_session.get_overridable_initializers()),
            provider=provider,
            note=provider,
            unread={port.name: port.dtype for port in given if not port.is_tensor},
            _device_id=device_id,
            _ort=ort_session,
        )

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once on `feeds`, an array per input; `outputs` names what to compute, all tensors by default.

        Raises `DataError` for feeds that do not match the inputs, and `EngineError` where the runtime fails
        or an output does not exist or is no tensor.
        """
        wanted = self._wanted(outputs)
        checked = self._checked(feeds)
        if not wanted:
            return {}
        types = {port.name: port.dtype for port in (*self.inputs, *self.overridable, *self.outputs)}
        touched = {types[name] for name in (*checked, *wanted)}
        try:
            on_cuda = self.provider in _ON_CUDA and "string" not in touched
            if on_cuda or touched & ONNX_NUMBER.keys():
                device = ("cuda", self._device_id) if on_cuda else ("cpu", 0)
                return self._run_bound(checked, wanted, types, device)
            with others():
                return dict(zip(wanted, self._ort.run(wanted, checked), strict=True))
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on this batch: {one_line(error)}") from error

    def _run_bound(
        self, feeds: Mapping[str, Array], wanted: list[str], types: Mapping[str, str], device: tuple[str, int]
    ) -> dict[str, Array]:
        """Run with bound buffers: each input copied to the device once, outputs left there until the end."""
        import onnxruntime as ort

        binding = self._ort.io_binding()
        optional = {port.name for port in self.overridable}
        for name, array in feeds.items():
            if types[name] in ONNX_NUMBER:  # numpy's binding has no such type: pass its words
                words = array.view(f"u{array.itemsize}")
                value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(words, ONNX_NUMBER[types[name]])
                binding.bind_ortvalue_input(name, value)
            elif name in optional:  # bind_cpu_input does not know initializers that may be fed
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
            else:
                binding.bind_cpu_input(name, array)
        for name in wanted:
            binding.bind_output(name, *(("cpu", 0) if types[name] in ONNX_NUMBER else device))
        with others():
            self._ort.run_with_iobinding(binding)
        found = zip(wanted, binding.get_outputs(), strict=True)
        return {
            name: _words(value, types[name]) if types[name] in ONNX_NUMBER else value.numpy() for name, value in found
        }

    def _wanted(self, outputs: Sequence[str] | None) -> list[str]:
        names = [port.name for port in self.outputs]
        for name in outputs or ():
            if name in self.unread:
                raise EngineError(f"output {name!r} is a {self.unread[name]}; only plain tensors can be read")
            if name not in names:
                raise EngineError(f"the model has no output {name!r}{closest(name, names)}")
        return names if outputs is None else list(outputs)

    def _checked(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        ports = {port.name: port for port in (*self.inputs, *self.overridable)}
        for name in feeds:
            if name not in ports:
                raise DataError(f"the model has no input {name!r}{closest(name, ports)}")
        for port in self.inputs:
            if port.name not in feeds and not port.dtype.startswith("optional"):
                raise DataError(f"input {port} is not fed; fed are {', '.join(map(repr, feeds)) or 'none'}")
        return {name: _fed(ports[name], np.asarray(array)) for name, array in feeds.items()}


def _fed(port: Port, array: Array) -> Array:
    """The array as the runtime takes it, or what keeps it from its port."""
    if not port.is_tensor:
        raise DataError(f"input {port.name!r} is a {port.dtype}; only tensors can be fed")
    if type_name(array) != port.dtype or not fits(array.shape, port):
        given = f"{type_name(array)} {shape_text(array.shape)}"
        raise DataError(f"input {port.name!r} takes {port.dtype} {shape_text(port.shape)}, given {given}")
    try:
        return native(array)
    except UnicodeDecodeError as error:
        raise DataError(f"input {port.name!r} has text that is not UTF-8: {error}") from error


def _port(arg: Any) -> Port:
    match = re.fullmatch(r"tensor\((\w+)\)", arg.type)
    known = ORT_TYPES.get(match.group(1)) if match else None
    return Port(arg.name, known[0] if known else arg.type, tuple(arg.shape) or None)


def _words(value: Any, dtype: str) -> Array:
    """A CPU tensor of a type that numpy lacks, copied out by its address."""
    element = element_type(dtype)
    shape = tuple(value.shape())
    count = math.prod(shape)
    raw = ctypes.string_at(value.data_ptr(), count * element.itemsize) if count else b""
    return np.frombuffer(bytearray(raw), np.uint8).view(element).reshape(shape)


def smallest() -> bytes:
    """A model that every provider runs."""
    from onnx import parser

    model = '<ir_version: 8, opset_import: ["": 13]> same (float[1] x) => (float[1] y) { y = Identity(x) }'
    return parser.parse_model(model).SerializeToString()


def short_name(provider: str) -> str:
    """A provider's name as it is given on the command line."""
    return provider.lower().removesuffix("executionprovider")


@cache
def no_cuda() -> str | None:
    """Why no CUDA device can be used, asked of NVIDIA's driver, once a process; None where there is one."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver found ({library})"
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        return f"the NVIDIA driver finds no device (code {code})"
    return None


def _why_missing(ort: Any, provider: str) -> str:
    """Why ONNX Runtime left a provider out; it says so on stderr only."""
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
