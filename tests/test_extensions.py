"""Offers of installed packages: loaded, or refused with their name and what their package raised."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from onnxfi.errors import EngineError, FaultError, InputError
from onnxfi.extensions import imported, load_extension, load_extension_class
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.models import Flip


def point(value: str) -> EntryPoint:
    return EntryPoint("mine", value, "onnxfi.fault_models")


def test_what_a_package_offers_is_loaded() -> None:
    assert load_extension(point("onnxfi.faults.models:Flip"), FaultError) is Flip
    assert load_extension_class(point("onnxfi.faults.models:Flip"), FaultModel, FaultError) is Flip


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("no_such_package:thing", "No module named 'no_such_package'"),
        ("onnxfi.faults.models:NoSuchThing", "has no attribute 'NoSuchThing'"),
    ],
)
def test_what_does_not_load_is_named_with_the_reason(value: str, says: str) -> None:
    with pytest.raises(
        EngineError, match=rf"^entry point '{value}' does not load: .*{says}; repair or remove"
    ) as error:
        load_extension(point(value), EngineError)
    assert error.value.__cause__ is not None


@pytest.mark.parametrize(
    "value", ["math:pi", "math:sqrt", "onnxfi.errors:closest", "threading:Thread", "onnxfi.faults.sites:Site"]
)
def test_what_is_no_frozen_class_of_that_kind_is_refused(value: str) -> None:
    with pytest.raises(
        FaultError, match=rf"entry point '{value}' is not a frozen dataclass derived from onnxfi.FaultM"
    ):
        load_extension_class(point(value), FaultModel, FaultError)


def test_what_a_module_loads_when_it_is_asked_for_is_found_or_refused(tmp_path: Path) -> None:
    (tmp_path / "late_part.py").write_text("value = 7\n")
    (tmp_path / "late.py").write_text(
        "def __getattr__(name):\n    if name == 'none':\n        raise AttributeError(name)\n"
        "    import importlib\n    return importlib.import_module(name).value\n"
    )
    assert imported("late:late_part", str(tmp_path)) == 7
    with pytest.raises(InputError, match=r"^task 'late:no_such_part' cannot be loaded: ModuleNotFoundError: No module"):
        imported("late:no_such_part", str(tmp_path), what="task")
    with pytest.raises(InputError, match=r"^'late:none' cannot be loaded: module 'late' has no 'none'"):
        imported("late:none", str(tmp_path))
