"""Rankings by draws that go where the order is open, beside equal allocation, on rates of the shipped networks.

    python scripts/bench/ranking.py truth FOLDER   # sample every tensor and field of bits of three networks: minutes
    python scripts/bench/ranking.py study FOLDER   # 100 rankings of each that is there, simulated on these rates
    python scripts/bench/ranking.py study FOLDER 10

A simulated trial of a stratum takes the value of a real trial in it, as if each stratum had endless sites, so that none
is used up and the true rates are known. `study` ends with 1 where a ranking takes more
than a fifth of the trials of equal allocation, or says something wrong more often than its confidence allows.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import onnxfi
from onnxfi.campaign.plan.strata import bit_fields
from onnxfi.campaign.results.store import Store
from onnxfi.statistics.adaptive import Moments, round_size, round_weight, simple_interval, until_stratum_exhausted
from onnxfi.statistics.ranking import GroupScores, Standing, allocate_groups

ROOT = Path(__file__).parents[2]
#: Factor on the sites of each stratum.
ENDLESS = 1e6
NETWORKS = ("fashion_cnn", "fashion_attention", "fashion_gru")
SAMPLES, TRIALS, TOP, MARGIN, CONFIDENCE, REPETITIONS = 100, 120, 5, 0.01, 0.95, 100


def truth(folder: Path) -> None:
    """Sample the SDC-1 rate of each field of bits of each tensor."""
    for name in NETWORKS:
        path, strata = ROOT / "models" / f"{name}.onnx", []
        for target in onnxfi.Selector().space(onnxfi.load(path).targets).targets:
            for bits in bit_fields(target.word):
                campaign = onnxfi.Campaign(
                    path, ROOT / "models" / "fashion_test.npz", samples=SAMPLES, include=f"={target.id}",
                    bits=f"{bits[0]}-{bits[-1]}", single=True, trials=TRIALS, provider="cpu",
                )  # fmt: skip
                with tempfile.TemporaryDirectory() as place:
                    list(onnxfi.run(campaign, Path(place, "s.db")))
                    with Store.open(Path(place, "s.db")) as store:
                        values = [row.metrics["sdc1"] for row in store.rows()]
                field = f"{target.word.name} {bits[0]}"
                strata.append({"part": target.id, "field": field, "size": target.size * len(bits), "values": values})
        (folder / f"{name}.json").write_text(json.dumps(strata))
        print(f"{name}: {len(strata)} strata", flush=True)


class Network:
    """The strata of a network, with the values that a trial in each can have."""

    def __init__(self, file: Path) -> None:
        rows = json.loads(file.read_text())
        self.parts = list(dict.fromkeys(row["part"] for row in rows))
        fields = list(dict.fromkeys(row["field"] for row in rows))
        self.groups = np.array([self.parts.index(row["part"]) for row in rows])
        self.parents = np.array([fields.index(row["field"]) for row in rows])
        self.sizes = ENDLESS * np.array([row["size"] for row in rows], np.float64)
        self.values = [np.array(row["values"]) for row in rows]
        means = np.array([values.mean() for values in self.values])
        self.whole = np.bincount(self.groups, self.sizes)
        self.rates = np.bincount(self.groups, self.sizes * means) / self.whole

    def draw(self, strata: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.choice(self.values[h]) for h in strata])

    def right(self, standing: Standing) -> bool:
        """True where all that a standing says of its pairs is so."""
        for one, other in standing.pairs:
            difference = self.rates[one] - self.rates[other]
            if standing.above(one, other) and difference <= 0:
                return False
            if standing.tied(one, other) and abs(difference) > standing.margin + 1e-12:
                return False
        return True


def ranked(net: Network, rng: np.random.Generator) -> tuple[int, Standing]:
    """A ranking as campaigns make it: trials, and what it says."""
    seen, scores = Moments.empty(len(net.sizes)), GroupScores.empty(net.groups, CONFIDENCE)
    while True:
        standing, trials = scores.standing(TOP, MARGIN), int(seen.n.sum())
        if (trials and standing.settled) or trials >= 10**6:
            return trials, standing
        known = allocate_groups(net.sizes, net.parents, seen, net.groups, standing.weights())
        drawn = until_stratum_exhausted(
            rng.choice(len(net.sizes), round_size(trials), p=known.probability), known.remaining
        )
        values = net.draw(drawn, rng)
        scores = scores.plus(known, drawn, values, standing.aim, round_weight(trials))
        seen = seen.add(drawn, values)


def equal(net: Network, rng: np.random.Generator) -> tuple[int, Standing]:
    """As many trials in each part, sites drawn evenly, until a look finds it settled: it knows when to stop."""
    count, each = len(net.parts), 1 - (1 - CONFIDENCE) / len(net.parts)
    values: list[np.ndarray] = [np.zeros(0)] * count
    n = 100
    while True:
        intervals = []
        for part in range(count):
            strata = np.flatnonzero(net.groups == part)
            more = rng.choice(strata, max(n - len(values[part]), 0), p=net.sizes[strata] / net.whole[part])
            values[part] = x = np.append(values[part], net.draw(more, rng))
            intervals.append(simple_interval(n, x.sum(), (x * x).sum(), 10**9, each))
        standing = Standing(tuple(intervals), TOP, MARGIN)
        if standing.settled or n * count >= 10**6:
            return n * count, standing
        n = int(1.2 * n)


def study(folder: Path, repetitions: int = REPETITIONS) -> int:
    missed = 0
    print(f"top {TOP}, ties within {MARGIN:g}, confidence {CONFIDENCE:g}, {repetitions} repetitions, median trials")
    for name in (name for name in NETWORKS if (folder / f"{name}.json").is_file()):
        net = Network(folder / f"{name}.json")
        found: dict[str, tuple[float, int]] = {}
        for how in (ranked, equal):
            made = [how(net, np.random.default_rng(seed)) for seed in range(repetitions)]
            found[how.__name__] = float(np.median([n for n, _ in made])), sum(net.right(one) for _, one in made)
        (ours, right), (theirs, right_equal) = found["ranked"], found["equal"]
        print(f"{name:20s}{len(net.parts):4d} tensors: ranked {ours:8,.0f} ({right} right), "
              f"equal {theirs:9,.0f} ({right_equal} right), 1/{theirs / ours:.1f}", flush=True)  # fmt: skip
        missed += ours > theirs / 5 or right < CONFIDENCE * repetitions
    return missed


if __name__ == "__main__":
    verb, place, *more = sys.argv[1:]
    Path(place).mkdir(exist_ok=True)
    sys.exit({"truth": truth, "study": study}[verb](Path(place), *map(int, more)) or 0)
