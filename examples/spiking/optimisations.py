# %% [markdown]
# # Late start and early stop
# A fault at a step changes nothing before it, and often nothing any more soon after it: a spike that comes back ends
# the matter. What does it gain to run only what changes?

# %%
import os
import time
from pathlib import Path

import numpy as np

import onnxfi
from onnxfi.runtime.steps import Steps

ROOT = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "models" / "fashion_snn.onnx").exists())
FAULTS, SAMPLES = (int(os.environ.get(name, default)) for name, default in (("TRIALS", "100"), ("SAMPLES", "32")))
exposed = onnxfi.load(onnxfi.expose_neurons(onnxfi.load(ROOT / "models" / "fashion_snn.onnx")).data)
steps = Steps.open(exposed, onnxfi.OrtEngine(provider="cpu"))
with np.load(ROOT / "models" / "fashion_test.npz") as held:
    image = held["image"][:SAMPLES]

# %% [markdown]
# Golden once: everything that goes from one part of the network to the next is kept.

# %%
golden = steps.golden({"image": image})
print(f"{len(steps.parts)} parts, {int(golden['counts'].sum())} output spikes")

# %% [markdown]
# The same faults in four ways. A neuron of the second layer that is dead for one step; each of its steps in turn.

# %%
dead = onnxfi.parse_fault("dead")
faults = [steps.faults("lif2", "spike", 7 * k % 784, dead, first=k % 8, last=k % 8) for k in range(FAULTS)]
answers = {}
for name, late, early in (
    ("neither", False, False),
    ("late start", True, False),
    ("early stop", False, True),
    ("both", True, True),
):
    begun = time.perf_counter()
    found = [steps.run(golden, fault, late=late, early=early) for fault in faults]
    rate = FAULTS / (time.perf_counter() - begun)
    parts = sum(answer.parts for answer in found) / FAULTS
    answers[name] = [answer.outputs["counts"] for answer in found]
    print(f"{name}: {rate:.0f} faults a second, {parts:.1f} parts each")

# %%
same = all(
    np.array_equal(one, other) for name in answers for one, other in zip(answers["neither"], answers[name], strict=True)
)
print(f"all four ways count the same spikes: {same}")
