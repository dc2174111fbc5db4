"""Frameworks: one that is missing is named with the line that installs it."""

from __future__ import annotations

import importlib.util

import pytest

from onnxfi.converters import FRAMEWORKS
from onnxfi.converters.installed_frameworks import require
from onnxfi.errors import InputError


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_missing_extra_is_named_with_the_line_for_pip(name: str, absent: set[str]) -> None:
    with pytest.raises(InputError) as caught:
        require(name)
    assert str(caught.value).endswith(f"which are not installed: pip install 'onnxfi[{name}]'")
    assert all(module in str(caught.value) for module in FRAMEWORKS[name].modules)


def test_users_of_tensorflow_learn_what_else_to_install(absent: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else object())
    with pytest.raises(InputError, match=r"need tf2onnx, which is not installed: pip install tf2onnx$"):
        require("tensorflow")
