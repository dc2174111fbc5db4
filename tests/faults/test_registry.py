"""Registry of fault models: every registered model by its examples, and a user's own by an entry point."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fault_examples import after, evaluated, every_example

from onnxfi.errors import FaultError
from onnxfi.faults import fault_model
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.faultlist import FaultList, Header, trial_lines
from onnxfi.faults.models import Flip
from onnxfi.faults.registry import fault_models, parse_fault
from onnxfi.faults.space import Selector, Target
from onnxfi.faults.trials import Sampler, apply_faults, draw_faults
from onnxfi.faults.words import WORDS, Mask

# ------------------------------------------------------------------------------------------------ all registered ones


@pytest.mark.parametrize("name", fault_models())
def test_models_are_frozen_named_and_explained(name: str) -> None:
    kind = fault_models()[name]
    assert kind.name == name
    assert kind.unit in ("bit", "word")
    assert kind.__doc__
    assert not kind.__doc__.startswith(kind.__name__ + "(")  # the text that dataclass makes up
    fields = [field.name for field in dataclasses.fields(kind)]
    assert kind.examples or "file" in fields, "the tests run over the examples; only what needs a file has none"
    for text in kind.examples:
        for field in fields:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(parse_fault(text), field, 1)


@every_example
def test_examples_are_values_and_texts(name: str, text: str) -> None:
    model = parse_fault(text)
    assert type(model) is fault_models()[name]
    assert parse_fault(str(model)) == model
    assert evaluated(model) == model
    assert hash(parse_fault(text)) == hash(model)
    for field in dataclasses.fields(model):  # also what was left out: a default may be another one some day
        assert f"{field.name}=" in str(model) or not field.init


@every_example
def test_examples_change_words(name: str, text: str) -> None:
    model = parse_fault(text)
    changed_formats = []
    for word in WORDS.values():
        top = word.bits - model.width()
        bits = np.arange(top + 1, dtype=np.int16) if model.unit == "bit" else np.array([-1], np.int16)
        before = np.arange(len(bits), dtype=np.uint64) & np.uint64(word.full)
        try:
            new = model.draw_parameters(12345, word).apply(word, before, bits)
        except FaultError as refusal:
            assert word.name in str(refusal)
            continue
        assert new.dtype == np.uint64
        assert all(0 <= w <= word.full for w in new.tolist())
        changed_formats += [word.name] * bool(len(bits))
    assert changed_formats


# ------------------------------------------------------------------------------------------------ a user's own

OWN = Path(__file__).parents[1] / "support" / "own_fault_model.py"


@pytest.fixture
def fresh() -> Iterator[None]:
    """The registry read anew, and again afterwards."""
    fault_models.cache_clear()
    yield
    fault_models.cache_clear()


@pytest.fixture
def installed(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's model, as an installed package offers it."""
    info = tmp_path / "lost_bits-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lost-bits\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[onnxfi.fault_models]\nlost-bits = own_fault_model:LostBits\n")
    (tmp_path / OWN.name).write_text(OWN.read_text())
    monkeypatch.syspath_prepend(tmp_path)


def test_an_own_model_takes_at_most_fifteen_lines() -> None:
    (model,) = (node for node in ast.parse(OWN.read_text()).body if isinstance(node, ast.ClassDef))
    first = min(d.lineno for d in model.decorator_list)
    assert model.end_lineno is not None
    assert model.end_lineno - first + 1 <= 15


@pytest.mark.usefixtures("installed")
def test_an_own_model_is_a_model_like_the_others(tmp_path: Path) -> None:
    assert "lost-bits" in fault_models()
    model = parse_fault("lost-bits:k=3")
    assert (str(model), evaluated(model)) == ("lost-bits:k=3", model)
    assert str(parse_fault("lost-bits")) == "lost-bits:k=4"
    assert after(model, WORDS["uint8"], 0xFF, -1) == 0xF8
    with pytest.raises(FaultError, match="unknown fault 'lost-bit'; closest: 'lost-bits'"):
        parse_fault("lost-bit")

    targets = [Target("w", WORDS["float32"], (3, 4))]
    space, how = Selector().space(targets, model), Sampler("count", n=5, seed=1)
    assert (space.unit, len(space)) == ("word", 12)
    drawn, final = apply_faults(draw_faults(space, how, model), np.arange(5, dtype=np.uint64) + np.uint64(0xFFFF))
    assert final.tolist() == [w & ~7 for w in range(0xFFFF, 0xFFFF + 5)]
    path = tmp_path / "faults.jsonl"
    header = Header("digest", str(model), sampler=how, population=12, unit="word")
    path.write_text("\n".join([header.line(), *trial_lines(1, drawn, how, [0])]) + "\n")
    assert FaultList.open(path).header == header
    assert dict(FaultList.open(path).trials(targets)) == {1: drawn}


@dataclasses.dataclass(frozen=True)
class _Nameless(FaultModel):
    """A model whose author forgot its name."""


@dataclasses.dataclass(frozen=True)
class _Taken(FaultModel):
    """A model with the name of another."""

    name = "flip"


@dataclasses.dataclass(frozen=True)
class _Derived(FaultModel):
    """A model that keeps what it worked out from its parameters."""

    k: int = 4
    name = "derived"
    twice: int = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.k)


@pytest.mark.usefixtures("fresh")
def test_what_a_model_works_out_is_no_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(value="pack:Derived", load=lambda: _Derived)
    monkeypatch.setattr(fault_model, "entry_points", lambda group: [point])
    assert str(_Derived(5)) == "derived:k=5"
    assert parse_fault(str(_Derived(5))) == _Derived(5)
    with pytest.raises(FaultError, match="fault 'derived' takes k as key=value; given 'twice=3'"):
        parse_fault("derived:twice=3")


def _broken() -> None:
    raise ImportError("No module named 'gone'")


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda: _Nameless, r"entry point 'pack:Own' has no name; give the class a `name`"),
        (lambda: _Taken, r"entry point 'pack:Own' has the name 'flip', which is already taken"),
        (lambda: dict, r"is not a frozen dataclass derived from onnxfi.FaultModel"),
        (Flip, r"is not a frozen dataclass derived from onnxfi.FaultModel"),
        (lambda: Mask, r"is not a frozen dataclass derived from onnxfi.FaultModel"),
        (_broken, r"entry point 'pack:Own' does not load: No module named 'gone'; repair or remove its package"),
    ],
)
def test_bad_entry_points_are_named(load: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(value="pack:Own", load=load)
    monkeypatch.setattr(fault_model, "entry_points", lambda group: [point] if group == "onnxfi.fault_models" else [])
    with pytest.raises(FaultError, match=message):
        parse_fault("flip")


def test_the_group_of_entry_points_is_the_documented_one() -> None:
    assert fault_model.ENTRY_POINTS == "onnxfi.fault_models"
    assert EntryPoint("lost-bits", "own_fault_model:LostBits", fault_model.ENTRY_POINTS).load().name == "lost-bits"
