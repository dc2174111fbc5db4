"""A cascade of two small models with host code between them: a detector that finds any number of crops, and a reader."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from tiny_campaigns import HEAD, chance

from onnxfi.campaign.spec.pipeline_file import load_pipeline
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.ports import Array
from onnxfi.runtime.pipeline.open_pipeline import OpenPipeline, open_pipeline

FINDER = "finder (float[N,6] x) => (float[N,4] heat) { a = MatMul(x, w1) b = Relu(a) heat = MatMul(b, w2) }"
READER = "reader (float[M,3] crop) => (float[M,5] scores) { c = MatMul(crop, v) scores = Add(c, u) }"
FUNCTIONS = """
import numpy as np

calls = {"crops": 0, "join": 0}


def crops(x, heat):
    calls["crops"] += 1
    kept = [x[0, k : k + 3] for k in range(4) if heat[0, k] > 0]
    return {"crop": np.array(kept, np.float32).reshape(-1, 3)}


def join(scores):
    calls["join"] += 1
    return {"scores": scores.sum(axis=0, keepdims=True)}


def text(scores):
    return {"text": "".join("abcde"[k] for k in scores.argmax(axis=1)), "rows": scores}


def fails(scores):
    if not np.isfinite(scores).all():
        raise ValueError("no number")
    return join(scores)


def draws(scores):
    return {"scores": np.random.default_rng().random((1, 5))}


def nothing(x, heat):
    return {"crop": np.zeros((0, 3), np.float32)}
"""
CASCADE = """version: 1
stages:
- {name: finder, model: finder.onnx, inputs: {x: data.x}}
- {name: crops, function: "host:crops", inputs: {x: data.x, heat: finder.heat}}
- {name: reader, model: reader.onnx, inputs: {crop: crops.crop}}
- {name: join, function: "host:join", inputs: {scores: reader.scores}}
"""


def model(folder: Path, graph: str, name: str, **stored: NDArray[np.float32]) -> None:
    proto = parser.parse_model(HEAD + graph)
    proto.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in stored.items())
    onnx.save(proto, folder / name)


@cache
def _models() -> Path:
    folder = Path(mkdtemp())
    atexit.register(rmtree, folder)
    model(folder, FINDER, "finder.onnx", w1=chance(6, 8), w2=chance(8, 4, seed=1))
    model(folder, READER, "reader.onnx", v=chance(3, 5, seed=2), u=chance(5, seed=3))
    return folder


def cascade(folder: Path, n: int = 10) -> Path:
    """Write the pipeline with its models, functions and data; return the path of its YAML file."""
    for name in ("finder.onnx", "reader.onnx"):  # the same files everywhere, so that each has its dry run once
        os.link(_models() / name, folder / name)
    (folder / "host.py").write_text(FUNCTIONS)
    np.savez(folder / "d.npz", x=chance(n, 6, seed=4), labels=np.arange(n) % 5)
    file = folder / "pipeline.yaml"
    file.write_text(CASCADE)
    return file


def opened(file: Path, text: str | None = None, **how: Any) -> OpenPipeline:
    """Return an open pipeline, of another text of the file where one is given."""
    if text is not None:
        file.write_text(text)
    return open_pipeline(load_pipeline(file), OrtEngine(provider="cpu"), allow_code=True, **how)


class Weights:
    """The weights of both models as numpy holds them, and the pipeline computed by numpy alone."""

    def __init__(self, folder: Path) -> None:
        stored = [onnx.load(folder / name).graph.initializer for name in ("finder.onnx", "reader.onnx")]
        self.arrays = {t.name: numpy_helper.to_array(t).copy() for tensors in stored for t in tensors}

    def scores(self, x: Array) -> Iterator[tuple[int, Array]]:
        """Yield the number of crops and the scores of each sample."""
        w = self.arrays
        with np.errstate(all="ignore"):
            for row in x:
                heat = np.maximum(row @ w["w1"], 0) @ w["w2"]
                kept = [row[k : k + 3] for k in range(4) if heat[k] > 0]
                read = np.array(kept, np.float32).reshape(-1, 3) @ w["v"] + w["u"]
                yield len(kept), read.sum(axis=0)
