"""Make the class table of the shipped CNN: the class outcomes of every flip in its linear layers, on 1,000 images.

    python scripts/class_tables.py [--out FILE] [--include fc1 --include fc2]

It takes some minutes of one core; a run that is stopped goes on. Renews SHA256SUMS.
"""

import argparse
from pathlib import Path

from checksums import write_checksums

from onnxfi import Campaign, class_outcomes

MODELS = Path(__file__).parents[1] / "models"


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODELS / "fashion_cnn_faults.npz")
    parser.add_argument("--include", action="append")
    given = parser.parse_args()
    campaign = Campaign(
        MODELS / "fashion_cnn.onnx", MODELS / "fashion_test.npz", samples=1000, batch=50, exhaustive=True,
        outcomes="class", include=tuple(given.include or ("fc1", "fc2")),
    )  # fmt: skip
    given.out.unlink(missing_ok=True)
    table = class_outcomes(campaign, given.out, progress=lambda name, done, of: print(f"{name}: {done:,} of {of:,}"))
    print(f"{table.faults:,} faults, {table.ran:,} answers run, {table.header['cost']}")
    write_checksums()


if __name__ == "__main__":
    main()
