"""Memory of a campaign on a large model: a chain of MatMul, in one file and with its weights beside it.

python scripts/bench/memory.py [--layers 20] [--width 2048] [--workers 0,1,2] [--trials 10] [--memory 1GiB]

Makes the model (20 weights of 2048 x 2048 float32: 336 MB) and 16 samples, runs `onnxfi run` on them, and prints the
highest sum over the command and its workers of the memory that they hold (PSS: pages that processes share count once),
against the size of the model. `files` are pages that still lie in a file, which the system takes back when it needs
them; all else is counted as `own`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

_PAUSE_S = 0.05
_MB = 1e6
#: Protobuf writes no more into one file.
_MOST_IN_ONE_FILE = (1 << 31) - (1 << 20)


def chain(path: Path, layers: int, width: int, *, external: bool) -> None:
    """Write a model of so many MatMul with Relu between them."""
    random = np.random.default_rng(0)
    nodes, tensors, name = [], [], "x"
    for k in range(layers):
        weight = (random.standard_normal((width, width), np.float32) / np.float32(width**0.5)).astype("<f4")
        tensors.append(helper.make_tensor(f"w{k}", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True))
        nodes.append(helper.make_node("MatMul", [name, f"w{k}"], [f"m{k}"]))
        nodes.append(helper.make_node("Relu", [f"m{k}"], [name := f"y{k}"]))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", width]) for n in ("x", name)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    made = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save_model(made, path, save_as_external_data=external, location=path.name + ".data")


def tree(root: int) -> Iterator[int]:
    """A process and all that it started."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    waiting = [root]
    while waiting:
        yield (pid := waiting.pop())
        waiting += children.get(pid, [])


def held(pid: int) -> tuple[int, int]:
    """The bytes of a process by PSS, and those of them that are pages of files."""
    found = {"Pss": 0, "Pss_File": 0}
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            key, _, rest = line.partition(":")
            if key in found:
                found[key] = int(rest.split()[0]) * 1024
    return found["Pss"], found["Pss_File"]


def peak(command: list[str], folder: Path) -> tuple[int, int, float]:
    """The highest bytes of a command, those that are no file's at their highest, and the seconds that it takes."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    most = own = 0
    while process.poll() is None:
        found = [held(pid) for pid in tree(process.pid)]
        most = max(most, sum(pss for pss, _ in found))
        own = max(own, sum(pss - files for pss, files in found))
        time.sleep(_PAUSE_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}")
    return most, own, time.perf_counter() - begun


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Print a row for each form of file and number of workers."""
    samples = np.random.default_rng(1).standard_normal((16, args.width)).astype(np.float32)
    np.savez(folder / "d.npz", x=samples)
    print("| file | workers | peak | × the model | own | × the model | seconds |\n|---|---|---|---|---|---|---|")
    forms = (False, True) if 4 * args.layers * args.width**2 < _MOST_IN_ONE_FILE else (True,)
    for external in forms:
        model = folder / ("external.onnx" if external else "one.onnx")
        if not model.exists():
            chain(model, args.layers, args.width, external=external)
        size = sum(file.stat().st_size for file in folder.glob(model.name + "*"))
        for workers in args.workers.split(","):
            out = folder / "store.sqlite"
            command = [sys.executable, "-m", "onnxfi", "run", model.name, "--data", "d.npz", "--single"]
            command += ["--trials", str(args.trials), "--workers", workers, "--memory", args.memory, "--out", str(out)]
            most, own, took = peak(command, folder)
            form = "external data" if external else "one file"
            print(
                f"| {form} | {workers} | {most / _MB:.0f} MB | {most / size:.2f} | {own / _MB:.0f} MB | "
                f"{own / size:.2f} | {took:.1f} |",
                flush=True,
            )
            for file in folder.glob(out.name + "*"):
                file.unlink()


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = args.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        measure(folder, args)


if __name__ == "__main__":
    main()
