"""Puts the simulated device of tests/support in place when a process imports ONNX Runtime; see simulated_cuda.py."""

import importlib.abc
import importlib.util
import json
import os
import sys
from pathlib import Path


class _Finder(importlib.abc.MetaPathFinder):
    """Finds ONNX Runtime once, and has the simulation installed behind it."""

    def find_spec(self, name, path, target=None):
        if name != "onnxruntime":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_install(module):
            execute(module)
            file = Path(__file__).parents[1] / "simulated_cuda.py"
            own = importlib.util.spec_from_file_location("simulated_cuda", file)
            simulated = sys.modules["simulated_cuda"] = importlib.util.module_from_spec(own)
            own.loader.exec_module(simulated)
            simulated.install(simulated.Simulation(**json.loads(os.environ[simulated.VARIABLE])))

        spec.loader.exec_module = execute_and_install
        return spec


if "ONNXFI_SIMULATED_CUDA" in os.environ:
    sys.meta_path.insert(0, _Finder())
