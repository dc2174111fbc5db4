"""How much late start and early stop gain on the faults of neurons, on one core.

    python scripts/bench/spiking.py [--faults 1000] [--images 32]

Faults in neurons of models/fashion_snn.onnx, drawn over all neurons of all layers: a bit of a membrane potential flips
at one step, a bit of a spike flips at one step, a neuron is dead from a step on, or saturated in all. Every fault is
run with late start and early stop each on and off, the first of them also as a faulty model of its own in a new
session; all must count the same spikes. Published for comparison: SpikingJET, about 0.9 faults a second (Gogebakan et
al., 2024, another machine and other networks).
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import onnxfi
from onnxfi.faults.sampling import raw_words
from onnxfi.runtime.steps import Steps

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("membrane bit, one step", "spike bit, one step", "dead from a step on", "saturated in all steps")
MODES = {"neither": (False, False), "late start": (True, False), "early stop": (False, True), "both": (True, True)}


def drawn(faults: int, layers: list[tuple[str, int]], steps: int) -> list[tuple[str, str, int, int, int]]:
    """Kind, layer, neuron, step and bit of each fault, uniform over the neurons of the network."""
    raw = raw_words(1, 1, 1, 3 * faults).reshape(faults, 3)
    total = sum(n for _, n in layers)
    out = []
    for number, (first, second, third) in enumerate(raw.tolist()):
        neuron = first % total
        ends = np.cumsum([n for _, n in layers])
        at = int(np.searchsorted(ends, neuron, side="right"))
        name, n = layers[at]
        out.append((KINDS[number % len(KINDS)], name, neuron - int(ends[at]) + n, second % steps, third % 32))
    return out


Fault = tuple[str, str, int, int, int]


def patches(steps: Steps, fault: Fault) -> dict:
    """The values in flight that a fault changes, and how."""
    kind, layer, neuron, step, bit = fault
    flip = onnxfi.parse_fault("flip")
    if kind == KINDS[0]:
        return steps.faults(layer, "membrane", neuron, flip, bit=bit, first=step, last=step)
    if kind == KINDS[1]:
        return steps.faults(layer, "spike", neuron, flip, bit=bit, first=step, last=step)
    if kind == KINDS[2]:
        return steps.faults(layer, "spike", neuron, onnxfi.parse_fault("dead"), first=step)
    return steps.faults(layer, "spike", neuron, onnxfi.parse_fault("saturated"))


def alone(exposed: onnxfi.Model, fault: Fault, image: np.ndarray, steps: int) -> np.ndarray:
    """The spike counts of a faulty model of its own, in a session of its own."""
    kind, layer, neuron, step, bit = fault
    variable = "membrane" if kind == KINDS[0] else "spike"
    first, last = (0, steps) if kind == KINDS[3] else (step, steps) if kind == KINDS[2] else (step, step + 1)
    name = "dead" if kind == KINDS[2] else "set:value=1" if kind == KINDS[3] else "flip"
    tail = f":{bit}" if name == "flip" else ""
    sites = [f"{layer}/{variable}/{t}[{neuron}]{tail}" for t in range(first, last)]
    data = onnxfi.inject_flow(exposed, sites=sites, fault=name).data
    return onnxfi.OrtEngine(provider="cpu").prepare(data).run({"image": image})["counts"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--alone", type=int, default=50, help="faults that are also run as a model of their own")
    given = parser.parse_args()
    exposed = onnxfi.load(onnxfi.expose_neurons(onnxfi.load(ROOT / "models" / "fashion_snn.onnx")).data)
    with np.load(ROOT / "models" / "fashion_test.npz") as held:
        image = held["image"][: given.images]
    found = onnxfi.inspect(exposed)["spiking"]["layers"]
    steps = Steps.open(exposed, onnxfi.OrtEngine(provider="cpu"))
    faults = drawn(given.faults, [(row["layer"], row["neurons"]) for row in found], found[0]["steps"])
    golden = steps.golden({"image": image})
    seconds = {(kind, mode): 0.0 for kind in KINDS for mode in MODES}
    parts = dict.fromkeys(seconds, 0)
    many = dict.fromkeys(KINDS, 0)
    alone_s = unlike = 0
    for number, fault in enumerate(faults):
        many[fault[0]] += 1
        answers = []
        for mode, (late, early) in MODES.items():
            begun = time.perf_counter()
            answer = steps.run(golden, patches(steps, fault), late=late, early=early)
            seconds[fault[0], mode] += time.perf_counter() - begun
            parts[fault[0], mode] += answer.parts
            answers.append(answer.outputs["counts"])
        if number < given.alone:
            begun = time.perf_counter()
            answers.append(alone(exposed, fault, image, found[0]["steps"]))
            alone_s += time.perf_counter() - begun
        unlike += any(not np.array_equal(answers[0], other) for other in answers[1:])
    print(f"{len(faults):,} faults, {given.images} images, one thread; faults that two ways answer otherwise: {unlike}")
    print(f"{'faults a second':<24}" + "".join(f"{mode:>12}" for mode in MODES) + f"{'parts run':>20}")
    for kind in KINDS:
        rates = [many[kind] / seconds[kind, mode] for mode in MODES]
        share = parts[kind, "both"] / max(1, parts[kind, "neither"])
        print(f"{kind:<24}" + "".join(f"{rate:>12.1f}" for rate in rates) + f"{share:>20.1%}")
    total = [len(faults) / sum(seconds[kind, mode] for kind in KINDS) for mode in MODES]
    print(f"{'all':<24}" + "".join(f"{rate:>12.1f}" for rate in total))
    if alone_s:
        rate = min(given.alone, len(faults)) / alone_s
        print(f"a faulty model of its own and a new session: {rate:.1f} faults a second")
    if unlike:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
