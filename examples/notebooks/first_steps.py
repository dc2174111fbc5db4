# %% [markdown]
# # First steps: what one bit does to a network
# Open a model, flip one bit of one weight, and look at the answers. Then flip many, at a bit error rate.

# %%
import os
from pathlib import Path

import numpy as np

import onnxfi

ROOT = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "models" / "fashion_cnn.onnx").exists())
SAMPLES = int(os.environ.get("SAMPLES", "500"))
model = onnxfi.load(ROOT / "models" / "fashion_cnn.onnx")
with np.load(ROOT / "models" / "fashion_test.npz") as archive:
    data = {name: array[:SAMPLES] for name, array in archive.items()}
for target in model.targets:
    print(f"{target.id:14} {target.word.name} {'×'.join(map(str, target.shape))}")

# %% [markdown]
# One site is a word of a tensor and a bit of it; bit 0 is the lowest. Bit 30 is the highest of the exponent.

# %%
one = onnxfi.sample(model, sites=["conv1.weight[0]:30"])
faulty = onnxfi.inject(model, one)
golden = onnxfi.evaluate(model, data)
answers = onnxfi.evaluate(faulty.data, data, golden=golden)
print(f"top-1 {golden.metrics['top1']:.1%} without a fault, {answers.metrics['top1']:.1%} with this one")
print(f"{answers.metrics['sdc1']:.1%} of the images get another class, and nothing says so (SDC-1)")

# %% [markdown]
# The same bit, once more, gives the original back: a flip undoes itself. All else stays byte for byte.

# %%
again = onnxfi.inject(faulty.data, onnxfi.sample(faulty.data, sites=["conv1.weight[0]:30"]))
print("twice the same flip gives the original:", again.data == (ROOT / "models" / "fashion_cnn.onnx").read_bytes())

# %% [markdown]
# Which bit it is decides. Each bit of the same weight, one after the other:

# %%
for bit in (0, 10, 22, 23, 26, 30, 31):
    site = onnxfi.sample(model, sites=[f"conv1.weight[0]:{bit}"])
    changed = onnxfi.evaluate(onnxfi.inject(model, site).data, data, golden=golden)
    kind = "sign" if bit == 31 else "exponent" if bit >= 23 else "mantissa"
    print(f"bit {bit:2} ({kind:8}): SDC-1 {changed.metrics['sdc1']:6.1%}")

# %% [markdown]
# At a bit error rate each bit of each weight is flipped with the same probability. The seed alone fixes the draw.

# %%
for rate in (1e-6, 1e-5, 1e-4):
    drawn = onnxfi.sample(model, ber=rate, seed=1)
    changed = onnxfi.evaluate(onnxfi.inject(model, drawn).data, data, golden=golden)
    print(
        f"rate {rate:g}: {drawn.drawn:3} flips in {drawn.population_bits:,} bits, top-1 {changed.metrics['top1']:.1%}"
    )

# %% [markdown]
# One draw is an anecdote. The next notebook, `campaign.ipynb`, runs many and says how sure the rates are.
