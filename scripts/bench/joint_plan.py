"""A joint plan for weights and activations, and its forecast beside campaigns on the protected model.

    python scripts/bench/joint_plan.py [NETWORK]   # fashion_cnn by default; some minutes

One half of the recorded trials chooses the plan, the other half gives the forecast. Then the model is protected as
planned, faults of another seed are drawn in the tensors of the model that was there before: in the weights under the
planned memory code, and in the activations. Both rates are put together as the forecast does, by the bits of each kind
and the share of an inference in which they are in memory. Ends with 1 where the two intervals do not meet.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from onnxfi import Campaign, plan_protection, protect
from onnxfi.analysis.exposure import resident_shares
from onnxfi.campaign.plan.plan import Plan
from onnxfi.campaign.report.report import report
from onnxfi.campaign.run.runner import plan, run
from onnxfi.statistics.intervals import Interval

ROOT = Path(__file__).parents[2]
BUDGET, TRIALS, CHECKED, SEED = "bytes=5%,macs=150%", 2000, 1500, 7


def exposed(made: Plan) -> float:
    """Bits that faults are drawn from, those of activations by their share of an inference in memory."""
    shares = resident_shares(made.model)
    space = made.strata[0].space
    rows = zip(space.targets, space.bit_positions, space.element_counts, strict=True)
    return sum(n * len(bits) * (shares.get(t.layer, 1.0) if t.is_activation else 1.0) for t, bits, n in rows)


def measured(campaign: Campaign, store: Path) -> Interval:
    """SDC-1 of one fault."""
    for _ in run(campaign, store):
        pass
    found = report(store).everything.rate("sdc1")
    assert found is not None
    return found


def check(name: str, folder: Path) -> int:
    """Plan, protect, and measure what remains."""
    model, data = ROOT / "models" / f"{name}.onnx", ROOT / "models" / "fashion_test.npz"
    base = {"data": data, "samples": 100, "provider": "cpu"}
    kinds = {"weights": Campaign(model, adaptive=True, margin=0.005, **base),
             "activations": Campaign(model, target="activations", single=True, trials=TRIALS, **base)}  # fmt: skip
    before = {kind: measured(one, folder / f"{kind}.db") for kind, one in kinds.items()}
    made = {kind: plan(Campaign(model, target=kind, single=True, trials=1, **base))[0] for kind in kinds}
    bits = {kind: exposed(one) for kind, one in made.items()}
    planned = plan_protection([folder / f"{kind}.db" for kind in kinds], BUDGET)
    fewer = folder / "protected.onnx"
    if planned.plan.graph:
        protect(model, (), fewer, plan=planned.plan)
    else:  # in memory alone
        fewer = model
    names = {kind: tuple(f"={t.id}" for t in one.strata[0].space.targets) for kind, one in made.items()}
    after = {
        kind: measured(
            Campaign(fewer, target=kind, include=names[kind], single=True, trials=CHECKED, seed=SEED, **base,
                     memory_code=planned.plan.memory_code if kind == "weights" else None),
            folder / f"{kind}.check.db",
        )
        for kind in kinds
    }  # fmt: skip
    whole = sum(bits.values())
    low, rate, high = (
        sum(bits[k] / whole * getattr(after[k], end) for k in kinds) for end in ("low", "estimate", "high")
    )
    spent = ", ".join(f"{part.part} {part.protection.protection}" for part in planned.parts if part.protection)
    print(f"{name}, {BUDGET}: {spent}")
    for kind in kinds:
        print(f"  {kind}: {bits[kind] / whole:.1%} of the exposure, SDC-1 {before[kind].estimate:.3%} before, "
              f"{after[kind].estimate:.4%} after in {CHECKED:,} trials")  # fmt: skip
    was, said = planned.unprotected, planned.forecast
    meet = low <= said.high and said.low <= high
    place = "inside" if said.low <= rate <= said.high else "outside"
    print(f"  one fault anywhere: {was.estimate:.3%} before; forecast {said.estimate:.4%} "
          f"[{said.low:.4%}, {said.high:.4%}]; found {rate:.4%} [{low:.4%}, {high:.4%}]: {place}")  # fmt: skip
    return not meet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", nargs="?", default="fashion_cnn", metavar="NETWORK", help="of models/")
    with tempfile.TemporaryDirectory() as place:
        sys.exit(check(parser.parse_args().network, Path(place)))
