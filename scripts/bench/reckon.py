"""The cost of a campaign that is too large to try, reckoned from parts that are measured here.

    python scripts/bench/reckon.py MODEL [--data DATA] [--trials 1000000] [--samples 50000] [--batch 8] [--tried 40]
        [--larger 1] [--include PATTERN]

Without data on made-up inputs. The parts: a golden run of one batch, a trial with a single fault on that batch with
everything open, and a result written to a store; all as processor time of one thread. A campaign takes as many of them
as it has batches and trials, so its cost is their sum; `--larger` multiplies the first two, for a network with so many
times the parameters and the same shape; `--include` selects the weights that have faults, as in `onnxfi run`. Start,
plan and report are left out: seconds. Prints core hours.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from campaign import made_up

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

ROUNDS = 3


def parts_of(campaign: Campaign) -> tuple[float, float]:
    """Return the processor seconds of a golden run of one batch, and of a trial."""
    executor = TrialExecutor.open(campaign, 4 << 30)
    plan = make_plan(executor.opened.campaign, executor.opened.fault_targets)
    golden = executor.golden_runs.run_again()
    session = OrtEngine(provider="cpu", threads=1).prepare(campaign.model)
    trials = [planned.lines.splitlines() for planned in plan.trials()]

    def run_all() -> None:
        found = executor.together(plan.header, golden, trials)
        for number, lines in enumerate(trials):
            if number not in found:
                executor.trial(plan.header, golden, lines)

    run_all()
    golden_s, trial_s = [], []
    for _ in range(ROUNDS):
        for seconds, call in ((golden_s, lambda: executor.opened.run(session)), (trial_s, run_all)):
            begun = time.process_time()
            call()
            seconds.append(time.process_time() - begun)
    return float(np.median(golden_s)), float(np.median(trial_s)) / len(trials)


def row_s(campaign: Campaign, folder: Path) -> float:
    """Return the processor seconds of a result that is written to a store."""
    store = folder / "store.db"
    results = list(run(campaign, store, workers=0))
    with Store.open(folder / "other.db", create=True) as other:
        begun = time.process_time()
        for first in range(0, 20_000, 1000):
            other.add(replace(results[0], trial=first + k + 1) for k in range(1000))
        return (time.process_time() - begun) / 20_000


def main() -> None:
    """Measure the parts, and print the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--trials", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tried", type=int, default=40)
    parser.add_argument("--larger", type=float, default=1.0)
    parser.add_argument("--include", action="append", default=[])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = given.data or Path(name) / "data.npz"
        if given.data is None:
            inputs = OrtEngine(provider="cpu").prepare(given.model).inputs
            np.savez(data, **{port.name: made_up(port, given.batch) for port in inputs})
        campaign = Campaign(
            str(given.model), str(data), samples=given.batch, single=True, trials=given.tried, batch=given.batch,
            provider="cpu", threads=1, include=tuple(given.include),
        )  # fmt: skip
        golden_s, trial_s = parts_of(campaign)
        stored_s = row_s(campaign, Path(name))
    golden_s, trial_s = golden_s * given.larger, trial_s * given.larger
    batches = -(-given.samples // given.batch)
    print(f"golden run of {given.batch}: {1e3 * golden_s:.1f} ms; a trial on them: {1e3 * trial_s:.1f} ms")
    print(f"({trial_s / golden_s:.3f} of it); a result stored: {1e6 * stored_s:.0f} µs")
    for many, what in ((batches, f"{given.samples:,} samples"), (1, f"{given.batch} samples")):
        trials_h, stored_h = given.trials * many * trial_s / 3600, given.trials * stored_s / 3600
        golden_h = 2 * many * golden_s / 3600
        print(
            f"{given.trials:,} faults, each on {what}: {golden_h + trials_h + stored_h:,.1f} core hours "
            f"(trials {trials_h:,.1f}, golden runs {golden_h:,.2f}, store {stored_h:,.2f})"
        )


if __name__ == "__main__":
    main()
