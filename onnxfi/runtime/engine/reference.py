"""The evaluator of the `onnx` package as an engine: the definitions of the operators, in numpy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from onnxfi.errors import EngineError, OnnxfiError
from onnxfi.graph.dataflow.type_inference import infer_types
from onnxfi.runtime.engine.ports import Array, Port, checked_feeds, checked_outputs, one_line, ports_of
from onnxfi.runtime.engine.protocols import Engine

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class ReferenceEngine(Engine):
    """The evaluator of the `onnx` package.

    It computes each node by the definition of its operator, and slowly: an oracle for other engines on small models. It
    fuses nothing, so segments of a model give the bits of the whole model.

    Examples
    --------
    >>> from onnx import parser
    >>> model = parser.parse_model('''<ir_version: 10, opset_import: ["": 21]>
    ...     double (float[N] x) => (float[N] y) { y = Add(x, x) }''')
    >>> ReferenceEngine().prepare(model.SerializeToString()).run({"x": np.array([1, 2], np.float32)})
    {'y': array([2., 4.], dtype=float32)}
    """

    name: ClassVar[str] = "reference"
    cuts: ClassVar[bool] = True

    @property
    def version(self) -> str:
        """Return the release of the `onnx` package."""
        return f"onnx {version('onnx')}"

    def prepare(self, model: str | Path | bytes) -> ReferenceSession:
        """Load a model file, or a serialised model."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                proto = onnx.ModelProto.FromString(model) if isinstance(model, bytes) else onnx.load(self.file(model))
                evaluator = ReferenceEvaluator(proto)
        except OnnxfiError:
            raise
        except Exception as error:
            raise EngineError(f"the reference evaluator refuses the model: {one_line(error)}") from error
        return ReferenceSession.of(proto, evaluator)


@dataclass(frozen=True, eq=False)
class ReferenceSession:
    """A model that the reference evaluator has loaded."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    overridable: tuple[Port, ...]
    non_tensors: Mapping[str, str] = field(repr=False)
    _evaluator: Any = field(repr=False)
    provider: str = "reference"
    note: str = "onnx's reference evaluator"

    @classmethod
    def of(cls, proto: onnx.ModelProto, evaluator: Any) -> ReferenceSession:
        """Return the session of a loaded model."""
        stored = {tensor.name for tensor in proto.graph.initializer}
        given, made = ports_of(proto.graph.input), ports_of(_typed(proto).graph.output)
        return cls(
            inputs=tuple(port for port in given if port.name not in stored),
            outputs=tuple(port for port in made if port.is_tensor),
            overridable=tuple(port for port in given if port.name in stored),
            non_tensors={port.name: port.dtype for port in made if not port.is_tensor},
            _evaluator=evaluator,
        )

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model once and return these outputs by name (None: all of them)."""
        names = checked_outputs(outputs, self.outputs, self.non_tensors)
        checked = checked_feeds(feeds, self.inputs, self.overridable)
        if not names:
            return {}
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found = self._evaluator.run(names, dict(checked))
        except Exception as error:
            raise EngineError(f"the reference evaluator failed on this batch: {one_line(error)}") from error
        return {name: np.asarray(value) for name, value in zip(names, found, strict=True)}


def _typed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the types of its outputs inferred, where it does not declare them."""
    return proto if all(output.type.WhichOneof("value") for output in proto.graph.output) else infer_types(proto)
