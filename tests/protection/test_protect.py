"""The verb: what is written, what is proven of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pass_contract import external

from onnxfi import evaluate, load, open_data, protect
from onnxfi.errors import InputError, ModelError
from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import Model
from onnxfi.protection.calibration import sample_marks
from onnxfi.protection.protect import RECORD_KEY, read_record
from onnxfi.protection.protections import parse_protection, protections
from onnxfi.runtime.data.open_data import Data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

ROOT = Path(__file__).parents[2]
CNN, TEST = ROOT / "models/fashion_cnn.onnx", ROOT / "models/fashion_test.npz"
ENGINE = OrtEngine(provider="cpu")


def data_for(model: Model, samples: int = 80) -> Data:
    return open_data(TEST, ENGINE.prepare(model.path or b"").inputs, limit=samples)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion_cnn", "fashion_gru"])
@pytest.mark.parametrize("what", ["range:clip", "range:zero", "range:average:per=channel", "nan-filter"])
def test_fault_free_outputs_stay_byte_for_byte(name: str, what: str, tmp_path: Path) -> None:
    model = load(ROOT / f"models/{name}.onnx")
    done = protect(model, [what], tmp_path / "p.onnx", data=data_for(model))
    onnx.checker.check_model(onnx.load(done.out))
    assert done.fault_free.samples == 80 and done.fault_free.changed == 0 and done.tensors[what]
    assert done.nodes_after > done.nodes_before and done.digest == load(done.out).digest


def test_protections_go_together_and_accuracy_stays(tmp_path: Path) -> None:
    model = load(CNN)
    data = data_for(model, 400)
    done = protect(model, ["range:clip:percentile=99.9", "nan-filter"], tmp_path / "p.onnx", data=data)
    before, after = evaluate(CNN, data), evaluate(done.out, data)
    assert abs(before.metrics["top1"] - after.metrics["top1"]) <= 0.01
    assert done.fault_free.changed > 0 and not done.fault_free.rounding, "a percentile cuts calibration data off"


def test_every_protection_goes_with_every_other_in_any_order(tmp_path: Path) -> None:
    """Detectors see the layers and weights as they are, whatever is named first."""
    model = load(CNN)
    every = ["clip-weights", "range:clip", "nan-filter", "checksum", "duplicate"]
    done = protect(model, every, tmp_path / "p.onnx", data=data_for(model))
    assert done.fault_free.changed == 0 and [*done.tensors] == every and all(done.tensors.values())
    again = protect(model, every[::-1], tmp_path / "q.onnx", data=data_for(model))
    assert again.fault_free.changed == 0 and again.tensors == done.tensors


def test_external_data_stays_beside_the_file(tmp_path: Path) -> None:
    model = external(tmp_path, onnx.load(CNN))
    (tmp_path / "out").mkdir()
    done = protect(model, ["range:clip"], tmp_path / "out/p.onnx", data=data_for(model))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["p.onnx", "p.onnx.data"]
    assert done.fault_free.changed == 0


def test_the_file_says_what_protects_it_and_on_what_it_was_calibrated(tmp_path: Path) -> None:
    model = load(CNN)
    data = data_for(model)
    done = protect(model, ["range:clip:per=channel,extend=no"], tmp_path / "p.onnx", data=data)
    record = read_record(load(done.out).proto)
    assert record is not None
    assert record["protections"] == ["range:clip:per=channel,extend=no"] and record["origin"] == model.digest
    assert record["calibration"]["digest"] == data.digest
    assert set(record["calibration"]["marks"]) <= set(sample_marks(data))
    assert done.tensors == {"range:clip:per=channel,extend=no": ("relu", "relu_1", "relu_2")}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 2}', '{"version": 1, "protections": [3], "calibration": null}']
)
def test_a_damaged_record_is_refused(text: str) -> None:
    proto = onnx.load(CNN)
    proto.metadata_props.add(key=RECORD_KEY, value=text)
    with pytest.raises(ModelError, match=r"'onnxfi\.protection' is damaged or of a newer version"):
        read_record(proto)


@pytest.mark.parametrize(
    ("protections_", "options", "message"),
    [
        (
            ["range:clip"],
            {"data": None},
            "range:clip takes the range of activations from calibration data; give --data",
        ),
        ([], {}, "no protection is given"),
        (["range:clip", "range:zero"], {}, "range:clip and range:zero protect the same"),
        (["range:clop"], {}, "unknown protection 'range:clop'; closest: 'range:clip'"),
        (["range:clip:share=9"], {}, "takes percentile, per, extend as key=value; given 'share=9'"),
        (["range:clip:percentile=high"], {}, "percentile='high' is not a number"),
        (["range:clip:extend=maybe"], {}, "extend='maybe' is neither yes nor no"),
        (["range:clip:per=tensor,per=tensor"], {}, "per is given twice"),
        (["nan-filter"], {"selector": Selector(include=("=nowhere",))}, "'=nowhere' matches no activation"),
        (["range:clip"], {"opset": 11}, "--opset 11 is below the model's own 18"),
    ],
)
def test_bad_requests_write_nothing(protections_: Any, options: Any, message: str, tmp_path: Path) -> None:
    model = load(CNN)
    with pytest.raises(InputError, match=message):
        protect(model, protections_, tmp_path / "p.onnx", **{"data": data_for(model, 8), **options})
    assert not list(tmp_path.iterdir())


def test_synthetic_calibration_is_refused(tmp_path: Path) -> None:
    model = load(CNN)
    made_up = open_data(None, ENGINE.prepare(CNN).inputs)
    with pytest.raises(InputError, match="synthetic inputs say nothing about the range"):
        protect(model, ["range:clip"], tmp_path / "p.onnx", data=made_up)


def test_a_protected_model_is_not_protected_again(tmp_path: Path) -> None:
    model = load(CNN)
    done = protect(model, ["range:clip"], tmp_path / "p.onnx", data=data_for(model, 8))
    with pytest.raises(InputError, match="is protected already, by range:clip; protect the original model"):
        protect(load(done.out), ["nan-filter"], tmp_path / "q.onnx", data=data_for(model, 8))


def test_quantised_networks_gain_nothing(tmp_path: Path) -> None:
    model = load(ROOT / "models/fashion_cnn_int8_qdq.onnx")
    with pytest.raises(InputError, match="no gain expected behind 4 activations"):
        protect(model, ["range:clip"], tmp_path / "p.onnx", data=data_for(model, 8))


@pytest.mark.parametrize("name", protections())
def test_every_protection_is_its_text_form(name: str) -> None:
    one = parse_protection(name)
    assert parse_protection(str(one)) == one and one.__doc__


def test_an_old_model_is_raised_where_that_is_asked_for(tmp_path: Path) -> None:
    made = onnx.parser.parse_model(
        '<ir_version: 4, opset_import: ["": 10]> g (float[N,4] x) => (float[N,4] y) { t = Relu(x)  y = Neg(t) }'
    )
    data = open_data({"x": np.ones((3, 4), np.float32)}, ENGINE.prepare(made.SerializeToString()).inputs)
    with pytest.raises(InputError, match="needs opset 11, the model has 10; raise it with --opset 13"):
        protect(load(made), ["range:clip"], tmp_path / "p.onnx", data=data)
    done = protect(load(made), ["range:clip"], tmp_path / "p.onnx", data=data, opset=13)
    assert done.fault_free.changed == 0 and done.notes == ("opset raised from 10 to 13",)
