"""Fixtures of all tests: hypothesis that draws the same in every run, marks skipped where nothing serves them, commands."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from _pytest.doctest import DoctestModule
from hypothesis import HealthCheck, settings

pytest_plugins = ("pytester",)
ROOT = Path(__file__).parents[1]
FRAMEWORKS = ("torch", "tensorflow", "sklearn")

# No deadline: a slow example is no wrong one. The same examples in every run, so that CI does not depend on luck.
# `bash scripts/test.sh slow` takes the thorough profile.
settings.register_profile(
    "onnxfi", max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("onnxfi"), max_examples=200)
settings.load_profile("onnxfi")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Look for no doctests in the tests, of which none has any: that takes as long as to import them."""
    return [found for found in (yield) if not isinstance(found, DoctestModule)]


@cache
def _absent(mark: str, wanted: tuple[str, ...]) -> str:
    """Return why tests of this mark cannot run here; empty where they can."""
    if mark == "cuda":
        import onnxruntime as ort

        from onnxfi.runtime.engine.cuda import no_cuda

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
    """Skip what is marked `cuda`, `fetched` or `frameworks("torch", …)` where that is absent, and say why.

    What is marked `slow` has more time.
    """
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1200))
        for mark in ("cuda", "fetched", "frameworks"):
            for found in item.iter_markers(mark):
                if reason := _absent(mark, found.args):
                    item.add_marker(pytest.mark.skip(reason=reason))


def _strict(name: str) -> None:
    raise ValueError(f"{name} is not strict JSON")


class Ran(NamedTuple):
    """The exit code of a command and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one strict JSON document; a bare NaN or anything beside the document is an error."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out, parse_constant=_strict)


Run = Callable[..., Ran]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("ONNXFI_LOG_LEVEL", "COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A command that is run here leaves signals as they end a program; pytest wants to hear of them."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    kept = {name: signal.getsignal(getattr(signal, name)) for name in names}
    yield
    for name, handler in kept.items():
        signal.signal(getattr(signal, name), handler)


@pytest.fixture
def run(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command as its console script does."""

    from onnxfi.cli import main

    def ran(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["onnxfi", *map(str, words)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        assert isinstance(code, int)
        return Ran(code, *capsys.readouterr())

    return ran
