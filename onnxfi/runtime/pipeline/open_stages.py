"""Open stages: a model or a function that takes the rows of one sample and gives rows of it.

An array has its rows along the first axis, wherever a model has them. Arrays are read-only, since later stages of other
trials read them too.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onnxfi.errors import DataError, EngineError, InputError
from onnxfi.extensions import imported
from onnxfi.graph.model.loading import Model
from onnxfi.runtime.data.batches import Data, layout
from onnxfi.runtime.data.sample_outputs import run_outputs, sample_axes
from onnxfi.runtime.engine.ports import Array, Port, element_type, fits, native, one_line, shape_text, type_name
from onnxfi.runtime.engine.protocols import Session
from onnxfi.runtime.pipeline.pipeline import Number, Stage, StageFunction

if TYPE_CHECKING:
    pass

Arrays = Mapping[str, Array]


class OpenStage(Protocol):
    """A stage that runs on the rows of one sample."""

    @property
    def stage(self) -> Stage:
        """Return its declaration."""

    def run(self, fed: Arrays) -> dict[str, Array]:
        """Return the outputs of one sample; an error names the stage."""


def frozen(array: Array) -> Array:
    """Return an array that cannot be written, text as objects."""
    array = native(array).view()
    array.flags.writeable = False
    return array


@dataclass(frozen=True)
class ModelStage:
    """A model as a stage: its session, and the outputs that others read."""

    stage: Stage
    session: Session
    model: Model
    outputs: tuple[str, ...]

    @cached_property
    def ports(self) -> Mapping[str, Port]:
        """The inputs of the model."""
        return {port.name: port for port in self.session.inputs}

    @cached_property
    def axes(self) -> Mapping[str, int]:
        """The axis of each input that holds rows."""
        return layout(self.session.inputs, 0).batched

    def feeds(self, fed: Arrays) -> dict[str, Array]:
        """Return what the model is fed with the rows of a sample; DataError if they do not fit it."""
        found: dict[str, Array] = {}
        rows = {name: len(array) for name, array in fed.items() if name in self.axes}
        if len(set(rows.values())) > 1:
            listed = ", ".join(f"{count} of {name!r}" for name, count in rows.items())
            raise DataError(f"stage {self.stage.name!r} is fed rows in different numbers: {listed}; give it one array "
                            f"for each row, or make them so in a function")  # fmt: skip
        for name, port in self.ports.items():
            if name not in fed:
                continue
            array = fed[name]
            if (axis := self.axes.get(name)) is not None:
                array = np.moveaxis(array, 0, axis) if axis and array.ndim > axis else array
            elif port.shape is None and len(array) == 1:  # a scalar has one row too
                array = array.reshape(())
            self._check(port, array)
            found[name] = array
        shapes = ((self.ports[name].shape or (), array.shape) for name, array in found.items())
        sizes = {d: n for dims, shape in shapes for d, n in zip(dims, shape, strict=False) if isinstance(d, str)}
        count = next(iter(rows.values()), 1)
        for name, value in self.stage.numbers.items():
            found[name] = filled(value, self.ports[name], self.axes.get(name), count, sizes)
        return found

    def _check(self, port: Port, array: Array) -> None:
        if type_name(array) != port.dtype or not fits(array.shape, port, free=self.axes.get(port.name)):
            given = f"{type_name(array)} {shape_text(array.shape)}"
            source = self.stage.reads[port.name]
            raise DataError(f"stage {self.stage.name!r}: {source} is {given}, and input {port} takes no such array")

    def run(self, fed: Arrays) -> dict[str, Array]:
        """Run the model on the rows of a sample, `batch` at a time."""
        if any(name in self.axes and not len(array) for name, array in fed.items()):
            return {name: self.nothing(name) for name in self.outputs}
        feeds = self.feeds(fed)
        place = layout(self.session.inputs, 0, {name: array.shape for name, array in feeds.items()})
        data = Data.of_arrays(feeds, None, place, f"stage {self.stage.name!r}")
        size = place.fixed or min(self.stage.batch or data.samples, data.samples)
        try:
            run = run_outputs(self.session, data, size, self.outputs, axes=self._output_axes(data))
        except EngineError as error:
            raise type(error)(f"stage {self.stage.name!r}: {error}") from None
        found = {name: [np.atleast_1d(self.restored(name, one.arrays[name])) for one in run] for name in self.outputs}
        try:
            return {
                name: frozen(parts[0] if len(parts) == 1 else np.concatenate(parts)) for name, parts in found.items()
            }
        except ValueError as error:
            raise EngineError(
                f"stage {self.stage.name!r}: its batches do not fit together: {one_line(error)}"
            ) from None

    def restored(self, name: str, array: Array) -> Array:
        """Return an output with the axes of one element at its end, which scores of classes are read without."""
        shape = self._output_ports[name].shape
        missing = 0 if shape is None else len(shape) - array.ndim
        return array.reshape(*array.shape, *(1,) * missing) if missing > 0 else array

    @cached_property
    def _output_ports(self) -> Mapping[str, Port]:
        return {port.name: port for port in self.session.outputs}

    def _output_axes(self, data: Data) -> Mapping[str, tuple[int, ...]]:
        if not self._axes_found:
            self._axes_found.append(sample_axes(self.session, data, self.model))
        return self._axes_found[0]

    @cached_property
    def _axes_found(self) -> list[Mapping[str, tuple[int, ...]]]:
        return []

    def nothing(self, name: str) -> Array:
        """Return an output for no rows."""
        port = self._output_ports[name]
        dims = [dim if isinstance(dim, int) else 0 for dim in (port.shape or ())[1:]]
        return frozen(np.zeros((0, *dims), element_type(port.dtype)))


def filled(value: Number, port: Port, axis: int | None, rows: int, sizes: Mapping[str, int] | None = None) -> Array:
    """Return an input that holds one number everywhere, as many as there are rows.

    Other open dimensions take the size that other inputs give to their symbol, else one place.

    >>> filled(0, Port("state", "float32", (2, "N", 3)), 1, 4).shape, filled(7, Port("sr", "int64", None), None, 4)
    ((2, 4, 3), array(7))
    """
    dims = [
        rows if k == axis else dim if isinstance(dim, int) else (sizes or {}).get(dim or "", 1)
        for k, dim in enumerate(port.shape or ())
    ]
    return np.full(dims, value, element_type(port.dtype))


@dataclass(frozen=True)
class FunctionStage:
    """Host code as a stage."""

    stage: Stage
    function: StageFunction

    def run(self, fed: Arrays) -> dict[str, Array]:
        """Call the function; EngineError if it fails, DataError if it returns no arrays by name."""
        name = self.stage.name
        try:
            with np.errstate(all="ignore"):  # of what a fault made
                made = self.function(**fed, **self.stage.numbers)
        except (MemoryError, InputError):
            raise
        except (Exception, SystemExit) as error:
            raise EngineError(f"stage {name!r} failed: {type(error).__name__}: {one_line(error)}") from error
        if not isinstance(made, Mapping):
            raise DataError(f"stage {name!r} returned a {type(made).__name__}; return arrays by name, as a dict")
        return {str(key): frozen(self._array(str(key), value)) for key, value in made.items()}

    def _array(self, key: str, value: Any) -> Array:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise DataError(f"stage {self.stage.name!r}: output {key!r} is no array: {one_line(error)}") from None
        if array.dtype.kind == "O" and not all(isinstance(one, str) for one in array.flat):
            raise DataError(f"stage {self.stage.name!r}: output {key!r} holds objects; return numbers or text")
        return array if array.ndim else array.reshape(1)


def pipeline_code(spec: str, folder: str) -> Any:
    """Return what ``module:name`` leads to from the folder of a pipeline; InputError if it cannot be loaded.

    A module of this name that another pipeline brought along from its own folder is forgotten first.
    """
    name, places = re.split("[.:]", spec)[0], [os.path.abspath(folder), os.getcwd()]
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    own = (Path(place, *rest) for place in places for rest in ((f"{name}.py",), (name, "__init__.py")))
    first = next((path for path in own if path.is_file()), None)
    if first is not None and file and os.path.realpath(file) != os.path.realpath(first):
        for known in [one for one in sys.modules if one.partition(".")[0] == name]:
            del sys.modules[known]
    return imported(spec, folder)


def open_function(stage: Stage, folder: str) -> FunctionStage:
    """Import the function of a stage; InputError if it cannot be, or takes other arguments."""
    assert stage.function is not None
    function = pipeline_code(stage.function, folder) if isinstance(stage.function, str) else stage.function
    if not callable(function):
        raise InputError(f"stage {stage.name!r}: {stage.function!r} is a {type(function).__name__}; name a function")
    with suppress(ValueError):  # builtins say nothing of themselves
        signature = inspect.signature(function)
        try:
            signature.bind(**stage.inputs)
        except TypeError as error:
            known = ", ".join(signature.parameters)
            raise InputError(f"stage {stage.name!r}: {error}; the function takes {known or 'nothing'}") from None
    return FunctionStage(stage, function)


def code_digest(function: StageFunction) -> str:
    """Return the SHA-256 of the file that a function stands in; of its name where there is none."""
    with suppress(TypeError, OSError):
        file = inspect.getsourcefile(inspect.unwrap(function))
        if file is not None:
            return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return hashlib.sha256(getattr(function, "__qualname__", "").encode()).hexdigest()
