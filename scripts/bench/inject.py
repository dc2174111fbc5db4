"""Cost of `onnxfi inject`, measured as its user meets it: whole processes, wall time, peak memory.

    python scripts/bench/inject.py [--rounds 5] [--folder FOLDER] [--json]

Three figures, each with its target; docs/explanation/performance.md explains them and holds the last results:

1. a 1 GB model with external data, its digest included, against `cp` of the same files, round by round;
2. a 100 MB model in one file;
3. drawing sites out of 240 billion bits, without a model.

Models are made on the spot in a temporary folder (needs 3.5 GB there) from seeded random bytes, so that no file
system can leave anything out. This process imports only the standard library, since a child's peak memory starts from
its parent's. The exit status says whether the targets were met: 0 yes, 1 no.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

BER = "1e-6"
CHUNK = 1 << 22


class Run(NamedTuple):
    """One finished process."""

    wall_s: float
    peak_bytes: int


def run(command: list[str], folder: Path) -> Run:
    """Run a command to its end. What earlier ones left to be written is written first."""
    os.sync()
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output.decode()}")
    return Run(wall_s, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def inject(model: str, out: str) -> list[str]:
    return [sys.executable, "-m", "onnxfi", "inject", model, "--ber", BER, "-o", out]


def this(task: str, folder: Path) -> str:
    """Run one of the tasks below in a process of its own, and return what it prints."""
    command = [sys.executable, os.path.abspath(__file__), "--task", task]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def make(path: Path, layers: int, width: int, *, external: bool) -> None:
    """A chain of `layers` matrix products, `width` × `width` float32 each, from seeded random bytes."""
    import numpy as np
    from onnx import TensorProto, helper

    size = 4 * width * width
    nodes = [helper.make_node("MatMul", [f"x{k}", f"layer{k}.weight"], [f"x{k + 1}"]) for k in range(layers)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name in ("x0", f"x{layers}")]
    graph = helper.make_graph(nodes, "bench", ends[:1], ends[1:])
    rng = np.random.Generator(np.random.PCG64(0))
    for k in range(layers):
        tensor = TensorProto(name=f"layer{k}.weight", data_type=TensorProto.FLOAT, dims=[width, width])
        if external:
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", path.name + ".data"), ("offset", k * size), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
        else:
            tensor.raw_data = rng.bytes(size)
        graph.initializer.append(tensor)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    if external:
        with path.with_name(path.name + ".data").open("wb") as stream:
            for _ in range(layers * size // CHUNK):
                stream.write(rng.bytes(CHUNK))


def draw_once(*, traced: bool) -> None:
    """Draw the faults of one trial out of 2.4e11 bits; print how many, and the time or the peak memory it took."""
    import tracemalloc

    from onnxfi.faults.models import Flip
    from onnxfi.faults.space import FaultSpace, Target
    from onnxfi.faults.trials import Sampler, draw_faults
    from onnxfi.faults.words import WORDS

    targets = [Target(f"layer{k}.weight", WORDS["float32"], (10_000, 10_000)) for k in range(75)]
    space = FaultSpace.over(targets, Flip())
    if traced:
        tracemalloc.start()
    begun = time.perf_counter()
    faults = draw_faults(space, Sampler("ber", rate=float(BER)), Flip())
    wall_s = time.perf_counter() - begun
    peak = tracemalloc.get_traced_memory()[1] if traced else 0
    print(json.dumps({"sites": len(space), "drawn": len(faults), "wall_s": wall_s, "peak_bytes": peak}))


TASKS = {
    "large": lambda: make(Path("large.onnx"), 16, 4096, external=True),
    "single": lambda: make(Path("single.onnx"), 25, 1000, external=False),
    "draw": lambda: draw_once(traced=False),
    "draw-traced": lambda: draw_once(traced=True),
}


def clean(folder: Path, stem: str) -> None:
    for file in folder.glob(stem + "*"):
        file.unlink()


def measure_large(folder: Path, rounds: int) -> dict[str, list[Run]]:
    """`cp` and `inject` in turns, after one unmeasured turn of each that fills the caches."""
    this("large", folder)
    commands = {
        "cp": ["cp", "large.onnx", "large.onnx.data", "copy"],
        "inject": inject("large.onnx", "copy/out.onnx"),
    }
    taken: dict[str, list[Run]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, command in commands.items():
            (folder / "copy").mkdir()
            took = run(command, folder)
            taken[name] += [took] if turn else []
            shutil.rmtree(folder / "copy")
    clean(folder, "large")
    return taken


def measure_single(folder: Path, rounds: int) -> list[Run]:
    this("single", folder)
    taken = []
    for _ in range(rounds + 1):
        taken.append(run(inject("single.onnx", "out.onnx"), folder))
        clean(folder, "out")
    clean(folder, "single")
    return taken[1:]


def median(values: list[float]) -> float:
    return statistics.median(values)


def measure(folder: Path, rounds: int) -> tuple[list[tuple[str, float, float, str]], dict[str, object]]:
    """The rows (what, target, measured, unit), and the raw numbers behind them."""
    draws = [json.loads(this("draw", folder)) for _ in range(rounds)]
    traced = json.loads(this("draw-traced", folder))
    single = measure_single(folder, rounds)
    large = measure_large(folder, rounds)
    cp_s = median([r.wall_s for r in large["cp"]])
    drawn, sites = draws[0]["drawn"], draws[0]["sites"]
    rows = [
        ("1 GB, external data: inject", 2 * cp_s + 1.0, median([r.wall_s for r in large["inject"]]), "s"),
        ("  peak memory", 400.0, median([r.peak_bytes / 1e6 for r in large["inject"]]), "MB"),
        ("100 MB, one file: inject", 2.0, median([r.wall_s for r in single]), "s"),
        (f"{drawn:,} of {sites:.2g} bits: draw", 1.0, median([d["wall_s"] for d in draws]), "s"),
    ]
    raw: dict[str, object] = {
        "cp_s": [r.wall_s for r in large["cp"]],
        "inject_large_s": [r.wall_s for r in large["inject"]],
        "inject_large_peak_bytes": [r.peak_bytes for r in large["inject"]],
        "inject_single_s": [r.wall_s for r in single],
        "inject_single_peak_bytes": [r.peak_bytes for r in single],
        "draw_s": [d["wall_s"] for d in draws],
        "draw_peak_bytes": traced["peak_bytes"],
    }
    return rows, raw


def conditions(rounds: int) -> str:
    load = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    return (
        f"medians of {rounds}; {len(os.sched_getaffinity(0))} cores, {platform.machine()}, {platform.system()}, "
        f"Python {platform.python_version()}; load average {load}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each figure (default: 5)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes (default: the system's)")
    parser.add_argument("--json", action="store_true", help="print every single number as JSON as well")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        TASKS[given.task]()
        return 0
    before = conditions(given.rounds)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        rows, raw = measure(Path(folder), given.rounds)
    cp_s, draw_mb = median(raw["cp_s"]), raw["draw_peak_bytes"] / 1e6  # type: ignore[arg-type, operator]
    print(f"{'':<44}{'target':>12}{'measured':>12}")
    for what, target, measured, unit in rows:
        print(f"{what:<44}{'≤ ' + f'{target:.2f} {unit}':>12}{f'{measured:.2f} {unit}':>12}")
    print(f"cp of the same 1 GB: {cp_s:.2f} s, so its target is 2 × {cp_s:.2f} + 1.0 s")
    print(f"memory of the draw: {draw_mb:.1f} MB")
    print(before)
    if given.json:
        print(json.dumps(raw))
    return 0 if all(measured <= target for _, target, measured, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
