"""A small spiking network with random weights, and a run of any."""

from __future__ import annotations

import numpy as np
from spiking_graphs import Lif

from onnxfi.runtime.engine.onnx_runtime import OrtEngine


def run_network(model: bytes, x: np.ndarray, level: str = "off") -> dict[str, np.ndarray]:
    session = OrtEngine(provider="cpu", optimization=level).prepare(model)
    return session.run({session.inputs[0].name: x}, [port.name for port in session.outputs])


def random_network(layers: int = 2, reset: str = "subtract") -> list[Lif]:
    """A network of the builder's with weights of no meaning."""
    raw = np.random.Philox(key=5).random_raw(4096).astype(np.float64) / 2**64 - 0.4
    conv = Lif("conv", "lif1", raw[:36].reshape(4, 1, 3, 3).astype("f") * 2, raw[40:44].astype("f"), (4, 4, 4), 2, 1)
    rest = [
        Lif(f"fc{k}", f"lif{k}", raw[k * 99 : k * 99 + n * 3].reshape(3, n).astype("f") * 2, raw[:3].astype("f") + 0.5, (3,),
            leak=0.8, threshold=0.7, reset=reset)
        for k, n in ((2, 64), (3, 3))
    ]  # fmt: skip
    return [conv, *rest][:layers]
