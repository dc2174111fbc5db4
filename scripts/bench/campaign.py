"""Cost of a trial of a campaign, against one golden inference of the same batch.

python scripts/bench/campaign.py RESNET18.onnx [--trials 500] [--rounds 3] [--batch 8] [--only FIGURE …]
    [--peers PYTHON]

The unit is one inference of the network in ONNX Runtime, with as many threads as there are cores, on the same batch;
it is taken again before and after every campaign, so that both meet the same neighbours. A campaign is a whole process,
`onnxfi run` with its default workers: start, two golden runs, canary, plan, trials, report. Its time is divided by its
trials. Medians over the rounds. `--peers` names a Python that has torch, and perhaps pytorchfi and mrfi, for weight
faults in a ResNet-18 of the same shape (scripts/bench/peers.py).

The exit status says whether all figures with a target met it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.ports import Port
from onnxfi.runtime.engine.protocols import Session

PEERS = Path(__file__).with_name("peers.py")
#: The margin at which a layer of a large network gets 24 trials.
LAYER_MARGIN = "0.263"


@dataclass(frozen=True)
class Figure:
    """A campaign to be timed: its flags, how many of the unit's batches a trial runs, and what to reach."""

    flags: tuple[str, ...]
    target: float | None = None
    batches: int = 1
    workers: int | None = None


@dataclass
class Taken:
    """Measurements of one figure."""

    ratios: list[float] = field(default_factory=list)
    trial_s: list[float] = field(default_factory=list)
    routes: dict[str, int] = field(default_factory=dict)
    peak_bytes: int = 0


def figures(trials: int) -> dict[str, Figure]:
    """The figures by name."""
    single = ("--single", "--trials", str(trials))
    layered = ("--single", "--margin", LAYER_MARGIN, "--per", "layer")
    return {
        "network": Figure(single, 0.12),
        "layers": Figure(layered, 0.40),
        "network, one worker": Figure(single, workers=1),
        "layers, one worker": Figure(layered, workers=1),
        "network, plain route": Figure(("--single", "--trials", str(max(10, trials // 25)), "--route", "full")),
        "activations": Figure(("--target", "activations", *single), 0.15),
        "sweep": Figure(("--ber", "1e-8:1e-4", "--repeat", "20"), 1.10, batches=8),
    }


class Unit:
    """One golden inference of one batch."""

    def __init__(self, model: Path, batch: dict[str, np.ndarray]) -> None:
        self.session: Session = OrtEngine(provider="cpu", threads=os.cpu_count() or 1).prepare(model)
        self.batch = batch
        self.session.run(batch)

    def seconds(self, runs: int = 7) -> list[float]:
        """The time of each of some runs."""
        found = []
        for _ in range(runs):
            begun = time.perf_counter()
            self.session.run(self.batch)
            found.append(time.perf_counter() - begun)
        return found


def campaign(model: Path, data: Path, figure: Figure, batch: int, folder: Path) -> tuple[float, int, dict[str, int]]:
    """Run a campaign as a process of its own: seconds, trials, and how many of them took which route."""
    import sqlite3

    store = folder / "store.db"
    store.unlink(missing_ok=True)
    samples = figure.batches * batch
    command = [
        sys.executable, "-c", "from onnxfi.cli import main; main()", "run", str(model),
        "--data", str(data), "-o", str(store),
        "--batch", str(batch), "--samples", str(samples), "--provider", "cpu", *figure.flags,
    ]  # fmt: skip
    command += [] if figure.workers is None else ["--workers", str(figure.workers)]
    installed = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=installed)
    seconds = time.perf_counter() - begun
    if ran.returncode:
        raise SystemExit(ran.stderr)
    with sqlite3.connect(store) as db:
        routes = dict(db.execute("SELECT route, count(*) FROM results GROUP BY route").fetchall())
    return seconds, sum(routes.values()), routes


def take(model: Path, wanted: dict[str, Figure], rounds: int, batch: int) -> tuple[float, dict[str, Taken]]:
    """All figures, in turns: the median unit in seconds, and what was measured."""
    taken, units = {name: Taken() for name in wanted}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = OrtEngine(provider="cpu").prepare(model).inputs
        most = max(figure.batches for figure in wanted.values()) * batch
        arrays = {port.name: made_up(port, most) for port in inputs}
        np.savez(folder / "data.npz", **arrays)
        unit = Unit(model, {key: array[:batch] for key, array in arrays.items()})
        for _ in range(rounds):
            for key, figure in wanted.items():
                around = unit.seconds()
                seconds, trials, routes = campaign(model, folder / "data.npz", figure, batch, folder)
                around += unit.seconds()
                units += around
                golden = statistics.median(around) * figure.batches
                taken[key].trial_s.append(seconds / trials)
                taken[key].ratios.append(seconds / trials / golden)
                taken[key].routes = routes
                taken[key].peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return statistics.median(units), taken


def made_up(port: Port, samples: int) -> np.ndarray:
    """Return values for an input: noise for reals, numbers of words for integers, of two for masks and types of tokens;
    open dimensions are 64."""
    dims = [samples, *(dim if isinstance(dim, int) else 64 for dim in (port.shape or ())[1:])]
    words = np.random.Philox(0).random_raw(int(np.prod(dims))).reshape(dims)
    if port.dtype.startswith("float"):
        return ((words >> 40).astype(np.float64) / 2**22 - 2).astype(port.dtype)
    return (words % (2 if "mask" in port.name or "type" in port.name else 1000)).astype(port.dtype)


def naive(model: Path, batch: int, runs: int, unit: Callable[[int], list[float]]) -> float:
    """Rewrite a stored tensor, make a new session, run all: what one does without a tool, against the unit."""
    proto = onnx.load(model)
    tensors = [t for t in proto.graph.initializer if len(t.dims) > 1]
    inputs = OrtEngine(provider="cpu").prepare(model).inputs
    feeds = {port.name: made_up(port, batch) for port in inputs}
    ratios = []
    for k in range(runs):
        golden = unit(1)[0]
        begun = time.perf_counter()
        made = onnx.ModelProto()
        made.CopyFrom(proto)
        tensor = next(t for t in made.graph.initializer if t.name == tensors[k % len(tensors)].name)
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.reshape(-1).view(np.uint32)[k] ^= np.uint32(1 << 20)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        OrtEngine(provider="cpu", threads=os.cpu_count() or 1).prepare(made.SerializeToString()).run(feeds)
        ratios.append((time.perf_counter() - begun) / golden)
    return statistics.median(ratios)


def show(golden_s: float, taken: dict[str, Taken], wanted: dict[str, Figure]) -> bool:
    """Print a line a figure; whether all targets were met."""
    print(f"golden inference of one batch: {1e3 * golden_s:.1f} ms")
    fine = True
    for name, found in taken.items():
        ratio, target = statistics.median(found.ratios), wanted[name].target
        met = target is None or ratio <= target
        fine &= met
        said = "" if target is None else f"  target {target:.2f}" + ("" if met else " MISSED")
        spread = f"{min(found.ratios):.3f}–{max(found.ratios):.3f}"
        routes = ", ".join(f"{n} {route}" for route, n in sorted(found.routes.items()))
        trial_s = statistics.median(found.trial_s)
        print(
            f"{name:24} {1e3 * trial_s:8.1f} ms a trial {ratio:7.3f} x golden ({spread}){said}  "
            f"[{1 / ratio:.1f} trials a golden inference, {1 / trial_s:,.1f} injections a second; {routes}; "
            f"largest process {found.peak_bytes / 1e6:,.0f} MB]"
        )
    return fine


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("model", type=Path)
    parse.add_argument("--trials", type=int, default=500)
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--batch", type=int, default=8)
    parse.add_argument("--only", nargs="*", default=None)
    parse.add_argument("--peers", metavar="PYTHON", default=None)
    given = parse.parse_args()
    every = figures(given.trials)
    wanted = {name: every[name] for name in given.only} if given.only else every
    golden_s, taken = take(given.model, wanted, given.rounds, given.batch)
    fine = show(golden_s, taken, wanted)
    for name in ("network", "layers"):
        if {name, f"{name}, one worker"} <= taken.keys():
            pairs = zip(taken[f"{name}, one worker"].trial_s, taken[name].trial_s, strict=True)
            print(f"two workers against one, {name}: {statistics.median(one / two for one, two in pairs):.2f} x")
    if given.peers:
        ran = subprocess.run([given.peers, str(PEERS), str(given.batch)], capture_output=True, text=True, check=True)
        for name, ratio in json.loads(ran.stdout.splitlines()[-1]).items():
            print(f"{name:40} {ratio:7.2f} x golden")
        session = OrtEngine(provider="cpu").prepare(given.model)
        feeds = {port.name: made_up(port, given.batch) for port in session.inputs}
        by_hand = naive(given.model, given.batch, 10, Unit(given.model, feeds).seconds)
        print(f"{'rewrite, new session, run all':40} {by_hand:7.2f} x golden")
    raise SystemExit(not fine)


if __name__ == "__main__":
    main()
