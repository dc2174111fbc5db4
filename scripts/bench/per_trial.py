"""Cost of what surrounds a trial: planning, reading, proving or running, and storing, by the number of trials.

    python scripts/bench/per_trial.py [--trials 20000] [--samples 64] [--outcomes class bits]

Single flips in the shipped CNN, in this process, as processor time of each step in µs a trial.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.proved.proof_executor import open_executor
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.workers.trial_batches import batches_by_tensor
from onnxfi.campaign.workers.worker import run_in_process

ROOT = Path(__file__).resolve().parents[2]


def steps(campaign: Campaign, folder: Path) -> dict[str, float]:
    """Return the processor seconds of each step of a campaign, from its plan to its results in a store."""
    executor = open_executor(campaign)
    plan = make_plan(executor.opened.campaign, executor.opened.fault_targets)
    golden, _ = executor.golden_runs.run()
    found, begun = {}, time.process_time()

    def done(name: str) -> None:
        nonlocal begun
        found[name] = time.process_time() - begun
        begun = time.process_time()

    planned = list(plan.trials())
    done("draw and write as lines")
    with Store.open(folder / f"{campaign.scoring.outcomes}.db", create=True) as store:
        store.plan(plan.strata, planned)
        done("plan into the store")
        tasks = [*store.pending()]
        done("plan out of the store")
        batches = batches_by_tensor(iter(tasks), executor.most_at_once, 1)
        results = [*run_in_process(executor, golden, plan.header, batches)]
        done("read, prove or run, judge")
        store.add(results)
        done("results into the store")
    return found


def main() -> None:
    """Print the cost of each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--outcomes", nargs="+", default=["class", "bits"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for outcomes in given.outcomes:
            campaign = Campaign(
                ROOT / "models/fashion_cnn.onnx", ROOT / "models/fashion_test.npz", samples=given.samples, batch=64,
                single=True, trials=given.trials, outcomes=outcomes, provider="cpu",
            )  # fmt: skip
            for name, seconds in steps(campaign, Path(folder)).items():
                print(f"{outcomes}, {name}: {1e6 * seconds / given.trials:.0f} µs")


if __name__ == "__main__":
    main()
