"""Make the outcome tables of shipped networks: the class outcomes of every flip, on 1,000 images.

    python scripts/outcome_tables.py [fashion_cnn] [fashion_cnn_int8_qdq] [--include TENSOR …] [--out FILE]

They take some ten and two minutes of one core; a run that is stopped goes on. Renews SHA256SUMS.
"""

import argparse
from pathlib import Path

from checksums import write_checksums

from onnxfi import Campaign, exhaustive_outcomes

MODELS = Path(__file__).parents[1] / "models"
#: The networks, with the selection of faults: of the quantised one weights and biases, without scales and zero points.
NETWORKS = {"fashion_cnn": {}, "fashion_cnn_int8_qdq": {"role": ("weight", "bias")}}


def main() -> None:
    """Make the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []], default=[*NETWORKS])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--include", action="append", default=[])
    given = parser.parse_args()
    for name in given.networks:
        out = given.out or MODELS / f"{name.removesuffix('_qdq')}_faults.npz"
        campaign = Campaign(
            MODELS / f"{name}.onnx", MODELS / "fashion_test.npz", samples=1000, batch=50, exhaustive=True,
            outcomes="class", include=tuple(given.include), **NETWORKS[name],
        )  # fmt: skip
        out.unlink(missing_ok=True)
        table = exhaustive_outcomes(campaign, out, progress=lambda name, done, of: print(f"{name}: {done:,} of {of:,}"))
        print(f"{out}: {table.faults:,} faults, {table.ran:,} answers run, {table.header['cost']}")
    write_checksums()


if __name__ == "__main__":
    main()
