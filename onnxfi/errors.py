"""One exception tree. Every message says what was given, what is allowed, and what to do.

OnnxfiError
├── InputError            the request or a file is wrong: the command line exits with 2
│   ├── ModelError        not a model, a hostile or damaged one, or one that cannot be used so
│   ├── SelectorError     a selector, site, bit or element that names nothing
│   ├── FaultError        a fault model or its parameters
│   ├── FaultListError    a fault list that is none, of another model, or of another version
│   ├── DataError         labelled data that does not fit the model
│   ├── ConversionError   what a framework or its exporter refuses, with the foreign text as `details`
│   └── OutputError       a place that cannot be written
└── EngineError           the runtime refuses the model, or a provider does not load
    └── ProviderError     a provider that has run does not load any more: no outcome of a fault
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnnxfiError(Exception):
    """Base of everything that onnxfi raises on purpose."""


class InputError(OnnxfiError):
    """The request cannot be met as it stands; the message says what would be accepted."""


class ModelError(InputError):
    """The file is no model, is damaged or hostile, or does not have what was asked for."""


class SelectorError(InputError):
    """A selector, site, bit or element names nothing in this model."""


class FaultError(InputError):
    """A fault model that does not exist, or parameters that it does not take."""


class FaultListError(InputError):
    """A file that is no fault list, belongs to another model, or has another version."""


class DataError(InputError):
    """Labelled data that is missing, damaged, or does not fit the model."""


class ConversionError(InputError):
    """A framework, its exporter or a factory refuses; `details` is its own text, of many lines, or empty."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class OutputError(InputError):
    """The output cannot be written where it was asked for."""


class EngineError(OnnxfiError):
    """The runtime refuses the model or the feeds, or an execution provider does not load."""


class ProviderError(EngineError):
    """An execution provider loads no model at all, not even one that every provider runs: no outcome of a fault."""


def closest(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """Say which known names come closest to `name`, as the tail of an error message.

    >>> closest("filp", ["flip", "zero"])
    "; closest: 'flip'"
    >>> closest("xyzzy", ["flip", "zero"])
    "; known: 'flip', 'zero'"
    >>> closest("flip", [])
    ''
    """
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, names[:5000], n=most, cutoff=0.5)
    if near:
        return "; closest: " + ", ".join(repr(n) for n in near)
    if not names:
        return ""
    more = f", … ({len(names)} in all)" if len(names) > 8 else ""
    return "; known: " + ", ".join(repr(n) for n in names[:8]) + more
