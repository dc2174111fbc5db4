"""Cost of fault operators: ResNet-18 disarmed and armed against plain, an armed run against a new session, many sites.

python scripts/bench/instrument.py RESNET18.onnx [--rounds 9] [--batch 4] [--profile Conv]

Times are CPU times of one thread. Each run of an armed file stands between two of the plain model, and its ratio is to
their mean; medians of these, with the quartiles. A file is run disarmed, with one fault, and with one at every site.
`--profile OP` says instead where a disarmed run goes in which each OP is armed, by the runtime's own profile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import helper

from onnxfi.faults.space import Selector
from onnxfi.faults.words import Mask
from onnxfi.graph.model.loading import load
from onnxfi.graph.passes.fault_inputs import columns
from onnxfi.graph.passes.instrument import ActivationFault
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.inject.activations import inject_activations, instrument

ENGINE = OrtEngine(provider="cpu")


def timed(job: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds that a job takes."""
    start = clock()
    job()
    return clock() - start


def chain(nodes: int, opset: int) -> Any:
    """A model of so many nodes one behind the other."""
    names = ["x", *(f"t{k}" for k in range(nodes))]
    made = [helper.make_node(("Relu", "Abs")[k % 2], [names[k]], [names[k + 1]]) for k in range(nodes)]
    ends = [helper.make_tensor_value_info(n, 1, ["N", 64]) for n in ("x", names[-1])]
    graph = helper.make_graph(made, "chain", ends[:1], ends[1:])
    return helper.make_model(graph, ir_version=13, opset_imports=[helper.make_opsetid("", opset)])


def network(path: Path, rounds: int, batch: int) -> None:
    """The network disarmed and armed, in turns with the plain one."""
    model, plain = load(path), ENGINE.prepare(path)
    name = plain.inputs[0].name
    feeds = {name: np.random.default_rng(0).random((batch, 3, 224, 224), dtype=np.float32)}
    relus = instrument(model, Selector(op=("Relu",))).armed.sites
    convs = instrument(model, Selector(op=("Conv",))).armed.sites
    selections = {
        "one Relu": Selector(include=("=" + relus[len(relus) // 2].name,)),
        "one Conv": Selector(include=("=" + convs[len(convs) // 2].name,)),
        "every Relu": Selector(op=("Relu",)),
        "every Conv": Selector(op=("Conv",)),
    }
    jobs: dict[tuple[str, str], Callable[[], Any]] = {}
    for label, selector in selections.items():
        done = instrument(model, selector)
        session, armed = ENGINE.prepare(done.data), done.armed
        faults = [ActivationFault(a, 7, Mask(0xFFFFFFFF, 1 << 20)) for a in armed.sites]
        states = {"disarmed": [], "one fault": faults[len(faults) // 2 :][:1], "all faulty": faults}
        for state, injected in states.items():
            if state != "all faulty" or len(faults) > 1:
                fed = feeds | columns(armed, injected)
                jobs[label, state] = lambda s=session, f=fed: s.run(f)  # type: ignore[misc]
    for job in jobs.values():
        job()
    base = [timed(lambda: plain.run(feeds))]
    ratios: dict[tuple[str, str], list[float]] = {key: [] for key in jobs}
    for _ in range(rounds):
        for key, job in jobs.items():
            took = timed(job)
            base.append(timed(lambda: plain.run(feeds)))
            ratios[key].append(2 * took / (base[-2] + base[-1]))
    print(f"plain, batch {batch}: {statistics.median(base) * 1e3:.0f} ms")
    for (label, state), values in ratios.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{label:>12} {state:>10}: {middle:.3f} of plain (quartiles {low:.3f} to {high:.3f})")


def profile(path: Path, op: str, rounds: int, batch: int) -> None:
    """The share of each kind of node in a run of the plain and of the disarmed model."""
    armed = instrument(load(path), Selector(op=(op,))).data
    feeds = {ENGINE.prepare(path).inputs[0].name: np.random.default_rng(0).random((batch, 3, 224, 224), np.float32)}
    for label, model in (("plain", path.read_bytes()), (f"each {op} armed", armed)):
        with tempfile.TemporaryDirectory() as folder:
            options = ort.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            options.enable_profiling, options.profile_file_prefix = True, str(Path(folder, "run"))
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            for _ in range(rounds):
                session.run(None, feeds)
            events = json.loads(Path(session.end_profiling()).read_text())
        took: Counter[str] = Counter()
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
                took[event["args"]["op_name"]] += event["dur"]
        print(f"{label}: " + ", ".join(f"{name} {n / took.total():.2%}" for name, n in took.most_common(14)))


def against_new_sessions(path: Path, rounds: int) -> None:
    """A fault in one image: fed to one session, or in a file of its own."""
    model, done = load(path), instrument(load(path))
    session, armed = ENGINE.prepare(done.data), done.armed
    feeds = {session.inputs[0].name: np.random.default_rng(0).random((1, 3, 224, 224), dtype=np.float32)}
    site = armed.sites[len(armed.sites) // 2]
    fed = columns(armed, [ActivationFault(site, 7, Mask(0xFFFFFFFF, 1 << 20))])
    faulty = inject_activations(model, sites=[f"{site.target.id}[7]:20"]).data
    once = statistics.median(timed(lambda: session.run(feeds | fed)) for _ in range(rounds))
    anew = statistics.median(timed(lambda: ENGINE.prepare(faulty).run(feeds)) for _ in range(rounds))
    ratio = anew / once
    print(f"batch 1: an armed run {once * 1e3:.0f} ms, a new session and a run {anew * 1e3:.0f} ms: {ratio:.1f} times")


def many() -> None:
    """Instrumenting 3,000 nodes, and loading 300 armed sites."""
    for opset in (17, 26):
        large = load(chain(3000, opset))
        print(f"opset {opset}: 3,000 nodes instrumented in {timed(lambda m=large: instrument(m, all=True)):.1f} s")  # type: ignore[misc]
        data = instrument(load(chain(300, opset)), all=True).data
        print(f"opset {opset}: 300 armed sites loaded in {timed(lambda d=data: ENGINE.prepare(d)):.1f} s")  # type: ignore[misc]


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--profile", metavar="OP")
    given = parser.parse_args()
    if given.profile:
        profile(given.model, given.profile, given.rounds, given.batch)
        return
    network(given.model, given.rounds, given.batch)
    against_new_sessions(given.model, given.rounds)
    many()


if __name__ == "__main__":
    main()
