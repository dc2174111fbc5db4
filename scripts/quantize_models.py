"""Make the narrower versions of the shipped CNN and GPT with onnxfi itself, measure them, and renew SHA256SUMS.

    python scripts/quantize_models.py

Writes models/fashion_cnn_{fp16,int8_qdq,int8_qoperator}.onnx from models/fashion_cnn.onnx, calibrated on the first
200 images of models/fashion_test.npz, and models/char_gpt_{fp16,int8,int4}.onnx from
models/char_gpt.onnx. With data/fashion-mnist/ there (bash scripts/get_data.sh), the accuracy on all
10,000 test images is printed too. One machine with the same versions makes the same bytes twice.
"""

import argparse
import gzip
import sys
from pathlib import Path

import numpy as np
from checksums import write_checksums

from onnxfi import OrtEngine, QuantisationRecipe, evaluate, load, open_data, quantize

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
TEST = ROOT / "data" / "fashion-mnist"
SOURCE = MODELS / "fashion_cnn.onnx"
RECIPES = {
    "fp16": QuantisationRecipe("fp16"),
    "int8_qdq": QuantisationRecipe("static", format="qdq", weights="int8", activations="uint8", per_channel=True),
    "int8_qoperator": QuantisationRecipe("static", format="qoperator", weights="int8", activations="uint8"),
}

GPT, TEXTS = MODELS / "char_gpt.onnx", MODELS / "char_gpt_test.npz"
GPT_RECIPES = {
    "fp16": QuantisationRecipe("fp16"),
    "int8": QuantisationRecipe("dynamic", per_channel=True),
    "int4": QuantisationRecipe("weight-only", block=32),
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
    quantize_gpt(engine)
    write_checksums()
    return 0


def quantize_gpt(engine: OrtEngine) -> None:
    """Make the narrower versions of the GPT, and measure them on the held-out text."""
    golden = evaluate(GPT, TEXTS, engine=engine, batch=8, task="language-model")
    print(f"{GPT.relative_to(ROOT)}: perplexity {golden.metrics['perplexity']:.4f}")
    for name, recipe in GPT_RECIPES.items():
        out = MODELS / f"char_gpt_{name}.onnx"
        done = quantize(load(GPT), recipe, out)
        found = evaluate(out, TEXTS, engine=engine, batch=8, golden=golden).metrics
        print(f"{out.relative_to(ROOT)}: {done.size_after_bytes:,} bytes, sha256 {done.digest}")
        print(
            f"  perplexity {found['perplexity']:.4f}, top-1 agreement {found['top1_agreement']:.2%}, divergence "
            f"{found['kl_mean']:.2e} nats"
        )


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    sys.exit(main())
