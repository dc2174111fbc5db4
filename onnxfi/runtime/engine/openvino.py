"""OpenVINO's CPU plugin as an engine; it is imported when a model is prepared."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from onnxfi.errors import DataError, EngineError, InputError
from onnxfi.runtime.engine.ports import (
    ONNX_NUMBER,
    Array,
    Port,
    checked_feeds,
    checked_outputs,
    element_type,
    one_line,
    ports_of,
    words_of,
)
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.runtime.engine.recently_used import RecentlyUsed

if TYPE_CHECKING:
    import onnx

_MOST_THREADS = 1024
_TELEMETRY = "openvino_telemetry"
#: OpenVINO's name of an element type, and ours; packed types of 4 bits and less cannot be read.
_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "f32": "float32",
        "f64": "float64",
        "f16": "float16",
        "bf16": "bfloat16",
        "f8e4m3": "float8_e4m3fn",
        "f8e5m2": "float8_e5m2",
        **{f"{sign[:1] or 'i'}{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
        "boolean": "bool",
    }
)
#: Integers that the CPU plugin computes in 32 bits with a sign.
_NARROWED = ("int64", "uint64", "uint32")
_INT32 = np.iinfo(np.int32)
#: Shapes of the inputs for which a model is kept compiled.
_MOST_SHAPES = 4


@dataclass(frozen=True)
class OpenVinoEngine(Engine):
    """OpenVINO on the CPU.

    Floats are computed as float32 on every processor (without that, some take bfloat16), float64 as well; integers of
    64 bits and uint32 are computed as int32. Functions of a model are inlined before OpenVINO reads it, since it knows
    none. Its telemetry is never loaded.

    Parameters
    ----------
    threads : int
        Threads that work inside one run.
    """

    name: ClassVar[str] = "openvino"
    cuts: ClassVar[bool] = True
    fed_faults: ClassVar[bool] = False

    threads: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= _MOST_THREADS:
            raise InputError(f"threads must be in [1, {_MOST_THREADS}], got {self.threads}")

    @property
    def version(self) -> str:
        """Return the installed release."""
        return f"openvino {version('openvino')}" if is_installed() else "openvino, not installed"

    def prepare(self, model: str | Path | bytes) -> OpenVinoSession:
        """Load a model file, or a serialised model.

        Raises
        ------
        ModelError
            If a path is not a file.
        EngineError
            If OpenVINO is not installed or refuses the model, or an input is text.
        """
        ov = _openvino()
        source = model if isinstance(model, bytes) else self.file(model)
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # workers would all be pinned to the same cores
        }
        try:
            proto, source = _without_functions(source)
            core = ov.Core()
            core.set_property({"ENABLE_MMAP": False})  # the file of a faulty model is deleted while it is open
            read = core.read_model(source)
            compiled = _CompiledShapes(read, lambda shaped: core.compile_model(shaped, "CPU", options))
            return OpenVinoSession.of(read, proto, compiled)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"OpenVINO refuses the model: {_message(error)}") from error


class _CompiledShapes:
    """A model compiled for each shape of its inputs, the last few kept.

    With open shapes the CPU plugin checks none: where a fault makes them inconsistent, it reads memory of others. Once
    the shapes of the inputs are known, inconsistent ones are refused.
    """

    def __init__(self, model: Any, compile_model: Callable[[Any], Any]) -> None:
        self._model, self._compile = model, compile_model
        self._kept = RecentlyUsed[Any](_MOST_SHAPES)
        if not model.is_dynamic():
            self.of(tuple(tuple(port.shape) for port in model.inputs))

    def of(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """Return the model compiled for inputs of these shapes."""
        return self._kept.of(shapes, lambda: self._compiled(shapes))

    def _compiled(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        model = self._model
        if model.is_dynamic():
            model = model.clone()
            model.reshape(dict(enumerate(map(list, shapes))))
        return self._compile(model)


@dataclass(frozen=True, eq=False)
class OpenVinoSession:
    """A model that OpenVINO has compiled."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    non_tensors: Mapping[str, str] = field(repr=False)
    _positions: Mapping[str, int] = field(repr=False)
    _compiled: _CompiledShapes = field(repr=False)
    provider: str = "CPU"
    note: str = "OpenVINO, CPU"

    @classmethod
    def of(cls, model: Any, proto: onnx.ModelProto, compiled: _CompiledShapes) -> OpenVinoSession:
        """Return the session of a model that was read; EngineError if an input cannot be fed."""
        stored = {tensor.name for tensor in proto.graph.initializer}
        declared = [port for port in ports_of(proto.graph.input) if port.name not in stored]
        results = ports_of(proto.graph.output)
        if (len(model.inputs), len(model.outputs)) != (len(declared), len(results)):
            raise EngineError("OpenVINO reads another number of inputs or outputs than the file has")
        inputs = tuple(_port(*pair) for pair in zip(model.inputs, declared, strict=True))
        for port in inputs:
            if not port.is_tensor:
                raise EngineError(f"OpenVINO takes no input {port}; run the model with --engine onnxruntime")
        ports = [_port(*pair) for pair in zip(model.outputs, results, strict=True)]
        narrowed = any(port.dtype == "float64" for port in (*inputs, *ports))
        return cls(
            inputs=inputs,
            outputs=tuple(port for port in ports if port.is_tensor),
            non_tensors={port.name: port.dtype for port in ports if not port.is_tensor},
            _positions={port.name: number for number, port in enumerate(results)},
            _compiled=compiled,
            note=cls.note + ("; float64 is computed as float32" if narrowed else ""),
        )

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model once and return these outputs by name (None: all of them).

        Raises
        ------
        DataError
            If feeds do not match the inputs, or hold integers beyond what OpenVINO computes with.
        EngineError
            If the runtime fails, or an output does not exist or cannot be read.
        """
        names = checked_outputs(outputs, self.outputs, self.non_tensors)
        checked = checked_feeds(feeds, self.inputs)
        for name, array in checked.items():
            _check_range(name, array)
        if not names:
            return {}
        types = {port.name: element_type(port.dtype) for port in self.outputs}
        arrays = [checked[port.name] for port in self.inputs]
        try:
            request = self._compiled.of(tuple(array.shape for array in arrays)).create_infer_request()
            request.infer({number: _tensor(array) for number, array in enumerate(arrays)}, share_outputs=True)
            found = {name: request.get_output_tensor(self._positions[name]).data for name in names}
            return {name: np.array(array).view(types[name]) for name, array in found.items()}
        except Exception as error:
            raise EngineError(f"OpenVINO failed on this batch: {_message(error)}") from error


def is_installed() -> bool:
    """Return True if OpenVINO is installed."""
    return "openvino" in sys.modules or importlib.util.find_spec("openvino") is not None


def _openvino() -> Any:
    """Return the module, imported without its telemetry; EngineError if it is not installed."""
    if not is_installed():
        raise EngineError("openvino is not installed; pip install 'onnxfi[openvino]'")
    if "openvino" not in sys.modules:
        # Once loaded, that package leaves an identifier in the home folder and reports each use to its maker. OpenVINO
        # does without it where it cannot be imported.
        before = sys.modules.get(_TELEMETRY)
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            importlib.import_module("openvino")
        finally:
            del sys.modules[_TELEMETRY]
            if before is not None:
                sys.modules[_TELEMETRY] = before
    return sys.modules["openvino"]


def _without_functions(model: str | bytes) -> tuple[onnx.ModelProto, str | bytes]:
    """Return the model as a message, and as OpenVINO reads it: with its functions inlined."""
    import onnx
    from onnx.inliner import inline_local_functions

    if isinstance(model, bytes):
        proto = onnx.ModelProto.FromString(model)
    else:
        proto = onnx.load(model, load_external_data=False)
    if not proto.functions:
        return proto, model
    if isinstance(model, str):
        proto = onnx.load(model)
    proto = inline_local_functions(proto)
    return proto, proto.SerializeToString()


def _port(compiled: Any, declared: Port) -> Port:
    """Return the port of a model that was read, with the file's symbols where OpenVINO leaves a dimension open."""
    kind = compiled.element_type.get_type_name()
    shape = compiled.partial_shape
    if shape.rank.is_dynamic:
        return Port(declared.name, _TYPES.get(kind, f"tensor({kind})"), declared.shape)
    dims = [None if dim.is_dynamic else dim.get_length() for dim in shape]
    symbols = declared.shape if declared.shape is not None and len(declared.shape) == len(dims) else (None,) * len(dims)
    known = tuple(size if size is not None else symbol for size, symbol in zip(dims, symbols, strict=True))
    return Port(declared.name, _TYPES.get(kind, f"tensor({kind})"), known or None)


def _tensor(array: Array) -> Any:
    """Return an array as OpenVINO takes it: of formats that numpy lacks, the words with their format."""
    if array.dtype.name not in ONNX_NUMBER:
        return array
    ov = _openvino()
    formats = {"bfloat16": ov.Type.bf16, "float8_e4m3fn": ov.Type.f8e4m3, "float8_e5m2": ov.Type.f8e5m2}
    return ov.Tensor(words_of(array), list(array.shape), formats[array.dtype.name])


def _check_range(name: str, array: Array) -> None:
    """Refuse integers that the plugin would silently clip."""
    if array.dtype.name in _NARROWED and array.size and not _INT32.min <= array.min() <= array.max() <= _INT32.max:
        raise DataError(
            f"OpenVINO computes {array.dtype} as int32; input {name!r} holds numbers beyond that: run the model with "
            f"--engine onnxruntime"
        )


def _message(error: Exception) -> str:
    """Return OpenVINO's message as one line, without its source places and hints."""
    text = re.sub(r"Exception from \S+:\d+:|Check '.*?' failed at \S+?:\d+:|(?<=\n)To facilitate .*", "", str(error))
    return one_line(text)
