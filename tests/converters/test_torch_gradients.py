"""Gradients of PyTorch as candidates of an attack, verified by real flips of the exported file."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest

import onnxfi
from onnxfi.errors import InputError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: bash scripts/test.sh frameworks")
pytestmark = [pytest.mark.frameworks("torch"), pytest.mark.filterwarnings("ignore")]

from onnxfi.converters import torch_gradients  # noqa: E402
from onnxfi.converters.torch import convert  # noqa: E402
from onnxfi.converters.torch_gradients import weight_gradients  # noqa: E402


def test_examples_run() -> None:
    assert doctest.testmod(torch_gradients).failed == 0


def test_gradients_are_those_of_finite_differences_and_find_flips_that_harm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    x = torch.randn(120, 8)
    labels = (x[:, :3].argmax(dim=1)).to(torch.int64)
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), labels).backward()
        optimizer.step()
    found = weight_gradients(module, [(x[:50], labels[:50]), (x[50:], labels[50:])])
    with torch.no_grad():

        def loss() -> float:
            return float(torch.nn.functional.cross_entropy(module.double()(x.double()), labels))

        before = loss()
        module[0].weight[3, 2] += 1e-5
        assert (loss() - before) / 1e-5 == pytest.approx(float(found["0.weight"][3, 2]), rel=1e-2, abs=1e-5)
        module[0].weight[3, 2] -= 1e-5
        module.float()
    convert(module, tmp_path / "m.onnx", input_shape="N,8")
    names = {target.id for target in onnxfi.load(tmp_path / "m.onnx").targets}
    gradients = {name: values for name, values in found.items() if name in names}
    result = onnxfi.attack(
        tmp_path / "m.onnx", (x.numpy(), labels.numpy()), method="gradient", gradients=gradients, flips=2,
        attack_samples=60, random_trials=0,
    )  # fmt: skip
    (search,) = result.searches
    assert search.flips and search.harm[-1].accuracy < search.golden


def test_nothing_to_differentiate_is_said() -> None:
    with pytest.raises(InputError, match="give at least one batch"):
        weight_gradients(torch.nn.Linear(2, 2), [])
    assert np.isfinite(weight_gradients(torch.nn.Linear(2, 2), [(torch.ones(1, 2), torch.tensor([0]))])["weight"]).all()
