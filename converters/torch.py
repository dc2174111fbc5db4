"""PyTorch: a module, `module:factory`, or a checkpoint and the factory of its module."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfi.errors import ConversionError, InputError
from onnxfi.runtime.data.sources import open_data
from onnxfi.runtime.engine.model_io import Array, Port, one_line

from . import shapes
from .conversion import (
    OPSET,
    Check,
    Converted,
    Exported,
    at_opset,
    check_output,
    finish,
    foreign,
    named_outputs,
    shown,
)  # fmt: skip
from .frameworks import quiet, require, version
from .naming import clean, matched, open_first_dimension, rename
from .sources import existing, is_factory, made

if TYPE_CHECKING:
    import onnx

#: Opsets that the exporter writes itself; others go through ONNX's converter.
_DIRECT = range(18, 26)
#: Where checkpoints keep the weights, beside epochs and optimisers.
_INSIDE = ("state_dict", "model_state_dict", "model", "weights")
_TRACED_SAMPLES = 2


def convert(
    source: Any,
    out: str | Path,
    *,
    factory: str | None = None,
    input_shape: str | Sequence[str] = (),
    opset: int | None = None,
    data: str | Path | Mapping[str, Array] | None = None,
    samples: int = 8,
    tolerance: float = 1e-4,
) -> Converted:
    """Export a PyTorch module with the dynamo exporter, hold it against torch, and write it to `out`.

    `source` is a `torch.nn.Module`, the text `module:factory`, or a checkpoint (`.pt` read with `weights_only=True`,
    `.safetensors`) whose module `factory` makes. `input_shape` says each argument of `forward`, as `N,1,28,28` or
    `N,16:int64`: letters may vary; `data` can say them too, by its arrays. The module itself does not change.

    Raises InputError for a source that cannot be used, ConversionError (with the foreign text) where torch refuses.
    """
    require("torch")
    place, check = check_output(out), Check(data, samples, tolerance)
    with quiet():
        import torch

        module = _module(source, factory)
        names = _arguments(module)
        ports = shapes.ports(shapes.tuple_of(input_shape), names) or shapes.ports_of(data, names)
        if not ports:
            wanted = f"{', '.join(names)}" if names else "its inputs"
            raise InputError(
                f"torch needs a sample input for {wanted}: give --input-shape N,1,28,28, say (a letter may vary), or "
                f"--data with arrays of these names"
            )
        with _evaluating(module):
            proto = _exported(module, ports, data, opset or OPSET)
            outputs = [value.name for value in proto.graph.output]
            device = next((p.device for p in module.parameters()), torch.device("cpu"))

            def run(feeds: Mapping[str, Array]) -> Mapping[str, Any]:
                given = [
                    torch.from_numpy(np.array(feeds[port.name])).to(device) for port in ports if port.name in feeds
                ]
                with torch.no_grad():
                    values = torch.utils._pytree.tree_leaves(module(*given))
                return named_outputs(outputs, [v.cpu().numpy() for v in values if isinstance(v, torch.Tensor)])

            exported = Exported("torch", version("torch"), shown(source), proto, run)
            return finish(exported, place, check)


def _module(source: Any, factory: str | None) -> Any:
    """The module with its weights."""
    import torch

    if isinstance(source, torch.nn.Module):
        module = source
    elif is_factory(source):
        module = made(source)
    elif isinstance(source, str | Path):
        path = existing(source)
        if factory is None:
            _weights(path)  # a pickled module is refused as one: a factory alone would not help
            raise InputError(
                f"{str(path)!r} holds weights alone; --factory module:function says what makes the module for them"
            )
        module = made(factory)
    else:
        raise InputError(f"a {type(source).__qualname__} is no torch.nn.Module")
    if not isinstance(module, torch.nn.Module):
        named = factory or source
        raise InputError(
            f"{named!r} gave a {type(module).__qualname__}, not a torch.nn.Module; return the module itself"
        )
    if isinstance(source, str | Path) and not is_factory(source):
        _fill(module, Path(source), str(factory))
    elif factory is not None:
        raise InputError("--factory is for a checkpoint; this source is a module already, leave it out")
    return module


def _fill(module: Any, path: Path, factory: str) -> None:
    """Load a checkpoint into a module, every tensor of both."""
    weights = _weights(path)
    if not any(name in weights for name in module.state_dict()):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}  # DataParallel's prefix
    own = module.state_dict()
    problems = []
    for what, names in (
        ("missing in it", [name for name in own if name not in weights]),
        ("unknown to the module", [name for name in weights if name not in own]),
        ("of another shape", [n for n in own if n in weights and own[n].shape != getattr(weights[n], "shape", None)]),
    ):
        if names:
            problems.append(f"{len(names)} {what} (as {names[0]!r})")
    if problems:
        raise ConversionError(
            f"the checkpoint {str(path)!r} does not fit {factory}: of its tensors {'; '.join(problems)}; give the "
            f"factory that it was trained with"
        )
    module.load_state_dict(weights)


def _weights(path: Path) -> dict[str, Any]:
    """The tensors of a checkpoint by name; nothing in it is run."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = one_line(str(error).partition(". ")[0] or type(error).__name__, limit=120)
        raise ConversionError(
            f"{str(path)!r} is damaged, or holds code and not weights alone, and is not opened ({why}); save "
            f"model.state_dict() with torch.save or safetensors"
        ) from None
    for key in _INSIDE:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
            break
    if not isinstance(held, Mapping) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise ConversionError(f"{str(path)!r} is no dict of tensors; save model.state_dict() with torch.save")
    return dict(held)


def _arguments(module: Any) -> list[str]:
    """The names of what `forward` takes by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds]


@contextlib.contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """The module in evaluation mode; after that every part is in the mode it was in."""
    was = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in was:
            part.training = training


def _exported(module: Any, ports: Sequence[Port], data: Any, opset: int) -> onnx.ModelProto:
    """Trace and export, opened dimensions as they were asked for."""
    import onnx_ir as ir
    import torch

    fed = open_data(data, ports, limit=_TRACED_SAMPLES)
    feeds = next(fed.batches(fed.layout.fixed or _TRACED_SAMPLES)).feeds
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    given = tuple(torch.from_numpy(np.array(feeds[port.name])).to(device) for port in ports)
    dims = {dim: torch.export.Dim(dim) for port in ports for dim in port.shape or () if isinstance(dim, str)}
    varying = tuple(
        {axis: dims[dim] for axis, dim in enumerate(port.shape or ()) if isinstance(dim, str)} for port in ports
    )
    direct = min(max(opset, _DIRECT.start), _DIRECT.stop - 1)
    try:
        program = torch.onnx.export(
            module,
            given,
            dynamo=True,
            external_data=False,
            opset_version=direct,
            input_names=[port.name for port in ports],
            dynamic_shapes=varying,
            verbose=False,
        )
    except Exception as error:
        raise _refused(error) from error
    proto: onnx.ModelProto = ir.to_proto(program.model)
    clean(proto)
    _check_open(proto, ports)
    rename(proto, matched(proto, {name: value.cpu().numpy() for name, value in _numbers(module)}))
    open_first_dimension(proto, {port.name: port.shape for port in ports})
    return at_opset(proto, opset, _DIRECT)


def _numbers(module: Any) -> Iterator[tuple[str, Any]]:
    """The parameters and buffers that numpy can hold."""
    import torch

    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.float32, torch.float64):
            yield name, value


def _refused(error: BaseException) -> ConversionError:
    """The exporter's refusal by its innermost cause, and what to try."""
    cause = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    kind, text = type(cause).__name__, str(cause)
    if "data-dependent" in text:
        remedy = "the way through the module depends on values: use torch.where or torch.cond instead of if"
    elif kind == "DispatchError":
        remedy = "ONNX has no counterpart of that operator: replace it in the module"
    elif "Constraint" in text or "Constraint" in kind:
        remedy = "the module does not let a dimension vary: write it as a number in --input-shape"
    else:
        remedy = "torch.export.export(module, inputs) shows where; check --input-shape first"
    return foreign(cause, f"the exporter refuses ({kind})", remedy)


def _check_open(proto: onnx.ModelProto, ports: Sequence[Port]) -> None:
    """Refuse a model in which a dimension that was to vary is fixed: the exporter settles on one in silence."""
    for value, port in zip(proto.graph.input, ports, strict=False):
        for dim, wanted in zip(value.type.tensor_type.shape.dim, port.shape or (), strict=False):
            if isinstance(wanted, str) and dim.HasField("dim_value"):
                raise ConversionError(
                    f"the module fixes dimension {wanted} of {port.name!r} to {dim.dim_value}, so that it cannot vary; "
                    f"write it as a number in --input-shape, or take the number out of the module"
                )


def __getattr__(name: str) -> Any:
    if name == "FaultAwareTraining":  # its module needs torch to be imported at all, this one does not
        require("torch")
        from .torch_training import FaultAwareTraining

        return FaultAwareTraining
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
