"""onnxfi: what happens to a deployed neural network's answers when bits go wrong.

    import onnxfi

    model = onnxfi.load("model.onnx")
    drawn = onnxfi.sample(model, ber=1e-6)
    onnxfi.inject(model, drawn, "faulty.onnx")

The names below are resolved when they are used: importing onnxfi loads neither onnx nor onnxruntime.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# From 1.29 on ONNX Runtime reports its use to its maker once it is imported, and leaves a device id and a queue of
# events on disk. It looks at this once, so it is said before any module of ours imports it; what the user says counts.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_NAMES = {
    "campaign.budget": ("Budget", "Limit", "load_budget"),
    "campaign.check": ("Checked", "check"),
    "campaign.compare": ("Comparison", "compare"),
    "campaign.report": ("Report", "report"),
    "campaign.runner": ("plan", "run"),
    "campaign.spec": ("Campaign", "Part"),
    "campaign.specfile": ("load_spec",),
    "campaign.merge": ("merge",),
    "campaign.store": ("Result",),
    "errors": ("OnnxfiError", "InputError"),
    "faults.faultlist": ("FaultList",),
    "faults.models": ("FaultModel", "fault_models", "parse_fault"),
    "faults.space": ("FaultSpace", "Selector", "Site", "Target"),
    "faults.trials": ("Fault", "Faults"),
    "faults.words": ("Mask", "Word"),
    "graph.model": ("Model", "load"),
    "runtime.data": ("open_data",),
    "runtime.engines": ("OrtEngine",),
    "runtime.evaluation": ("evaluate",),
    "runtime.quantize": ("Quantised", "quantize"),
    "runtime.recipes": ("Recipe",),
    "runtime.feeding": ("redrawn",),
    "runtime.inflight": ("inject_flow", "instrument"),
    "runtime.spiking": ("expose_neurons",),
    "runtime.injector": ("inject", "inspect", "replay", "sample", "undo"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "Budget",
    "Campaign",
    "Checked",
    "Comparison",
    "Fault",
    "FaultList",
    "FaultModel",
    "FaultSpace",
    "Faults",
    "InputError",
    "Limit",
    "Mask",
    "Model",
    "OnnxfiError",
    "OrtEngine",
    "Part",
    "Quantised",
    "Recipe",
    "Report",
    "Result",
    "Selector",
    "Site",
    "Target",
    "Word",
    "check",
    "compare",
    "evaluate",
    "expose_neurons",
    "fault_models",
    "inject",
    "inject_flow",
    "inspect",
    "instrument",
    "load",
    "load_budget",
    "load_spec",
    "merge",
    "open_data",
    "parse_fault",
    "plan",
    "quantize",
    "redrawn",
    "replay",
    "report",
    "run",
    "sample",
    "undo",
]

if TYPE_CHECKING:
    from onnxfi.campaign.budget import Budget, Limit, load_budget
    from onnxfi.campaign.check import Checked, check
    from onnxfi.campaign.compare import Comparison, compare
    from onnxfi.campaign.merge import merge
    from onnxfi.campaign.report import Report, report
    from onnxfi.campaign.runner import plan, run
    from onnxfi.campaign.spec import Campaign, Part
    from onnxfi.campaign.specfile import load_spec
    from onnxfi.campaign.store import Result
    from onnxfi.errors import InputError, OnnxfiError
    from onnxfi.faults.faultlist import FaultList
    from onnxfi.faults.models import FaultModel, fault_models, parse_fault
    from onnxfi.faults.space import FaultSpace, Selector, Site, Target
    from onnxfi.faults.trials import Fault, Faults
    from onnxfi.faults.words import Mask, Word
    from onnxfi.graph.model import Model, load
    from onnxfi.runtime.data import open_data
    from onnxfi.runtime.engines import OrtEngine
    from onnxfi.runtime.evaluation import evaluate
    from onnxfi.runtime.feeding import redrawn
    from onnxfi.runtime.inflight import inject_flow, instrument
    from onnxfi.runtime.injector import inject, inspect, replay, sample, undo
    from onnxfi.runtime.quantize import Quantised, quantize
    from onnxfi.runtime.recipes import Recipe
    from onnxfi.runtime.spiking import expose_neurons


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'onnxfi' has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxfi.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
