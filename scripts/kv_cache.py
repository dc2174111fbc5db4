"""Measure what bit flips in the KV cache of the shipped GPT do, in the form of a published table.

    python scripts/kv_cache.py [FOLDER] [--model FILE --tokenizer FILE] [--prompts N] [--tokens N] [--trials N]

The published campaign flips bits 0, 7, 14 and 15 of one bfloat16 value in a stored cache (Qwen3-8B, the repository
Zen-17/kv-cache-fault-injection). A bfloat16 is the upper half of a float32, so that here the bits are 16, 23, 30 and 31
of a float32 cache: the lowest bit of the mantissa that a bfloat16 has, the lowest and the highest of the exponent, and
the sign.

Prompts are 32 tokens of the held-out text (a character each for the shipped GPT), every 400 characters, without those
behind which the golden text repeats itself. Another decoder is measured on the same text with its own tokenizer. The
store of the campaign is kept in FOLDER (by default kv-cache in the current one); what it has is not run again.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.runtime.data.tokenizer import Tokenizer
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.generation.generation_engine import GenerationEngine
from onnxfi.runtime.generation.greedy_loop import LoopSettings
from onnxfi.statistics.intervals import clopper_pearson, mean_interval
from onnxfi.tasks.kinds.generation import repeats

MODELS = Path(__file__).resolve().parent.parent / "models"
MODEL, TOKENIZER, TEXT = (MODELS / f"char_gpt{end}" for end in (".onnx", "_tokenizer.json", "_test.txt"))
PROMPT, EVERY, LONGEST_TOKEN = 32, 400, 40
#: Bits of a bfloat16, and what is published: changed outputs, mean divergence, collapse, ROUGE-L, of K and of V.
PUBLISHED = {
    0: ((0.378, 0.173, 0.0, 0.938), (0.300, 0.139, 0.0, 0.942)),
    7: ((0.489, 0.287, 0.0, 0.854), (0.467, 0.272, 0.0, 0.880)),
    14: ((0.900, 0.886, 0.889, 0.118), (1.000, 0.991, 1.000, 0.009)),
    15: ((0.500, 0.280, 0.0, 0.873), (0.511, 0.283, 0.0, 0.855)),
}
METRICS = ("changed", "divergence", "collapse", "rouge_l")
CONFIDENCE = 0.95


class Settings(NamedTuple):
    """A decoder, and the numbers of prompts, new tokens and trials."""

    model: Path
    tokenizer: Path
    prompts: int
    tokens: int
    trials: int

    @property
    def thirds(self) -> list[tuple[int, int]]:
        """The first and the last step of each third of the decoding steps."""
        ends = [k * (self.tokens - 1) // 3 for k in range(4)]
        return [(first + 1, last) for first, last in pairwise(ends)]


def prompts(how: Settings) -> list[list[int]]:
    """Return the tokens of prompts whose golden text does not repeat itself."""
    tokenizer, text = Tokenizer(str(how.tokenizer)), re.sub(r"\s+", " ", TEXT.read_text())
    session = GenerationEngine(OrtEngine(provider="cpu"), LoopSettings(tokens=how.tokens)).prepare(how.model)
    found, seen = [], 0
    for start in range(0, len(text) - PROMPT, EVERY):
        tokens, seen = tokenizer.tokens(text[start : start + PROMPT * LONGEST_TOKEN])[:PROMPT], seen + 1
        if len(tokens) == PROMPT and not repeats(session.generated(np.array(tokens)).last.tokens):
            found.append(tokens)
        if len(found) == how.prompts:
            break
    print(f"{len(found)} prompts of {seen}: behind the others the golden text repeats itself")
    return found


Trial = tuple[str, int, int, dict[str, float]]


def measured(folder: Path, how: Settings) -> list[Trial]:
    """Run the campaign, and return of each trial K or V, the bit of a bfloat16, the step and the metrics."""
    data, store = folder / "prompts.npz", folder / "kv-cache.onnxfi.db"
    if not data.exists():
        np.savez(data, input_ids=np.array(prompts(how)))
    campaign = Campaign(
        how.model, data, target="kv-cache", bits="16,23,30,31", single=True, trials=how.trials, provider="cpu",
        task=f"generation:tokens={how.tokens}", confidence=CONFIDENCE,
    )  # fmt: skip
    running = run(campaign, store)
    for number, _ in enumerate(running, 1):
        if number % 100 == 0:
            print(f"{number} trials", file=sys.stderr)
    found, times = [], []
    with Store.open(store) as opened:
        for (lines, row), time_s in zip(opened.planned_rows(), opened.times(), strict=True):
            if row.trial > how.trials:  # of a longer campaign
                break
            fault = json.loads(lines)
            part = "K" if fault["target"].endswith("key") else "V"
            found.append((part, fault["bits"][0] - 16, fault["from"], {m: row.metrics[m] for m in METRICS}))
            times.append((fault["from"], time_s))
    one = running.golden_s / how.prompts
    for first, last in how.thirds:
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


def table(trials: Iterable[Trial], how: Settings) -> None:
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
    for first, last in how.thirds:
        after = [min(1.0, m["divergence"] * how.tokens / (how.tokens - step)) for _, bit, step, m in trials
                 if bit == 14 and first <= step <= last and m["changed"]]  # fmt: skip
        i = mean_interval(after, CONFIDENCE)
        print(f"| {first}-{last} | {len(after)} | {i.estimate:.3f} [{i.low:.3f}, {i.high:.3f}] |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("kv-cache"), metavar="FOLDER")
    parser.add_argument("--model", type=Path, default=MODEL, metavar="FILE")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, metavar="FILE")
    for name, default in (("prompts", 24), ("tokens", 64), ("trials", 1300)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    given = parser.parse_args()
    given.folder.mkdir(exist_ok=True)
    settings = Settings(given.model, given.tokenizer, given.prompts, given.tokens, given.trials)
    table(measured(given.folder, settings), settings)
