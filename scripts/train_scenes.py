"""Train models/scenes_segmenter.onnx and models/scenes_detector.onnx on scenes of Fashion-MNIST, and write test scenes.

    bash scripts/get_data.sh
    pip install torch onnx onnxscript onnxruntime
    python scripts/train_scenes.py scenes|segmenter|detector|all

A scene is 64 x 64 grey pixels: up to four items of Fashion-MNIST, each of one of four classes, on a noisy background.
Masks and boxes follow from the composition and are exact; the later item covers the earlier one. The seeds are fixed
and one thread does the work. The test scenes are made of the test images: scenes_test.npz holds images and masks,
scenes_test.json their boxes as COCO JSON. Each run renews SHA256SUMS.
"""

import argparse
import json
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch
from checksums import write_checksums
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from train_models import MODELS, ROOT, export, load, train

SEED = 24
SIDE, CELL = 64, 8  # pixels of a scene, and of a cell of the detector's grid
CELLS = SIDE // CELL
CLASSES = ("top", "trouser", "shoe", "bag")
#: The class of each label of Fashion-MNIST; -1 for dresses, which are neither.
OF_LABEL = (0, 1, 0, -1, 0, 2, 0, 2, 3, 2)
TRAINED, SHIPPED = 6_000, 300
MOST_ITEMS, SIZES = 4, (18, 29)  # items of a scene; pixels of an item with its margin
INSIDE = 0.1  # what of an item is darker is background
COVERED = 0.1  # the share of an item that another may cover


@dataclass(frozen=True)
class Scenes:
    """Scenes with their labels.

    `image` is float32 [n,1,64,64], k / 255; `mask` uint8 [n,64,64], 0 for the background, else the class from 1 on;
    `boxes` float32 [m,6]: the scene, x1, y1, x2, y2 in pixels, and the class from 0 on.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    boxes: NDArray[np.float32]


def background(random: np.random.Generator) -> NDArray[np.float32]:
    """Return clouds and noise."""
    coarse = torch.from_numpy(random.uniform(0, 0.3, (1, 1, 6, 6)).astype(np.float32))
    clouds = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=False)[0, 0].numpy()
    return clouds + random.normal(0, 0.04, (SIDE, SIDE)).astype(np.float32)


def item_of(image: Tensor, size: int) -> NDArray[np.float32]:
    """Return an item at another size, cut to its own extent."""
    scaled = F.interpolate(image[None], size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    grey = scaled[0, 0].numpy()
    rows, columns = np.flatnonzero((grey > INSIDE).any(1)), np.flatnonzero((grey > INSIDE).any(0))
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def scene(image: Tensor, label: NDArray[np.int64], random: np.random.Generator):  # type: ignore[no-untyped-def]
    """Return one scene: pixels, mask, and the boxes [items,5] of what is seen of each item."""
    grey, owner = background(random), np.full((SIDE, SIDE), -1)
    classes: list[int] = []
    wanted = random.integers(0, MOST_ITEMS + 1)
    for _ in range(8 * wanted):
        if len(classes) == wanted:
            break
        k = int(random.integers(len(image)))
        if OF_LABEL[label[k]] < 0:
            continue
        item = item_of(image[k], int(random.integers(*SIZES)))
        height, width = item.shape
        y, x = (int(random.integers(0, SIDE - side + 1)) for side in (height, width))
        inside, there = item > INSIDE, (slice(y, y + height), slice(x, x + width))
        if any(
            (inside & (owner[there] == other)).sum() > COVERED * (owner == other).sum() for other in range(len(classes))
        ):
            continue
        grey[there][inside] = 0.2 + 0.8 * item[inside] + random.normal(0, 0.03, int(inside.sum()))
        owner[there][inside] = len(classes)
        classes.append(OF_LABEL[label[k]])
    boxes = [(*extent(owner == number), kind) for number, kind in enumerate(classes)]
    mask = np.array([0, *(kind + 1 for kind in classes)], np.uint8)[owner + 1]
    return np.rint(255 * grey.clip(0, 1)) / 255, mask, np.array(boxes, np.float32).reshape(-1, 5)


def extent(inside: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2 of what is true, the ends exclusive."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def make_scenes(part: str, count: int, seed: int) -> Scenes:
    """Return scenes of the training or the test images."""
    image, label = load(part)
    random = np.random.default_rng(seed)
    made = [scene(image, label.numpy(), random) for _ in range(count)]
    numbered = [np.insert(boxes, 0, number, axis=1) for number, (_, _, boxes) in enumerate(made)]
    return Scenes(
        np.stack([grey for grey, _, _ in made])[:, None].astype(np.float32),
        np.stack([mask for _, mask, _ in made]),
        np.concatenate(numbered),
    )


class Segmenter(nn.Module):
    """A U-Net of 12, 24 and 48 channels: scores of the background and each class at every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down1a, self.down1b = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.down2a, self.down2b = nn.Conv2d(12, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1)
        self.bottom1, self.bottom2 = nn.Conv2d(24, 48, 3, padding=1), nn.Conv2d(48, 48, 3, padding=1)
        self.up2 = nn.Conv2d(48 + 24, 24, 3, padding=1)
        self.up1 = nn.Conv2d(24 + 12, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 1 + len(CLASSES), 1)

    def forward(self, image: Tensor) -> Tensor:
        first = F.relu(self.down1b(F.relu(self.down1a(image))))
        second = F.relu(self.down2b(F.relu(self.down2a(F.max_pool2d(first, 2)))))
        x = F.relu(self.bottom2(F.relu(self.bottom1(F.max_pool2d(second, 2)))))
        x = F.relu(self.up2(torch.cat([F.interpolate(x, scale_factor=2.0), second], 1)))
        x = F.relu(self.up1(torch.cat([F.interpolate(x, scale_factor=2.0), first], 1)))
        return self.head(x)


class Detector(nn.Module):
    """A box and the scores of the classes for each cell of an 8 x 8 grid, in the layout of YOLOv8: [N, 4 + 4, 64].

    Centre and size are in pixels, the centre within half a cell around the cell; scores are in [0, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.conv3, self.conv4 = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 96, 3, padding=1)
        self.conv5 = nn.Conv2d(96, 72, 3, padding=1)
        self.head = nn.Conv2d(72, 4 + len(CLASSES), 1)
        steps = torch.arange(CELLS, dtype=torch.float32)
        self.register_buffer("corner", torch.stack(torch.meshgrid(steps, steps, indexing="xy"))[None] * CELL)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(image)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.max_pool2d(F.relu(self.conv3(x)), 2)
        x = torch.sigmoid(self.head(F.relu(self.conv5(F.relu(self.conv4(x))))))
        centre = self.corner + CELL * (2 * x[:, :2] - 0.5)
        return torch.cat([centre, SIDE * x[:, 2:4], x[:, 4:]], 1).flatten(2)


def targets(scenes: Scenes) -> Tensor:
    """Return for each cell the box whose centre is in it, its classes and a 1, else zeros: [n, 4 + classes + 1, 64]."""
    found = np.zeros((len(scenes.image), 5 + len(CLASSES), CELLS * CELLS), np.float32)
    number, x1, y1, x2, y2, kind = scenes.boxes.T
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    cell = CELLS * (cy // CELL).astype(int) + (cx // CELL).astype(int)
    n = number.astype(int)
    found[n, :4, cell] = np.stack([cx, cy, x2 - x1, y2 - y1], 1)
    found[n, 4:-1, cell] = np.eye(len(CLASSES))[kind.astype(int)]
    found[n, -1, cell] = 1
    return torch.from_numpy(found)


def box_loss(heads: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the scores, and 1 - IoU with the distance of the boxes, per object."""
    there = target[:, -1]
    objects = there.sum().clamp(min=1)
    scores = F.binary_cross_entropy(heads[:, 4:], target[:, 4:-1], reduction="sum")
    found, wanted = heads[:, :4], target[:, :4]
    low = torch.maximum(found[:, :2] - found[:, 2:] / 2, wanted[:, :2] - wanted[:, 2:] / 2)
    high = torch.minimum(found[:, :2] + found[:, 2:] / 2, wanted[:, :2] + wanted[:, 2:] / 2)
    shared = (high - low).clamp(min=0).prod(1)
    union = found[:, 2:].prod(1) + wanted[:, 2:].prod(1) - shared
    iou = shared / union.clamp(min=1e-6)
    away = (found - wanted).abs().sum(1) / CELL
    return (scores + ((1 - iou + 0.5 * away) * there).sum()) / objects


def served(name: str, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what the exported model answers in onnxruntime."""
    session = ort.InferenceSession(MODELS / name, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": part})[0] for part in np.array_split(image, 6)])


def segmenter(trained: Scenes, test: Scenes) -> None:
    torch.manual_seed(SEED)
    module = Segmenter()
    train(
        module, torch.from_numpy(trained.image), torch.from_numpy(trained.mask.astype(np.int64)), 8, 6e-3, batch_size=32
    )
    export(module, MODELS / "scenes_segmenter.onnx", (1, SIDE, SIDE), "scores")
    found = served("scenes_segmenter.onnx", test.image)
    report(module, "scenes_segmenter.onnx", found, test)
    print(f"  {(found.argmax(1) == test.mask).mean():.2%} of the pixels of {len(found)} test scenes")


def detector(trained: Scenes, test: Scenes) -> None:
    torch.manual_seed(SEED)
    module = Detector()
    train(module, torch.from_numpy(trained.image), targets(trained), 12, 4e-3, box_loss, batch_size=32)
    export(module, MODELS / "scenes_detector.onnx", (1, SIDE, SIDE), "heads")
    heads = served("scenes_detector.onnx", test.image)
    report(module, "scenes_detector.onnx", heads, test)
    cells = targets(test).numpy()
    found = (heads[:, 4:].max(1) > 0.5) & (heads[:, 4:].argmax(1) == cells[:, 4:-1].argmax(1))
    there = cells[:, -1] > 0
    print(
        f"  {found[there].mean():.2%} of {there.sum()} objects found in their cell, {(found & ~there).sum()} elsewhere"
    )


def report(module: nn.Module, name: str, found: NDArray[np.float32], test: Scenes) -> None:
    """Print the size of a model and how far it is from torch."""
    with torch.no_grad():
        expected = module(torch.from_numpy(test.image)).numpy()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    print(f"  {parameters:,} parameters, {(MODELS / name).stat().st_size:,} bytes")
    print(f"  max |onnx - torch| = {np.abs(found - expected).max():.2e}")


def write_test_set(test: Scenes) -> None:
    """Images with masks as labels, and boxes as COCO JSON; the n-th image of the list is the n-th sample."""
    np.savez_compressed(MODELS / "scenes_test.npz", image=test.image, labels=test.mask)
    images = [
        {"id": n + 1, "file_name": f"scene_{n:03}.png", "width": SIDE, "height": SIDE} for n in range(len(test.image))
    ]
    annotations = []
    for number, x1, y1, x2, y2, kind in test.boxes.tolist():
        width, height = x2 - x1, y2 - y1
        annotations.append({
            "id": len(annotations) + 1, "image_id": int(number) + 1, "category_id": int(kind),
            "bbox": [x1, y1, width, height], "area": width * height, "iscrowd": 0,
        })  # fmt: skip
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES)]
    written = {"images": images, "annotations": annotations, "categories": categories}
    (MODELS / "scenes_test.json").write_text(json.dumps(written) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["scenes", "segmenter", "detector", "all"])
    wanted = parser.parse_args().what

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    test = make_scenes("t10k", SHIPPED, SEED + 1)
    write_test_set(test)
    if wanted != "scenes":
        trained = make_scenes("train", TRAINED, SEED)
        for name, made in (("segmenter", segmenter), ("detector", detector)):
            if wanted in (name, "all"):
                print((MODELS / f"scenes_{name}.onnx").relative_to(ROOT), flush=True)
                made(trained, test)
    write_checksums()


if __name__ == "__main__":
    main()
