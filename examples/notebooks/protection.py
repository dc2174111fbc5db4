# %% [markdown]
# # Protect a network, and prove that it helps
# Put protections into its graph as plain ONNX, and compare with the bare network on the same faults.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np

import onnxfi

ROOT = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "models" / "fashion_cnn.onnx").exists())
SAMPLES, TRIALS = int(os.environ.get("SAMPLES", "200")), int(os.environ.get("TRIALS", "20"))
OUT = Path(os.environ.get("OUT") or tempfile.mkdtemp())
model = ROOT / "models" / "fashion_cnn.onnx"
with np.load(ROOT / "models" / "fashion_test.npz") as archive:
    everything = dict(archive)
calibration = {name: array[-200:] for name, array in everything.items() if name != "labels"}
data = {name: array[:SAMPLES] for name, array in everything.items()}

# %% [markdown]
# Ranges of activations are measured on samples that are not scored. Fault-free outputs must stay as they were.

# %%
protected = onnxfi.protect(model, ["range:clip", "nan-filter"], OUT / "protected.onnx", data=calibration)
print(protected.fault_free)
print(f"{protected.nodes_before} nodes before, {protected.nodes_after} after")

# %% [markdown]
# The same sweep on both. Weights and their order are the same in both files, so each trial has the same faults.

# %%
found = onnxfi.compare([model, protected.out], data, ber=[1e-5, 1e-4], repeat=TRIALS)
for version in found.versions:
    for fold in version.found.by_rate:
        rate = fold.rate("top1")
        name = Path(version.model).stem
        print(f"{name:12} at {fold.key}: top-1 {rate.estimate:.1%} [{rate.low:.1%}, {rate.high:.1%}]")

# %% [markdown]
# How much of it each protection does:

# %%
for name in ("range:clip", "nan-filter"):
    one = onnxfi.protect(model, name, OUT / "one.onnx", data=calibration)
    rate = onnxfi.run(one.out, data, ber=1e-5, repeat=TRIALS).everything.rate("top1")
    print(f"{name} alone at 1e-05: top-1 {rate.estimate:.1%} [{rate.low:.1%}, {rate.high:.1%}]")
