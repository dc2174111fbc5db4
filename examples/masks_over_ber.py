"""Masks of a segmenter as more and more bits of its weights go wrong: mIoU, and the pixels that change their class.

python examples/masks_over_ber.py [REPEAT]
"""

import sys
from pathlib import Path

import onnxfi

MODELS = Path(__file__).parent.parent / "models"
METRICS = ("miou", "changed_pixels", "sdc_samples", "due_samples")


def main(repeat: int) -> None:
    found = onnxfi.run(
        MODELS / "scenes_segmenter.onnx", MODELS / "scenes_test.npz", task="segmentation", samples=50,
        ber=(1e-6, 1e-5, 1e-4, 1e-3), repeat=repeat, provider="cpu", progress=False,
    )  # fmt: skip
    print(f"golden mIoU {found.golden['metrics']['miou']:.2%}; means of {repeat} trials of 50 scenes")
    print(f"{'BER':>6} {'mIoU':>8} {'changed pixels':>15} {'SDC':>8} {'DUE':>8}")
    for fold in found.by_rate:
        miou, pixels, sdc, due = (fold.rate(name).estimate for name in METRICS)
        print(f"{fold.key:>6} {miou:>8.2%} {pixels:>15.2%} {sdc:>8.2%} {due:>8.2%}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
