"""Pools of real trials for `scripts/bench/ranking.py`: of every field of bits of every tensor of a network.

    python scripts/bench/ranking_pool.py FOLDER                    # minutes for each network
    python scripts/bench/ranking_pool.py FOLDER fashion_attention  # one network

Of a stratum with few sites the pool holds all, so that what is replayed from it is exact.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

import onnxfi
from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.plan.strata import stratum_kind
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run import runner

ROOT = Path(__file__).parents[2]
#: Networks, and how many trials of a stratum their pools hold at most.
NETWORKS = {"fashion_cnn": 50, "fashion_cnn_int8_qdq": 40, "fashion_attention": 12, "fashion_gru": 40}
SAMPLES = 100


def pool(name: str, most: int, folder: Path) -> None:
    """Run the trials of a network, and write the SDC-1 of each by stratum."""
    path, data = ROOT / "models" / f"{name}.onnx", ROOT / "models" / "fashion_test.npz"
    made = make_plan(
        onnxfi.Campaign(path, data, samples=SAMPLES, rank="tensor", seed=1), FaultTargets.of(onnxfi.load(path))
    )
    values: dict[int, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as place:
        listed, store = Path(place, "pool.jsonl"), folder / f"{name}.db"  # a run that was stopped goes on
        with listed.open("w") as stream:
            print(made.header.line(), file=stream)
            rows = [
                row
                for s, stratum in enumerate(made.strata)
                for row in made.nth(s, np.arange(min(most, stratum.population), dtype=np.uint64))
            ]
            stream.writelines(row.lines + "\n" for row in sorted(rows, key=lambda row: row.trial))
        for _ in runner.run(onnxfi.Campaign(path, data, faults=listed, samples=SAMPLES, provider="cpu"), store):
            pass
        with Store.open(store) as opened:
            for row in opened.rows():
                values[row.stratum].append(float(row.metrics["sdc1"]))
    strata = [
        {
            "part": stratum.layer, "field": stratum_kind(stratum.label, stratum.layer),
            "size": stratum.population, "values": values[s],
        }
        for s, stratum in enumerate(made.strata)
    ]  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(strata))
    print(f"{name}: {len(strata)} strata, {sum(map(len, values.values())):,} trials", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for the pools")
    parser.add_argument("networks", nargs="*", choices=list(NETWORKS), help="by default all")
    given = parser.parse_args()
    given.folder.mkdir(exist_ok=True)
    for network in given.networks or NETWORKS:
        pool(network, NETWORKS[network], given.folder)
