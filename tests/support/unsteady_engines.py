"""Engines and operators that do not answer alike twice."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.protocols import Engine


@dataclass(frozen=True)
class Changing(Engine):
    """An engine whose sessions add to their answers what `added` says, and counts what it prepares."""

    name: ClassVar[str] = "changing"
    cuts: ClassVar[bool] = True
    prepared: ClassVar[list[type]] = []

    def added(self, run: int) -> float:
        """Return the number that is added in the n-th run of a session."""
        return 0.0

    def prepare(self, model: Any) -> Any:
        self.prepared.append(bytes if isinstance(model, bytes) else Path)
        session, runs = OrtEngine("cpu").prepare(model), itertools.count()

        def answers(feeds: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, Any]:
            return {k: v + np.float32(self.added(next(runs))) for k, v in session.run(feeds, names).items()}

        ports = {"inputs": session.inputs, "outputs": session.outputs, "non_tensors": {}}
        return SimpleNamespace(**ports, provider="P", note="P", run=answers)
