"""Quantisation-aware training in PyTorch: integers in the exported file, gradients, shared parameters, bad input."""

from __future__ import annotations

import copy
import doctest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxfi import Selector, load
from onnxfi.errors import InputError
from onnxfi.graph.passes.fold_quantize import fold_weight_quantize

torch = pytest.importorskip("torch", reason="PyTorch is not installed: bash scripts/test.sh frameworks")
pytestmark = [pytest.mark.frameworks("torch"), pytest.mark.filterwarnings("ignore")]

from onnxfi.converters import torch_qat  # noqa: E402
from onnxfi.converters.torch import FaultAwareTraining, QuantisationAwareTraining, convert  # noqa: E402

nn = torch.nn


class Net(nn.Module):
    """A strided and a grouped convolution, a normalisation, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.fc = nn.Linear(8 * 16, 96)

    def forward(self, image: Any) -> Any:
        return self.fc(self.conv2(self.norm(self.conv1(image)).relu()).relu().flatten(1))


def trained(seed: int = 0) -> tuple[Any, Any, Any]:
    torch.manual_seed(seed)
    model = Net()
    training, images = QuantisationAwareTraining(model), torch.rand(64, 1, 8, 8)
    labels = (images.mean((1, 2, 3)) > 0.5).long()
    optimizer = torch.optim.Adam(training.parameters(), 1e-2)
    for _ in range(20):
        loss = nn.functional.cross_entropy(training(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, training.eval(), images


def test_the_exported_file_stores_the_integers_that_were_trained(tmp_path: Path) -> None:
    model, training, images = trained()
    data = {"image": images[:16].numpy()}
    convert(training.model, tmp_path / "qdq.onnx", input_shape="N,1,8,8", data=data, samples=16, tolerance=0.05)
    stored = onnx.load_from_string(fold_weight_quantize(load(tmp_path / "qdq.onnx")))
    integers = {
        t.name: numpy_helper.to_array(t) for t in stored.graph.initializer if t.data_type == onnx.TensorProto.INT8
    }
    weights = [array for array in integers.values() if array.ndim > 1]
    assert [array.shape for array in weights] == [(8, 1, 3, 3), (8, 2, 3, 3), (96, 128)]
    for layer, array in zip((model.conv1, model.conv2, model.fc), weights, strict=True):
        weight = layer.weight.detach().numpy()
        scale = np.abs(weight.reshape(len(weight), -1)).max(1) / 127
        expected = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
        assert np.abs(array - expected).max() <= 0.5 + 1e-4
        assert np.abs(array).max() == 127


def test_the_wrapper_is_written_with_its_integers(tmp_path: Path) -> None:
    _, training, images = trained()
    data = {"image": images[:16].numpy()}
    given = {"input_shape": "N,1,8,8", "data": data, "samples": 16, "tolerance": 0.05}
    convert(training, tmp_path / "int8.onnx", **given)
    convert(training.model, tmp_path / "qdq.onnx", **given)
    whole, folded = onnx.load(tmp_path / "int8.onnx"), fold_weight_quantize(load(tmp_path / "qdq.onnx"))
    stored, wanted = (
        [numpy_helper.to_array(t) for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.dims]
        for proto in (whole, onnx.load_from_string(folded))
    )
    assert [a.shape for a in stored if a.ndim > 1] == [(8, 1, 3, 3), (8, 2, 3, 3), (96, 128)]
    assert sorted(a.tobytes() for a in stored) == sorted(a.tobytes() for a in wanted)


def test_the_model_is_trained_and_otherwise_unchanged() -> None:
    model, training, images = trained()
    assert type(model.conv1) is nn.Conv2d and type(training.model.conv1) is not nn.Conv2d
    assert {id(p) for p in model.parameters()} == {id(p) for p in training.parameters()}
    assert model.norm.running_mean.data_ptr() == training.model.norm.running_mean.data_ptr()
    plain, rounded = model.eval()(images), training(images)
    assert 0 < (plain - rounded).abs().max() < 0.2 * plain.abs().max()
    assert torch.equal(training(images), rounded), "ranges follow in training alone"


def test_gradients_pass_straight_through_the_rounding() -> None:
    layer = nn.Linear(3, 2)
    training = QuantisationAwareTraining(layer)
    x = torch.tensor([[0.1, 0.2, 0.7]])
    training(x).sum().backward()
    seen = training.model.fake_input(x).detach()
    torch.testing.assert_close(layer.weight.grad, seen.expand(2, 3))
    assert training.layers == ("",) and layer.bias.grad.tolist() == [1, 1]


def test_its_state_is_saved_and_a_copy_goes_on_from_there() -> None:
    _, training, images = trained()
    other = QuantisationAwareTraining(Net()).eval()
    with pytest.raises(InputError, match="ranges of activations are not known yet"):
        other(images)
    other.load_state_dict(copy.deepcopy(training.state_dict()))
    assert torch.equal(other(images), training(images))


def test_faults_can_be_injected_while_it_trains() -> None:
    _, training, images = trained()
    faulty = FaultAwareTraining(training, ber=0.01, selector=Selector(bits="mantissa"), seed=1)
    golden = training.train()(images)
    assert not torch.equal(faulty.train()(images), golden) and faulty.step == 1


def test_layers_are_selected_and_others_refused() -> None:
    assert QuantisationAwareTraining(Net(), selector=Selector(include=("conv",))).layers == ("conv1", "conv2")
    cases: list[tuple[Any, Selector | None, str]] = [
        (nn.ReLU(), None, "no selected layer of Linear, Conv1d"),
        (Net(), Selector(include=("=nothing",)), "no selected layer"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), None, "pads by 'circular'"),
        (Net().half(), None, "needs float32"),
        ("model", None, "must be a torch.nn.Module"),
    ]
    for model, selector, message in cases:
        with pytest.raises(InputError, match=message):
            QuantisationAwareTraining(model, selector=selector)


def test_the_example_of_the_docstring() -> None:
    assert doctest.testmod(torch_qat) == (0, 6)
