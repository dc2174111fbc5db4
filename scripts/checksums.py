"""Renew models/SHA256SUMS, as `sha256sum -c` reads it: a line for each model and each file of data."""

import argparse
import hashlib
from pathlib import Path

MODELS = Path(__file__).resolve().parent.parent / "models"
LISTED = (".onnx", ".npz", ".json", ".txt", ".jsonl", ".yaml")


def write_checksums() -> None:
    """Write the digests of what lies in models/."""
    files = sorted(file for file in MODELS.iterdir() if file.suffix in LISTED)
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (MODELS / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    write_checksums()
