"""Bits of a detector: how often one that flips makes it lose objects, or see some that do not exist.

python examples/lost_objects.py [weights|activations] [TRIALS]
"""

import sys
from pathlib import Path

import onnxfi

MODELS = Path(__file__).parent.parent / "models"
METRICS = ("ivmod_due", "lost_boxes", "new_boxes")


def main(target: str, trials: int) -> None:
    found = onnxfi.run(
        MODELS / "scenes_detector.onnx", MODELS / "scenes_test.npz", labels=MODELS / "scenes_test.json",
        task="detection", samples=50, target=target, single=True, trials=trials, bits="20-31", provider="cpu",
        progress=False,
    )  # fmt: skip
    print(f"{target}; bits 23 to 30 are the exponent, 31 is the sign, 20 to 22 the top of the mantissa")
    print(f"{'bit':>3} {'trials':>6} {'IVMOD_SDC, 99 %':>23} {'IVMOD_DUE':>10} {'lost':>8} {'new':>8}")
    for fold in filter(lambda one: one.trials, found.by_bit):
        sdc = fold.rate("ivmod_sdc")
        others = " ".join(f"{fold.rate(name).estimate:>8.2%}" for name in METRICS)
        print(f"{fold.key:>3} {fold.trials:>6} {f'{sdc.estimate:.2%} [{sdc.low:.2%}, {sdc.high:.2%}]':>23}   {others}")


if __name__ == "__main__":
    target, trials = (*sys.argv[1:3], *("weights", "2400")[len(sys.argv) - 1 :])
    main(target, int(trials))
