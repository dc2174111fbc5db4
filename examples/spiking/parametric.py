# %% [markdown]
# # Parametric faults, as heat maps
# The threshold or the leak of single neurons drifts by a factor. Which layer bears how much?

# %%
import os
from pathlib import Path

import onnxfi
from onnxfi.campaign.report.figures import heat_map

ROOT = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "models" / "fashion_snn.onnx").exists())
SAMPLES, OUT = int(os.environ.get("SAMPLES", "300")), Path(os.environ.get("OUT", "out"))
FACTORS = (0.1, 0.3, 0.5, 0.8, 1.2, 2.0, 5.0)
data = ROOT / "models" / "fashion_test.npz"
made = onnxfi.expose_neurons(onnxfi.load(ROOT / "models" / "fashion_snn.onnx"))
exposed = onnxfi.load(made.data)
engine = onnxfi.OrtEngine(provider="cpu")
fed = onnxfi.open_data(data, engine.prepare(made.data).inputs, limit=SAMPLES)
golden = onnxfi.evaluate(made.data, fed, engine=engine)
print(f"golden top-1 {golden.metrics['top1']:.3f}")

# %% [markdown]
# In every layer one neuron in ten drifts, of both parameters. A map for each: a row is a layer, a column a factor. They
# are drawn into the folder `out`, as SVG and PNG.


# %%
def accuracy(layer: str, role: str, factor: float) -> float:
    """Top-1 with a tenth of a layer's neurons off by a factor."""
    chosen = onnxfi.Selector(include=(f"{layer}/",), role=(role,))
    many = max(1, chosen.space(exposed.targets, onnxfi.parse_fault("zero")).size // 10)
    drawn = onnxfi.sample(exposed, count=many, fault=f"scale:factor={factor}", selector=chosen)
    faulty = onnxfi.inject(exposed, drawn).data
    return onnxfi.evaluate(faulty, fed, engine=engine).metrics["top1"]


# %%
OUT.mkdir(parents=True, exist_ok=True)
for role in ("threshold", "leak"):
    layers = [layer.name for layer in made.spiking.layers]
    top1 = {layer: {f"{factor:g}": accuracy(layer, role, factor) for factor in FACTORS} for layer in layers}
    title = f"Top-1 with a tenth of a layer's neurons at a factor of their {role}"
    figure = heat_map(
        f"parametric-{role}", title, top1, ("Spiking layer", f"Factor of the {role}", "Top-1 accuracy (%)")
    )
    for kind in ("svg", "png"):
        (OUT / f"{figure.name}.{kind}").write_bytes(figure.bytes(kind))
    print(f"{role}: {figure.text}")
