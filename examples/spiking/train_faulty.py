# %% [markdown]
# # Train a spiking network around its faults
# Neurons that are dead before the training begins: does a network that learns with them answer better than one that
# meets them afterwards? Needs torch.

# %%
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import onnxfi
from onnxfi.campaign.report.figures import learning_curves, write_drawn

ROOT = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "models" / "fashion_snn.onnx").exists())
sys.path.append(str(ROOT / "scripts"))
from spiking_graphs import Lif, unrolled  # noqa: E402
from train_spiking import fire  # noqa: E402

EPOCHS, STEPS, HIDDEN, DEAD = int(os.environ.get("EPOCHS", "10")), 6, 64, 32
OUT = Path(os.environ.get("OUT", "out"))
with np.load(ROOT / "models" / "fashion_test.npz") as held:
    image, label = torch.from_numpy(held["image"]), torch.from_numpy(held["labels"])


# %%
def counts(network: nn.ModuleList, x: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    """Spikes of the last layer; the hidden neurons that are not alive put out nothing."""
    before: list[torch.Tensor] = [torch.zeros(len(x), HIDDEN), torch.zeros(len(x), 10)]
    total = torch.zeros(len(x), 10)
    for _ in range(STEPS):
        value = x.flatten(1)
        for k, synapses in enumerate(network):
            before[k] = 0.9 * before[k] + synapses(value) - fire(before[k] - 1.0).detach()
            value = fire(before[k] - 1.0) * (alive if k == 0 else 1.0)
        total = total + value
    return total


def right(network: nn.ModuleList, alive: torch.Tensor) -> float:
    """Top-1 of the 500 images that nobody learns from, with these neurons alive."""
    with torch.no_grad():
        return float((counts(network, image[1500:], alive).argmax(1) == label[1500:]).float().mean())


def untrained() -> nn.ModuleList:
    """A network as every training begins."""
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(784, HIDDEN), nn.Linear(HIDDEN, 10)])


def train(alive: torch.Tensor, measured: dict[str, torch.Tensor]) -> nn.ModuleList:
    """A network trained with these neurons alive; its learning curves with the neurons alive that `measured` says."""
    network = untrained()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(1500).split(50):
            loss = F.cross_entropy(counts(network, image[batch], alive), label[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for name, some in measured.items():
            curves.setdefault(name, []).append(right(network, some))
    return network


def exposed(network: nn.ModuleList) -> bytes:
    """The network as ONNX, with its neurons exposed."""
    layers = [
        Lif(f"fc{k}", f"lif{k}", *(v.detach().numpy() for v in (synapses.weight, synapses.bias)), shape)
        for k, (synapses, shape) in enumerate(zip(network, ((HIDDEN,), (10,)), strict=True), 1)
    ]
    return onnxfi.expose_neurons(onnxfi.load(unrolled(layers, STEPS, (1, 28, 28)))).data


# %% [markdown]
# onnxfi draws which neurons are dead; the same faults are injected into both networks.

# %%
chosen = onnxfi.Selector(include=("=lif1/spike",))
drawn = onnxfi.sample(onnxfi.load(exposed(untrained())), count=DEAD, fault="dead", selector=chosen, seed=1)
every, alive = torch.ones(HIDDEN), torch.ones(HIDDEN)
alive[[fault.index for fault in drawn.faults]] = 0.0
curves: dict[str, list[float]] = {}
golden = exposed(train(every, {"trained without faults": every, f"the same, {DEAD} neurons dead": alive}))
adapted = exposed(train(alive, {f"trained with {DEAD} neurons dead": alive}))


# %%
def accuracy(model: bytes, faulty: bool) -> float:
    """Top-1 of the 500 images that nobody learned from."""
    if faulty:
        opened = onnxfi.load(model)
        model = onnxfi.inject(opened, onnxfi.sample(opened, count=DEAD, fault="dead", selector=chosen, seed=1)).data
    session = onnxfi.OrtEngine(provider="cpu").prepare(model)
    served = session.run({"image": image[1500:].numpy()})["counts"]
    return float((served.argmax(1) == label[1500:].numpy()).mean())


print(f"trained without faults: top-1 {accuracy(golden, False):.3f}")
print(f"the same with {DEAD} of {HIDDEN} hidden neurons dead: {accuracy(golden, True):.3f}")
print(f"trained with them dead: {accuracy(adapted, True):.3f}")

# %% [markdown]
# The learning curves, as a figure in the folder `out`.

# %%
figure = learning_curves("learning-curves", "Top-1 while a spiking network learns with and without faults", curves)
for path in write_drawn([figure], OUT):
    print(f"wrote {path.name}")
