"""scikit-learn to ONNX: estimators and pipelines, names of steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import framework_models
import numpy as np
import pytest

from onnxfi.converters import convert
from onnxfi.errors import InputError
from onnxfi.graph.model.loading import load

pytestmark = [pytest.mark.frameworks("sklearn", "skl2onnx"), pytest.mark.filterwarnings("ignore")]
Layers = Callable[[Path], dict[str, str]]


@pytest.mark.parametrize(
    ("factory", "named"),
    [
        (
            "digits_mlp",
            {
                "pca.transform_matrix": "pca",
                "mlpclassifier.0.coefficient": "mlpclassifier.0",
                "mlpclassifier.1.intercepts": "mlpclassifier.1",
                "mlpclassifier.2.coefficient": "mlpclassifier.2",
            },
        ),
        ("digits_linear", {"classify.coef": "classify", "classify.intercept": "classify"}),
        ("digits_svc", {"LinearClassifier.coefficients": "linearsvc"}),
        ("digits_ridge", {"ridge.coef": "ridge", "ridge.intercept": "ridge"}),
        ("digits_forest", {"TreeEnsembleClassifier.nodes_values": "randomforestclassifier"}),
    ],
)
def test_layers_bear_the_names_of_the_steps(here: Path, layers: Layers, factory: str, named: dict[str, str]) -> None:
    done = convert(f"framework_models:{factory}", "out.onnx")
    found = {target.id: target.layer for target in load(done.out).targets}
    assert named.items() <= found.items(), found
    assert (done.framework, done.inputs[0].name, done.inputs[0].shape) == ("sklearn", "X", ("N", 64))
    assert done.relative < 1e-5


def test_all_real_samples_and_another_type(here: Path) -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    data = {"X": pixels, "labels": labels}
    done = convert(framework_models.digits_linear(), "out.onnx", input_shape="N,64:float64", data=data, samples=1797)
    assert done.inputs[0].dtype == "float64" and done.samples == 1797
    assert done.opset <= 18 and convert("framework_models:digits_linear", "o.onnx", opset=17).opset == 17
    data = {"X": pixels.astype(np.float32)}
    assert convert("framework_models:digits_forest", "out.onnx", data=data, samples=1797).relative < 1e-5


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("framework_models:not_fitted", "the LinearSVC is not fitted; call fit in the factory"),
        ("model.pkl", "is a pickle, which runs code when it is loaded"),
        ("framework_models:three", "a builtins.int is not a model"),
    ],
)
def test_what_cannot_be_used(here: Path, source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(source, "out.onnx")
    with pytest.raises(InputError, match="stores models as pickles"):
        convert("model.pkl", "out.onnx", framework="sklearn")
    with pytest.raises(InputError, match="skl2onnx cannot write opset 99"):
        convert("framework_models:digits_ridge", "out.onnx", opset=99)
    assert not list(here.iterdir())


def test_an_estimator_that_skl2onnx_does_not_know(here: Path) -> None:
    from sklearn.manifold import Isomap

    fitted = Isomap(n_components=2).fit(np.random.default_rng(0).random((40, 4)))
    with pytest.raises(InputError, match="skl2onnx has no converter for one of its parts"):
        convert(fitted, "out.onnx")
