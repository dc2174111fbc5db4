"""Files with one injected flip, and their outputs by ONNX Runtime alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.weights import inject, sample


def run(path: Path, x: np.ndarray) -> np.ndarray:
    """Run a file with ONNX Runtime alone."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


def inject_flip(golden: Path, folder: Path, site: str) -> tuple[Path, dict]:
    """Inject one flip, and give the faulty file and the line of its fault list."""
    out, listed = folder / "faulty.onnx", folder / "faults.jsonl"
    inject(load(golden), sample(load(golden), sites=[site]), out, save_faults=listed)
    return out, json.loads(listed.read_text().splitlines()[1])
