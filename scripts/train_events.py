"""Train models/events_snn.onnx, a spiking network on event recordings, and write the recordings of models/events_test/.

    bash scripts/get_data.sh
    pip install torch onnx onnxscript onnxruntime
    pip install --no-deps snntorch==1.0.0
    python scripts/train_events.py

No data set of an event camera may be shipped, so the recordings are made: as for N-MNIST an image moves along the three
sides of a triangle in front of a camera of 34 x 34 pixels, in 300 ms, and a pixel gives an event where the logarithm of
its brightness has changed by a threshold; some events are noise. The images are those of Fashion-MNIST, the files have
the format of N-MNIST. What the network is trained on is what onnxfi reads from such files, which the script checks.
"""

import argparse
import shutil
import warnings
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import snntorch
import torch
from checksums import write_checksums
from snntorch import surrogate
from torch import Tensor, nn
from train_models import MODELS, export, load
from train_models import train as fit

from onnxfi import Port, open_data

SEED, EPOCHS, RATE, LEARNED = 20, 5, 4e-3, 4_000
SENSOR, SIZE, STEPS, STEP_US = 34, 17, 10, 30_000
#: Turns of the image in the sensor's pixels, and times at which the camera looks between two of them.
TURNS, LOOKS, LOOK_US = ((0.0, 3.0), (6.0, 0.0), (6.0, 6.0), (0.0, 3.0)), 20, 5_000
CONTRAST, NOISE = 1.1, 2e-4
FOLDER, SHIPPED = MODELS / "events_test", 15  # recordings of each class


class Events(NamedTuple):
    """Events of several recordings in the order of time: the recording, microseconds, row, column, 1 where brighter."""

    recording: np.ndarray
    time_us: np.ndarray
    y: np.ndarray
    x: np.ndarray
    polarity: np.ndarray


def shifted(image: np.ndarray, row: float, column: float) -> np.ndarray:
    """Images [N, 28, 28] on the sensor [N, 34, 34], between pixels in proportion."""
    out = np.zeros((len(image), SENSOR + 1, SENSOR + 1), np.float32)
    (y, dy), (x, dx) = divmod(row, 1), divmod(column, 1)
    for a, b, share in ((0, 0, (1 - dy) * (1 - dx)), (0, 1, (1 - dy) * dx), (1, 0, dy * (1 - dx)), (1, 1, dy * dx)):
        top, left = int(y) + a, int(x) + b
        out[:, top : top + 28, left : left + 28] += np.float32(share) * image
    return out[:, :SENSOR, :SENSOR]


def record(image: np.ndarray, chance: np.random.Generator) -> Events:
    """Record images [N, 28, 28] in [0, 1] as such a camera does."""
    path = [
        (a + (b - a) * np.float64(k) / LOOKS for a, b in zip(start, end, strict=True))
        for start, end in pairwise(TURNS)
        for k in range(1, LOOKS + 1)
    ]
    level = np.log(0.1 + shifted(image, *TURNS[0]))
    found: list[tuple[np.ndarray, ...]] = []
    for look, place in enumerate(path):
        change = np.log(0.1 + shifted(image, *place)) - level
        sign = np.sign(change) * (np.abs(change) >= CONTRAST)
        level += sign * np.float32(CONTRAST)
        noise = chance.random(sign.shape, np.float32)
        sign = np.where((sign == 0) & (noise < NOISE), np.where(noise < NOISE / 2, 1, -1), sign)
        at = np.nonzero(sign)
        time_us = look * LOOK_US + chance.integers(0, LOOK_US, len(at[0]))
        order = np.lexsort((time_us, at[0]))
        found.append((at[0][order], time_us[order], at[1][order], at[2][order], (sign[at] > 0)[order]))
    return Events(*(np.concatenate(column) for column in zip(*found, strict=True)))


def frames(image: np.ndarray, seed: int) -> np.ndarray:
    """Recordings of images as the network gets them: [N, STEPS, 2, 17, 17], counts."""
    parts = []
    for k in range(0, len(image), 500):
        seen = record(image[k : k + 500], np.random.default_rng((seed, k)))
        frame = np.zeros((len(image[k : k + 500]), STEPS, 2, SIZE, SIZE), np.uint8)
        place = (seen.recording, seen.time_us // STEP_US, seen.polarity.astype(int), seen.y // 2, seen.x // 2)
        np.add.at(frame, place, 1)
        parts.append(frame)
    return np.concatenate(parts)


def write(events: Events, number: int, path: Path) -> None:
    """Write one recording in the format of N-MNIST: 5 bytes an event, its time in microseconds."""
    mine = events.recording == number
    time_us, y, x, polarity = (column[mine].astype(np.int64) for column in events[1:])
    rows = np.stack([x, y, polarity << 7 | time_us >> 16, time_us >> 8 & 255, time_us & 255], axis=1)
    path.write_bytes(rows.astype(np.uint8).tobytes())


class EventsSnn(nn.Module):
    """A convolution and a linear layer, each in front of leaky neurons: 6,642 weights and biases."""

    def __init__(self) -> None:
        super().__init__()
        spike = surrogate.atan()
        self.conv = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.lif1 = snntorch.Leaky(beta=0.8, threshold=1.0, spike_grad=spike)
        self.fc = nn.Linear(8 * 9 * 9, 10)
        self.lif2 = snntorch.Leaky(beta=0.9, threshold=1.0, spike_grad=spike)

    def forward(self, events: Tensor) -> Tensor:
        """Return the spike counts of the last neurons: [N, 10]."""
        first, last = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes = []
        for step in range(STEPS):
            spike, first = self.lif1(self.conv(events[:, step]), first)
            spike, last = self.lif2(self.fc(spike.flatten(1)), last)
            spikes.append(spike)
        return torch.stack(spikes).sum(0)


def write_recordings(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Write SHIPPED recordings of each class; returns the frames that onnxfi reads from them."""
    chosen = np.sort(np.concatenate([np.flatnonzero(label == k)[:SHIPPED] for k in range(10)]))
    seen = record(image[chosen], np.random.default_rng((SEED, 2)))
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    for number, index in enumerate(chosen):
        place = FOLDER / str(label[index])
        place.mkdir(parents=True, exist_ok=True)
        write(seen, number, place / f"{index + 1:05}.bin")
    (FOLDER / "events.yaml").write_text(f"version: 1\nsensor: [{SENSOR}, {SENSOR}]\nstep_us: {STEP_US}\n")
    data = open_data(FOLDER, [Port("events", "float32", ("N", STEPS, 2, SIZE, SIZE))])
    read = np.concatenate([batch.feeds["events"] for batch in data.batches(50)])
    made = np.zeros(read.shape, np.uint8)
    place = (seen.recording, seen.time_us // STEP_US, seen.polarity.astype(int), seen.y // 2, seen.x // 2)
    np.add.at(made, place, 1)
    by_class = np.argsort(label[chosen], kind="stable").reshape(10, SHIPPED).T.ravel()  # the first of each class first
    if not np.array_equal(read, made[by_class]) or not np.array_equal(data.labels, label[chosen][by_class]):
        raise SystemExit("onnxfi reads other frames from the recordings than those that the network is trained on")
    return read


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    warnings.filterwarnings("ignore", message=".*legacy TorchScript.*")
    (image, label), (test, truth) = (tuple(part.numpy() for part in load(name)) for name in ("train", "t10k"))
    shown = write_recordings(test[:, 0], truth)
    net = EventsSnn()
    fit(
        net, torch.from_numpy(frames(image[:LEARNED, 0], SEED)).float(), torch.from_numpy(label[:LEARNED]), EPOCHS, RATE
    )
    net.eval()
    path = MODELS / "events_snn.onnx"
    export(net, path, (STEPS, 2, SIZE, SIZE), "counts", "events")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    unseen = frames(test[:2000, 0], SEED + 1).astype(np.float32)
    counts = session.run(None, {"events": unseen})[0]
    with torch.no_grad():
        same = (net(torch.from_numpy(unseen)).numpy() == counts).all()
    few = session.run(None, {"events": shown.astype(np.float32)})[0].argmax(1)
    size = sum(file.stat().st_size for file in FOLDER.rglob("*.bin"))
    print(
        f"top-1 {(counts.argmax(1) == truth[:2000]).mean():.4f} of 2,000 recordings; spike counts as in torch: {same}"
    )
    print(f"top-1 {(few == np.tile(np.arange(10), SHIPPED)).mean():.4f} of the {len(few)} shipped, {size:,} bytes")
    print(f"events in a recording: {shown.sum() / len(shown):.0f}; {path.stat().st_size:,} bytes of model")
    write_checksums()


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    main()
