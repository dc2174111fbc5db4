"""Quantisation-aware training in PyTorch, an ONNX file with int8 weights, and faults in its integers.

    bash scripts/get_data.sh && python examples/quantisation_aware.py

Weights are int8 by output channel and symmetric, activations uint8; biases and the last layer's output stay float32.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from fault_aware import Cnn, images
from torch import nn
from torch.nn import functional

import onnxfi
from onnxfi.converters.torch import QuantisationAwareTraining, convert
from onnxfi.graph.passes.fold_quantize import fold_weight_quantize


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", metavar="NPZ", help="image and labels (default: Fashion-MNIST, else MNIST)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=20, help="trials at each rate")
    parser.add_argument("--out", metavar="FOLDER", help="where the model stays (default: nowhere)")
    given = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(20)
    data, test = images(given.data)
    model = QuantisationAwareTraining(Cnn())
    image, label = torch.from_numpy(data["image"]), torch.from_numpy(data["labels"])
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for epoch in range(given.epochs):
        model.train()
        for batch in torch.randperm(len(image)).split(128):
            loss = functional.cross_entropy(model(image[batch]), label[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.out or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        measure(model.model, folder, test, given.repeat)


def measure(model: nn.Module, folder: Path, test: dict, repeat: int) -> None:
    """Export, fold, and inject faults into the integers."""
    trained, stored = folder / "trained.onnx", folder / "int8.onnx"
    # An activation that lies between two integers may round either way, so the outputs differ by a step at most.
    few = {"image": test["image"][:64]}
    convert(model, trained, input_shape="N,1,28,28", data=few, samples=64, tolerance=0.05)
    stored.write_bytes(fold_weight_quantize(onnxfi.load(trained)))
    engine = onnxfi.OrtEngine(provider="cpu")
    data = onnxfi.open_data(test, engine.prepare(trained).inputs)
    for file in (trained, stored):
        weights = [t for t in onnxfi.load(file).targets if t.role == "weight"]
        top1 = onnxfi.evaluate(file, data, engine=engine).metrics["top1"]
        held = ", ".join(f"{t.dtype} {'x'.join(map(str, t.shape))}" for t in weights)
        print(f"{file.name}: {file.stat().st_size:,} bytes, top-1 {top1:.2%}, weights {held}")
    integers = onnxfi.Selector(role=("weight",), dtype=("int8",))
    int8 = onnxfi.load(stored)
    golden, faulty_file = onnxfi.evaluate(stored, data, engine=engine), folder / "faulty.onnx"
    example = onnxfi.sample(int8, count=1, seed=1, selector=integers).faults[0]
    print(f"one fault: {example.site}, {example.value('before')} -> {example.value('after')}")
    print(f"{'BER per bit':>12} {'faults':>8} {'top-1':>8} {'lowest':>8}   of {repeat} trials")
    for ber in (1e-4, 1e-3, 1e-2):
        found, injected = [], 0
        for trial in range(1, repeat + 1):
            drawn = onnxfi.sample(int8, ber=ber, seed=1, trial=trial, selector=integers)
            onnxfi.inject(int8, drawn, faulty_file)
            injected += drawn.drawn
            found.append(onnxfi.evaluate(faulty_file, data, golden=golden, engine=engine).metrics["top1"])
        print(f"{ber:>12g} {injected / repeat:>8.1f} {sum(found) / repeat:>8.2%} {min(found):>8.2%}", flush=True)
    faulty_file.unlink()


if __name__ == "__main__":
    main()
