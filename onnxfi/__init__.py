"""onnxfi: fault injection on deployed ONNX models.

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

# From 1.29 on ONNX Runtime sends usage data to its maker once it is imported, and leaves a device id and a queue of
# events on disk. It reads this variable once, on import; a value that the user has set is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_NAMES = {
    "attacks.attack": ("Attack", "attack"),
    "analysis.assess": ("Assessment",),
    "analysis.census": ("Census", "census"),
    "analysis.detectors": ("DetectorReport", "detectors"),
    "analysis.environment": ("Environment", "load_environment"),
    "analysis.fit": ("FitBudget", "fit"),
    "analysis.manifest": ("manifest", "verify"),
    "analysis.model_diff": ("diff",),
    "analysis.planner.plan_protection": ("PlannedProtection", "plan_protection"),
    "campaign.exhaustive.class_run": ("class_outcomes",),
    "campaign.exhaustive.class_table": ("ClassTable", "read_class_table"),
    "attacks.rowhammer": ("rowhammer",),
    "campaign.gate.budget": ("Budget", "Limit", "load_budget"),
    "campaign.gate.check": ("Checked",),
    "campaign.report.compare": ("Comparison",),
    "campaign.report.report": ("Report", "report"),
    "campaign.spec.campaign": ("Campaign",),
    "campaign.spec.pipeline_file": ("load_pipeline",),
    "campaign.spec.spec_file": ("load_spec",),
    "campaign.results.merge": ("merge",),
    "campaign.results.rows": ("Result",),
    "errors": ("OnnxfiError", "InputError"),
    "front": ("run",),
    "model_verbs": ("evaluate", "protect", "quantize"),
    "verbs": ("assess", "check", "compare", "plan"),
    "faults.faultlist": ("FaultList",),
    "faults.fault_model": ("FaultModel",),
    "faults.registry": ("fault_models", "parse_fault"),
    "faults.space": ("FaultSpace", "Selector", "Site", "Target"),
    "faults.trials": ("Fault", "Faults"),
    "faults.words": ("Mask", "Word"),
    "graph.model.loading": ("Model", "load"),
    "runtime.data.sources": ("open_data",),
    "runtime.engine.ports": ("Port",),
    "runtime.engine.onnx_runtime": ("OrtEngine",),
    "runtime.engine.protocols": ("Engine", "Session"),
    "runtime.engine.registry": ("engine_of",),
    "tasks.evaluation": ("evaluate_pipeline",),
    "protection.protect": ("Protected",),
    "protection.protection_plan": ("ProtectionPlan", "load_protection_plan"),
    "runtime.inject.fault_map_import": ("import_fault_map",),
    "runtime.quantize.quantize": ("Quantised",),
    "runtime.quantize.recipe": ("Recipe",),
    "runtime.pipeline.open_pipeline": ("open_pipeline",),
    "runtime.pipeline.pipeline": ("Loop", "Pipeline", "Stage"),
    "runtime.inject.drawn_inputs": ("draw_fault_inputs",),
    "runtime.inject.activations": ("inject_activations", "instrument"),
    "runtime.inject.inspection": ("inspect_activations",),
    "runtime.inject.neurons": ("expose_neurons",),
    "runtime.inject.weights": ("inject", "inspect", "replay", "sample", "undo"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "Assessment",
    "Attack",
    "Budget",
    "Campaign",
    "Census",
    "Checked",
    "ClassTable",
    "Comparison",
    "DetectorReport",
    "Engine",
    "Environment",
    "Fault",
    "FaultList",
    "FaultModel",
    "FaultSpace",
    "Faults",
    "FitBudget",
    "InputError",
    "Limit",
    "Loop",
    "Mask",
    "Model",
    "OnnxfiError",
    "OrtEngine",
    "Pipeline",
    "PlannedProtection",
    "Port",
    "Protected",
    "ProtectionPlan",
    "Quantised",
    "Recipe",
    "Report",
    "Result",
    "Selector",
    "Session",
    "Site",
    "Stage",
    "Target",
    "Word",
    "assess",
    "attack",
    "census",
    "check",
    "class_outcomes",
    "compare",
    "detectors",
    "diff",
    "draw_fault_inputs",
    "engine_of",
    "evaluate",
    "evaluate_pipeline",
    "expose_neurons",
    "fault_models",
    "fit",
    "import_fault_map",
    "inject",
    "inject_activations",
    "inspect",
    "inspect_activations",
    "instrument",
    "load",
    "load_budget",
    "load_environment",
    "load_pipeline",
    "load_protection_plan",
    "load_spec",
    "manifest",
    "merge",
    "open_data",
    "open_pipeline",
    "parse_fault",
    "plan",
    "plan_protection",
    "protect",
    "quantize",
    "read_class_table",
    "replay",
    "report",
    "rowhammer",
    "run",
    "sample",
    "undo",
    "verify",
]

if TYPE_CHECKING:
    from onnxfi.analysis.assess import Assessment
    from onnxfi.analysis.census import Census, census
    from onnxfi.analysis.detectors import DetectorReport, detectors
    from onnxfi.analysis.environment import Environment, load_environment
    from onnxfi.analysis.fit import FitBudget, fit
    from onnxfi.analysis.manifest import manifest, verify
    from onnxfi.analysis.model_diff import diff
    from onnxfi.analysis.planner.plan_protection import PlannedProtection, plan_protection
    from onnxfi.attacks.attack import Attack, attack
    from onnxfi.attacks.rowhammer import rowhammer
    from onnxfi.campaign.exhaustive.class_run import class_outcomes
    from onnxfi.campaign.exhaustive.class_table import ClassTable, read_class_table
    from onnxfi.campaign.gate.budget import Budget, Limit, load_budget
    from onnxfi.campaign.gate.check import Checked
    from onnxfi.campaign.report.compare import Comparison
    from onnxfi.campaign.report.report import Report, report
    from onnxfi.campaign.results.merge import merge
    from onnxfi.campaign.results.rows import Result
    from onnxfi.campaign.spec.campaign import Campaign
    from onnxfi.campaign.spec.pipeline_file import load_pipeline
    from onnxfi.campaign.spec.spec_file import load_spec
    from onnxfi.errors import InputError, OnnxfiError
    from onnxfi.faults.fault_model import FaultModel
    from onnxfi.faults.faultlist import FaultList
    from onnxfi.faults.registry import fault_models, parse_fault
    from onnxfi.faults.space import FaultSpace, Selector, Site, Target
    from onnxfi.faults.trials import Fault, Faults
    from onnxfi.faults.words import Mask, Word
    from onnxfi.front import run
    from onnxfi.graph.model.loading import Model, load
    from onnxfi.model_verbs import evaluate, protect, quantize
    from onnxfi.protection.protect import Protected
    from onnxfi.protection.protection_plan import ProtectionPlan, load_protection_plan
    from onnxfi.runtime.data.sources import open_data
    from onnxfi.runtime.engine.onnx_runtime import OrtEngine
    from onnxfi.runtime.engine.ports import Port
    from onnxfi.runtime.engine.protocols import Engine, Session
    from onnxfi.runtime.engine.registry import engine_of
    from onnxfi.runtime.inject.activations import inject_activations, instrument
    from onnxfi.runtime.inject.drawn_inputs import draw_fault_inputs
    from onnxfi.runtime.inject.fault_map_import import import_fault_map
    from onnxfi.runtime.inject.inspection import inspect_activations
    from onnxfi.runtime.inject.neurons import expose_neurons
    from onnxfi.runtime.inject.weights import inject, inspect, replay, sample, undo
    from onnxfi.runtime.pipeline.open_pipeline import open_pipeline
    from onnxfi.runtime.pipeline.pipeline import Loop, Pipeline, Stage
    from onnxfi.runtime.quantize.quantize import Quantised
    from onnxfi.runtime.quantize.recipe import Recipe
    from onnxfi.tasks.evaluation import evaluate_pipeline
    from onnxfi.verbs import assess, check, compare, plan


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("onnxfi")
    if name not in _HOME:
        raise AttributeError(f"module 'onnxfi' has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxfi.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
