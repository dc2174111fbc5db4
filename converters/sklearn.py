"""scikit-learn: a fitted estimator, or `module:factory` that gives one, through skl2onnx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfi.errors import InputError
from onnxfi.runtime.engine.model_io import Array, Port

from . import naming, shapes
from .conversion import (
    OPSET,
    Check,
    Converted,
    Exported,
    at_opset,
    check_output,
    finish,
    foreign,
    shown,
)  # fmt: skip
from .frameworks import quiet, require, version
from .sources import is_factory, made

if TYPE_CHECKING:
    import onnx

#: Operators that keep their numbers in attributes, where tensors can be used instead.
_AS_TENSORS = {"LinearClassifier", "LinearRegressor", "Scaler", "Normalizer"}
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
    """Convert a fitted estimator or pipeline with skl2onnx, hold it against scikit-learn, and write it to `out`.

    `source` is an estimator, or `module:factory`; a pickle is not opened, since that runs what is in it. The input `X`
    is float32 [N, features] unless `input_shape` says otherwise (`N,64:float64`). Linear models and scalers become
    operators on tensors, so that faults reach their numbers. Layers are the steps of pipelines (`mlpclassifier`), of
    networks with the layer's number (`mlpclassifier.0`).

    Raises InputError for a source that cannot be used, ConversionError (with the foreign text) where skl2onnx refuses.
    """
    require("sklearn")
    place, check = check_output(out), Check(data, samples, tolerance)
    with quiet():
        estimator = _estimator(source)
        port = _port(estimator, shapes.tuple_of(input_shape))
        proto = _exported(estimator, port, opset)
        naming.open_first_dimension(proto, {port.name: port.shape})
        outputs = [value.name for value in proto.graph.output]
        exported = Exported(
            "sklearn", version("scikit-learn"), shown(source), proto,
            lambda feeds: _answers(estimator, feeds[port.name], outputs),
        )  # fmt: skip
        return finish(exported, place, check)


def _estimator(source: Any) -> Any:
    """The estimator, which must be fitted."""
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    estimator = made(source) if is_factory(source) else source
    if isinstance(estimator, str | Path):
        raise InputError(
            f"scikit-learn keeps models in pickles, which run code when they are opened; give module:factory, "
            f"a function of your own that gives the estimator, instead of {str(estimator)!r}"
        )
    if not isinstance(estimator, BaseEstimator):
        raise InputError(f"{shown(source)!r} gave a {type(estimator).__qualname__}, not an estimator of scikit-learn")
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        raise InputError(f"the {type(estimator).__qualname__} is not fitted; call fit in the factory") from None
    return estimator


def _port(estimator: Any, texts: Sequence[str]) -> Port:
    if texts:
        return shapes.ports(texts, [_INPUT])[0]
    features = getattr(estimator, "n_features_in_", None)
    if features is None:
        raise InputError("the estimator does not say how many features it takes; give --input-shape N,64, say")
    return Port(_INPUT, "float32", ("N", int(features)))


def _exported(estimator: Any, port: Port, opset: int | None) -> onnx.ModelProto:
    from skl2onnx import __max_supported_opset__ as most
    from skl2onnx import convert_sklearn
    from skl2onnx.common import data_types
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    if opset is not None and not 9 <= opset <= most:
        raise InputError(f"skl2onnx does not write opset {opset}; it takes 9 to {most}")
    kinds = {"float32": "FloatTensorType", "float64": "DoubleTensorType", "int64": "Int64TensorType"}
    if port.dtype not in kinds:
        raise InputError(f"skl2onnx takes {', '.join(kinds)} features, not {port.dtype}; give --input-shape N,64, say")
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
            made_, topology = converted(_AS_TENSORS)
        except (MissingConverter, MissingShapeCalculator):
            raise
        except Exception:  # not every part can do without these operators
            made_, topology = converted(None)
    except (MissingConverter, MissingShapeCalculator) as error:
        raise foreign(error, "skl2onnx has no converter for a part of it", "take another estimator there") from error
    except Exception as error:
        raise foreign(error, "skl2onnx refuses the estimator", "try another --opset") from error
    proto: onnx.ModelProto = made_
    _name_by_steps(proto, topology, dict(_steps(estimator, "")))
    return proto if opset is None else at_opset(proto, opset, range(9, most + 1))


def _answers(estimator: Any, given: Array, outputs: Sequence[str]) -> dict[str, Any]:
    """What the estimator gives for each output: labels, then probabilities or scores; else numbers or features."""
    if len(outputs) == 2:
        scores = estimator.predict_proba if hasattr(estimator, "predict_proba") else estimator.decision_function
        return {outputs[0]: estimator.predict(given), outputs[1]: scores(given)}
    values = estimator.predict(given) if hasattr(estimator, "predict") else estimator.transform(given)
    return {outputs[0]: values if values.ndim > 1 else values.reshape(-1, 1)}


def _steps(estimator: Any, path: str) -> Iterator[tuple[int, str]]:
    """Each estimator inside, by identity, with the names of the steps that lead to it; alone it is its class's name."""
    inner: list[tuple[str, Any]] = []
    for attribute in ("steps", "transformer_list", "transformers_", "estimators"):
        inner += [(part[0], part[1]) for part in getattr(estimator, attribute, ()) if isinstance(part, tuple)]
    yield id(estimator), path or type(estimator).__name__.lower()
    for name, part in inner:
        if hasattr(part, "get_params"):
            yield from _steps(part, f"{path}.{name}" if path else name)


def _name_by_steps(proto: onnx.ModelProto, topology: Any, steps: Mapping[int, str]) -> None:
    """Record with each node the step that it belongs to, and call weights by it.

    A node belongs to the step from whose outputs one comes to it going back, before the step's own inputs.
    """
    maker = {value: node for node in proto.graph.node for value in node.output}
    owner: dict[str, str] = {}
    for operator in (one for scope in topology.scopes for one in scope.operators.values()):
        step = steps.get(id(operator.raw_operator))
        if step is None:
            continue
        stop = {variable.onnx_name for variable in operator.inputs}
        todo = [variable.onnx_name for variable in operator.outputs]
        while todo:
            value = todo.pop()
            node = maker.get(value)
            if node is None or value in stop or node.output[0] in owner:
                continue
            owner[node.output[0]] = step
            todo += node.input
    held = {tensor.name for tensor in proto.graph.initializer}
    layers, new = _numbered(proto, owner, held)
    naming.record(proto, lambda node: layers.get(node.output[0], ""))
    naming.rename(proto, new)
    naming.sort_by_use(proto)


def _numbered(
    proto: onnx.ModelProto, owner: Mapping[str, str], held: set[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The layer of each node, and new names of weights; the layers of a network are counted by its coefficients."""
    layers: dict[str, str] = {}
    new: dict[str, str] = {}
    count: dict[str, int] = {}
    for node in proto.graph.node:
        step = owner.get(node.output[0], "")
        if not step:
            continue
        for value in node.input:
            if value.startswith("coefficient") and value in held:
                count[step] = count.get(step, -1) + 1
        layer = f"{step}.{count[step]}" if step in count else step
        layers[node.output[0]] = layer
        for value in node.input:
            if value in held and value not in new:
                new[value] = f"{layer}.{value.rstrip('0123456789').removesuffix('cst')}"
    return layers, new
