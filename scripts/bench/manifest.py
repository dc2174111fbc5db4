"""Time and memory of `onnxfi manifest` and `onnxfi verify` on a model with large external data.

    python scripts/bench/manifest.py [--gigabytes 10] [--tensors 40] [--folder FOLDER]

Writes a model of MatMul whose weights, random bytes, lie beside it in one file without holes, in FOLDER (it needs that
much space), and runs the commands, each as a process of its own: with one thread and with one a processor, on one
tensor alone, and after one flipped bit, which has to be named. Prints seconds of clock and processor, GB/s, and the
largest memory of the process. The file was written just before, so most of it may come from the page cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

_WIDTH = 8192


def write(folder: Path, size_bytes: int, tensors: int) -> Path:
    """Write the model and its data."""
    columns = size_bytes // tensors // 4 // _WIDTH
    stored, nodes = [], []
    block = np.random.default_rng(0).integers(0, 256, 4 * _WIDTH * columns, np.uint8)
    with (folder / "weights.bin").open("wb") as stream:
        for k in range(tensors):
            one = TensorProto(name=f"w{k}", data_type=TensorProto.FLOAT, dims=[_WIDTH, columns])
            one.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "weights.bin"), ("offset", stream.tell()), ("length", len(block))):
                one.external_data.add(key=key, value=str(value))
            stored.append(one)
            nodes.append(helper.make_node("MatMul", ["x", f"w{k}"], [f"y{k}"], f"layer{k}"))
            stream.write(np.roll(block, k).data)
    ends = [helper.make_tensor_value_info(f"y{k}", TensorProto.FLOAT, ["N", columns]) for k in range(tensors)]
    data = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", _WIDTH])
    graph = helper.make_graph(nodes, "large", [data], ends, stored)
    path = folder / "large.onnx"
    path.write_bytes(helper.make_model(graph, ir_version=10).SerializeToString())
    return path


def timed(size_bytes: int, what: str, *words: str, code: int = 0) -> str:
    """Run onnxfi, print what it took, and return its output."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "onnxfi", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status) != code:
        raise SystemExit(f"onnxfi {' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}:\n{text}")
    busy = usage.ru_utime + usage.ru_stime
    rates = f"{size_bytes / 1e9 / seconds:.2f} GB/s, {busy:.1f} s of processor, {usage.ru_maxrss / 1e3:,.0f} MB held"
    print(f"{what}: {seconds:.1f} s, {rates}", flush=True)
    return text


def main() -> None:
    parse = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parse.add_argument("--gigabytes", type=float, default=10)
    parse.add_argument("--tensors", type=int, default=40)
    parse.add_argument("--folder", type=Path)
    given = parse.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        model = write(Path(name), int(given.gigabytes * 1e9), given.tensors)
        data = model.with_name("weights.bin")
        size, known = data.stat().st_size, str(Path(name, "known.json"))
        print(f"{size / 1e9:.2f} GB in {given.tensors} tensors, {os.cpu_count()} processors", flush=True)
        timed(size, "manifest, one thread", "manifest", str(model), "-o", known, "--workers", "1")
        timed(size, "verify", "verify", str(model), known)
        part = size // given.tensors
        timed(part, "verify one tensor", "verify", str(model), known, "--include", "=w1")
        with data.open("r+b") as stream:
            stream.seek(part + 1000)
            [byte] = stream.read(1)
            stream.seek(part + 1000)
            stream.write(bytes([byte ^ 64]))
        print(timed(size, "verify with a flipped bit", "verify", str(model), known, code=1).strip())


if __name__ == "__main__":
    main()
