"""Exceptions that onnxfi raises on purpose, in one tree.

Every message is one line that says what is wrong, what is allowed, and what to do::

    OnnxfiError
    ├── InputError              the request or a file is wrong; the command line exits with 2
    │   ├── ModelError          the model file is damaged, hostile, or lacks what is needed
    │   │   └── PassError       a model pass breaks its contract
    │   ├── SelectorError       a selector, site, bit or element matches nothing
    │   ├── FaultError          an unknown fault model, or invalid parameters
    │   ├── FaultListError      a damaged fault list, or one of another model or version
    │   ├── DataError           labelled data that does not fit the model
    │   ├── SpecError           an invalid campaign specification; `field` names the field
    │   ├── StoreError          a damaged result store, or one of another campaign
    │   ├── BaselineError       a gate baseline that is damaged or not comparable
    │   ├── ConversionError     a framework or its exporter refuses; `details` is its own text
    │   └── OutputError         the output cannot be written
    ├── CampaignError           the golden run is not deterministic, or a canary fault stays masked
    │   └── NoCanaryError       no canary was seen in anything that is scored
    ├── UnprovableError         part of a model for which no outcome can be proved; its trials run
    ├── RouteError              partial execution and the full model disagree
    ├── IsolationError          a call in a copy of the process failed, or went beyond its limits
    │   └── CrashError          a signal ended the copy
    ├── NonFiniteLossError      faults made a training loss or gradient infinite or NaN
    ├── DeviceError             this process can no longer use its device; another process can
    └── EngineError             the runtime refuses the model or its inputs
        ├── ProviderError       an execution provider fails for every model
        └── SegmentMismatchError  a segment of the model rounds differently from the full model

>>> issubclass(SelectorError, InputError)
True
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnnxfiError(Exception):
    """Base class of every exception that onnxfi raises on purpose.

    Examples
    --------
    >>> import onnxfi
    >>> try:
    ...     onnxfi.parse_fault("filp")
    ... except onnxfi.OnnxfiError as error:
    ...     print(error)
    unknown fault 'filp'; closest: 'flip'
    """


class InputError(OnnxfiError):
    """Invalid request or file; the message says what is accepted, and the command line exits with 2.

    Examples
    --------
    >>> import onnxfi
    >>> try:
    ...     onnxfi.load("no-such-model.onnx")
    ... except onnxfi.InputError as error:
    ...     print(error)
    cannot read 'no-such-model.onnx': No such file or directory; give a readable file
    """


class ModelError(InputError):
    """Model file that is damaged, hostile, or lacks what the request needs."""


class PassError(ModelError):
    """Model pass that breaks its contract."""


class SelectorError(InputError):
    """Selector, site, bit or element that matches nothing in the model."""


class FaultError(InputError):
    """Unknown fault model, or parameters that it does not accept."""


class FaultListError(InputError):
    """Fault list that is damaged, belongs to another model, or has an unsupported version."""


class DataError(InputError):
    """Labelled data that is missing, damaged, or does not fit the model."""


class SpecError(InputError):
    """Invalid campaign specification: an unknown field, a wrong type, or a value out of range.

    Parameters
    ----------
    message : str
        The error message.
    field : str, optional
        Name of the invalid field, from which the line of a specification file is found.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class StoreError(InputError):
    """Result store that is damaged, has a newer version, or belongs to another campaign."""


class BaselineError(InputError):
    """Gate baseline that is damaged, or belongs to another campaign, data set or network."""


class ConversionError(InputError):
    """Refusal by a framework, its exporter, or a model factory.

    Parameters
    ----------
    message : str
        The error message, one line.
    details : str, optional
        The framework's own text, of any number of lines.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class OutputError(InputError):
    """Output path that cannot be written."""


class CampaignError(OnnxfiError):
    """Campaign that cannot be trusted: the golden run is not deterministic, or a canary fault stays masked."""


class NoCanaryError(CampaignError):
    """No canary was seen: extreme faults changed nothing that is scored."""


class RouteError(OnnxfiError):
    """Disagreement between partial execution and the full model: the route must not be used."""


class NonFiniteLossError(OnnxfiError):
    """Training step whose loss or gradient is infinite or NaN because of faults; no parameter was changed."""


class IsolationError(OnnxfiError):
    """Call that raised, or went beyond its limits, in a copy of the process; the message says how."""


class CrashError(IsolationError):
    """Call that ended the copy of the process with a signal; the message names the signal."""


class DeviceError(OnnxfiError):
    """Device that this process can no longer use after an error; a new process can."""


class EngineError(OnnxfiError):
    """Refusal of a model or its inputs by the runtime, or an execution provider that does not load."""


class ProviderError(EngineError):
    """Execution provider that loads no model at all: never an outcome of a fault."""


class SegmentMismatchError(EngineError):
    """Segment whose outputs differ from the full model's; the trial runs by the next longer route."""


class UnprovableError(OnnxfiError):
    """Part of a model for which no outcome can be proved; its trials run."""


def closest(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """Return the known names closest to `name`, as the tail of an error message.

    >>> closest("filp", ["flip", "zero"])
    "; closest: 'flip'"
    >>> closest("xyzzy", ["flip", "zero"])
    "; known: 'flip', 'zero'"
    >>> closest("flip", [])
    ''
    """
    names = list(dict.fromkeys(known))
    similar = difflib.get_close_matches(name, names[:5000], n=most, cutoff=0.5)
    if similar:
        return "; closest: " + ", ".join(repr(n) for n in similar)
    if not names:
        return ""
    more = f", … ({len(names)} in all)" if len(names) > 8 else ""
    return "; known: " + ", ".join(repr(n) for n in names[:8]) + more
