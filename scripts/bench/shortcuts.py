"""Gain of each shortcut of a campaign: the same trials with shortcuts added one by one, in one process.

    python scripts/bench/shortcuts.py MODEL… [--trials 120] [--layers] [--batch 8] [--threads 1] [--only VARIANT …]

The trials are single faults in stored words, uniform over the network, or six in each layer (`--layers`), on one batch
of made-up inputs. Each variant runs all of them once, so that sessions are open and golden values at hand, and then
once more, timed. Reported is the CPU time of a trial against a golden run of the same batch on as many threads. `full`
runs a tenth of the trials, since each makes a session of the whole model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
from campaign import made_up

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.graph.partition.segments import Segmentation
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.partial.conv_delta import ConvDelta
from onnxfi.runtime.partial.segmented_model import SegmentedModel

#: The margin at which a layer of a large network gets 6 trials.
LAYER_MARGIN = 0.526
#: The shortcuts that a variant leaves out: a function, and its replacement.
Without = tuple[tuple[object, str, Callable[..., object]], ...]
WHOLE_OPERATOR = (Segmentation, "_with_channels", lambda self, whole: whole)
WHOLE_SUM = (ConvDelta, "faulty_entry", lambda self, *given: None)
ALL_SAMPLES = (SegmentedModel, "keeps_bits", lambda self, *given: False)

VARIANTS: dict[str, tuple[str, Without]] = {
    "full": ("full", ()),
    "partial": ("late-start", (WHOLE_OPERATOR, WHOLE_SUM)),
    "+ output channels": ("late-start", (ALL_SAMPLES, WHOLE_SUM)),
    "+ segments, early stop": ("auto", (ALL_SAMPLES, WHOLE_SUM)),
    "+ early stop of samples": ("auto", (WHOLE_SUM,)),
    "+ channels together": ("auto", (WHOLE_SUM,)),
    "+ changed terms alone": ("auto", ()),
}
TOGETHER = ("+ channels together", "+ changed terms alone")


def variant(
    campaign: Campaign, route: str, without: Without, *, together: bool
) -> tuple[float, float, Counter[str | None]]:
    """Return the CPU seconds of a golden run and of a trial, and the trials by route."""
    with ExitStack() as stack:
        for where, name, other in without:
            stack.enter_context(patch.object(where, name, other))
        executor = TrialExecutor.open(campaign.with_fields(route=route), 4 << 30)
        plan = make_plan(executor.opened.campaign, executor.opened.fault_targets)
        golden = executor.golden_runs.run_again()
        session = OrtEngine(provider="cpu", threads=campaign.engine.threads).prepare(campaign.model)
        times = []
        for _ in range(5):
            begun = time.process_time()
            executor.opened.run(session)
            times.append(time.process_time() - begun)
        trials = [planned.lines.splitlines() for planned in plan.trials()]
        trials = trials[: max(5, len(trials) // 10)] if route == "full" else trials

        def run_all() -> Counter[str | None]:
            found = executor.together(plan.header, golden, trials) if together else {}
            alone = (k for k in range(len(trials)) if k not in found)
            found |= {k: executor.trial(plan.header, golden, trials[k]) for k in alone}
            return Counter(judgement.route for judgement in found.values())

        run_all()
        begun = time.process_time()
        routes = run_all()
        return float(np.median(times)), (time.process_time() - begun) / len(trials), routes


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("models", nargs="+", type=Path)
    parse.add_argument("--trials", type=int, default=120)
    parse.add_argument("--layers", action="store_true")
    parse.add_argument("--batch", type=int, default=8)
    parse.add_argument("--threads", type=int, default=1)
    parse.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    given = parse.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for model in given.models:
            inputs = OrtEngine(provider="cpu").prepare(model).inputs
            data = Path(folder) / "data.npz"
            np.savez(data, **{p.name: made_up(p, given.batch) for p in inputs})
            which = {"per": "layer", "margin": LAYER_MARGIN} if given.layers else {"trials": given.trials}
            campaign = Campaign(
                str(model), str(data), single=True, batch=given.batch, provider="cpu", threads=given.threads, **which
            )
            for name in given.only:
                route, without = VARIANTS[name]
                golden_s, trial_s, routes = variant(campaign, route, without, together=name in TOGETHER)
                counts = ", ".join(f"{n} {route}" for route, n in sorted(routes.items(), key=str))
                share = f"{trial_s / golden_s:6.3f} of golden ({1e3 * golden_s:.1f} ms)"
                rates = f"{golden_s / trial_s:.1f} trials a golden inference, {1 / trial_s:,.0f} injections a second"
                print(f"{model.stem:18} {name:26} {share}  [{rates}; {counts}]", flush=True)


if __name__ == "__main__":
    main()
