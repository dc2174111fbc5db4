"""The contract of a protection: a name, parameters as text, and the pass that it makes for a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from onnxfi.errors import InputError
from onnxfi.faults.space import Selector
from onnxfi.faults.text_form import text_of
from onnxfi.graph.model.loading import Model
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.protection.range_restriction import Restricted

if TYPE_CHECKING:
    from onnxfi.runtime.data.open_data import Data
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

    def add_notes(self, notes: Iterable[str]) -> None:
        """Add remarks that are new."""
        self.notes.extend(note for note in dict.fromkeys(notes) if note not in self.notes)

    def of(self, names: Iterable[str]) -> Setting:
        """Return the setting in which exactly these tensors are selected, with the same notes."""
        return replace(self, selector=Selector(include=tuple(f"={name}" for name in names)), _known={})

    def calibration(self, name: str) -> Data:
        """Return the calibration data; InputError if there is none."""
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
    #: Passes of lower rank go first: detectors see layers and weights as they are, ranges what detectors put out.
    rank: ClassVar[int] = 1

    @abstractmethod
    def passes(self, setting: Setting) -> ModelPass[Any]:
        """Return the pass that protects the model; InputError if nothing can be protected."""

    def __str__(self) -> str:
        """Return the text form with the parameters that differ from their defaults."""
        return text_of(self.name, self)
