"""The contract of a model pass, a function from a model to a model.

A pass is a frozen dataclass of its parameters. `run` checks what it requires of a model, lets it edit a copy, and
checks what it ensures. Every pass is tested by one suite, tests/graph/passes/test_model_pass.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar, final

from onnxfi.errors import ModelError, PassError

if TYPE_CHECKING:
    import onnx


Result = TypeVar("Result")
#: Bytes that protobuf serialises at most.
_LARGEST_BYTES = (1 << 31) - 1


class ModelPass(ABC, Generic[Result]):
    """A function from a model to a model, with the same outputs where its parameters are neutral.

    A subclass is a frozen dataclass of parameters, with a `name`.

    Every pass keeps the inputs and outputs of a model, their order and types; new ones come after them, and new inputs
    have defaults. It keeps opsets, the names of tensors, and the location of external data. `run` raises PassError
    otherwise.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from onnxfi.graph.model.loading import load, parse
    >>> @dataclass(frozen=True)
    ... class RenameGraph(ModelPass[str]):
    ...     title: str
    ...     name = "rename-graph"
    ...
    ...     def apply(self, proto):
    ...         before, proto.graph.name = proto.graph.name, self.title
    ...         return before
    >>> made, before = RenameGraph("faulty").run(parse(load("models/fashion_cnn.onnx")))
    >>> made.graph.name
    'faulty'
    """

    name: ClassVar[str]

    def requires(self, proto: onnx.ModelProto) -> None:
        """Raise ModelError if the pass cannot be applied to a model.

        Parameters
        ----------
        proto : onnx.ModelProto
            The model as it was given, which must not be changed.
        """

    @abstractmethod
    def apply(self, proto: onnx.ModelProto) -> Result:
        """Edit a model in place, a copy that the pass owns, and return facts about the edit."""

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        """Raise PassError if the edited model breaks what this pass promises beyond the contract of every pass."""

    @final
    def run(self, proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Result]:
        """Apply the pass to a copy of a model.

        Parameters
        ----------
        proto : onnx.ModelProto
            The model, which stays as it is.

        Returns
        -------
        tuple[onnx.ModelProto, Result]
            The edited copy, and the facts about the edit.

        Raises
        ------
        ModelError
            If the pass cannot be applied, or the edited model is larger than one ONNX file can be.
        PassError
            If the pass breaks its contract.
        """
        import onnx

        self.requires(proto)
        made = onnx.ModelProto()
        made.CopyFrom(proto)
        found = self.apply(made)
        for broken in _broken_promises(proto, made):
            raise PassError(f"the pass {self.name!r} breaks its contract: {broken}; report it to its author")
        self.ensures(proto, made)
        if (size := made.ByteSize()) > _LARGEST_BYTES:
            raise ModelError(
                f"the model takes {size:,} bytes, more than the {_LARGEST_BYTES:,} that one ONNX file can hold; "
                f"move its weights into external data first (onnx.save with save_as_external_data)"
            )
        return made, found


def _broken_promises(before: onnx.ModelProto, after: onnx.ModelProto) -> Iterator[str]:
    """Yield the violations of the contract of every pass."""
    kinds = {"input": (_fed(before), _fed(after)), "output": (list(before.graph.output), list(after.graph.output))}
    for kind, (old, new) in kinds.items():
        for one, other in zip(old, [*new, *[None] * len(old)], strict=False):
            if other is None or (one.name, one.type) != (other.name, other.type):
                yield f"the {kind} {one.name!r} is gone, has moved or has another type"
    yield from (f"the new input {v.name!r} has no default" for v in _fed(after)[len(_fed(before)) :])
    stored = {t.name: t for t in after.graph.initializer}
    for tensor in before.graph.initializer:
        held = stored.get(tensor.name)
        if held is not None and tensor.external_data and list(held.external_data) != list(tensor.external_data):
            yield f"the external data of {tensor.name!r} has moved"
    opsets = {(o.domain, o.version) for o in after.opset_import}
    for entry in before.opset_import:
        if (entry.domain, entry.version) not in opsets:
            yield f"opset {entry.version} of the domain {entry.domain or 'ai.onnx'!r} was changed"


def _fed(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a model must be fed: those without a default."""
    stored = {t.name for t in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in stored]
