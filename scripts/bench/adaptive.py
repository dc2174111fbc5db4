"""Trials that adaptive campaigns take, and the coverage of their intervals, measured on the shipped CNN.

    python scripts/bench/adaptive.py truth [--folder FOLDER]               all of its 3,387,712 flips, on 200 images
    python scripts/bench/adaptive.py check [--folder FOLDER]               the table against trials that onnxfi runs
    python scripts/bench/adaptive.py study [--runs 1000] [--only WORDS]    campaigns drawn from the table

The table is made with numpy: only what depends on the faulty weight is recomputed. A campaign of the study draws
with onnxfi's own rounds, scores and intervals; only the value of a trial is looked up instead of run. The last column
of the study is the share of the campaigns whose interval held the true rate. The last results:
docs/explanation/statistics.md.
The exit status of `check` and `study` says whether the targets were met: 0 yes, 1 no.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.strata import PlannedStratum, plan_strata
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.adaptive_rounds import Layout, Seen
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.faults import sampling
from onnxfi.graph.model.loading import load
from onnxfi.statistics.adaptive import (
    Moments,
    allocate_round,
    prepare_draws,
    round_size,
    round_weight,
    without_exhausted,
)
from onnxfi.statistics.intervals import Interval, sample_error
from onnxfi.statistics.sample_size import sample_size

ROOT = Path(__file__).parents[2]
MODEL, DATA = ROOT / "models" / "fashion_cnn.onnx", ROOT / "models" / "fashion_test.npz"
IMAGES = 200
#: Elements of a tensor that are kept together, so that a stopped run goes on.
PART = 1000
#: Values of a stratum of which not all are shuffled: no campaign of the study meets a tenth of so many there.
LARGE = 1_000_000
Array = np.ndarray[Any, np.dtype[Any]]


# ------------------------------------------------------------------------------------------------ the truth


def weights() -> dict[str, Array]:
    """The model's tensors by name."""
    model = load(str(MODEL))
    found = {}
    for target in model.targets:
        words = model.words(target, np.arange(target.size))
        found[target.id] = target.word.values(words).reshape(target.shape)
    return {name: value for name, value in found.items() if value.dtype == np.float32}


def shifted(images: Array) -> Array:
    """The nine inputs of a 3×3 convolution with a border of zeros: [9, N, C, H, W]."""
    h, w = images.shape[2:]
    wide = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.stack([wide[:, :, y : y + h, x : x + w] for y in range(3) for x in range(3)])


def convolve(images: Array, weight: Array, bias: Array | None = None) -> Array:
    """A 3×3 convolution: [N, C, H, W] to [N, O, H, W]."""
    n, c, h, w = images.shape
    columns = shifted(images).transpose(1, 3, 4, 2, 0).reshape(n * h * w, c * 9)
    found = (columns @ weight.reshape(len(weight), -1).T).reshape(n, h, w, -1).transpose(0, 3, 1, 2)
    return found if bias is None else found + bias[:, None, None]


def pooled(x: Array) -> Array:
    """ReLU, and the largest of each 2×2: […, H, W] to […, H/2, W/2]."""
    *rest, h, w = x.shape
    return np.maximum(x, 0).reshape(*rest, h // 2, 2, w // 2, 2).max(axis=(-3, -1))


class Network:
    """The golden run, and what each layer's faults change behind it."""

    def __init__(self) -> None:
        p = self.p = weights()
        with np.load(DATA) as held:
            self.images = held["image"][:IMAGES]
        self.z1 = convolve(self.images, p["conv1.weight"], p["conv1.bias"])
        self.a1 = pooled(self.z1)
        self.z2 = convolve(self.a1, p["conv2.weight"], p["conv2.bias"])
        self.a2 = pooled(self.z2)
        self.z3 = self.a2.reshape(IMAGES, -1) @ p["fc1.weight"].T + p["fc1.bias"]
        self.a3 = np.maximum(self.z3, 0)
        self.logits = self.a3 @ p["fc2.weight"].T + p["fc2.bias"]
        self.top = self.logits.argmax(axis=1)

    def differs(self, logits: Array) -> Array:
        """Return true where the top-1 is another, or a logit is not a number: […, N, 10] to […, N]."""
        return (logits.argmax(axis=-1) != self.top) | np.isnan(logits).any(axis=-1)

    def behind_fc1(self, z3: Array) -> Array:
        return self.differs(np.maximum(z3, 0) @ self.p["fc2.weight"].T + self.p["fc2.bias"])

    def conv1(self, o: int, delta: Array, inputs: Array) -> Array:
        """Faults that change the weight of channel o by delta ([K]), whose inputs are [N, H, W]: [K, N]."""
        z1 = self.z1[:, o] + delta[:, None, None, None] * inputs
        change = (pooled(z1) - self.a1[:, o]).reshape(-1, 1, 14, 14)
        z2 = convolve(change, self.p["conv2.weight"][:, o : o + 1]).reshape(len(delta), IMAGES, 32, 14, 14) + self.z2
        z3 = pooled(z2).reshape(-1, 1568) @ self.p["fc1.weight"].T + self.p["fc1.bias"]
        return self.behind_fc1(z3.reshape(len(delta), IMAGES, 64))

    def conv2(self, o: int, delta: Array, inputs: Array) -> Array:
        z2 = self.z2[:, o] + delta[:, None, None, None] * inputs
        change = (pooled(z2) - self.a2[:, o]).reshape(-1, 49)
        z3 = (change @ self.p["fc1.weight"][:, 49 * o : 49 * o + 49].T).reshape(len(delta), IMAGES, 64) + self.z3
        return self.behind_fc1(z3)

    def fc1(self, o: int, delta: Array, inputs: Array) -> Array:
        """Inputs are [N]. A change of one hidden unit moves the logits along a line, given by its ends."""
        change = np.maximum(self.z3[:, o] + delta[:, None] * inputs, 0) - self.a3[:, o]
        weight = self.p["fc2.weight"][:, o]
        gap = self.logits[np.arange(IMAGES), self.top][:, None] - self.logits
        slope = weight - weight[self.top][:, None]
        high = np.where(slope > 0, gap / np.where(slope > 0, slope, 1), np.inf).min(axis=1)
        low = np.where(slope < 0, gap / np.where(slope < 0, slope, 1), -np.inf).max(axis=1)
        return (change > high) | (change < low) | np.isnan(change)

    def fc2(self, o: int, delta: Array, inputs: Array) -> Array:
        logits = np.repeat(self.logits[None], len(delta), axis=0)
        logits[:, :, o] += delta[:, None] * inputs
        return self.differs(logits)

    def inputs(self, layer: str, index: tuple[int, ...]) -> Array:
        """Return the inputs that the weight of this index is multiplied with; 1 for a bias."""
        if layer.startswith("conv"):
            if len(index) == 1:
                return np.ones((1, 1, 1), np.float32)
            _, c, y, x = index
            return shifted((self.images if layer == "conv1" else self.a1)[:, c : c + 1])[3 * y + x][:, 0]
        if len(index) == 1:
            return np.ones(1, np.float32)
        return (self.a2.reshape(IMAGES, -1) if layer == "fc1" else self.a3)[:, index[1]]


def with_faults(values: Array) -> Array:
    """Each number with each of its bits flipped: [n] to [n, 32]."""
    masks = np.uint32(1) << np.arange(32, dtype=np.uint32)
    return (values.view(np.uint32)[:, None] ^ masks).view(np.float32)


def truth(folder: Path) -> None:
    """For every flip how many images change their top-1 ([elements, 32] a tensor), and for each image how often."""
    network = Network()
    for name, values in network.p.items():
        begun, flat = time.monotonic(), values.reshape(-1)
        for first in range(0, len(flat), PART):
            if not (file := folder / f"{name}.{first}.npz").exists():
                counts, each = part(network, name, range(first, min(first + PART, len(flat))))
                np.savez_compressed(file, counts=counts, each=each)
        counts, each = read(folder, name)
        said = f"{counts.size:,} flips, top-1 changed {counts.mean() / IMAGES:.4%}, any image {(counts > 0).mean():.3%}"
        print(f"{name}: {said} [{time.monotonic() - begun:.0f} s]", flush=True)


def part(network: Network, name: str, elements: range) -> tuple[Array, Array]:
    """The same for some elements of a tensor."""
    layer, values = name.split(".", maxsplit=1)[0], network.p[name]
    counts, each = np.zeros((len(elements), 32), np.uint8), np.zeros(IMAGES, np.int64)
    faulty = with_faults(values.reshape(-1)[elements.start : elements.stop])
    with np.errstate(all="ignore"):
        for row, k in enumerate(elements):
            index = tuple(int(i) for i in np.unravel_index(k, values.shape))
            inputs = network.inputs(layer, index)
            for bits in np.split(np.arange(32), 8 if layer.startswith("conv") else 1):
                changed = getattr(network, layer)(index[0], faulty[row, bits] - values[index], inputs)
                counts[row, bits] = changed.sum(axis=1)
                each += changed.sum(axis=0)
    return counts, each


def read(folder: Path, name: str) -> tuple[Array, Array]:
    """Return the part of the table that is kept of a tensor."""
    files = sorted(folder.glob(f"{name}.*.npz"), key=lambda file: int(file.name.split(".")[-2]))
    held = [np.load(file) for file in files]
    return np.concatenate([one["counts"] for one in held]), sum(one["each"] for one in held)


class Table(NamedTuple):
    """The effect of every flip: images changed by tensor ([elements, 32]), and flips that change each image."""

    counts: dict[str, Array]
    each: Array

    @classmethod
    def load(cls, folder: Path) -> "Table":
        counts, each = {}, np.zeros(IMAGES)
        for name in weights():
            counts[name], of_tensor = read(folder, name)
            each += of_tensor
        return cls(counts, each)

    def values(self, group: PlannedStratum, measure: str, hidden: bool) -> Array:
        """The values of the faults of a stratum, in the order of their numbers."""
        space, parts = group.space, []
        for target, places in zip(space.targets, space.bit_positions, strict=True):
            parts.append(self.counts[target.id][:, list(places)].reshape(-1) / IMAGES)
        x = np.concatenate(parts)
        if hidden and group.label.endswith(" 0-15"):
            x[np.random.default_rng(9).choice(len(x), len(x) // 50, replace=False)] = 1.0
        return (x > 0).astype(float) if measure == "any_changed" else x


def check(folder: Path) -> bool:
    """Hold the table against trials that onnxfi runs."""
    table, wrong, n = Table.load(folder), 0, 0
    for bits in ("", "20-31"):
        campaign = Campaign(
            str(MODEL), str(DATA), samples=IMAGES, single=True, trials=300, bits=bits, provider="cpu", seed=5
        )
        with tempfile.TemporaryDirectory() as place:
            store = Path(place) / "s.db"
            list(run(campaign, store))
            with Store.open(store) as opened:
                for row in opened.rows():
                    line = json.loads(opened.trial(row.trial)["lines"])
                    said = int(table.counts[line["target"]][line["index"], line["bits"][0]])
                    n += IMAGES
                    wrong += abs(round(row.metrics["top1_changed"] * IMAGES) - said)
    print(f"ONNX Runtime, 600 trials: {wrong} of {n:,} answers differ from the table")
    return wrong == 0


# ------------------------------------------------------------------------------------------------ the study


class Case(NamedTuple):
    """A campaign that is simulated: what it measures, how narrow, how, and on which population."""

    measure: str
    method: str
    margin: float
    relative: float | None = None
    hidden: bool = False

    def __str__(self) -> str:
        width = f"±{100 * self.relative:g} % of it" if self.relative else f"±{100 * self.margin:g} %"
        killers = ", 2 % of bits 0-15 fatal" if self.hidden else ""
        return f"{'average' if self.measure == 'top1_changed' else 'any image'} {width} {self.method}{killers}"


class Outcome(NamedTuple):
    """Trials, the interval, and whether it held the truth."""

    trials: int
    interval: Interval


CASES = [
    *(Case(name, method, 0.01) for name in ("top1_changed", "any_changed") for method in ("guaranteed", "asymptotic")),
    Case("top1_changed", "simple", 0.01),
    Case("any_changed", "simple", 0.01),
    Case("top1_changed", "naive", 0.01),
    Case("any_changed", "naive", 0.01),
    *(Case("top1_changed", method, 1e-4, 0.1) for method in ("guaranteed", "asymptotic")),
    *(Case("top1_changed", method, 0.01, None, True) for method in ("guaranteed", "asymptotic", "simple", "naive")),
]


def shuffled(values: list[Array], rng: np.random.Generator) -> list[Array]:
    """Each stratum's values in the order in which a campaign meets them; of a large one the first that it meets."""
    found = []
    for x in values:
        if x.any():
            found.append(rng.permutation(x) if len(x) < LARGE else rng.choice(x, LARGE // 10, replace=False))
        else:
            found.append(x)
    return found


def adaptive(case: Case, layout: Layout, values: list[Array], rng: np.random.Generator, seed: int) -> Outcome:
    """A campaign, round by round, as onnxfi runs it."""
    order, seen = shuffled(values, rng), Seen(Moments.empty(len(values)))
    interval, aim = Interval(0.0, 1.0, float("nan"), "none", 0.99), 0.0
    while True:
        rate = 0.02 if np.isnan(interval.estimate) else interval.estimate
        aim = max(case.margin, (case.relative or 0) * rate)
        if interval.half_width <= aim or seen.trials == layout.sizes.sum():
            return Outcome(seen.trials, interval)
        played = allocate_round(layout.sizes, layout.parents, seen.moments)
        first = 64 if case.method != "simple" else 10 if seen.rounds else 100
        chosen = sampling.choose(played.probability, round_size(seen.trials, first=first), seed, seen.rounds + 1)
        draws = prepare_draws(played, without_exhausted(chosen, played.remaining), aim, round_weight(seen.trials))
        first_left = (layout.sizes[draws.stratum] - draws.stratum_remaining).astype(np.int64)
        x = np.array([order[h][k] for h, k in zip(draws.stratum, first_left, strict=True)])
        seen = seen.plus(draws, x)
        interval = seen.interval(case.method, 0.99)


def naive(case: Case, layout: Layout, values: list[Array], rng: np.random.Generator, seed: int) -> Outcome:
    """Run the estimate to avoid: Neyman's allocation by all trials so far, means of strata over all trials together."""
    order, sizes = shuffled(values, rng), layout.sizes
    share, n = sizes / sizes.sum(), np.zeros(len(values), np.int64)
    more = np.minimum(4, sizes).astype(np.int64)
    while True:
        n = n + more
        seen = [x[:k] for x, k in zip(order, n, strict=True)]
        mean = np.array([x.mean() for x in seen])
        variance = np.array([x.var(ddof=1) if len(x) > 1 else 0.25 for x in seen])
        quiet = variance <= 1e-12
        variance = np.where(quiet, 1 / max(n[quiet].sum(), 1) / np.maximum(n - 1, 1), variance)
        p = float(share @ mean)
        spread = float((share**2 * variance * (1 - n / sizes) / n).sum())
        reach = 2.5758293035489004 * spread**0.5
        if (0 < p < 1 and reach <= case.margin) or n.sum() >= sizes.sum():
            return Outcome(int(n.sum()), Interval(p - reach, p + reach, p, "naive", 0.99))
        wish = share * (n < sizes) * np.sqrt(variance)
        wish = np.maximum(wish / wish.sum() * n.sum() * 1.1 - n, 0)
        wish *= max(0.1 * n.sum(), 8) / max(wish.sum(), 1e-300)
        more = np.floor(wish).astype(np.int64)
        more = np.minimum(more + (rng.random(len(n)) < wish - more), sizes - n).astype(np.int64)


def simulate(case: Case, groups: dict[str, tuple[PlannedStratum, ...]], table: Table, runs: int) -> tuple[float, ...]:
    """Trials, share of DATE-2009's, coverage and bias of a case."""
    chosen = groups["simple" if case.method == "simple" else "adaptive"]
    whole = [table.values(g, case.measure, case.hidden) for g in groups["adaptive"]]
    values = whole if case.method != "simple" else [np.concatenate(whole)]
    layout = Layout.of([{**g.row(), "population": g.population} for g in chosen])
    true = float(np.concatenate(whole).mean())
    campaign: Callable[..., Outcome] = naive if case.method == "naive" else adaptive
    found = [campaign(case, layout, values, np.random.default_rng([7, seed]), seed) for seed in range(runs)]
    trials = float(np.mean([one.trials for one in found]))
    held = float(np.mean([one.interval.low - 1e-9 <= true <= one.interval.high + 1e-9 for one in found]))
    bias = float(np.mean([one.interval.estimate for one in found])) - true
    margin = case.relative * true if case.relative else case.margin
    return trials, sample_size(int(layout.sizes.sum()), margin) / trials, held, true, bias


def study(folder: Path, runs: int, only: str) -> bool:
    """Simulate the cases that have all the words in their names; whether the targets were met."""
    table, fine = Table.load(folder), True
    reach = FaultTargets.of(load(str(MODEL)))
    groups = {
        "adaptive": plan_strata(Campaign(str(MODEL), single=True, adaptive=True), reach),
        "simple": plan_strata(Campaign(str(MODEL), single=True, adaptive=True, method="simple"), reach),
    }
    flips = sum(counts.size for counts in table.counts.values())
    rates = table.each / flips
    print(f"{flips:,} flips, {IMAGES} images; changed {rates.mean():.4%}; choice of images: {sample_error(rates)}")
    for case in CASES:
        if not all(word in str(case) for word in only.split()):
            continue
        begun = time.monotonic()
        trials, ratio, held, true, bias = simulate(case, groups, table, runs)
        print(
            f"{case!s:58} true {true:.3%} trials {trials:9,.0f} DATE-2009 / trials {ratio:6.1f} bias {bias:+.4%} "
            f"holds {held:.3f} [{time.monotonic() - begun:.0f} s]",
            flush=True,
        )
        if case.method == "guaranteed":
            least = {"top1_changed": 10.0, "any_changed": 3.0}[case.measure]
            fine &= held >= 0.985 and (ratio >= least or case.hidden)
    return fine


def main() -> int:
    """Read the command line, and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["truth", "check", "study"])
    parser.add_argument("--folder", type=Path, default=Path("adaptive_truth"), help="where the table lies")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--only", default="", help="cases whose names have all these words")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.what == "truth":
        truth(given.folder)
        return 0
    return int(not (check(given.folder) if given.what == "check" else study(given.folder, given.runs, given.only)))


if __name__ == "__main__":
    sys.exit(main())
