"""`onnxfi doctor`: what is installed, on which providers models run, and what is missing with the line that installs it."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from onnxfi.cli.options import JSON, verb
from onnxfi.cli.terminal import print_json, print_line, table

#: Packages whose versions decide results.
_PACKAGES = ("numpy", "ml_dtypes", "onnx", "scipy")
#: Extras for those who work on onnxfi, which are not missed.
_OWN = ("test", "docs")


@verb("doctor", "Print versions, providers and what is missing.", JSON)
def command(as_json: bool) -> None:
    """Print the installed versions, the providers on which models run, and the extras that are missing.

    Exit code 1: no package of ONNX Runtime is installed, or two, of which one has overwritten the other.
    """
    found = examination()
    if as_json:
        print_json(found)
    else:
        table("Installation", ("", ""), [(name, value) for name, value in found["versions"].items()])
        if found["providers"]:
            table("Providers", ("Provider", "State"), list(found["providers"].items()))
        table(
            "Extras",
            ("Extra", "Missing", "Installed by"),
            [(e["extra"], ", ".join(e["missing"]) or "-", e["remedy"] or "-") for e in found["extras"]],
        )
        for line in found["problems"]:
            print_line(line)
    if found["problems"]:
        raise SystemExit(1)


def examination() -> dict[str, Any]:
    """Return versions, providers, extras and problems as plain values for JSON."""
    from onnxfi.errors import EngineError
    from onnxfi.runtime.engine.installed_runtime import both_runtimes_warning, installed_runtimes, onnxruntime

    runtimes = {name: _version(name) for name in installed_runtimes()}
    problems = [] if (warning := both_runtimes_warning()) is None else [warning]
    try:
        onnxruntime()
        providers = _providers()
    except EngineError as error:
        problems.append(str(error))
        providers = {}
    versions = {
        "onnxfi": _version("onnxfi"), "Python": platform.python_version(), "system": platform.platform(),
        **{name: _version(name) for name in _PACKAGES}, **runtimes, "processors": str(os.cpu_count()),
    }  # fmt: skip
    return {
        "versions": {name: value or "not installed" for name, value in versions.items()},
        "providers": providers,
        "extras": _extras(tuple(runtimes)),
        "problems": problems,
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _providers() -> dict[str, str]:
    """Return the state of each provider of ONNX Runtime: models run there, or the reason why they do not."""
    from onnxfi.errors import EngineError
    from onnxfi.runtime.engine.onnx_runtime import OrtEngine, available_providers
    from onnxfi.runtime.engine.protocols import smallest_model

    states = {}
    for name in available_providers():
        try:
            OrtEngine(provider=name).prepare(smallest_model())
            states[name] = "runs models"
        except EngineError as error:
            states[name] = str(error)
    return states


def _extras(runtimes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return each extra with the packages of it that are missing here, beside the runtimes that are installed."""
    try:
        found = metadata.distribution("onnxfi")
    except metadata.PackageNotFoundError:  # run from a folder that is not installed
        return []
    needed = [Requirement(text) for text in found.requires or ()]
    rows = []
    for extra in sorted(set(found.metadata.get_all("Provides-Extra") or ()) - set(_OWN)):
        missing = [name for one in needed if _of(one, extra) for name in _missing(one)]
        if runtimes and extra == "cpu":  # any of them runs models on CPUs, and a second one would overwrite it
            missing = []
        remedy = f"pip install 'onnxfi[{extra}]'" if missing else ""
        if (other := [name for name in runtimes if name != "onnxruntime-gpu"]) and extra == "gpu" and missing:
            remedy = f"pip uninstall -y {' '.join(other)} && {remedy}"
        rows.append({"extra": extra, "missing": missing, "remedy": remedy})
    return rows


def _of(needed: Requirement, extra: str) -> bool:
    """Return whether a package is needed for an extra on this machine, and not without it."""
    marker = needed.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _missing(needed: Requirement) -> list[str]:
    """Return the packages that are missing of a requirement and of the extras that it names."""
    if not _version(needed.name):
        return [needed.name]
    others = [Requirement(text) for text in metadata.requires(needed.name) or ()]
    return [name for extra in needed.extras for one in others if _of(one, extra) for name in _missing(one)]
