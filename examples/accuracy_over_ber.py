"""Accuracy of a deployed classifier as more and more bits of its weights go wrong.

python examples/accuracy_over_ber.py [MODEL] [DATA]
"""

import sys
import tempfile
from pathlib import Path

import onnxfi

MODELS = Path(__file__).parent.parent / "models"


def main(model_file: str, data_file: str) -> None:
    model = onnxfi.load(model_file)
    engine = onnxfi.OrtEngine()
    data = onnxfi.open_data(data_file, engine.prepare(model.path).inputs)
    golden = onnxfi.evaluate(model.path, data, engine=engine)
    print(f"{model_file}: {data.samples:,} images, {onnxfi.inspect(model)['totals']['bits']:,} bits of weights")
    print(f"{'BER per bit':>12} {'expected':>9} {'drawn':>7} {'golden top-1':>13} {'faulty top-1':>13} {'SDC-1':>9}")
    with tempfile.TemporaryDirectory() as folder:
        faulty_file = Path(folder) / "faulty.onnx"
        for ber in (1e-6, 1e-5, 1e-4, 1e-3):
            drawn = onnxfi.sample(model, ber=ber, seed=1)
            onnxfi.inject(model, drawn, faulty_file)
            faulty = onnxfi.evaluate(faulty_file, data, golden=golden, engine=engine)
            top1, sdc1 = faulty.metrics["top1"], faulty.metrics["sdc1"]
            print(
                f"{ber:>12g} {drawn.expected:>9.1f} {drawn.drawn:>7,} "
                f"{golden.metrics['top1']:>13.2%} {top1:>13.2%} {sdc1:>9.2%}"
            )


if __name__ == "__main__":
    given = sys.argv[1:3]
    main(*given, *[str(MODELS / name) for name in ("fashion_cnn.onnx", "fashion_test.npz")][len(given) :])
