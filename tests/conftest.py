"""What all tests share: hypothesis that draws the same in every run, and marks skipped where nothing serves them."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ("pytester",)
ROOT = Path(__file__).parents[1]
FRAMEWORKS = ("torch", "tensorflow", "sklearn")

# No deadline: a slow example is no wrong one. The same examples in every run, so that CI does not depend on luck.
settings.register_profile(
    "onnxfi", max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("onnxfi")


@cache
def _absent(mark: str, wanted: tuple[str, ...]) -> str:
    """Why tests of this mark cannot run here; empty where they can."""
    if mark == "cuda":
        import onnxruntime as ort

        from onnxfi.runtime.engines import no_cuda

        built = "CUDAExecutionProvider" in ort.get_available_providers()
        return no_cuda() or ("" if built else "this ONNX Runtime is built without CUDA")
    if mark == "fetched":
        found = any((ROOT / "fetched").glob("*.onnx"))
        return "" if found else "no fetched models; python scripts/fetch_models.py brings them"
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if wanted and missing:
        return f"needs {', '.join(missing)}; bash scripts/test.sh frameworks installs it"
    if not wanted and not any(importlib.util.find_spec(name) for name in FRAMEWORKS):
        return "no training framework is installed; bash scripts/test.sh frameworks installs one"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `cuda`, `fetched` or `frameworks("torch", …)` where that is absent, and say why."""
    for item in items:
        for mark in ("cuda", "fetched", "frameworks"):
            for found in item.iter_markers(mark):
                if reason := _absent(mark, found.args):
                    item.add_marker(pytest.mark.skip(reason=reason))
