"""PyTorch: a module, `module:factory`, or a checkpoint and the factory of its module."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxfi.errors import ConversionError, InputError
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import Array, Port, one_line

from . import shapes
from .conversion import (
    OPSET,
    Check,
    Converted,
    Exported,
    at_opset,
    check_output,
    conversion_error,
    named_outputs,
    source_name,
    write_checked,
)  # fmt: skip
from .installed_frameworks import quiet, require, version
from .naming import clean, match_variables, name_open_dimensions, rename
from .sources import call_factory, existing_path, is_factory

if TYPE_CHECKING:
    import onnx

#: Opsets that the exporter writes directly; others need ONNX's version converter.
_DIRECT = range(18, 26)
#: Keys of the weights in checkpoints, which hold epochs and optimisers too.
_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "weights")
_TRACE_SAMPLES = 2


#: Classes for training by the module that holds them.
_IN_TRAINING = {"FaultAwareTraining": "torch_training", "QuantisationAwareTraining": "torch_qat"}


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
    """Export a PyTorch module with the dynamo exporter, compare it with torch, and write it to `out`.

    Parameters
    ----------
    source
        A `torch.nn.Module`, which is not changed, `module:factory`, or a checkpoint (`.pt`, read with
        `weights_only=True`, or `.safetensors`). A `QuantisationAwareTraining` is written with the integers of its
        weights.
    out
        The file to write.
    factory
        `module:function` that returns the module of a checkpoint.
    input_shape
        Shape of each argument of `forward`, as `N,1,28,28` or `N,16:int64`; a letter may vary. None if `data` has
        arrays of their names.
    opset
        Opset of the file; None is 18.
    data, samples, tolerance
        The check: on the first `samples` of `data` (None: synthetic), to a relative `tolerance`.

    Returns
    -------
    Converted
        The file that was written, and its largest difference from torch.

    Raises
    ------
    InputError
        For a source that cannot be used.
    ConversionError
        If torch fails, with its error text, or the outputs differ by more than the tolerance.
    """
    require("torch")
    path, check = check_output(out), Check(data, samples, tolerance)
    with quiet():
        import torch

        module = _module(source, factory)
        put_quantisers = getattr(module, "put_quantisers", None)  # quantisation-aware training
        module = module if put_quantisers is None else module.model
        names = _arguments(module)
        ports = shapes.parse_ports(shapes.as_tuple(input_shape), names) or shapes.ports_of(data, names)
        if not ports:
            wanted = f"{', '.join(names)}" if names else "its inputs"
            raise InputError(
                f"torch needs a sample input for {wanted}: give --input-shape N,1,28,28, say (a letter may vary), or "
                f"--data with arrays of these names"
            )
        with _evaluation_mode(module):
            proto = _export(module, ports, data, opset or OPSET)
            if put_quantisers is not None:
                put_quantisers(proto)
            outputs = [value.name for value in proto.graph.output]
            device = next((p.device for p in module.parameters()), torch.device("cpu"))

            def run(feeds: Mapping[str, Array]) -> Mapping[str, Any]:
                given = [
                    torch.from_numpy(np.array(feeds[port.name])).to(device) for port in ports if port.name in feeds
                ]
                with torch.no_grad():
                    values = torch.utils._pytree.tree_leaves(module(*given))
                return named_outputs(outputs, [v.cpu().numpy() for v in values if isinstance(v, torch.Tensor)])

            exported = Exported("torch", version("torch"), source_name(source), proto, run)
            return write_checked(exported, path, check)


def _module(source: Any, factory: str | None) -> Any:
    """Return the module with its weights."""
    import torch

    if isinstance(source, torch.nn.Module):
        module = source
    elif is_factory(source):
        module = call_factory(source)
    elif isinstance(source, str | Path):
        path = existing_path(source)
        if factory is None:
            _weights(path)  # refuses a pickled module, which a factory would not help
            raise InputError(
                f"{str(path)!r} holds only weights; give --factory module:function, which returns the module for them"
            )
        module = call_factory(factory)
    else:
        raise InputError(f"the source must be a torch.nn.Module, got a {type(source).__qualname__}")
    if not isinstance(module, torch.nn.Module):
        name = factory or source
        raise InputError(
            f"{name!r} returned a {type(module).__qualname__}, not a torch.nn.Module; return the module itself"
        )
    if isinstance(source, str | Path) and not is_factory(source):
        _load_weights(module, Path(source), str(factory))
    elif factory is not None:
        raise InputError("--factory is for checkpoints; this source is a module already, leave it out")
    return module


def _load_weights(module: Any, path: Path, factory: str) -> None:
    """Load a checkpoint into a module, every tensor of both."""
    weights = _weights(path)
    if not any(name in weights for name in module.state_dict()):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}  # DataParallel's prefix
    own = module.state_dict()
    problems = []
    for what, names in (
        ("missing in the file", [name for name in own if name not in weights]),
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
    """Return the tensors of a checkpoint by name; no code in it is run."""
    import torch

    if path.suffix == ".safetensors" and importlib.util.find_spec("safetensors") is None:
        raise InputError(f"{path.name!r} needs safetensors, which is not installed: pip install safetensors")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = one_line(str(error).partition(". ")[0] or type(error).__name__, limit=120)
        raise ConversionError(
            f"{str(path)!r} is damaged or holds code beside weights, and is not loaded ({why}); save "
            f"model.state_dict() with torch.save or safetensors"
        ) from None
    for key in _WEIGHT_KEYS:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
            break
    if not isinstance(held, Mapping) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise ConversionError(f"{str(path)!r} is not a dict of tensors; save model.state_dict() with torch.save")
    return dict(held)


def _arguments(module: Any) -> list[str]:
    """Return the names of the positional parameters of `forward`."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds]


@contextlib.contextmanager
def _evaluation_mode(module: Any) -> Iterator[None]:
    """Set the module to evaluation mode, and restore the mode of every submodule afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _export(module: Any, ports: Sequence[Port], data: Any, opset: int) -> onnx.ModelProto:
    """Trace and export the module, with the dimensions of the ports fixed or open."""
    import onnx_ir as ir
    import torch

    sample_data = open_data(data, ports, limit=_TRACE_SAMPLES)
    feeds = next(sample_data.batches(sample_data.layout.fixed or _TRACE_SAMPLES)).feeds
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
        raise _export_error(error) from error
    proto: onnx.ModelProto = ir.to_proto(program.model)
    clean(proto)
    _check_open(proto, ports)
    rename(proto, match_variables(proto, {name: value.cpu().numpy() for name, value in _numpy_tensors(module)}))
    name_open_dimensions(proto, {port.name: port.shape for port in ports})
    return at_opset(proto, opset, _DIRECT)


def _numpy_tensors(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parameters and buffers in formats of numpy."""
    import torch

    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.float32, torch.float64):
            yield name, value


def _export_error(error: BaseException) -> ConversionError:
    """Return the exporter's error with its innermost cause and a remedy."""
    cause = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    kind, text = type(cause).__name__, str(cause)
    if "data-dependent" in text:
        remedy = "the control flow of the module depends on values: use torch.where or torch.cond instead of if"
    elif kind == "DispatchError":
        remedy = "ONNX has no counterpart of that operator: replace it in the module"
    elif "Constraint" in text or "Constraint" in kind:
        remedy = "the module does not let a dimension vary: write it as a number in --input-shape"
    else:
        remedy = "torch.export.export(module, inputs) shows where; check --input-shape first"
    return conversion_error(cause, f"the exporter fails ({kind})", remedy)


def _check_open(proto: onnx.ModelProto, ports: Sequence[Port]) -> None:
    """Refuse a model that fixes a dimension that should vary, as the exporter does without a warning."""
    for value, port in zip(proto.graph.input, ports, strict=False):
        for dim, wanted in zip(value.type.tensor_type.shape.dim, port.shape or (), strict=False):
            if isinstance(wanted, str) and dim.HasField("dim_value"):
                raise ConversionError(
                    f"the module fixes dimension {wanted} of {port.name!r} to {dim.dim_value}, so that it cannot vary; "
                    f"write it as a number in --input-shape, or remove the constant from the module"
                )


def __getattr__(name: str) -> Any:
    module = _IN_TRAINING.get(name)  # which imports torch; this one does not
    if module is not None:
        require("torch")
        return getattr(importlib.import_module(f".{module}", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
