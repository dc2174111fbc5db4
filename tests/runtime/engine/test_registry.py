"""Engines by name: onnxfi's own, those of other packages, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from offered_engines import needs_openvino
from own_engine import LeanEngine

from onnxfi import Engine, engine_of
from onnxfi.errors import EngineError, InputError
from onnxfi.runtime.engine import registry
from onnxfi.runtime.engine.registry import engine_class, setting_names


def test_an_own_engine_takes_at_most_twenty_five_lines() -> None:
    text = (Path(__file__).parents[2] / "support" / "own_engine.py").read_text()
    assert len(text.partition("@dataclass")[2].splitlines()) <= 25


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda: dict, "is not a frozen dataclass derived from onnxfi.Engine"),
        (lambda: Engine, "is not a frozen dataclass derived from onnxfi.Engine"),
        (lambda: LeanEngine, "entry point 'pack:Own' says 'other', its class 'lean'; give both one name"),
        (lambda: int("x"), r"entry point 'pack:Own' does not load: .*; repair or remove its package"),
    ],
)
def test_bad_entry_points_are_named(load: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="other", value="pack:Own", load=load)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(EngineError, match=message):
        engine_of("other")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point, point])
    with pytest.raises(EngineError, match="two installed packages offer an engine 'other'"):
        engine_of("other")
    assert engine_of("reference").name == "reference", "others are not touched"


def test_names_and_settings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="no engine 'openvno'; closest: 'openvino'"):
        engine_of("openvno")
    with pytest.raises(
        InputError, match=r"engine 'openvino' has no setting provider; leave it out \(it takes threads\)"
    ):
        engine_of("openvino", provider="cpu")
    with pytest.raises(InputError, match=r"threads must be in \[1, 1024\], got 0"):
        engine_of("openvino", threads=0)
    assert setting_names(engine_class("onnxruntime"))[:2] == ("provider", "provider_options")


@pytest.fixture
def openvino() -> None:
    needs_openvino()
