"""An exhaustive campaign held against the published one of ResNet-20 on CIFAR-10 (Ruospo et al., DATE 2023).

    python scripts/bench/published_truth.py resnet20-trained.th test_batch [--folder FOLDER]

Their repository, https://github.com/GabrieleGavarini/ExhaustiveFaultInjection, has the weights
(models/pretrained_models/resnet20-trained.th) and the share of critical faults of each layer (column Exhaustive_p of
analysis/csv/complete_p_n.csv); `test_batch` is that of CIFAR-10 in its version for Python. The first ten images of each
class are taken, as there. Needs torch, which reads the weights.

Every flip of a single bit in the weights of the last layer is judged by class, and the answers whose class is not the
golden one are counted. There, half of the faults are stuck-at faults that change nothing, and a NaN among the scores is
the largest of them. The exit status says whether the share is the published one, to the last digit: 0 yes, 1 no.
"""

import argparse
import pickletools
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array, to_array

from onnxfi import Campaign, OutcomeTable, exhaustive_outcomes
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

#: The published share of critical faults in the last layer.
PUBLISHED = 0.006935058593749999
LAYER, CLASSES, OF_EACH = "linear.weight", 10, 10
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
#: The pickle's code for the string of all pixels, 30,720,000 bytes.
PIXELS = b"T" + (10_000 * 3072).to_bytes(4, "little")
Array = np.ndarray[Any, np.dtype[Any]]


def network(weights: Path) -> onnx.ModelProto:
    """Return ResNet-20 with shortcuts that pad channels, as ONNX."""
    import torch

    state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    stored = {name.removeprefix("module."): value.numpy() for name, value in state.items()}
    inside: dict[str, Array] = {"starts": np.zeros(2, np.int64), "ends": np.full(2, 99), "axes": np.array([2, 3])}
    inside["steps"] = np.full(2, 2)
    nodes: list[onnx.NodeProto] = []

    def put(name: str) -> str:
        inside[name] = stored[name]
        return name

    def conv(x: str, name: str, norm: str, stride: int) -> str:
        options = {"kernel_shape": [3, 3], "strides": [stride] * 2, "pads": [1] * 4}
        nodes.append(make_node("Conv", [x, put(f"{name}.weight")], [f"{name}.out"], name, **options))
        moments = [put(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
        nodes.append(make_node("BatchNormalization", [f"{name}.out", *moments], [f"{norm}.out"], norm))
        return f"{norm}.out"

    def node(kind: str, out: str, *inputs: str, **options: Any) -> str:
        nodes.append(make_node(kind, list(inputs), [out], out, **options))
        return out

    x = node("Relu", "relu1", conv("image", "conv1", "bn1", 1))
    for group, planes in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            name = f"layer{group}.{block}"
            halves = group > 1 and block == 0
            y = node("Relu", f"{name}.relu1", conv(x, f"{name}.conv1", f"{name}.bn1", 2 if halves else 1))
            y = conv(y, f"{name}.conv2", f"{name}.bn2", 1)
            if halves:
                inside[f"{name}.pads"] = np.array([0, planes // 4, 0, 0, 0, planes // 4, 0, 0])
                x = node("Slice", f"{name}.slice", x, "starts", "ends", "axes", "steps")
                x = node("Pad", f"{name}.pad", x, f"{name}.pads")
            x = node("Relu", f"{name}.relu2", node("Add", f"{name}.sum", y, x))
    flat = node("Flatten", "flat", node("GlobalAveragePool", "pool", x))
    node("Gemm", "scores", flat, put(LAYER), put("linear.bias"), transB=1)
    graph = make_graph(
        nodes, "resnet20", [make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
        [from_array(np.ascontiguousarray(array), name) for name, array in inside.items()],
    )  # fmt: skip
    return make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)


def images(batch: Path) -> tuple[Array, Array]:
    """Return the first ten images of each class, normalised, and their classes; nothing in the pickle is executed."""
    raw = batch.read_bytes()
    begin = raw.index(PIXELS)
    labels = np.array([arg for code, arg, _ in pickletools.genops(raw[:begin] + b".") if code.name == "BININT1"])
    pixels = np.frombuffer(raw, np.uint8, offset=begin + len(PIXELS))
    pixels = pixels[: min(len(pixels) // 3072, 10_000) * 3072].reshape(-1, 3, 32, 32)
    labels = labels[: len(pixels)]
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == k)[:OF_EACH] for k in range(CLASSES)]))
    scaled = pixels[chosen].astype(np.float32) / 255
    mean, deviation = (np.array(three, np.float32)[:, None, None] for three in (MEAN, DEVIATION))
    return (scaled - mean) / deviation, labels[chosen]


def changed(table: OutcomeTable, model: onnx.ModelProto, x: Array) -> int:
    """Return how many answers have another class, a NaN counted as the largest score: those of DUE run here."""
    golden = OrtEngine(provider="cpu").prepare(model.SerializeToString()).run({"image": x})["scores"].argmax(1)
    [tensor] = table.tensors
    [stored] = [one for one in model.graph.initializer if one.name == LAYER]
    found, kept = 0, to_array(stored).copy()
    for element, column in np.argwhere(tensor.due > 0):
        faulty = kept.copy()
        faulty.view(np.uint32).reshape(-1)[element] ^= np.uint32(1 << tensor.bits[column])
        stored.CopyFrom(from_array(faulty, LAYER))
        scores = OrtEngine(provider="cpu").prepare(model.SerializeToString()).run({"image": x})["scores"]
        found += int((np.nan_to_num(scores, nan=np.inf).argmax(1) != golden).sum())
    found += int(tensor.changed[tensor.due == 0].sum())
    return found


def main() -> None:
    """Run the campaign, and print its share beside the published one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("test_batch", type=Path)
    parser.add_argument("--folder", type=Path, help="for the model, the images and the table; by default one that ends")
    given = parser.parse_args()
    model, (x, labels) = network(given.weights), images(given.test_batch)
    with nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory() as folder:
        file, data = Path(folder, "resnet20.onnx"), Path(folder, "images.npz")
        onnx.save(model, file)
        np.savez(data, image=x, labels=labels)
        campaign = Campaign(file, data, batch=len(x), exhaustive=True, outcomes="class", include=(f"={LAYER}",))
        table = exhaustive_outcomes(campaign, Path(folder, "resnet20.classes.npz"))
    answers = table.faults * table.samples
    found = changed(table, model, x)
    share = found / (2 * answers)
    print(f"golden run right on {table.header['golden']['top1']:.0%} of {len(x)} images")
    print(f"{found:,} of {answers:,} answers have another class; {table.ran:,} of them ran, the others were proved")
    print(f"share with as many faults that change nothing: {share:.16f}; published: {PUBLISHED:.16f}")
    sys.exit(0 if abs(share - PUBLISHED) < 1e-15 else 1)


if __name__ == "__main__":
    main()
