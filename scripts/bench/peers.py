"""Cost of other tools in PyTorch: weight faults in a ResNet-18 at 224 px, against its inference in ONNX Runtime.

python scripts/bench/peers.py [BATCH] [FAULTS] [RESNET18.onnx]

Needs torch and onnxruntime, and takes pytorchfi and mrfi where they are installed. The network is exported to the file
that is named, unless that is there already. Each fault is run by every way in turn, next to one inference of the unit,
so that all meet the same neighbours. Weights are random: time does not depend on them. The last line is JSON: the
median ratio of each way.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

SIDE = 224


class Block(nn.Module):
    """Two convolutions and what goes around them."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.around: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.around = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.main(x) + self.around(x))


def resnet18() -> nn.Module:
    """The network of He and others (2015), for 1,000 classes."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    before = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(before, width, stride), Block(width, width, 1)]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()


def flip(value: float, bit: int) -> float:
    """A float32 with one bit flipped."""
    word = np.array([value], np.float32)
    word.view(np.uint32)[0] ^= np.uint32(1 << bit)
    return float(word[0])


def faults(convs: list[nn.Conv2d], count: int) -> list[tuple[int, tuple[int, ...], int]]:
    """Single bits, uniform over all weights of convolutions: layer, element, bit."""
    ends = np.cumsum([conv.weight.numel() for conv in convs])
    words = np.random.Philox(7).random_raw(2 * count)
    found = []
    for place, bit in zip(words[:count] % ends[-1], words[count:] % 32, strict=True):
        layer = int(np.searchsorted(ends, place, side="right"))
        element = int(place) - (int(ends[layer - 1]) if layer else 0)
        shape = tuple(convs[layer].weight.shape)
        found.append((layer, tuple(int(i) for i in np.unravel_index(element, shape)), int(bit)))
    return found


def ways(net: nn.Module, x: torch.Tensor) -> dict[str, Callable[[tuple[int, tuple[int, ...], int]], object]]:
    """Return the functions that run a fault, by name."""
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]

    def in_place(fault: tuple[int, tuple[int, ...], int]) -> None:
        weight, before = convs[fault[0]].weight, convs[fault[0]].weight[fault[1]].item()
        weight[fault[1]] = flip(before, fault[2])
        net(x)
        weight[fault[1]] = before

    found: dict[str, Callable[[tuple[int, tuple[int, ...], int]], object]] = {"torch, flip in place": in_place}
    try:
        from pytorchfi.core import fault_injection

        injector = fault_injection(net, len(x), input_shape=[3, SIDE, SIDE], layer_types=[nn.Conv2d], use_cuda=False)

        def pytorchfi(fault: tuple[int, tuple[int, ...], int]) -> None:
            layer, (k, c, h, w), bit = fault
            injector.declare_weight_fi(
                function=lambda weight, at: flip(weight[at].item(), bit),
                layer_num=[layer], k=[k], dim1=[c], dim2=[h], dim3=[w],
            )(x)  # fmt: skip

        found["PyTorchFI"] = pytorchfi
    except ImportError:
        pass
    try:
        from mrfi import MRFI, EasyConfig

        hooked = MRFI(copy.deepcopy(net), EasyConfig.load_preset("default_fi"))
        with hooked.golden_run():
            hooked(x)
        found["MRFI"] = lambda fault: hooked(x)
    except ImportError:
        pass
    return found


def exported(net: nn.Module, x: torch.Tensor, path: Path) -> Path:
    """The network as an ONNX file, for batches of any size."""
    if not path.exists():
        free = {"x": {0: "N"}, "y": {0: "N"}}
        torch.onnx.export(net, (x,), path, dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=free)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("batch", nargs="?", type=int, default=8, metavar="BATCH")
    parser.add_argument("faults", nargs="?", type=int, default=20, metavar="FAULTS")
    parser.add_argument("model", nargs="?", type=Path, metavar="RESNET18.onnx")
    given = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    net, x = resnet18(), torch.randn(given.batch, 3, SIDE, SIDE)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        model = exported(net, x, given.model or Path(name) / "resnet18.onnx")
        golden = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        feeds = {golden.get_inputs()[0].name: x.numpy()}
        every, drawn = ways(net, x), faults(convs, given.faults)
        ratios: dict[str, list[float]] = {way: [] for way in every}
        for number, fault in enumerate(drawn):
            begun = time.perf_counter()
            golden.run(None, feeds)
            unit = time.perf_counter() - begun
            for way, run in every.items():
                begun = time.perf_counter()
                run(fault)
                if number:  # the first is to warm up
                    ratios[way].append((time.perf_counter() - begun) / unit)
    print(json.dumps({way: round(statistics.median(found), 2) for way, found in ratios.items()}))


if __name__ == "__main__":
    main()
