# %% [markdown]
# # Bit flips in the synapses
# How often does a single flipped bit change the answer of a spiking network, by layer and by bit?

# %%
import os
import tempfile
from pathlib import Path

import onnxfi

ROOT = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "models" / "fashion_snn.onnx").exists())
SAMPLES, TRIALS = (int(os.environ.get(name, default)) for name, default in (("SAMPLES", "200"), ("TRIALS", "1000")))

# %% [markdown]
# Single faults, drawn over all bits of all weights and biases of the synapses.

# %%
campaign = onnxfi.Campaign(
    ROOT / "models" / "fashion_snn.onnx",
    ROOT / "models" / "fashion_test.npz",
    samples=SAMPLES,
    single=True,
    trials=TRIALS,
    role=("weight", "bias"),
)
with tempfile.TemporaryDirectory() as folder:
    report = onnxfi.run(campaign, store=Path(folder) / "flips.db")

# %%
for fold in report.by_layer:
    rate = fold.rate("sdc1")
    if rate:
        print(
            f"{fold.key}: {fold.trials} faults, answers changed {rate.estimate:.4f} [{rate.low:.4f}, {rate.high:.4f}]"
        )

# %% [markdown]
# The bits of the exponent decide, as in every float32 network: the highest makes a number huge.

# %%
for fold in report.by_bit:
    rate = fold.rate("sdc1")
    if rate and fold.trials:
        print(f"bit {fold.key:>2} {rate.estimate:.4f} {'#' * round(50 * rate.estimate)}")
