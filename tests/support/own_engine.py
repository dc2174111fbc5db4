"""An engine of one's own. A package offers it in its pyproject.toml:

[project.entry-points."onnxfi.engines"]
lean = "own_engine:LeanEngine"
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnxruntime

from onnxfi import Engine, Session
from onnxfi.errors import EngineError
from onnxfi.runtime.engine.onnx_runtime import OrtSession


@dataclass(frozen=True)
class LeanEngine(Engine):
    """ONNX Runtime that keeps no memory between runs."""

    name: ClassVar[str] = "lean"
    threads: int = 1

    def prepare(self, model: str | Path | bytes) -> Session:
        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = False
        options.intra_op_num_threads = self.threads
        source = model if isinstance(model, bytes) else self.file(model)
        try:
            return OrtSession.over(onnxruntime.InferenceSession(source, options), "lean")
        except Exception as error:
            raise EngineError(f"the model is refused: {' '.join(str(error).split())}") from error
