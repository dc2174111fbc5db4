# %% [markdown]
# # A campaign and its figures
# Many trials, rates with intervals, figures, tables and a page; then more trials in the same store.

# %%
import os
import tempfile
from pathlib import Path

import onnxfi

ROOT = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "models" / "fashion_cnn.onnx").exists())
SAMPLES, TRIALS = int(os.environ.get("SAMPLES", "200")), int(os.environ.get("TRIALS", "20"))
OUT = Path(os.environ.get("OUT") or tempfile.mkdtemp())
model, data = ROOT / "models" / "fashion_cnn.onnx", ROOT / "models" / "fashion_test.npz"

# %% [markdown]
# A sweep: at each of four bit error rates some trials, each with faults of its own. In a notebook the progress is shown
# below the cell, and the stop button keeps what has finished.

# %%
sweep = onnxfi.run(model, data, OUT / "sweep.db", ber=[1e-6, 1e-5, 1e-4, 1e-3], repeat=TRIALS, samples=SAMPLES)
sweep  # shown as a table

# %%
for fold in sweep.by_rate:
    rate = fold.rate("top1")
    print(f"rate {fold.key}: top-1 {rate.estimate:.1%}, 99 % interval [{rate.low:.1%}, {rate.high:.1%}]")

# %%
sweep.plot()

# %% [markdown]
# More trials extend what is there: only the new ones run, with the same faults as if they had been asked for at once.

# %%
before = sweep.everything.trials
sweep = onnxfi.run(model, data, OUT / "sweep.db", ber=[1e-6, 1e-5, 1e-4, 1e-3], repeat=TRIALS + 5, samples=SAMPLES)
print(f"{sweep.everything.trials - before} trials were added to {before}")

# %% [markdown]
# Single faults say where a network is weak: which layers, which bits.

# %%
single = onnxfi.run(model, data, OUT / "single.db", single=True, trials=5 * TRIALS, samples=SAMPLES)
tried = [fold for fold in single.by_bit if fold.trials]
worst = max(tried, key=lambda fold: fold.rate("sdc1").estimate)
print(f"of single flips, those of bit {worst.key} change most answers: SDC-1 {worst.rate('sdc1').estimate:.1%}")

# %% [markdown]
# Everything as files: one page that works offline, figures for a paper, tables, and a data frame of trials.

# %%
page, figures, tables = single.html(OUT / "single.html"), single.figures(OUT / "figures"), single.csv(OUT / "tables")
print(page.name, sorted(path.name for path in figures)[:4], sorted(path.name for path in tables))
print("rows and columns of the data frame:", single.to_pandas().shape)
