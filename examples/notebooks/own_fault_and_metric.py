# %% [markdown]
# # A fault model and a metric of your own
# Not every memory flips bits, and not every failure is a changed class. Both are a few lines of Python.

# %%
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnxfi
from onnxfi import FaultModel, Mask, Word

ROOT = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "models" / "fashion_cnn.onnx").exists())
SAMPLES, TRIALS = int(os.environ.get("SAMPLES", "200")), int(os.environ.get("TRIALS", "10"))
OUT = Path(os.environ.get("OUT") or tempfile.mkdtemp())
model, data = ROOT / "models" / "fashion_cnn.onnx", ROOT / "models" / "fashion_test.npz"


# %% [markdown]
# A memory that saves energy on the lowest bits of a word: they read 0. A fault model says which bits are kept and
# which are flipped; parameters are fields.


# %%
@dataclass(frozen=True)
class LostBits(FaultModel):
    """The lowest `k` bits of a word read 0."""

    k: int = 4
    name = "lost-bits"
    unit = "word"

    def mask(self, word: Word, bit: int) -> Mask:
        return Mask(keep=word.full & ~((1 << self.k) - 1), flip=0)


golden = onnxfi.evaluate(model, data)
for k in (8, 16, 20, 22, 24):
    every = onnxfi.sample(model, ber=1.0, fault=LostBits(k))
    faulty = onnxfi.evaluate(onnxfi.inject(model, every).data, data, golden=golden)
    print(f"without the lowest {k} bits of every weight: top-1 {faulty.metrics['top1']:.1%}")

# %% [markdown]
# A campaign is resumed and run by other processes, so its code lies in a module. An installed package offers a fault
# model by an entry point (`onnxfi.fault_models`); a metric is named as `module:name`.

# %%
(OUT / "own_metrics.py").write_text('''
import numpy as np

from onnxfi.tasks.answers import AnswerPair
from onnxfi.tasks.task import Metric


def footwear_lost(pair: AnswerPair) -> float:
    """Share of the samples that were seen as footwear (5, 7, 9) and are seen as something else."""
    before, after = (np.isin(side.rows.argmax(axis=1), (5, 7, 9)) for side in (pair.golden, pair.faulty))
    return float(np.mean(before & ~after))


LOST = Metric("footwear_lost", footwear_lost, label="footwear lost")
''')
sys.path.insert(0, str(OUT))
found = onnxfi.run(
    model, data, OUT / "own.db", ber=[1e-5, 1e-4], repeat=TRIALS, samples=SAMPLES, metric=["own_metrics:LOST"]
)
for fold in found.by_rate:
    lost = fold.rate("footwear_lost")
    print(f"rate {fold.key}: footwear lost {lost.estimate:.1%} [{lost.low:.1%}, {lost.high:.1%}]")
