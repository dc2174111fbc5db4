"""Measure what bit flips in the KV cache of the shipped GPT do, in the form of a published table.

    python scripts/kv_cache.py [FOLDER]

The published campaign flips bits 0, 7, 14 and 15 of one bfloat16 value in a stored cache (Qwen3-8B, the repository
Zen-17/kv-cache-fault-injection). A bfloat16 is the upper half of a float32, so that here the bits are 16, 23, 30 and 31
of a float32 cache: the lowest bit of the mantissa that a bfloat16 has, the lowest and the highest of the exponent, and
the sign.

Prompts are 32 held-out characters, every 400, without those behind which the golden text repeats itself. The store of
the campaign is kept in FOLDER (by default kv-cache in the current one); what it has is not run again.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.generation.generation_engine import GenerationEngine
from onnxfi.runtime.generation.greedy_loop import LoopSettings
from onnxfi.runtime.generation.prompts import Tokenizer
from onnxfi.statistics.intervals import clopper_pearson, mean_interval
from onnxfi.tasks.kinds.generation import repeats

MODELS = Path(__file__).resolve().parent.parent / "models"
MODEL, TOKENIZER, TEXT = (MODELS / f"char_gpt{end}" for end in (".onnx", "_tokenizer.json", "_test.txt"))
PROMPT, EVERY, PROMPTS, TOKENS, TRIALS = 32, 400, 24, 64, 1300
#: Bits of a bfloat16, and what is published: changed outputs, mean divergence, collapse, ROUGE-L, of K and of V.
PUBLISHED = {
    0: ((0.378, 0.173, 0.0, 0.938), (0.300, 0.139, 0.0, 0.942)),
    7: ((0.489, 0.287, 0.0, 0.854), (0.467, 0.272, 0.0, 0.880)),
    14: ((0.900, 0.886, 0.889, 0.118), (1.000, 0.991, 1.000, 0.009)),
    15: ((0.500, 0.280, 0.0, 0.873), (0.511, 0.283, 0.0, 0.855)),
}
METRICS = ("changed", "divergence", "collapse", "rouge_l")
CONFIDENCE = 0.95


def prompts() -> list[list[int]]:
    """Return the tokens of prompts whose golden text does not repeat itself."""
    tokenizer, text = Tokenizer(str(TOKENIZER)), re.sub(r"\s+", " ", TEXT.read_text())
    session = GenerationEngine(OrtEngine(provider="cpu"), LoopSettings(tokens=TOKENS)).prepare(MODEL)
    found, seen = [], 0
    for start in range(0, len(text) - PROMPT, EVERY):
        tokens, seen = tokenizer.tokens(text[start : start + PROMPT]), seen + 1
        if not repeats(session.generated(np.array(tokens)).last.tokens):
            found.append(tokens)
        if len(found) == PROMPTS:
            break
    print(f"{len(found)} prompts of {seen}: behind the others the golden text repeats itself")
    return found


Trial = tuple[str, int, int, dict[str, float]]


def measured(folder: Path) -> list[Trial]:
    """Run the campaign, and return of each trial K or V, the bit of a bfloat16, the step and the metrics."""
    data, store = folder / "prompts.npz", folder / "kv-cache.onnxfi.db"
    if not data.exists():
        np.savez(data, input_ids=np.array(prompts()))
    campaign = Campaign(
        MODEL, data, target="kv-cache", bits="16,23,30,31", single=True, trials=TRIALS, provider="cpu",
        task=f"generation:tokens={TOKENS}", confidence=CONFIDENCE,
    )  # fmt: skip
    running = run(campaign, store)
    for number, _ in enumerate(running, 1):
        if number % 100 == 0:
            print(f"{number} trials", file=sys.stderr)
    found, times = [], []
    with Store.open(store) as opened:
        for (lines, row), time_s in zip(opened.planned_rows(), opened.times(), strict=True):
            if row.trial > TRIALS:  # of a longer campaign
                break
            fault = json.loads(lines)
            part = "K" if fault["target"].endswith("key") else "V"
            found.append((part, fault["bits"][0] - 16, fault["from"], {m: row.metrics[m] for m in METRICS}))
            times.append((fault["from"], time_s))
    one = running.golden_s / PROMPTS
    for first, last in ((1, 21), (22, 42), (43, 63)):
        took = [time_s for step, time_s in times if first <= step <= last]
        print(
            f"steps {first}-{last}: a trial takes {statistics.median(took) / one:.2f} of the golden run of its prompt"
        )
    return found


def cell(rows: Sequence[dict[str, float]], metric: str) -> str:
    """Return a mean with its interval: exact for what is yes or no, else of a bounded mean."""
    values = [row[metric] for row in rows]
    if set(values) <= {0.0, 1.0}:
        i = clopper_pearson(int(sum(values)), len(values), CONFIDENCE)
    else:
        i = mean_interval(values, CONFIDENCE)
    return f"{i.estimate:.3f} [{i.low:.3f}, {i.high:.3f}]"


def table(trials: Iterable[Trial]) -> None:
    """Print the table beside the published one, and what later faults change of what follows."""
    trials = list(trials)
    print("| site | trials | " + " | ".join(f"{m} | published" for m in METRICS) + " |")
    print("|---|---|" + "---|" * 2 * len(METRICS))
    for part, place in (("K", 0), ("V", 1)):
        for bit, known in PUBLISHED.items():
            rows = [metrics for p, b, _, metrics in trials if (p, b) == (part, bit)]
            cells = [
                text for m, one in zip(METRICS, known[place], strict=True) for text in (cell(rows, m), f"{one:.3f}")
            ]
            print(f"| {part} bit {bit} | {len(rows)} | " + " | ".join(cells) + " |")
    print("\n| steps | trials at bit 14 that changed | share of the tokens behind the fault that differ |")
    print("|---|---|---|")
    for first, last in ((1, 21), (22, 42), (43, 63)):
        after = [min(1.0, m["divergence"] * TOKENS / (TOKENS - step)) for _, bit, step, m in trials
                 if bit == 14 and first <= step <= last and m["changed"]]  # fmt: skip
        i = mean_interval(after, CONFIDENCE)
        print(f"| {first}-{last} | {len(after)} | {i.estimate:.3f} [{i.low:.3f}, {i.high:.3f}] |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("kv-cache"), metavar="FOLDER")
    work = parser.parse_args().folder
    work.mkdir(exist_ok=True)
    table(measured(work))
