"""NEBULA's way of working: a Keras model in an .h5 file, a probability, inject, undo, and its benchmark.

    python nebula.py

NEBULA's benchmark injects faults into every weight of every layer once and prints the time that takes. Here each weight
loses its highest mantissa bit (22), a layer at a time, and the accuracy after it is printed too.
"""

import tempfile
import time
from pathlib import Path

import nets

import onnxfi
from onnxfi.converters import convert

PROBABILITY = 1e-4  # Injector(model.layers, probability=1e-4): of each bit


def main(folder: Path) -> None:
    nets.keras_cnn().save(folder / "fashion.h5")
    nets.save_test_images(folder / "test.npz", channels_last=True)

    converted = convert(folder / "fashion.h5", folder / "fashion.onnx", data=folder / "test.npz")
    print(f"layers {', '.join(converted.layers)}; largest difference from Keras {converted.largest:.0e}")
    model = onnxfi.load(converted.out)
    data = onnxfi.open_data(folder / "test.npz", converted.inputs)
    golden = onnxfi.evaluate(converted.out, data)
    print(f"golden accuracy {golden.metrics['top1']:.1%}")

    # injector.injectError(model), injector.undo(model)
    drawn = onnxfi.sample(model, ber=PROBABILITY, seed=1)
    onnxfi.inject(model, drawn, folder / "faulty.onnx", save_faults=folder / "faults.jsonl")
    faulty = onnxfi.evaluate(folder / "faulty.onnx", data, golden=golden)
    print(f"{drawn.drawn} of {drawn.population_bits:,} bits flipped: faulty accuracy {faulty.metrics['top1']:.1%}")
    listed = onnxfi.FaultList.open(folder / "faults.jsonl")
    undone = onnxfi.undo(onnxfi.load(folder / "faulty.onnx"), listed, folder / "restored.onnx")
    print(f"undone: {'the same file' if undone.faulty_digest == converted.digest else 'another file'}")

    # benchmark.py
    total = 0.0
    for layer in converted.layers:
        begun = time.perf_counter()
        one_each = onnxfi.sample(model, ber=1.0, selector=onnxfi.Selector(include=(f"={layer}",), bits="22"))
        faulty = onnxfi.inject(model, one_each)
        seconds = time.perf_counter() - begun
        total += seconds
        assert faulty.data is not None
        top1 = onnxfi.evaluate(faulty.data, data, golden=golden).metrics["top1"]
        print(f"{layer:>8}: one fault in each of {one_each.drawn:,} weights in {seconds:.3f} s, accuracy {top1:.1%}")
    print(f"all layers: {total:.3f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
