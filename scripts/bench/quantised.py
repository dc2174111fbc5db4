"""A quantised model without a fault: the same bytes, and as fast, also while its integer activations are armed.

    python scripts/bench/quantised.py [MODEL…] [--rounds 40] [--batch 200] [--json]

For each model (default: the int8 models in models/):

1. `onnxfi.inject` at a rate of 0 per bit: whether what it writes is the model, byte for byte;
2. a run of what it wrote against a run of the model (target: 1.1 times at most);
3. the model with all its activations armed: the integer kernels that ONNX Runtime makes of it (target: as many as of
   the model), and a disarmed run against a run of the model.

Times are CPU times of one thread, taken in turns; the ratios are of medians. The exit status says whether the targets
were met: 0 yes, 1 no.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import onnxfi
from onnxfi.runtime.inject.activations import instrument

MODELS = [Path("models") / f"fashion_cnn_int8_{name}.onnx" for name in ("qdq", "qoperator")]
SLOWER = 1.1


def kernels(model: bytes, folder: Path) -> int:
    """The integer kernels in the graph that ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    ops = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    return sum(n for op, n in ops.items() if op.startswith("QLinear") or op in ("QGemm", "MatMulInteger"))


def measure(path: Path, rounds: int, batch: int) -> dict[str, Any]:
    """All figures of one model."""
    model, golden = onnxfi.load(path), path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "same.onnx"
        onnxfi.inject(model, onnxfi.sample(model, ber=0.0), written)
        files = {"golden": golden, "written": written.read_bytes(), "armed": instrument(model).data}
        counts = {name: kernels(data, Path(folder)) for name, data in files.items()}
    engine = onnxfi.OrtEngine(provider="cpu")
    sessions = {name: engine.prepare(data) for name, data in files.items()}
    port = sessions["golden"].inputs[0]
    shape = [dim if isinstance(dim, int) else batch for dim in port.shape or ()]
    feeds = {port.name: np.random.Generator(np.random.Philox(0)).random(shape, dtype=np.float32)}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds + 3):  # three to warm up
        for name, session in sessions.items():
            begun = time.process_time()
            session.run(feeds)
            times[name].append(time.process_time() - begun)
    median = {name: statistics.median(values[3:]) for name, values in times.items()}
    return {
        "model": str(path),
        "identical": files["written"] == golden,
        "golden_ms": round(1e3 * median["golden"], 2),
        "written_ratio": round(median["written"] / median["golden"], 3),
        "armed_ratio": round(median["armed"] / median["golden"], 3),
        "kernels": counts["golden"],
        "armed_kernels": counts["armed"],
    }


def met(row: dict[str, Any]) -> bool:
    """Return true where a model meets the targets."""
    return row["identical"] and row["written_ratio"] <= SLOWER and row["armed_kernels"] == row["kernels"]


def main() -> None:
    """Print the figures of every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", metavar="MODEL", nargs="*", type=Path, default=MODELS)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [measure(path, given.rounds, given.batch) for path in given.models]
    if given.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            same = "the same bytes" if row["identical"] else "OTHER BYTES"
            print(f"{row['model']}, {row['golden_ms']:.1f} ms a batch of {given.batch}")
            print(f"  0 faults: {same}, {row['written_ratio']:.3f} times the golden run's time")
            print(
                f"  activations armed: {row['armed_kernels']} of {row['kernels']} integer kernels, "
                f"{row['armed_ratio']:.3f} times the golden run's time while disarmed"
            )
    raise SystemExit(0 if all(map(met, rows)) else 1)


if __name__ == "__main__":
    main()
