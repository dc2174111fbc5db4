"""The contract of a protection: a name, parameters as text, and the pass that it makes for a model."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from onnxfi.errors import InputError, closest
from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import Model
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.protection.range_restriction import Restricted

if TYPE_CHECKING:
    from onnxfi.runtime.data.sources import Data
    from onnxfi.runtime.engine.protocols import Engine


@dataclass(frozen=True)
class Setting:
    """The model to protect, and what a protection may ask for.

    Parameters
    ----------
    model : Model
        The unprotected model.
    selector : Selector
        The activations, layers or weights to protect; without `include` and `op` each protection has its default.
    data : Data or None
        Calibration data.
    engine : Engine
        The engine that runs the model.
    batch : int
        Samples that run together.
    notes : list of str
        Remarks for people, to which a protection adds.
    """

    model: Model
    selector: Selector
    data: Data | None
    engine: Engine
    batch: int = 32
    notes: list[str] = field(default_factory=list)
    _known: dict[Any, tuple[Restricted, ...]] = field(default_factory=dict)

    def once(self, key: Any, measure: Callable[[], tuple[Restricted, ...]]) -> tuple[Restricted, ...]:
        """Return what `measure` returns, which protections with the same key share."""
        if key not in self._known:
            self._known[key] = measure()
        return self._known[key]

    def calibration(self, name: str) -> Data:
        """Return the calibration data; InputError where there is none."""
        if self.data is None:
            raise InputError(f"{name} takes the range of activations from calibration data; give --data")
        if self.data.synthetic:
            raise InputError(
                f"{name} needs real calibration data: synthetic inputs say nothing about the range; give --data"
            )
        return self.data


@dataclass(frozen=True)
class Protection(ABC):
    """A protection by its name and parameters, a frozen dataclass; `str` gives its text form, `NAME[:key=value,…]`."""

    name: ClassVar[str]

    @abstractmethod
    def passes(self, setting: Setting) -> ModelPass[Any]:
        """Return the pass that protects the model; InputError where nothing can be protected."""

    def __str__(self) -> str:
        """Return the text form with the parameters that differ from their defaults."""
        pairs = [
            f"{f.name}={_text(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return self.name + (":" + ",".join(pairs) if pairs else "")


def parse(text: str, known: Mapping[str, type[Protection]]) -> Protection:
    """Return the protection that `NAME[:key=value,…]` describes; names may hold a colon."""
    words = text.strip().split(":")
    name = next((n for n in (":".join(words[:2]), words[0]) if n in known), "")
    if not name:
        raise InputError(f"unknown protection {text!r}{closest(text, known)}")
    rest = text.strip()[len(name) + 1 :]
    fields = {f.name: f for f in dataclasses.fields(known[name])}
    given: dict[str, Any] = {}
    for pair in rest.split(",") if rest else ():
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or key not in fields:
            takes = f"takes {', '.join(fields)} as key=value" if fields else "takes no parameters"
            raise InputError(f"protection {name!r} {takes}; given {pair!r}")
        if key in given:
            raise InputError(f"protection {name!r}: {key} is given twice")
        given[key] = _value(value, str(fields[key].type), f"protection {name!r}: {key}={value!r}")
    return known[name](**given)


def _value(text: str, kind: str, where: str) -> Any:
    """Return a parameter's value, of the type that its field declares."""
    if kind == "bool":
        if text not in ("yes", "no"):
            raise InputError(f"{where} is neither yes nor no")
        return text == "yes"
    if kind in ("int", "float"):
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError:
            raise InputError(f"{where} is not a {'whole ' if kind == 'int' else ''}number") from None
    return text


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
