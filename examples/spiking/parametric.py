# %% [markdown]
# # Parametric faults, as heat maps
# The threshold or the leak of single neurons drifts by a factor. Which layer bears how much?

# %%
import os
from pathlib import Path

import numpy as np

import onnxfi

ROOT = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "models" / "fashion_snn.onnx").exists())
SAMPLES = int(os.environ.get("SAMPLES", "300"))
FACTORS = (0.1, 0.3, 0.5, 0.8, 1.2, 2.0, 5.0)
data = ROOT / "models" / "fashion_test.npz"
made = onnxfi.expose_neurons(onnxfi.load(ROOT / "models" / "fashion_snn.onnx"))
exposed = onnxfi.load(made.data)
engine = onnxfi.OrtEngine(provider="cpu")
fed = onnxfi.open_data(data, engine.prepare(made.data).inputs, limit=SAMPLES)
golden = onnxfi.evaluate(made.data, fed, engine=engine)
print(f"golden top-1 {golden.metrics['top1']:.3f}")

# %% [markdown]
# In every layer one neuron in ten drifts, of both parameters. A row is a layer, a column a factor; darker is worse.

# %%
SHADES = " .:-=+*#%@"


def accuracy(layer: str, role: str, factor: float) -> float:
    """Top-1 with a tenth of a layer's neurons off by a factor."""
    chosen = onnxfi.Selector(include=(f"{layer}/",), role=(role,))
    many = max(1, chosen.space(exposed.targets, onnxfi.parse_fault("zero")).size // 10)
    drawn = onnxfi.sample(exposed, count=many, fault=f"scale:factor={factor}", selector=chosen)
    faulty = onnxfi.inject(exposed, drawn).data
    return onnxfi.evaluate(faulty, fed, engine=engine).metrics["top1"]


for role in ("threshold", "leak"):
    layers = [layer.name for layer in made.spiking.layers]
    grid = np.array([[accuracy(layer, role, factor) for factor in FACTORS] for layer in layers])
    print(f"{role}: top-1 with a tenth of a layer's neurons at a factor")
    print("       " + "".join(f"{factor:>8g}" for factor in FACTORS))
    for layer, row in zip(layers, grid, strict=True):
        lost = np.clip((golden.metrics["top1"] - row) / golden.metrics["top1"], 0, 0.999)
        print(f"{layer:<7}" + "".join(f"{v:>6.3f} {SHADES[int(10 * x)]}" for v, x in zip(row, lost, strict=True)))
