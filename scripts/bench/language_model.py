"""Random flips in the shipped GPT: how many are damaged, beside what the census foretells; and the cost of a trial.

    python scripts/bench/language_model.py damage [--trials 100]   # 1, 3, 10, 30 and 100 flips
    python scripts/bench/language_model.py cost [--trials 200]     # target: 0.35 of a golden inference at batch 8
    python scripts/bench/language_model.py activations             # the same for faults in activations
    python scripts/bench/language_model.py fused                   # the optimiser of onnxruntime.transformers

`damage`: with p the share of bits whose flip makes a weight catastrophically large, n random flips leave a model whole
with probability (1 - p)^n. A trial counts as damaged where it is DUE, or less than 90 % of its tokens keep their top-1;
of 4 windows of 256 characters. `cost`: CPU seconds of this process over a campaign of single flips in weights, with all
that judging takes and without opening it, over those of the runtime alone on the same batch of 8 windows. `fused`: CPU
milliseconds of such a batch before and after that optimiser, in float32 and float16.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxfi
from onnxfi.analysis.census import census
from onnxfi.campaign.run.runner import run
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine, OrtSession
from onnxfi.statistics.intervals import clopper_pearson

ROOT = Path(__file__).parents[2]
DATA = ROOT / "models" / "char_gpt_test.npz"
FLIPS = (1, 3, 10, 30, 100)
TARGET = 0.35


def damage(name: str, trials: int) -> int:
    """Print the share of damaged trials for each number of flips."""
    model = ROOT / "models" / f"{name}.onnx"
    whole = census(onnxfi.load(model)).whole
    p = whole.share("catastrophic")
    print(f"{name}: {whole.bits:,} bits, p = {p:.5f}")
    print(
        f"{'flips':>6s}{'1-(1-p)^n':>12s}{'damaged':>10s}   99 % interval ({trials} trials)   median perplexity ratio"
    )
    for flips in FLIPS:
        part = onnxfi.Campaign(
            str(model), str(DATA), samples=4, batch=4, ber=flips / whole.bits, repeat=trials, task="language-model"
        )
        with tempfile.TemporaryDirectory() as folder:
            done = list(run(part, Path(folder, "s.db")))
        broken = sum(1 for one in done if one.outcome == "due" or one.metrics["top1_agreement"] < 0.9)
        i = clopper_pearson(broken, len(done))
        ratio = statistics.median(float(one.metrics["perplexity_ratio"]) for one in done)
        print(f"{flips:6d}{100 * (1 - (1 - p) ** flips):10.1f} %{100 * i.estimate:8.1f} %   "
              f"[{100 * i.low:.1f}, {100 * i.high:.1f}] %{ratio:28.4g}", flush=True)  # fmt: skip
    return 0


def golden_run(model: Path) -> Callable[[], float]:
    """Return what measures the CPU seconds of the runtime alone on 8 windows."""
    session = OrtEngine(provider="cpu").prepare(model)
    [batch] = open_data(DATA, session.inputs, limit=8).batches(8)

    def golden() -> float:
        begun = time.process_time()
        for _ in range(5):
            session.run(batch.feeds, ["logits"])
        return (time.process_time() - begun) / 5

    golden()
    return golden


def activations(name: str) -> int:
    """Print the cost of trials with faults in activations."""
    model = ROOT / "models" / f"{name}.onnx"
    golden = golden_run(model)
    single: dict[str, Any] = {"single": True}
    kinds: dict[str, tuple[list[dict[str, Any]], int]] = {
        "single, transient": ([single | {"trials": count} for count in (50, 250)], 200),
        "single, permanent": ([single | {"persistence": "permanent", "trials": count} for count in (20, 100)], 80),
        "rate of 1e-6": ([{"ber": 1e-6, "repeat": count} for count in (3, 18)], 15),
    }
    for kind, (pair, more) in kinds.items():
        took = []
        for given in pair:  # the difference leaves out what opening takes
            part = onnxfi.Campaign(
                str(model), str(DATA), samples=8, batch=8, target="activations", task="language-model", **given
            )
            with tempfile.TemporaryDirectory() as folder:
                begun = time.process_time()
                list(run(part, Path(folder, "s.db")))
                took.append(time.process_time() - begun)
        each = (took[1] - took[0]) / more
        print(f"{kind:20s}{1e3 * each:8.1f} ms{each / golden():8.2f} of a golden run", flush=True)
    return 0


def cost(name: str, trials: int) -> int:
    """Print the cost of a trial, and return 1 where it misses the target."""
    model = ROOT / "models" / f"{name}.onnx"
    golden = golden_run(model)
    inside, units, apart = [0.0], list[float](), [0.0]
    own, first = OrtSession.run, trials // 4

    def counted_run(*given: Any) -> Any:
        begun = time.process_time()
        try:
            return own(*given)
        finally:
            inside[0] += time.process_time() - begun

    def golden_apart() -> None:
        """Measure the golden run between trials: what else the machine does slows both alike."""
        begun, before = time.process_time(), inside[0]
        units.append(golden())
        apart[0] += time.process_time() - begun
        inside[0] = before

    OrtSession.run = counted_run  # type: ignore[method-assign,assignment]
    part = onnxfi.Campaign(str(model), str(DATA), samples=8, batch=8, single=True, trials=trials, task="language-model")
    routes, begun = list[Any](), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(run(part, Path(folder, "s.db")), 1):
            routes.append(one.route)
            if number == first:  # what is opened is open by now
                inside[0], begun = 0.0, time.process_time()
            if number >= first and number % 25 == 0:
                golden_apart()
        took = time.process_time() - begun - apart[0]
    OrtSession.run = own  # type: ignore[method-assign]
    unit, count = statistics.mean(units), trials - first
    counted = ", ".join(f"{route} {routes.count(route)}" for route in sorted(set(routes)))
    print(
        f"{name}: golden {1e3 * unit:.1f} ms, a trial {1e3 * took / count:.1f} ms: {took / count / unit:.3f} (target "
        f"{TARGET}), {inside[0] / count / unit:.3f} of it in the runtime; {counted}"
    )
    return int(took / count / unit > TARGET)


def fused(name: str) -> int:
    """Print the time of a batch of models as they are shipped and fused by onnxruntime.transformers."""
    from onnxruntime.transformers import optimizer

    source = ROOT / "models" / f"{name}.onnx"
    with tempfile.TemporaryDirectory() as folder:
        made = optimizer.optimize_model(str(source), model_type="gpt2", num_heads=4, hidden_size=96, opt_level=0)
        made.save_model_to_file(str(Path(folder, "fused.onnx")))
        counts = {op: n for op, n in made.get_fused_operator_statistics().items() if n}
        made.convert_float_to_float16(keep_io_types=True)
        made.save_model_to_file(str(Path(folder, "fused_fp16.onnx")))
        for model in (
            source,
            Path(folder, "fused.onnx"),
            source.with_stem(f"{name}_fp16"),
            Path(folder, "fused_fp16.onnx"),
        ):
            session = OrtEngine(provider="cpu").prepare(model)
            [batch] = open_data(DATA, session.inputs, limit=8).batches(8)
            took = []
            for _ in range(6):
                begun = time.process_time()
                session.run(batch.feeds, ["logits"])
                took.append(time.process_time() - begun)
            print(f"{model.name:24s}{1e3 * min(took):8.1f} ms")
    print(f"fused: {counts}")
    return 0


def main() -> int:
    """Measure one figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=("damage", "cost", "activations", "fused"))
    parser.add_argument("--model", default="char_gpt")
    parser.add_argument("--trials", type=int)
    asked = parser.parse_args()
    if asked.figure == "damage":
        return damage(asked.model, asked.trials or 100)
    if asked.figure == "activations":
        return activations(asked.model)
    return fused(asked.model) if asked.figure == "fused" else cost(asked.model, asked.trials or 200)


if __name__ == "__main__":
    sys.exit(main())
