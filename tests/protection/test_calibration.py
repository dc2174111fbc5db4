"""Ranges on calibration data, against numpy on the same activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import parser

from onnxfi.errors import DataError, InputError
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.protection.placement import find_places
from onnxfi.protection.calibration import MARGIN, calibrate, calibration_record, sample_marks
from onnxfi.runtime.data.open_data import Data, open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

ENGINE = OrtEngine(provider="cpu")
X = np.random.default_rng(5).normal(size=(70, 3, 4, 4)).astype(np.float32)


def tanh() -> Model:
    return load(
        parser.parse_model(
            '<ir_version: 8, opset_import: ["": 18]> g (float[N,3,4,4] x) => (float[N,3,4,4] y) { t = Tanh(x)  y = Neg(t) }'
        )
    )


def data_of(model: Model, x: Any) -> Data:
    return open_data({"x": x}, ENGINE.prepare(model.source.data or b"").inputs)


def bounds(x: Any, **options: Any) -> Any:
    model = tanh()
    (found,) = calibrate(model, find_places(model), data_of(model, x), ENGINE, batch=16, **options)
    return found.bounds


def test_the_range_is_that_of_all_batches_with_a_margin() -> None:
    t = np.tanh(X.astype(np.float64))
    found = bounds(X)
    assert found.low[0] == pytest.approx(t.min() * (1 + MARGIN)) and found.high[0] == pytest.approx(
        t.max() * (1 + MARGIN)
    )
    assert found.middle[0] == pytest.approx(t.mean(), rel=1e-4)


def test_channels_have_ranges_of_their_own() -> None:
    x = X * np.array([1, 0.1, 0.01], np.float32).reshape(1, 3, 1, 1)
    t = np.tanh(x.astype(np.float64))
    found = bounds(x, per="channel")
    assert found.axis == 1 and np.allclose(found.high, t.max(axis=(0, 2, 3)) * (1 + MARGIN))
    assert np.allclose(found.low, t.min(axis=(0, 2, 3)) * (1 + MARGIN))


@pytest.mark.parametrize("percentile", [99.9, 95.0, 75.0])
def test_percentiles_are_those_of_numpy_to_a_bin(percentile: float) -> None:
    t = np.tanh(X.astype(np.float64))
    found = bounds(X, percentile=percentile)
    step = (t.max() - t.min()) / 4096
    assert abs(found.high[0] - np.percentile(t, percentile)) <= 3 * step
    assert abs(found.low[0] - np.percentile(t, 100 - percentile)) <= 3 * step


def test_what_is_not_finite_has_no_range() -> None:
    x = X.copy()
    x[40, 1, 2, 3] = np.nan
    with pytest.raises(DataError, match=r"the activation 't' is not finite on the calibration data.*--exclude =t"):
        bounds(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"percentile": 100.5}, "percentile must be above 50 and at most 100, got 100.5"),
        ({"percentile": float("nan")}, "percentile must be above 50"),
        ({"per": "row"}, "per must be tensor or channel, got 'row'"),
    ],
)
def test_parameters_out_of_range_are_refused(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bounds(X, **options)


def test_samples_are_known_again_whatever_surrounds_them() -> None:
    model = tanh()
    record = calibration_record(data_of(model, X))
    assert record["samples"] == 70 and len(set(record["marks"])) == 32
    again = sample_marks(data_of(model, X[::-1].copy()))
    assert len(again) == 70 and set(record["marks"]) <= set(again)
    assert not set(record["marks"]) & set(sample_marks(data_of(model, X + 1)))
