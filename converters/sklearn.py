"""Conversion from scikit-learn: a fitted estimator, or `module:factory` that returns one, with skl2onnx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfi.errors import InputError
from onnxfi.runtime.engine.ports import Array, Port

from . import naming, shapes
from .conversion import (
    OPSET,
    Check,
    Converted,
    Exported,
    at_opset,
    check_output,
    conversion_error,
    source_name,
    write_checked,
)  # fmt: skip
from .installed_frameworks import quiet, require, version
from .sources import call_factory, is_factory

if TYPE_CHECKING:
    import onnx

#: Operators with their numbers in attributes; skl2onnx can use operators on tensors instead.
_ATTRIBUTE_OPERATORS = {"LinearClassifier", "LinearRegressor", "Scaler", "Normalizer"}
_INPUT = "X"


def convert(
    source: Any,
    out: str | Path,
    *,
    input_shape: str | Sequence[str] = (),
    opset: int | None = None,
    data: str | Path | Mapping[str, Array] | None = None,
    samples: int = 8,
    tolerance: float = 1e-4,
) -> Converted:
    """Convert a fitted estimator or pipeline with skl2onnx, compare it with scikit-learn, and write it to `out`.

    Linear models and scalers become operators on tensors, so that faults can be injected into their numbers. Layers are
    the steps of pipelines (`mlpclassifier`), of networks with the layer's number (`mlpclassifier.0`).

    Parameters
    ----------
    source
        An estimator, or `module:factory`; a pickle is refused, since loading it runs code.
    out
        The file to write.
    input_shape
        Shape and type of the input `X`, as `N,64:float64`; by default float32 [N, features].
    opset
        Opset of the file; None is 18, or lower where skl2onnx needs it.
    data, samples, tolerance
        The check: on the first `samples` of `data` (None: synthetic), to a relative `tolerance`.

    Returns
    -------
    Converted
        The file that was written, and its largest difference from scikit-learn.

    Raises
    ------
    InputError
        For a source that cannot be used.
    ConversionError
        If skl2onnx fails, with its error text, or the outputs differ by more than the tolerance.
    """
    require("sklearn")
    path, check = check_output(out), Check(data, samples, tolerance)
    with quiet():
        estimator = _estimator(source)
        port = _port(estimator, shapes.as_tuple(input_shape))
        proto = _export(estimator, port, opset)
        naming.name_open_dimensions(proto, {port.name: port.shape})
        outputs = [value.name for value in proto.graph.output]
        exported = Exported(
            "sklearn", version("scikit-learn"), source_name(source), proto,
            lambda feeds: _outputs(estimator, feeds[port.name], outputs),
        )  # fmt: skip
        return write_checked(exported, path, check)


def _estimator(source: Any) -> Any:
    """Return the estimator; raise InputError if it is not fitted."""
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    estimator = call_factory(source) if is_factory(source) else source
    if isinstance(estimator, str | Path):
        raise InputError(
            f"scikit-learn stores models as pickles, which run code when they are loaded; give module:factory, "
            f"a function of your own that returns the estimator, instead of {str(estimator)!r}"
        )
    if not isinstance(estimator, BaseEstimator):
        raise InputError(
            f"{source_name(source)!r} returned a {type(estimator).__qualname__}, not an estimator of scikit-learn"
        )
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        raise InputError(f"the {type(estimator).__qualname__} is not fitted; call fit in the factory") from None
    return estimator


def _port(estimator: Any, texts: Sequence[str]) -> Port:
    if texts:
        return shapes.parse_ports(texts, [_INPUT])[0]
    features = getattr(estimator, "n_features_in_", None)
    if features is None:
        raise InputError("the number of features of the estimator is unknown; give --input-shape, as N,64")
    return Port(_INPUT, "float32", ("N", int(features)))


def _export(estimator: Any, port: Port, opset: int | None) -> onnx.ModelProto:
    from skl2onnx import __max_supported_opset__ as most
    from skl2onnx import convert_sklearn
    from skl2onnx.common import data_types
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    if opset is not None and not 9 <= opset <= most:
        raise InputError(f"skl2onnx cannot write opset {opset}; use 9 to {most}")
    kinds = {"float32": "FloatTensorType", "float64": "DoubleTensorType", "int64": "Int64TensorType"}
    if port.dtype not in kinds:
        raise InputError(f"skl2onnx takes {', '.join(kinds)} features, not {port.dtype}; give --input-shape, as N,64")
    kind = getattr(data_types, kinds[port.dtype])
    dims = [dim if isinstance(dim, int) else None for dim in port.shape or ()]
    options = {id(estimator): {"zipmap": False}} if hasattr(estimator, "predict_proba") else None

    def converted(black: set[str] | None) -> tuple[Any, Any]:
        return convert_sklearn(  # type: ignore[no-any-return]
            estimator, initial_types=[(port.name, kind(dims))], target_opset={"": opset or OPSET}, options=options,
            black_op=black, intermediate=True,
        )  # fmt: skip

    try:
        try:
            converted_proto, topology = converted(_ATTRIBUTE_OPERATORS)
        except (MissingConverter, MissingShapeCalculator):
            raise
        except Exception:  # some estimators need these operators
            converted_proto, topology = converted(None)
    except (MissingConverter, MissingShapeCalculator) as error:
        raise conversion_error(
            error, "skl2onnx has no converter for one of its parts", "use another estimator there"
        ) from error
    except Exception as error:
        raise conversion_error(error, "skl2onnx fails on the estimator", "try another --opset") from error
    proto: onnx.ModelProto = converted_proto
    _name_by_steps(proto, topology, dict(_steps(estimator, "")))
    return proto if opset is None else at_opset(proto, opset, range(9, most + 1))


def _outputs(estimator: Any, given: Array, outputs: Sequence[str]) -> dict[str, Any]:
    """Return the estimator's outputs: labels and probabilities or scores, or else numbers or features."""
    if len(outputs) == 2:
        scores = estimator.predict_proba if hasattr(estimator, "predict_proba") else estimator.decision_function
        return {outputs[0]: estimator.predict(given), outputs[1]: scores(given)}
    values = estimator.predict(given) if hasattr(estimator, "predict") else estimator.transform(given)
    return {outputs[0]: values if values.ndim > 1 else values.reshape(-1, 1)}


def _steps(estimator: Any, path: str) -> Iterator[tuple[int, str]]:
    """Yield the id of each nested estimator with the path of its step; a single estimator has its class's name."""
    inner: list[tuple[str, Any]] = []
    for attribute in ("steps", "transformer_list", "transformers_", "estimators"):
        inner += [(part[0], part[1]) for part in getattr(estimator, attribute, ()) if isinstance(part, tuple)]
    yield id(estimator), path or type(estimator).__name__.lower()
    for name, part in inner:
        if hasattr(part, "get_params"):
            yield from _steps(part, f"{path}.{name}" if path else name)


def _name_by_steps(proto: onnx.ModelProto, topology: Any, steps: Mapping[int, str]) -> None:
    """Record the pipeline step of each node, and name weights after it.

    A node belongs to the step whose outputs depend on it, up to the inputs of that step.
    """
    producer = {value: node for node in proto.graph.node for value in node.output}
    owner: dict[str, str] = {}
    for operator in (one for scope in topology.scopes for one in scope.operators.values()):
        step = steps.get(id(operator.raw_operator))
        if step is None:
            continue
        stop = {variable.onnx_name for variable in operator.inputs}
        todo = [variable.onnx_name for variable in operator.outputs]
        while todo:
            value = todo.pop()
            node = producer.get(value)
            if node is None or value in stop or node.output[0] in owner:
                continue
            owner[node.output[0]] = step
            todo += node.input
    initializers = {tensor.name for tensor in proto.graph.initializer}
    layers, new = _numbered(proto, owner, initializers)
    naming.record_layers(proto, lambda node: layers.get(node.output[0], ""))
    naming.rename(proto, new)
    naming.sort_by_use(proto)


def _numbered(
    proto: onnx.ModelProto, owner: Mapping[str, str], initializers: set[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the layer of each node and new names of weights; layers of a network are numbered by coefficients."""
    layers: dict[str, str] = {}
    new: dict[str, str] = {}
    count: dict[str, int] = {}
    for node in proto.graph.node:
        step = owner.get(node.output[0], "")
        if not step:
            continue
        for value in node.input:
            if value.startswith("coefficient") and value in initializers:
                count[step] = count.get(step, -1) + 1
        layer = f"{step}.{count[step]}" if step in count else step
        layers[node.output[0]] = layer
        for value in node.input:
            if value in initializers and value not in new:
                new[value] = f"{layer}.{value.rstrip('0123456789').removesuffix('cst')}"
    return layers, new
