"""PyTorch to ONNX: modules, factories, checkpoints; names; what the exporter refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import framework_models
import numpy as np
import pytest

from onnxfi.converters import convert
from onnxfi.errors import ConversionError, InputError
from onnxfi.graph.model.loading import load
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

pytestmark = [pytest.mark.frameworks("torch", "onnxscript", "safetensors"), pytest.mark.filterwarnings("ignore")]
Layers = Callable[[Path], dict[str, str]]
Run = Callable[..., tuple[int, str, str]]
IMAGE = "N,1,28,28"


@pytest.mark.parametrize(
    ("factory", "shape", "named"),
    [
        (
            "residual",
            IMAGE,
            {
                "stem.weight": "stem",
                "layer1.0.conv1.weight": "layer1.0.conv1",
                "layer1.0.conv2.bias": "layer1.0.conv2",
                "layer1.1.conv1.weight": "layer1.1.conv1",
                "fc.weight": "fc",
            },
        ),
        ("attention", "N,5,8", {"attn.in_proj_weight": "attn", "attn.out_proj.weight": "attn", "norm.weight": "norm"}),
    ],
)
@pytest.mark.parametrize("opset", [None, 26])
def test_layers_and_weights_bear_the_names_of_the_source(
    here: Path, layers: Layers, factory: str, shape: str, named: dict[str, str], opset: int | None
) -> None:
    done = convert(f"framework_models:{factory}", "out.onnx", input_shape=shape, opset=opset)
    assert named.items() <= layers(done.out).items()
    assert (done.opset, done.framework, done.relative < 1e-5) == (opset or 18, "torch", True)
    assert {target.layer for target in load(done.out).targets if target.role == "weight"} <= set(done.layers)


def test_the_batch_may_vary_and_the_module_stays_as_it_was(here: Path) -> None:
    module = framework_models.residual().train()
    module.layer1[0].eval()
    before = [part.training for part in module.modules()]
    done = convert(module, here / "out.onnx", input_shape=IMAGE)
    assert [part.training for part in module.modules()] == before and done.source == "Residual"
    assert done.inputs[0].shape == ("N", 1, 28, 28) and done.outputs[0].shape == ("N", 10)
    session = OrtEngine(provider="cpu").prepare(done.out)
    images = np.random.default_rng(0).random((7, 1, 28, 28), np.float32)
    together = session.run({"image": images})[done.outputs[0].name]
    alone = np.concatenate([session.run({"image": image[None]})[done.outputs[0].name] for image in images])
    assert np.allclose(together, alone, atol=1e-6)


def test_two_inputs_of_two_types_and_two_outputs(here: Path) -> None:
    shapes = ["N,7:int64", "N,1"]
    done = convert("framework_models:embedding", "out.onnx", input_shape=shapes)
    assert [(p.name, p.dtype) for p in done.inputs] == [("ids", "int64"), ("factor", "float32")]
    assert len(done.outputs) == 2 and done.relative < 1e-5
    data = {"ids": np.arange(21).reshape(3, 7) % 20, "factor": np.ones((3, 1), np.float32)}
    converted = convert("framework_models:embedding", "out.onnx", data=data)
    assert converted.inputs == done.inputs and converted.data == "3 unlabelled samples of the arrays given"


@pytest.mark.parametrize("kind", ["pt", "safetensors", "parallel"])
def test_a_checkpoint_with_its_factory(here: Path, kind: str) -> None:
    import torch
    from safetensors.torch import save_file

    module = framework_models.residual()
    with torch.no_grad():
        module.fc.bias += 1
    weights = module.state_dict()
    file = "w.safetensors" if kind == "safetensors" else "w.pt"
    if kind == "safetensors":
        save_file(weights, file)
    else:
        inside = {f"module.{name}": value for name, value in weights.items()}
        torch.save({"epoch": 3, "state_dict": inside} if kind == "parallel" else weights, file)
    done = convert(file, "out.onnx", factory="framework_models:residual", input_shape=IMAGE)
    image = np.random.default_rng(1).random((2, 1, 28, 28), np.float32)
    (answer,) = OrtEngine(provider="cpu").prepare(done.out).run({"image": image}).values()
    with torch.no_grad():
        assert np.allclose(answer, module.eval()(torch.from_numpy(image)).numpy(), atol=1e-5)


def test_checkpoints_that_are_refused(here: Path, run: Run) -> None:
    import torch

    torch.save(torch.nn.Linear(2, 3), "whole.pt")
    torch.save({"fc.weight": torch.zeros(2, 2), "other": torch.zeros(1)}, "misfit.pt")
    torch.save([1, 2], "list.pt")
    Path("junk.pt").write_bytes(b"junk" * 20)
    Path("junk.safetensors").write_bytes(b"junk" * 20)
    words = ["--input-shape", IMAGE, "-o", "out.onnx"]
    for file, message in (
        ("whole.pt", "holds code beside weights, and is not loaded"),
        ("junk.pt", "'junk.pt' is damaged or holds code"),
        ("junk.safetensors", "'junk.safetensors' is damaged"),
        ("list.pt", "is not a dict of tensors; save model.state_dict()"),
        (
            "misfit.pt",
            "missing in the file (as 'stem.weight'); 1 unknown to the module (as 'other'); 1 of another shape",
        ),
        ("none.pt", "no file 'none.pt'"),
    ):
        code, out, err = run("convert", file, "--factory", "framework_models:residual", *words)
        assert (code, out) == (2, "") and message in err, err
    code, _, err = run("convert", "whole.pt", *words)
    assert code == 2 and "holds code beside weights, and is not loaded" in err
    code, _, err = run("convert", "misfit.pt", *words)
    assert code == 2 and "give --factory module:function, which returns the module" in err
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize(
    ("factory", "shape", "message"),
    [
        ("branching", "N,3", "depends on values: use torch.where or torch.cond instead of if"),
        ("one_size", "N,3", "the module fixes dimension N of 'x' to 2, so that it cannot vary; write it as a number"),
        ("svd", "3,4,4", "ONNX has no counterpart of that operator"),
        ("residual", "N,3", "check --input-shape first"),
        ("drifting", "N,3", "differs from torch's by"),
    ],
)
def test_what_cannot_be_exported_says_what_to_try(here: Path, factory: str, shape: str, message: str) -> None:
    with pytest.raises(ConversionError) as caught:
        convert(f"framework_models:{factory}", "out.onnx", input_shape=shape)
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not list(here.glob("*.onnx"))


def test_a_fixed_batch_size(here: Path) -> None:
    done = convert("framework_models:one_size", "out.onnx", input_shape="2,3")
    assert done.inputs[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "torch needs a sample input for image: give --input-shape"),
        ({"input_shape": "N,1,28,x-"}, "invalid dimension 'x-'"),
        ({"input_shape": "N,1,28,28:float"}, "unknown type 'float'"),
        ({"input_shape": [IMAGE, IMAGE]}, "2 input shapes, but the model takes 1: image"),
        ({"input_shape": IMAGE, "opset": 99}, "there is no opset 99"),
        ({"input_shape": IMAGE, "opset": 6}, "this model cannot be written in opset 6"),
        ({"input_shape": IMAGE, "samples": 0}, "samples must be 1 or more, got 0"),
    ],
)
def test_bad_requests(here: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        convert("framework_models:residual", "out.onnx", **options)
    assert not list(here.iterdir())


def test_a_factory_of_something_else(here: Path) -> None:
    with pytest.raises(InputError, match=r"'framework_models:three' returned a int, not a torch\.nn\.Module"):
        convert("framework_models:three", "out.onnx", framework="torch", input_shape=IMAGE)
    with pytest.raises(InputError, match="--factory is for checkpoints"):
        convert(
            "framework_models:residual",
            "out.onnx",
            framework="torch",
            factory="framework_models:residual",
            input_shape=IMAGE,
        )


@pytest.mark.frameworks("snntorch")
def test_a_spiking_network_keeps_its_neurons_and_gives_the_same_spikes(here: Path, layers: Layers) -> None:
    import snntorch
    import torch
    from torch import nn

    from onnxfi.graph.spiking.detect_neurons import find_spiking_layers

    class Spiking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(6, 5), snntorch.Leaky(beta=0.9)

        def forward(self, x: Any) -> Any:
            state, spikes = self.lif1.init_leaky(), []
            for _ in range(4):
                spike, state = self.lif1(self.fc1(x), state)
                spikes.append(spike)
            return torch.stack(spikes).sum(0)

    done = convert(Spiking(), here / "out.onnx", input_shape="N,6")
    assert done.largest == 0.0 and done.inputs[0].shape == ("N", 6)
    assert [(layer.name, layer.trips) for layer in find_spiking_layers(load(done.out)).layers] == [("lif1", 4)]
    assert {"fc1.weight": "fc1", "lif1.threshold": "lif1"}.items() <= layers(done.out).items()
