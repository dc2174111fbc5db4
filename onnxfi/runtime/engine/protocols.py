"""The protocols of engines and sessions: an engine prepares a model, and its session runs it.

`Engine` is the base class of every runtime that onnxfi can use, `Session` the protocol of a prepared model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from onnxfi.errors import EngineError, ModelError
from onnxfi.graph.model.byte_source import StoredArray
from onnxfi.runtime.engine.ports import Array, Port

#: The largest message that protobuf serialises.
LARGEST_MODEL_BYTES = (1 << 31) - 1


class Session(Protocol):
    """A prepared model.

    Attributes
    ----------
    inputs, outputs : tuple of Port
        What `run` is fed and returns, in the order of the model.
    non_tensors : mapping of str to str
        Type of each output that is not a plain tensor, and so is not in `outputs`, by its name.
    provider : str
        Backend that computes, by the runtime's name.
    note : str
        Backend, with a remark for reports.

    Examples
    --------
    >>> import onnxfi, numpy as np
    >>> session = onnxfi.OrtEngine(provider="cpu").prepare("models/fashion_cnn.onnx")
    >>> str(session.inputs[0]), session.run({"image": np.zeros((2, 1, 28, 28), np.float32)})["logits"].shape
    ("'image' (float32 [N,1,28,28])", (2, 10))
    """

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Return the inputs that `run` must be fed, in the order of the model."""

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Return the outputs that `run` can return, in the order of the model."""

    @property
    def non_tensors(self) -> Mapping[str, str]:
        """Return the type of each output that is not a plain tensor, by its name."""

    @property
    def provider(self) -> str:
        """Return the backend that computes, by the runtime's own name."""

    @property
    def note(self) -> str:
        """Return the backend with any remark that a report should show beside it."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model once and return these outputs by name (None: all of them)."""


class Engine:
    """A runtime that prepares ONNX models for running; the base class of all engines.

    A subclass is a frozen dataclass that sets `name` and implements `prepare`. Its fields are the settings that a
    campaign can give it (`provider`, `provider_options`, `optimization`, `threads`, `custom_ops`). A package offers its
    engine by an entry point of the group `onnxfi.engines`.

    Two sessions of the same model must give the same bits for the same feeds, in every process.

    Attributes
    ----------
    name : str
        Name on the command line, in campaigns and in stores.
    cuts : bool
        True if a campaign may run segments of a model in place of the whole model.
    fed_faults : bool
        True if the runtime takes fault operators whose faults are inputs, as bodies of loops need them.
    thread_safe : bool
        True if several threads may run one session at the same time.

    Examples
    --------
    >>> from onnxfi import OrtEngine
    >>> engine = OrtEngine(provider="cpu", threads=1)
    >>> engine.name, engine.cuts, engine.prepare("models/fashion_cnn.onnx").provider
    ('onnxruntime', True, 'CPUExecutionProvider')
    """

    #: Name on the command line, in campaigns and in stores.
    name: ClassVar[str] = ""
    #: True if a campaign may run segments of a model instead of the whole model for every trial.
    cuts: ClassVar[bool] = False
    #: True if the runtime takes fault operators whose faults are fed, as faults in bodies of loops need them.
    fed_faults: ClassVar[bool] = True
    #: True if several threads may run one session at the same time.
    thread_safe: ClassVar[bool] = False

    @property
    def in_segments(self) -> bool:
        """Return whether a campaign may run segments of a model with these settings."""
        return self.cuts

    @property
    def arithmetic(self) -> Mapping[str, str]:
        """Return settings beyond those of a campaign that fix the bits of an answer, by name."""
        return {}

    @property
    def devices(self) -> tuple[int, ...]:
        """Return the numbers of the devices that workers use in turn; () if there are none."""
        return ()

    @property
    def device_memory_bytes(self) -> int:
        """Return the memory of a device that this process may take; 0 if values lie in the host's alone."""
        return 0

    @property
    def version(self) -> str:
        """Return the runtime and its release; trials of one campaign run on the same one everywhere."""
        return self.name

    @staticmethod
    def file(path: str | Path) -> str:
        """Return the path of a model as text; ModelError if it is not a file."""
        if not Path(path).is_file():
            what = "a directory" if Path(path).is_dir() else "not a file"
            raise ModelError(f"{str(path)!r} is {what}; give the path of an .onnx file")
        return str(path)

    def prepare(self, model: str | Path | bytes) -> Session:
        """Load a model file, or a serialised model without external data.

        Raises
        ------
        ModelError
            If a path is not a file.
        EngineError
            If the runtime refuses the model; the message is one line.
        """
        raise NotImplementedError

    def prepare_part(self, model: bytes, stored: Mapping[str, Array | StoredArray]) -> Session:
        """Load a serialised model whose larger initializers are given beside it, by name.

        In the model these lie in external data, which need not exist. Raises as `prepare` does.
        """
        return self.prepare(embedded(model, stored))

    def unoptimized(self) -> Engine:
        """Return the engine that opens a model fastest, to read its inputs, outputs and types."""
        return self

    def for_dry_run(self) -> Engine | None:
        """Return the engine for a trial run in a copy of the process; None if a copy cannot run this runtime."""
        return None


def embedded(model: bytes, stored: Mapping[str, Array | StoredArray]) -> bytes:
    r"""Return a serialised model that holds these initializers itself.

    >>> from onnx import parser
    >>> from numpy import float32, ones
    >>> made = parser.parse_model('<ir_version: 8, opset_import: ["": 13]>'
    ...     'g (float[2] x) => (float[2] y) <float[2] w = {0, 0}> { y = Add(x, w) }')
    >>> b"\x00\x00\x80?" in embedded(made.SerializeToString(), {"w": ones(2, float32)})
    True
    """
    if not stored:
        return model
    import onnx

    proto = onnx.ModelProto.FromString(model)
    for tensor in proto.graph.initializer:
        if tensor.name in stored:
            value = stored[tensor.name]
            array = value.read() if isinstance(value, StoredArray) else value
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = array.tobytes()
    if proto.ByteSize() > LARGEST_MODEL_BYTES:
        raise EngineError(f"a model of {proto.ByteSize():,} bytes is too large for one message; run it with route full")
    return proto.SerializeToString()


def smallest_model() -> bytes:
    """Return a model that every runtime runs."""
    from onnx import parser

    model = '<ir_version: 8, opset_import: ["": 13]> same (float[1] x) => (float[1] y) { y = Identity(x) }'
    return parser.parse_model(model).SerializeToString()
