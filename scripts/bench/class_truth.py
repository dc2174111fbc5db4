"""Estimators held against the class table of the shipped CNN, and the table against full runs.

    python scripts/bench/class_truth.py check [--trials 1000]    random faults of the table, by full runs
    python scripts/bench/class_truth.py rare [--runs 1000]       rare rates with a guarantee, drawn from the table
    python scripts/bench/class_truth.py yardstick [--runs 1000]  intervals and rankings, drawn from the table

The table is models/fashion_cnn_faults.npz; its card says how it was made. `check` runs faulty copies of the
whole model and compares SDC-1, DUE, accuracy and critical, sample for sample. The exit status says whether the targets
were met: 0 yes, 1 no. The last results: docs/explanation/certain-outcomes.md.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi import Campaign, ClassTable, read_class_table
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.faults.models import Flip
from onnxfi.faults.sites import Sites
from onnxfi.faults.trials import Faults
from onnxfi.graph.model.loading import load
from onnxfi.statistics.intervals import clopper_pearson
from onnxfi.statistics.proved_strata import rate_beside_proofs
from onnxfi.tasks.outcomes import judge

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
SEED = 20261129
#: Trials of a binomial interval for each trial that is needed, at rates of 1e-5 and below.
TARGET = 100
#: Trials of a fixed campaign, and of each bit where bits are ranked.
FIXED, EACH = 1000, 50
Array = np.ndarray[Any, np.dtype[Any]]


def check(table: ClassTable, trials: int) -> bool:
    """Compare random faults with full runs: half of them anywhere, half among those that change an answer."""
    identity = table.header["identity"]
    campaign = Campaign(
        MODELS / "fashion_cnn.onnx", MODELS / "fashion_test.npz", samples=table.samples, batch=identity["batch"],
        optimization=identity["optimization"], route="full", ber=1e-6, repeat=1,
    )  # fmt: skip
    executor = TrialExecutor.open(campaign)
    golden, _ = executor.golden_runs.run()
    targets = {t.id: t for t in executor.opened.fault_targets.targets}
    ends = np.cumsum([one.faults for one in table.tensors])
    rng = np.random.default_rng(SEED)
    affected = np.flatnonzero(table.column("changed") + table.column("due"))
    anywhere = rng.integers(0, ends[-1], trials - trials // 2)
    wrong = 0
    for number in [*anywhere.tolist(), *rng.choice(affected, trials // 2).tolist()]:
        at = int(np.searchsorted(ends, number, side="right"))
        one = table.tensors[at]
        element, column = divmod(number - int(ends[at]) + one.faults, len(one.bits))
        sites = Sites(np.zeros(1, np.int64), np.array([element]), np.array([one.bits[column]], np.int16))
        session = executor.opened.faulty_session(Faults((targets[one.id],), sites, (Flip(),)))
        found = judge(golden, executor.opened.run(session)).metrics
        counts = {"sdc1": one.changed, "due_samples": one.due, "top1": one.right, "critical": one.critical}
        for metric, known in counts.items():
            if round(found[metric] * table.samples) != known[element, column]:
                wrong += 1
                print(f"{one.id}[{element}]:{one.bits[column]}: {metric} of a full run is another")
    print(f"{trials:,} of {ends[-1]:,} faults, half of them among the {len(affected):,} that change an answer,")
    print(f"by full runs on {table.samples:,} samples: {wrong} numbers differ")
    return wrong == 0


def of_each(table: ClassTable, value: Callable[[Any], Array]) -> Array:
    """Return a value of every fault, in the order of `ClassTable.column`."""
    return np.concatenate([np.broadcast_to(value(one), one.changed.shape).ravel() for one in table.tensors])


def rare(table: ClassTable, runs: int) -> bool:
    """Estimate rare rates: what is proved to change no class is not drawn, fault by fault or stratum by stratum."""
    hit, ran = table.column("changed") > 0, table.column("ran") > 0
    bit, stratum = of_each(table, lambda one: np.array(one.bits)), strata(table)
    undecided = np.zeros(int(stratum.max()) + 1, np.bool_)
    undecided[stratum[hit | ran]] = True
    print("| flips in bits | faults | rate | proved by | not proved | trials | binomial | fewer | held |")
    print("|---|---|---|---|---|---|---|---|---|")
    met = True
    for by, left in (("fault", hit | ran), ("stratum", undecided[stratum])):
        for last in range(17, 23):
            here = bit <= last
            population, truth, values = int(here.sum()), float(hit[here].mean()), hit[here & left]
            row = f"| 0–{last} | {population:,} | {truth:.2g} | {by} | {len(values):,} |"
            if not truth:
                print(f"{row} {len(values):,} | – | – | – |")
                continue
            found = [campaign(values, population, truth, np.random.default_rng([SEED, last, k])) for k in range(runs)]
            trials, held = np.mean([n for n, _ in found]), np.mean([inside for _, inside in found])
            binomial = 2.5758293035489**2 * (1 - truth) / truth / 0.5**2
            print(f"{row} {trials:,.0f} | {binomial:,.0f} | {binomial / trials:,.0f} × | {100 * held:.1f} % |")
            met &= bool(held >= 0.98) and (truth > 1e-5 or binomial >= TARGET * trials)
    return met


def strata(table: ClassTable) -> Array:
    """Return the stratum of every fault: its tensor, its bit, and the exponent of the stored number (a census)."""
    model, found, before = load(MODELS / "fashion_cnn.onnx"), [], 0
    targets = {t.id: t for t in model.targets}
    for one in table.tensors:
        words = model.words(targets[one.id], np.arange(one.changed.shape[0]))
        exponent = (words >> np.uint64(23)).astype(np.int64) & 255
        key = exponent[:, None] * 32 + np.array(one.bits) + before
        before = int(key.max()) + 1
        found.append(key.ravel())
    return np.concatenate(found)


def campaign(values: Array, population: int, truth: float, rng: np.random.Generator) -> tuple[int, bool]:
    """Return the trials until the interval is within half of the estimate, and whether it always held the rate."""
    hits, held, n = np.cumsum(rng.permutation(values)), True, 1
    while True:
        found = rate_beside_proofs(population, population - len(values), n, int(hits[n - 1]))
        held &= found.low <= truth * (1 + 1e-12) and truth * (1 - 1e-12) <= found.high
        if n == len(values) or (found.high - found.low) / 2 <= 0.5 * found.estimate:
            return n, held
        n = min(len(values), n + max(1, n // 20))


def yardstick(table: ClassTable, runs: int) -> bool:
    """Hold an interval and a ranking of bits against the truth."""
    share, rng = table.column("changed") / table.samples, np.random.default_rng(SEED)
    truth, bit = float((share > 0).mean()), of_each(table, lambda one: np.array(one.bits))
    hits = rng.hypergeometric(int((share > 0).sum()), int((share == 0).sum()), FIXED, runs)
    found = [clopper_pearson(int(k), FIXED, 0.99) for k in hits]
    held = float(np.mean([one.low <= truth <= one.high for one in found]))
    print(f"any SDC-1: {100 * truth:.3f} % of {len(share):,} faults; Clopper–Pearson of {FIXED:,} trials")
    print(f"holds it in {100 * held:.1f} % of {runs:,} campaigns, nominally 99 %")
    by_bit = [share[bit == b] for b in range(int(bit.max()) + 1)]
    order = np.argsort([-values.mean() for values in by_bit], kind="stable")[:8]
    print("bits by mean SDC-1: " + ", ".join(f"{b} ({100 * by_bit[b].mean():.3g} %)" for b in order))
    means = np.array([[by_bit[b][rng.integers(0, len(by_bit[b]), EACH)].mean() for b in order] for _ in range(runs)])
    ranked = np.argsort(-means, axis=1, kind="stable")
    for k in (1, 2, 3, 5):
        right = np.mean((ranked[:, :k] == np.arange(k)).all(axis=1))
        print(f"{EACH} trials a bit give the first {k} of the order in {100 * right:.1f} % of {runs:,} campaigns")
    critical = share > 0.1
    highest = 100 * np.mean(bit[critical] == order[0])
    print(f"{critical.sum():,} faults change over 10 % of the answers, {highest:.2f} % of them in bit {order[0]}")
    return held >= 0.98


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "rare", "yardstick"))
    parser.add_argument("--table", type=Path, default=MODELS / "fashion_cnn_faults.npz")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=1000)
    given = parser.parse_args()
    table = read_class_table(given.table)
    what = {"rare": rare, "yardstick": yardstick}
    met = check(table, given.trials) if given.what == "check" else what[given.what](table, given.runs)
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
