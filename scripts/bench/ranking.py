"""Rankings by draws that go where the order is open, beside equal allocation, replayed from pools of real trials.

    python scripts/bench/ranking_pool.py FOLDER          # run the pools of four networks once
    python scripts/bench/ranking.py FOLDER               # 100 rankings of each network that is there, by both designs
    python scripts/bench/ranking.py FOLDER 10 NETWORK…   # 10 of some

A simulated campaign meets the faults of a stratum in random order, each once, with the values of the pool repeated up
to the size of the stratum: so small tensors are used up, as real ones are, and all true rates are known. The rounds are
those of `onnxfi run --rank tensor --method asymptotic`. Equal allocation draws as many trials from each tensor, evenly
(all of a tensor that has fewer bits), at sizes that grow by a fifth. Both decide the same pairs, by intervals at the
same joint confidence. A fixed size is chosen once and has to do: it is the first that settles the order in 19 of 20
repetitions, which nobody knows beforehand. Beside it stands the median of the sizes that settle it where a campaign
looks after each and pays nothing for looking. Ends with 1 where a ranking takes more than a fifth of the fixed size, or
says something wrong more often than its confidence allows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.faults import sampling
from onnxfi.statistics.adaptive import Moments, round_size, round_weight, simple_interval, without_exhausted
from onnxfi.statistics.ranking import GroupScores, Standing, allocate_groups

NETWORKS = ("fashion_cnn", "fashion_cnn_int8_qdq", "fashion_attention", "fashion_gru")
TOP, MARGIN, CONFIDENCE, METHOD, REPETITIONS = 5, 0.01, 0.95, "asymptotic", 100
#: Trials at which a simulation gives up, and sites of a stratum whose order is laid down.
MOST, LAID = 2 * 10**6, 1 << 22


class Network:
    """The strata of a network, with the values of their faults."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.parts = list(dict.fromkeys(row["part"] for row in rows))
        fields = list(dict.fromkeys(row["field"] for row in rows))
        self.groups = np.array([self.parts.index(row["part"]) for row in rows])
        self.parents = np.array([fields.index(row["field"]) for row in rows])
        self.sizes = np.array([row["size"] for row in rows], np.float64)
        self.values = [np.resize(np.array(row["values"]), min(row["size"], LAID)) for row in rows]
        means = np.array([values.mean() for values in self.values])
        self.whole = np.bincount(self.groups, self.sizes)
        self.rates = np.bincount(self.groups, self.sizes * means) / self.whole

    def right(self, standing: Standing) -> bool:
        """True where all that a standing says of its pairs is so."""
        for one, other in standing.pairs:
            difference = self.rates[one] - self.rates[other]
            if standing.above(one, other) and difference <= 0:
                return False
            if standing.tied(one, other) and abs(difference) > standing.margin + 1e-12:
                return False
        return True


class Faults:
    """The faults of a network in one random order."""

    def __init__(self, net: Network, seed: int) -> None:
        self.net, self.rng = net, np.random.default_rng(seed)
        self.orders: dict[int, np.ndarray] = {}
        self.met = np.zeros(len(net.sizes), np.int64)

    def next(self, strata: np.ndarray) -> np.ndarray:
        """The values of the next faults of these strata."""
        found = np.empty(len(strata))
        for h in np.unique(strata):
            if h not in self.orders:
                self.orders[h] = self.rng.permutation(self.net.values[h])
            here = np.flatnonzero(strata == h)
            found[here] = self.orders[h][self.met[h] : self.met[h] + len(here)]
            self.met[h] += len(here)
        return found


def ranked(net: Network, seed: int) -> tuple[int, Standing]:
    """A ranking as campaigns make it: trials, and what it says."""
    faults, seen, scores = (
        Faults(net, seed),
        Moments.empty(len(net.sizes)),
        GroupScores.empty(net.groups, CONFIDENCE, METHOD),
    )
    number = 0
    while True:
        standing, trials = scores.standing(TOP, MARGIN), int(seen.n.sum())
        if (trials and standing.settled) or trials >= min(MOST, net.sizes.sum()):
            return trials, standing
        number += 1
        known = allocate_groups(net.sizes, net.parents, seen, net.groups, standing.weights(), METHOD)
        chosen = sampling.choose(known.probability, round_size(trials), seed, number)
        drawn = without_exhausted(chosen, known.remaining)
        values = faults.next(drawn)
        scores = scores.plus(known, drawn, values, standing.aims, round_weight(trials))
        seen = seen.add(drawn, values)


def equal(net: Network, seed: int) -> tuple[int, Standing]:
    """As many trials in each part, sites drawn evenly, until a look finds it settled: it knows when to stop."""
    count, each = len(net.parts), 1 - (1 - CONFIDENCE) / len(net.parts)
    faults, rng, n = Faults(net, seed), np.random.default_rng([seed, 1]), 100
    values: list[np.ndarray] = [np.zeros(0)] * count
    while True:
        intervals = []
        for part in range(count):
            strata, whole = np.flatnonzero(net.groups == part), int(net.whole[part])
            more = min(n, whole) - len(values[part])
            if more > 0:
                left = (net.sizes[strata] - faults.met[strata]).astype(np.int64)
                drawn = np.repeat(strata, rng.multivariate_hypergeometric(left, more, method="marginals"))
                values[part] = np.append(values[part], faults.next(rng.permutation(drawn)))
            x = values[part]
            intervals.append(simple_interval(len(x), x.sum(), (x * x).sum(), whole, each))
        standing, trials = Standing(tuple(intervals), TOP, MARGIN), sum(map(len, values))
        if standing.settled or trials >= min(MOST, net.sizes.sum()):
            return trials, standing
        n = int(1.2 * n)


def study(folder: Path, repetitions: int, names: list[str]) -> int:
    """Rank each network by both designs, and print their trials."""
    missed = 0
    print(f"top {TOP}, ties within {MARGIN:g}, confidence {CONFIDENCE:g}, {repetitions} repetitions")
    for name in (name for name in names or NETWORKS if (folder / f"{name}.json").is_file()):
        net = Network(json.loads((folder / f"{name}.json").read_text()))
        found: dict[str, tuple[list[int], int]] = {}
        begun = time.process_time()
        for how in (ranked, equal):
            made = [how(net, seed) for seed in range(repetitions)]
            found[how.__name__] = [n for n, _ in made], sum(net.right(one) for _, one in made)
        (trials, right), (sizes, right_equal) = found["ranked"], found["equal"]
        ours, most = np.quantile(trials, (0.5, 0.95))
        looked, fixed = np.quantile(sizes, (0.5, 0.95), method="higher")
        print(f"{name:22s}{len(net.parts):4d} tensors: ranked {ours:7,.0f} (95 %: {most:,.0f}; {right} right), "
              f"equal fixed {fixed:,.0f} ({right_equal} right), 1/{fixed / ours:.1f}; looking {looked:,.0f}, "
              f"1/{looked / ours:.1f}; {time.process_time() - begun:.0f} s", flush=True)  # fmt: skip
        missed += ours > fixed / 5 or right < CONFIDENCE * repetitions
    return missed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where ranking_pool.py wrote its pools")
    parser.add_argument("repetitions", nargs="?", type=int, default=REPETITIONS, metavar="N")
    parser.add_argument("networks", nargs="*", choices=list(NETWORKS), help="by default all that are there")
    given = parser.parse_args()
    sys.exit(study(given.folder, given.repetitions, given.networks) and 1)
