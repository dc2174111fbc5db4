"""Make the narrower versions of the shipped CNN with onnxfi itself, measure them, and renew SHA256SUMS.

    python scripts/quantize_models.py

Writes models/fashion_cnn_{fp16,int8_qdq,int8_qoperator}.onnx from models/fashion_cnn.onnx, calibrated on the first
200 images of models/fashion_test.npz. With data/fashion-mnist/ there (bash scripts/get_data.sh), the accuracy on all
10,000 test images is printed too. One machine with the same versions makes the same bytes twice.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
from checksums import write_checksums

from onnxfi import OrtEngine, Recipe, evaluate, load, open_data, quantize

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
TEST = ROOT / "data" / "fashion-mnist"
SOURCE = MODELS / "fashion_cnn.onnx"
RECIPES = {
    "fp16": Recipe("fp16"),
    "int8_qdq": Recipe("static", format="qdq", weights="int8", activations="uint8", per_channel=True),
    "int8_qoperator": Recipe("static", format="qoperator", weights="int8", activations="uint8"),
}


def whole_test_set() -> dict[str, np.ndarray] | None:
    """The 10,000 test images as the models take them, where they were fetched."""
    parts = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        path = TEST / f"t10k-{kind}-ubyte.gz"
        if not path.is_file():
            return None
        parts.append(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header))
    image = parts[0].reshape(-1, 1, 28, 28).astype(np.float32) / np.float32(255)
    return {"image": image, "labels": parts[1].astype(np.int64)}


def main() -> int:
    """Quantise, measure, and write the checksums."""
    engine = OrtEngine(provider="cpu")
    inputs = engine.prepare(SOURCE).inputs
    shipped = open_data(MODELS / "fashion_test.npz", inputs)
    everything = whole_test_set()
    for name, recipe in RECIPES.items():
        out = MODELS / f"fashion_cnn_{name}.onnx"
        done = quantize(load(SOURCE), recipe, out, data=shipped if recipe.mode == "static" else None)
        print(f"{out.relative_to(ROOT)}: {done.size_after_bytes:,} bytes, sha256 {done.digest}")
        print(f"  of {done.words:,} numbers {done.clipped:,} clipped, {done.flushed:,} flushed to zero")
        for data in (shipped, everything and open_data(everything, inputs)):
            if data:
                found = evaluate(out, data, engine=engine)
                print(f"  top-1 {found.metrics['top1']:.2%} of {found.samples:,}")
    write_checksums()
    return 0


if __name__ == "__main__":
    sys.exit(main())
