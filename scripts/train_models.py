"""Train the models of models/ on Fashion-MNIST, export them to ONNX and measure what was exported.

    bash scripts/get_data.sh
    pip install torch onnx onnxscript onnxruntime
    python scripts/train_models.py cnn|attention|gru|all

Every model maps `image`, float32 [N,1,28,28] in [0,1], to `logits`, float32 [N,10]. The seed is fixed and two
threads do the work, so that one machine makes the same weights twice; another processor may round otherwise
and end a few images away. Each run also writes fashion_test.npz (the first 2,000 test images) and SHA256SUMS.
"""

import argparse
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from checksums import write_checksums
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "fashion-mnist"
MODELS = ROOT / "models"

SEED = 20
BATCH = 128
OPSET = 18  # the exporter writes it without a conversion
IR_VERSION = 10  # the oldest whose nodes can carry metadata
SHIPPED = 2_000  # test images in fashion_test.npz

# What the exporter records of a node's origin. Layer names come from these; its stack traces, which hold
# the paths of the machine that exported, do not pass.
KEPT_METADATA = {"namespace", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes"}


class FashionCnn(nn.Module):
    """Two convolutions and two linear layers: 105,866 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 7 * 7, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(image)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Attention(nn.Module):
    """Self-attention spelt out, so that the scores and the softmax are tensors of the graph."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) * self.scale, dim=-1)
        return self.output((weights @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer block, normalised before each half."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class FashionAttention(nn.Module):
    """49 patches of 4x4 pixels, two transformer blocks, the mean of the patches."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 49, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class FashionGru(nn.Module):
    """Reads an image as 28 rows of 28 pixels, one after the other."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.gru = nn.GRU(28, width, batch_first=True)
        self.fc = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        rows, _ = self.gru(image.squeeze(1))
        return self.fc(rows[:, -1])


MODULES = {  # name: module, epochs, peak learning rate
    "cnn": (FashionCnn, 5, 4e-3),
    "attention": (FashionAttention, 6, 2e-3),
    "gru": (FashionGru, 6, 4e-3),
}


def load(part: str) -> tuple[Tensor, Tensor]:
    """The images (float32 [n,1,28,28], k/255) and labels (int64 [n]) of "train" or "t10k"."""

    def read(kind: str, header: int) -> np.ndarray:
        path = DATA / f"{part}-{kind}-ubyte.gz"
        if not path.is_file():
            raise SystemExit(f"{path} does not exist; run: bash scripts/get_data.sh")
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)

    image = read("images-idx3", 16).reshape(-1, 1, 28, 28).astype(np.float32) / np.float32(255)
    return torch.from_numpy(image), torch.from_numpy(read("labels-idx1", 8).astype(np.int64))


def train(
    module: nn.Module,
    image: Tensor,
    label: Tensor,
    epochs: int,
    rate: float,
    lost: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    batch_size: int = BATCH,
) -> None:
    """Adam with a one-cycle learning rate; the order of the images comes from the seed."""
    optimizer = torch.optim.Adam(module.parameters(), rate)
    steps = epochs * -(-len(image) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(image)).split(batch_size):
            loss = lost(module(image[batch]), label[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(f"  epoch {epoch + 1}/{epochs}: loss {total / len(image):.4f}", flush=True)


def export(
    module: nn.Module, path: Path, image: tuple[int, ...] = (1, 28, 28), output: str = "logits", name: str = "image"
) -> None:
    """Write the module as one ONNX file that names its layers and nothing of this machine."""
    program = torch.onnx.export(
        module.eval(),
        (torch.rand(2, *image),),
        dynamo=True,
        external_data=False,
        opset_version=OPSET,
        input_names=[name],
        output_names=[output],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    model = program.model
    model.ir_version = IR_VERSION
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        for thing in (node, *node.outputs):
            for key in thing.metadata_props.keys() - KEPT_METADATA:
                del thing.metadata_props[key]
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def measure(module: nn.Module, path: Path, image: Tensor, label: Tensor) -> None:
    """Print how far the file is from torch and how often its answer is right, all in onnxruntime."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = image.split(500)
    served = np.concatenate([session.run(["logits"], {"image": part.numpy()})[0] for part in parts])
    with torch.no_grad():
        expected = np.concatenate([module(part).numpy() for part in parts])
    right = served.argmax(1) == label.numpy()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    print(f"  {parameters:,} parameters, {path.stat().st_size:,} bytes")
    print(f"  max |onnx - torch| = {np.abs(served - expected).max():.2e}")
    for part in (right, right[:SHIPPED]):
        print(f"  top-1: {part.mean():.2%} of the first {len(part):,} test images")


def write_test_set(image: Tensor, label: Tensor) -> None:
    """The first images of the test set. numpy dates every entry 1980, so equal arrays give equal bytes."""
    np.savez_compressed(MODELS / "fashion_test.npz", image=image[:SHIPPED].numpy(), labels=label[:SHIPPED].numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=[*MODULES, "all"])
    wanted = parser.parse_args().model

    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    train_set, test_set = load("train"), load("t10k")
    MODELS.mkdir(exist_ok=True)
    write_test_set(*test_set)
    for name in MODULES if wanted == "all" else [wanted]:
        kind, epochs, rate = MODULES[name]
        path = MODELS / f"fashion_{name}.onnx"
        print(path.relative_to(ROOT))
        torch.manual_seed(SEED)
        module = kind()
        train(module, *train_set, epochs, rate)
        export(module, path)
        measure(module, path, *test_set)
    write_checksums()


if __name__ == "__main__":
    main()
