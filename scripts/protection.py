"""Reproduce what protections gain on the shipped networks, and draw accuracy over bit error rates with them.

    python scripts/protection.py [FOLDER]

Calibration takes the first 500 of the shipped images, scoring others. The figure goes to docs/figures/protection.svg,
or into FOLDER; the numbers of docs/how-to/protect.md are printed. Takes some minutes.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from onnxfi.campaign.report.figures import write_figures
from onnxfi.campaign.report.paired import PairedComparison, compare_paired
from onnxfi.campaign.report.report import Report, report
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.graph.model.loading import load
from onnxfi.protection.protect import protect
from onnxfi.runtime.data.sources import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

ROOT = Path(__file__).resolve().parent.parent
CALIBRATION, SCORED = 500, 100
RATES = (1e-6, 1e-5, 1e-4, 1e-3)
ENGINE = OrtEngine(provider="cpu")


def split(work: Path) -> None:
    """Write calibration data and other data."""
    with np.load(ROOT / "models/fashion_test.npz") as data:
        images, labels = data["image"], data["labels"]
    np.savez(work / "calibration.npz", image=images[:CALIBRATION], labels=labels[:CALIBRATION])
    np.savez(work / "scored.npz", image=images[CALIBRATION:], labels=labels[CALIBRATION:])


def protected(work: Path, model: str, name: str, *what: str) -> Path:
    """Write a protected version of a shipped network."""
    opened = load(ROOT / f"models/{model}.onnx")
    data = open_data(work / "calibration.npz", ENGINE.prepare(opened.path or b"").inputs)
    done = protect(opened, what, work / f"{name}.onnx", data=data, engine=ENGINE)
    print(f"{name}: {done.drift}")
    return done.out


def sweep(work: Path, model: Path, name: str, **fields: object) -> Report:
    """Run accuracy over bit error rates; the store has the name that the figure shows."""
    copy = work / "named" / f"{name}.onnx"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(model, copy)
    campaign = Campaign(copy, work / "scored.npz", samples=SCORED, ber=RATES, repeat=8, provider="cpu", **fields)
    for _ in run(campaign, work / f"{name}.db"):
        pass
    found = report(work / f"{name}.db")
    print(f"{name:24}", "  ".join(f"{fold.key}: {100 * fold.rate('top1').estimate:5.1f} %" for fold in found.by_rate))
    return found


def single(work: Path, model: str, other: Path, **fields: object) -> PairedComparison:
    """Compare a shipped network and its protected version on single faults."""
    campaign = Campaign("", work / "scored.npz", samples=SCORED, single=True, provider="cpu", **fields)
    with tempfile.TemporaryDirectory() as stores:
        return compare_paired(str(ROOT / f"models/{model}.onnx"), str(other), campaign, stores)


def print_pair(title: str, found: PairedComparison) -> None:
    """Print the gain and the cost of a protection."""
    rows = {row.metric.name: row for row in found.rows}
    rate, due = rows["sdc1"].found, rows["due"].found
    times = rate.first / rate.second if rate.second else np.inf
    golden = ", ".join(f"{m.label} {100 * one:.2f} → {100 * two:.2f} %" for m, one, two in found.golden()[:1])
    print(
        f"{title:40} SDC-1 {100 * rate.first:.3f} → {100 * rate.second:.3f} % ({times:.1f} ×, p = {rate.p_value:.2g}), "
        f"DUE {100 * due.first:.2f} → {100 * due.second:.2f} %; "
        f"{golden}; time × {found.second.batch_s / found.first.batch_s:.2f}"
    )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "figures"
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        split(work)
        networks = {
            name: protected(work, name, f"{name}-clip", "range:clip", "nan-filter")
            for name in ("fashion_cnn", "fashion_attention")
        }
        tuned = protected(work, "fashion_cnn", "fashion_cnn-tuned", "range:tuned", "nan-filter")
        weights = protected(work, "fashion_cnn", "fashion_cnn-weights", "clip-weights")
        print("\nsingle faults in bit 30 of weights, and in exponents of activations")
        for name, other in networks.items():
            print_pair(
                f"{name}, activations", single(work, name, other, trials=300, bits="exponent", target="activations")
            )
            print_pair(f"{name}, weights", single(work, name, other, trials=200, bits="30"))
        print_pair("fashion_cnn, weights, clip-weights", single(work, "fashion_cnn", weights, trials=200, bits="30"))
        print("\naccuracy over the bit error rate in weights")
        cnn = ROOT / "models/fashion_cnn.onnx"
        found = [
            sweep(work, cnn, "float32"),
            sweep(work, networks["fashion_cnn"], "float32 range:clip"),
            sweep(work, tuned, "float32 range:tuned"),
            sweep(work, ROOT / "models/fashion_cnn_int8_qdq.onnx", "int8"),
        ]
        sweep(work, weights, "float32 clip-weights")
        for code in ("secded:detected=keep", "cep", "mset", "tmr"):
            sweep(work, cnn, f"float32 {code.partition(':')[0]}", memory_code=code)
        write_figures(found, work / "figures")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(work / "figures" / "accuracy.svg", folder / "protection.svg")
        print(f"\n{folder / 'protection.svg'}")


if __name__ == "__main__":
    main()
