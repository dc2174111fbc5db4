"""Sources: the framework is inferred from them, and a factory that fails is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onnxfi.converters.sources import call_factory, framework_of
from onnxfi.errors import ConversionError

Run = Callable[..., tuple[int, str, str]]


def test_a_factory_that_needs_what_is_missing(run: Run, absent: set[str]) -> None:
    code, out, err = run("convert", "framework_models:needs_torch", "-o", "x.onnx")
    assert (code, out) == (2, "") and "pip install 'onnxfi[torch]'" in err


def test_a_module_that_raises_when_it_is_imported(here: Path) -> None:
    Path("broken.py").write_text("import nosuchthing_\n")
    with pytest.raises(
        ConversionError, match="'broken:make' raised ModuleNotFoundError: No module named 'nosuchthing_'"
    ):
        call_factory("broken:make")


def test_the_framework_is_inferred_from_the_source(here: Path) -> None:
    Path("saved").mkdir()
    Path("saved/saved_model.pb").touch()
    frameworks = {name: framework_of(name) for name in ("a.pt", "a.pth", "a.safetensors", "a.keras", "a.h5", "saved")}
    assert frameworks == {
        "a.pt": "torch", "a.pth": "torch", "a.safetensors": "torch", "a.keras": "keras", "a.h5": "keras",
        "saved": "tensorflow",
    }  # fmt: skip
