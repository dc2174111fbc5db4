"""Estimators held against the outcome table of the shipped CNN, and the table against full runs.

    python scripts/bench/class_truth.py check [--trials 1000]    random faults of the table, by full runs
    python scripts/bench/class_truth.py rare [--runs 1000]       rare rates with a guarantee, drawn from the table
    python scripts/bench/class_truth.py yardstick [--runs 1000]  estimators, drawn from the table
    python scripts/bench/class_truth.py shape                    harm by layer, by kind of bit and by its direction

The table is that of `--table`, of the network `--model`: by default models/fashion_cnn_faults.npz; its card says how it
was made. `check` runs faulty copies of the model and compares SDC-1, DUE, accuracy and critical, sample for sample. The
exit status says whether the targets were met: 0 yes, 1 no. Last results: docs/explanation/proved-outcomes.md.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from adaptive import Case, adaptive
from ranking import Network, ranked

from onnxfi import Campaign, OutcomeTable, read_outcome_table
from onnxfi.analysis.bit_effects import EFFECTS, effect_classes
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.exhaustive.outcome_table import TensorTable
from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.strata import plan_strata
from onnxfi.campaign.run.adaptive_rounds import Layout
from onnxfi.faults.models import Flip
from onnxfi.faults.sites import Sites
from onnxfi.faults.trials import Faults
from onnxfi.faults.words import Word
from onnxfi.graph.model.loading import load
from onnxfi.runtime.proofs.integer_kernels import integer_sums
from onnxfi.statistics.intervals import (
    Stratum,
    clopper_pearson,
    mean_interval,
    stratified_interval,
    t_interval,
    wilson,
)  # fmt: skip
from onnxfi.statistics.proved_strata import rate_beside_proofs
from onnxfi.tasks.outcomes import judge

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
SEED = 20261129
#: Trials of a binomial interval for each trial that is needed, at rates of 1e-5 and below.
TARGET = 100
#: Trials of a fixed campaign, and of each bit where bits are ranked.
FIXED, EACH = 1000, 50
#: Share of the answers above which a fault that changes them is critical here.
CRITICAL = 0.1
Array = np.ndarray[Any, np.dtype[Any]]


def check(table: OutcomeTable, model: Path, trials: int) -> bool:
    """Compare random faults with full runs: half of them anywhere, the others where answers change or are DUE."""
    identity = table.header["identity"]
    campaign = Campaign(
        model, MODELS / "fashion_test.npz", samples=table.samples, batch=identity["batch"],
        optimization=identity["optimization"], route="full", ber=1e-6, repeat=1,
    )  # fmt: skip
    executor = TrialExecutor.open(campaign)
    if integer_sums(campaign.engine.open(), executor.opened.model.index) == "saturating":
        print(
            "this processor saturates sums of uint8 and int8 numbers, those of the table are exact: numbers will differ"
        )
    golden, _ = executor.golden_runs.run()
    targets = {t.id: t for t in executor.opened.fault_targets.targets}
    ends = np.cumsum([one.faults for one in table.tensors])
    rng = np.random.default_rng(SEED)
    affected, due = np.flatnonzero(table.column("changed")), np.flatnonzero(table.column("due"))
    grave = rng.choice(due, min(len(due), trials // 10), replace=False)
    chosen = [rng.integers(0, ends[-1], trials - trials // 2), grave, rng.choice(affected, trials // 2 - len(grave))]
    wrong = 0
    for number in np.concatenate(chosen).tolist():
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
    print(f"{trials:,} of {ends[-1]:,} faults, {len(grave)} of them among the {len(due):,} with DUE, a half with these")
    print(f"among the {len(affected):,} that change an answer, by full runs on {table.samples:,} samples:")
    print(f"{wrong} numbers differ")
    return wrong == 0


def of_each(table: OutcomeTable, value: Callable[[Any], Array]) -> Array:
    """Return a value of every fault, in the order of `OutcomeTable.column`."""
    return np.concatenate([np.broadcast_to(value(one), one.changed.shape).ravel() for one in table.tensors])


def rare(table: OutcomeTable, model: Path, runs: int) -> bool:
    """Estimate rare rates: what is proved to change no class is not drawn, fault by fault or stratum by stratum."""
    quantised = any(one.dtype != "float32" for one in table.tensors)
    # Hardly a bit of a quantised weight is without effect: rare there is that many answers change.
    event = CRITICAL * table.samples if quantised else 0
    hit, ran = table.column("changed") > event, table.column("ran") > 0
    print(f"rates of faults that change {'over a tenth of the answers' if quantised else 'any answer'}")
    bit, stratum = of_each(table, lambda one: np.array(one.bits)), strata(table, model)
    undecided = np.zeros(int(stratum.max()) + 1, np.bool_)
    undecided[stratum[hit | ran]] = True
    print("| flips in bits | faults | rate | proved by | not proved | trials | binomial | fewer | held |")
    print("|---|---|---|---|---|---|---|---|---|")
    met = True
    for by, left in (("fault", hit | ran), ("stratum", undecided[stratum])):
        for last in range(17, 23) if bit.max() > 8 else range(8):
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


def stored(table: OutcomeTable, model: Path) -> Iterator[tuple[TensorTable, Word, Array]]:
    """Yield each tensor of the table with its format and its words."""
    opened = load(model)
    targets = {t.id: t for t in opened.targets}
    for one in table.tensors:
        target = targets[one.id]
        yield one, target.word, opened.words(target, np.arange(target.size))


def strata(table: OutcomeTable, model: Path) -> Array:
    """Return the stratum of every fault: its tensor, its bit, and the exponent of the stored number (a census)."""
    found, before = [], 0
    for one, word, words in stored(table, model):
        exponent = np.frexp(word.values(words).astype(np.float64))[1].astype(np.int64)
        key = (exponent - exponent.min())[:, None] * 32 + np.array(one.bits) + before
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


def yardstick(table: OutcomeTable, model: Path, runs: int) -> bool:
    """Hold intervals, a ranking of bits, and the census, which runs nothing, against the truth."""
    share, rng = table.column("changed") / table.samples, np.random.default_rng(SEED)
    truth, mean, bit = float((share > 0).mean()), float(share.mean()), of_each(table, lambda one: np.array(one.bits))
    hits = rng.hypergeometric(int((share > 0).sum()), int((share == 0).sum()), FIXED, runs).tolist()
    print(f"any SDC-1: {100 * truth:.3f} %, mean SDC-1 {100 * mean:.4f} % of {len(share):,} faults; 99 % intervals of")
    print(f"{FIXED:,} trials, in {runs:,} campaigns:")
    met = True
    for name, interval in (("Clopper–Pearson", clopper_pearson), ("Wilson", wilson)):
        found = [interval(k, FIXED, 0.99) for k in hits]
        held = float(np.mean([one.low <= truth <= one.high for one in found]))
        met &= held >= 0.98
        print(f"  {name} of any SDC-1 holds it in {100 * held:.1f} %")
    drawn = [share[rng.integers(0, len(share), FIXED)] for _ in range(runs)]
    for name, mean_of in (("guaranteed", mean_interval), ("Student's t", t_interval)):
        found = [mean_of(values, 0.99) for values in drawn]
        held = float(np.mean([one.low <= mean <= one.high for one in found]))
        width = 100 * np.mean([one.high - one.low for one in found]) / 2
        met &= held >= 0.98 or name != "guaranteed"
        print(f"  {name} of mean SDC-1 holds it in {100 * held:.1f} %, half its width {width:.2f} %")
    by_bit = [share[bit == b] for b in range(int(bit.max()) + 1)]
    order = np.argsort([-values.mean() for values in by_bit], kind="stable")[:8]
    print("bits by mean SDC-1: " + ", ".join(f"{b} ({100 * by_bit[b].mean():.3g} %)" for b in order))
    means = np.array([[by_bit[b][rng.integers(0, len(by_bit[b]), EACH)].mean() for b in order] for _ in range(runs)])
    ranked = np.argsort(-means, axis=1, kind="stable")
    for k in (1, 2, 3, 5):
        right = np.mean((ranked[:, :k] == np.arange(k)).all(axis=1))
        print(f"{EACH} trials a bit give the first {k} of the order in {100 * right:.1f} % of {runs:,} campaigns")
    critical = share > CRITICAL
    highest = 100 * np.mean(bit[critical] == order[0])
    print(f"{critical.sum():,} faults change over 10 % of the answers, {highest:.2f} % of them in bit {order[0]}")
    effects = np.concatenate([effect_classes(word, words).ravel() for _, word, words in stored(table, model)])
    for number, effect in enumerate(EFFECTS):
        mine = effects == number
        if mine.any():
            recall, precision = 100 * np.mean(mine[critical]), 100 * np.mean(critical[mine])
            print(
                f"census, {effect}: {mine.sum():,} faults, recall {recall:.2f} % of these, precision {precision:.2f} %"
            )
    return met


def shape(table: OutcomeTable, model: Path, runs: int) -> bool:
    """Print the harm by layer, and of float32 by field and by the direction of the flip."""
    print("| layer | faults | mean SDC-1 | faults that change over 10 % of the answers |")
    print("|---|---|---|---|")
    for layer in dict.fromkeys(one.layer for one in table.tensors):
        share = np.concatenate([one.changed.ravel() for one in table.tensors if one.layer == layer]) / table.samples
        print(f"| {layer} | {len(share):,} | {100 * share.mean():.3g} % | {100 * np.mean(share > CRITICAL):.3g} % |")
    share, bit = table.column("changed") / table.samples, of_each(table, lambda one: np.array(one.bits))
    if bit.max() != 31 or table.tensors[0].dtype != "float32":
        return True
    stored_bits = [
        (words[:, None] >> np.array(one.bits, np.uint64)) & np.uint64(1) for one, _, words in stored(table, model)
    ]
    was_one, total = np.concatenate([bits.ravel() for bits in stored_bits]) == 1, share.sum()
    for name, of in (("sign", bit == 31), ("exponent", (bit >= 23) & (bit < 31)), ("mantissa", bit < 23)):
        up, down = (100 * share[of & here].sum() / total for here in (~was_one, was_one))
        print(f"{name}: {up + down:.3g} % of all SDC-1; flips from 0 to 1 {up:.3g} %, from 1 to 0 {down:.3g} %")
    return True


def by_designs(table: OutcomeTable, model: Path, runs: int) -> bool:
    """Hold stratified intervals, adaptive campaigns and rankings against the truth, in a tenth of the campaigns."""
    rng, met = np.random.default_rng(SEED), True
    share = {one.id: one.changed / table.samples for one in table.tensors}
    mean = float(np.concatenate([x.ravel() for x in share.values()]).mean())
    each, found = FIXED // len(share), []
    for _ in range(runs):
        drawn = [(x.size, x.ravel()[rng.integers(0, x.size, min(each, x.size))]) for x in share.values()]
        found.append(stratified_interval([Stratum(n, len(x), x.sum(), (x**2).sum()) for n, x in drawn], 0.99))
    held = float(np.mean([one.low <= mean <= one.high for one in found]))
    width = 100 * float(np.mean([one.half_width for one in found]))
    met &= held >= 0.98
    print(f"  stratified, {each} trials a tensor, holds it in {100 * held:.1f} %, half its width {width:.2f} %")
    some, bits = max(1, runs // 10), {one.id: one.bits for one in table.tensors}
    targets = {t.id: t for t in load(model).targets}
    for method in ("guaranteed", "asymptotic", "simple"):
        campaign = Campaign(
            str(model), single=True, adaptive=True, method=method, include=tuple(f"={n}" for n in share)
        )
        strata = plan_strata(campaign, FaultTargets.of(load(model)))
        values = [np.concatenate([
            share[t.id][:, [bits[t.id].index(bit) for bit in at]].ravel()
            for t, at in zip(one.space.targets, one.space.bit_positions, strict=True)
        ]) for one in strata]  # fmt: skip
        layout = Layout.of([{**one.row(), "population": one.population} for one in strata])
        case = Case("top1_changed", method, 0.01)
        ends = [adaptive(case, layout, values, np.random.default_rng([SEED, n]), n) for n in range(some)]
        held = float(np.mean([e.interval.low - 1e-9 <= mean <= e.interval.high + 1e-9 for e in ends]))
        met &= held >= 0.98 or method != "guaranteed"
        trials = np.mean([e.trials for e in ends])
        print(
            f"  adaptive, {method}, to ±1 %: {trials:,.0f} trials, holds it in {100 * held:.0f} % of {some} campaigns"
        )
    rows = [
        {"part": name, "field": f"{targets[name].dtype} {bit}", "size": len(x), "values": x[:, at]}
        for name, x in share.items() for at, bit in enumerate(bits[name])
    ]  # fmt: skip
    network = Network(rows)
    ranks = [ranked(network, n) for n in range(some)]
    right = np.mean([network.right(standing) for _, standing in ranks])
    trials = np.median([n for n, _ in ranks])
    print(
        f"  first five tensors ranked: {trials:,.0f} trials, all said of pairs right in {100 * right:.0f} % of {some}"
    )
    return met and bool(right >= 0.9)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "rare", "yardstick", "shape"))
    parser.add_argument("--table", type=Path, default=MODELS / "fashion_cnn_faults.npz")
    parser.add_argument("--model", type=Path, default=MODELS / "fashion_cnn.onnx")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=1000)
    given = parser.parse_args()
    table = read_outcome_table(given.table)
    number = given.trials if given.what == "check" else given.runs
    met = {"check": check, "rare": rare, "yardstick": yardstick, "shape": shape}[given.what](table, given.model, number)
    if given.what == "yardstick":
        met &= by_designs(table, given.model, number)
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
