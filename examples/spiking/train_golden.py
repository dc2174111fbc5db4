# %% [markdown]
# # Train a spiking network without faults
# PyTorch trains it, onnxfi's builder writes it as ONNX, and ONNX Runtime answers. Needs torch.

# %%
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import onnxfi

ROOT = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "models" / "fashion_snn.onnx").exists())
sys.path.append(str(ROOT / "scripts"))
from spiking_graphs import Lif, unrolled  # noqa: E402
from train_spiking import fire  # noqa: E402

EPOCHS, STEPS = int(os.environ.get("EPOCHS", "10")), 6
torch.manual_seed(0)
with np.load(ROOT / "models" / "fashion_test.npz") as held:  # 2,000 images: 1,500 to learn from, 500 to ask
    image, label = torch.from_numpy(held["image"]), torch.from_numpy(held["labels"])

# %%
network = nn.ModuleList([nn.Linear(784, 64), nn.Linear(64, 10)])


def counts(x: torch.Tensor) -> torch.Tensor:
    """Spikes of the last layer, counted over time."""
    states, total = [0.0, 0.0], 0.0
    for _ in range(STEPS):
        value = x.flatten(1)
        for k, synapses in enumerate(network):
            states[k] = 0.9 * states[k] + synapses(value) - reset(states[k])
            value = fire(states[k] - 1.0)
        total = total + value
    return total


def reset(state: torch.Tensor | float) -> torch.Tensor | float:
    """Return what a neuron loses after a spike in the previous step."""
    return fire(state - 1.0).detach() if isinstance(state, torch.Tensor) else 0.0


optimizer = torch.optim.Adam(network.parameters(), 2e-3)
for epoch in range(EPOCHS):
    for batch in torch.randperm(1500).split(50):
        loss = F.cross_entropy(counts(image[batch]), label[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

# %% [markdown]
# The same weights as ONNX; both must count the same spikes.

# %%
shapes = [(64,), (10,)]
layers = [
    Lif(f"fc{k}", f"lif{k}", *(v.detach().numpy() for v in (synapses.weight, synapses.bias)), shape)
    for k, (synapses, shape) in enumerate(zip(network, shapes, strict=True), 1)
]
model = unrolled(layers, STEPS, (1, 28, 28))
session = onnxfi.OrtEngine(provider="cpu").prepare(model.SerializeToString())
served = session.run({"image": image[1500:].numpy()})["counts"]
with torch.no_grad():
    same = (torch.from_numpy(served) == counts(image[1500:])).all(1).float().mean().item()
right = (served.argmax(1) == label[1500:].numpy()).mean()
print(f"top-1 {right:.3f} of 500 images; spike counts as in torch for {same:.1%} of them")
