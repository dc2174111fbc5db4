"""Offers of installed packages: loaded, or refused with their name and what their package raised."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from onnxfi.errors import EngineError, FaultError
from onnxfi.extensions import load_extension, load_extension_class
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
