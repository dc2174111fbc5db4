"""Train models/fashion_snn.onnx, a small spiking network, and its Scan form on Fashion-MNIST.

    bash scripts/get_data.sh
    pip install torch onnx onnxruntime
    python scripts/train_spiking.py

Leaky integrate-and-fire neurons, trained by backpropagation through time with the derivative of an arctangent in
place of the spike's. An image is the current of every step; the class with the most spikes wins.
scripts/spiking_graphs.py builds both files from the same weights; the script ends with an error where their counts
differ.
"""

import argparse
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import torch
from checksums import write_checksums
from spiking_graphs import Lif, scanned, unrolled
from torch import Tensor, nn
from train_models import MODELS, SHIPPED, load
from train_models import train as fit

SEED, EPOCHS, RATE = 20, 4, 4e-3
STEPS, LEAK, THRESHOLD = 8, 0.9, 1.0


class Spike(torch.autograd.Function):
    """1 where the membrane potential is above the threshold; backwards 1 / (1 + (pi x)^2)."""

    @staticmethod
    def forward(ctx, above: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(above)
        return (above > 0).float()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (above,) = ctx.saved_tensors
        return grad / (1 + (torch.pi * above) ** 2)


fire: Callable[[Tensor], Tensor] = Spike.apply


class FashionSnn(nn.Module):
    """Two convolutions and a linear layer, each in front of spiking neurons: 9,098 weights and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.fc = nn.Linear(16 * 7 * 7, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the spike counts of the last neurons: [N, 10]."""
        first = self.conv1(image)
        states: list[Tensor | None] = [None] * 3
        count = torch.zeros(())
        for _ in range(STEPS):
            spike = self.neurons(states, 0, first)
            spike = self.neurons(states, 1, self.conv2(spike))
            count = count + self.neurons(states, 2, self.fc(spike.flatten(1)))
        return count

    @staticmethod
    def neurons(states: list[Tensor | None], k: int, current: Tensor) -> Tensor:
        before = states[k]
        if before is None:
            before = torch.zeros_like(current)
        reset = fire(before - THRESHOLD).detach()
        now = LEAK * before + current - reset * THRESHOLD
        states[k] = now
        return fire(now - THRESHOLD)


def layers(net: FashionSnn) -> list[Lif]:
    """The trained network as the builder takes it."""
    shapes = {"conv1": (8, 14, 14), "conv2": (16, 7, 7), "fc": (10,)}
    out = []
    for k, (name, shape) in enumerate(shapes.items(), 1):
        module = getattr(net, name)
        weight, bias = (value.detach().numpy() for value in (module.weight, module.bias))
        stride = 2 if name != "fc" else 1
        out.append(Lif(name, f"lif{k}", weight, bias, shape, stride, 1 if stride == 2 else 0, LEAK, THRESHOLD))
    return out


def train() -> FashionSnn:
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    net = FashionSnn()
    fit(net, *load("train"), EPOCHS, RATE)
    return net.eval()


def counts(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": part})[0] for part in np.split(image, len(image) // 100)])


def main() -> None:
    net = train()
    forms = {"fashion_snn": unrolled, "fashion_snn_scan": scanned}
    image, label = (part.numpy() for part in load("t10k"))
    with torch.no_grad():
        truth = torch.cat([net(part) for part in torch.from_numpy(image).split(500)]).numpy()
    found = {}
    for name, build in forms.items():
        model = build(layers(net), STEPS, (1, 28, 28))
        onnx.save(model, MODELS / f"{name}.onnx")
        found[name] = counts(model, image)
        right = found[name].argmax(1) == label
        data = (MODELS / f"{name}.onnx").read_bytes()
        same = (found[name] == truth).all(1).mean()
        print(f"{name}: top-1 {right.mean():.4f}, first {SHIPPED:,}: {right[:SHIPPED].mean():.4f}; {len(data):,} bytes")
        print(f"{name}: spike counts as in torch for {same:.4%} of the images")
    if not np.array_equal(*found.values()):
        raise SystemExit("the two forms give different spike counts")
    write_checksums()


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    main()
