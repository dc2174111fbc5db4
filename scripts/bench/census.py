"""The census beside a published one, at scale, and its forecast beside campaigns.

    python scripts/bench/census.py published MODEL.onnx...   # the weights of these models in three formats
    python scripts/bench/census.py scale                     # 1e10 bits: target below 30 s and 300 MiB
    python scripts/bench/census.py forecast                  # the share of broken models at n flips

`published` dequantises integer weights. `forecast` takes the shipped models; a trial counts as broken where it costs
more than 10 points of accuracy.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

import onnxfi
from onnxfi.analysis.bit_effects import EFFECTS
from onnxfi.analysis.census import census
from onnxfi.graph.model.dequantize import dequantized
from onnxfi.statistics.intervals import clopper_pearson

ROOT = Path(__file__).parents[2]
KINDS = {"bfloat16": TensorProto.BFLOAT16, "float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}
#: Qwen2.5-0.5B-Instruct in bfloat16, 7,904,524,288 bits, as published with the code of bit-flip-llm-research.
PUBLISHED = {"catastrophic": 6.2595, "amplification": 13.31981, "attenuation": 11.68019, "collapse": 18.74045,
             "sign": 6.25, "negligible": 43.75}  # fmt: skip


def with_data(path: Path, kind: str, elements: int, blocks) -> Path:
    """A model that adds one stored vector, whose bytes the blocks give."""
    tensor = TensorProto(name="w", data_type=KINDS[kind], dims=[elements], data_location=TensorProto.EXTERNAL)
    size = 0
    with open(path.with_suffix(".data"), "wb") as stream:
        for block in blocks:
            size += stream.write(block)
    for key, value in (("location", path.with_suffix(".data").name), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, KINDS[kind], [elements]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def weights(path: str) -> np.ndarray:
    """All stored weights of a model as float32."""
    model, parts = onnxfi.load(path), []
    for target in onnxfi.Selector().space(model.targets).targets:
        every = np.arange(target.size)
        words = model.words(target, every)
        real = dequantized(model, target, every, words)
        if real is None and target.word.is_float and target.role != "scale":
            real = target.word.values(words).astype(np.float32)
        if real is not None:
            parts.append(real[np.isfinite(real)])
    return np.concatenate(parts)


def published(paths: list[str]) -> None:
    print(f"{'':34s}" + "".join(f"{name[:8]:>10s}" for name in EFFECTS))
    print(f"{'published, bfloat16':34s}" + "".join(f"{PUBLISHED[name]:10.4f}" for name in EFFECTS))
    for path in paths:
        found = weights(path)
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                data = found.astype(getattr(ml_dtypes, kind, None) or kind).tobytes()
                one = census(onnxfi.load(with_data(Path(folder, "m.onnx"), kind, len(found), [data]))).whole
            print(
                f"{Path(path).stem + ', ' + kind:34s}" + "".join(f"{100 * one.share(name):10.4f}" for name in EFFECTS)
            )
            if kind == "bfloat16":
                clear = 1 - sum(one.flips[14][EFFECTS.index(name)] for name in ("collapse", "attenuation")) / one.words
                print(f"  bit 14 is clear in {100 * clear:.4f} % of {one.words:,} weights (published: 99.9980 %)")


def scale() -> int:
    missed = 0
    for kind, bits in (("float32", 32), ("bfloat16", 16)):
        elements = 10**10 // bits
        block = np.random.default_rng(0).normal(0, 0.03, 1 << 22).astype(getattr(ml_dtypes, kind, None) or kind)
        data = block.tobytes()
        with tempfile.TemporaryDirectory() as folder:
            whole, rest = divmod(elements * bits // 8, len(data))
            model = onnxfi.load(with_data(Path(folder, "m.onnx"), kind, elements, [*[data] * whole, data[:rest]]))
            began = time.perf_counter()
            found = census(model)
            seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{kind}: {found.whole.bits:,} bits in {seconds:.1f} s, of which the SHA-256 is a part; peak {peak:.0f} MiB"
        )
        missed += seconds > 30 or peak > 300
    return missed


def forecast() -> None:
    data, trials, samples = ROOT / "models" / "fashion_test.npz", 100, 200
    print(f"{'model':24s}{'flips':>7s}{'foretold':>11s}   broken, with the 99 % interval ({trials} trials)")
    for name in ("fashion_cnn", "fashion_cnn_fp16", "fashion_cnn_int8_qdq"):
        path = ROOT / "models" / f"{name}.onnx"
        whole = census(onnxfi.load(path))
        for flips in (1, 10, 100, 1000):
            part = onnxfi.Campaign(str(path), str(data), samples=samples, ber=flips / whole.whole.bits, repeat=trials)
            with tempfile.TemporaryDirectory() as folder:
                running = onnxfi.run(part, Path(folder, "s.db"))
                done = list(running)
                golden = onnxfi.report(Path(folder, "s.db")).golden["metrics"]["top1"]
            broken = sum(1 for one in done if one.outcome == "due" or one.metrics["top1"] < golden - 0.1)
            i, share = clopper_pearson(broken, trials), 100 * whole.broken(flips)
            ends = f"[{100 * i.low:.0f}, {100 * i.high:.0f}]"
            print(f"{name:24s}{flips:7,}{share:9.1f} %   {broken:3d} % {ends}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", nargs="?", choices=("published", "scale", "forecast"), default="forecast")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="for `published`")
    given = parser.parse_args()
    studies = {"published": lambda: published(given.models), "scale": scale, "forecast": forecast}
    sys.exit(studies[given.study]())
