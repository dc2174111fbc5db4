"""Files that describe faults: JSON objects of bounded size, each with a version and a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from onnxfi.errors import FaultError, InputError, closest
from onnxfi.faults.fault_model import FaultModel
from onnxfi.numbers import number

_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Description:
    """Kind of file: what messages call it, the document of its format, its version, keys and largest size."""

    what: str
    document: str
    keys: tuple[str, ...]
    example: str = ""
    version: int = 1
    max_bytes: int = _MAX_BYTES

    def read(self, file: str) -> bytes:
        """Return the content of a file; FaultError if it cannot be read, or is too large."""
        try:
            if not Path(file).is_file():
                why = "it is no file" if Path(file).exists() else "there is no such file"
                raise FaultError(f"cannot read the {self.what} {file!r}: {why}")
            with Path(file).open("rb") as stream:
                text = stream.read(self.max_bytes + 1)
        except (OSError, ValueError) as error:
            raise FaultError(f"cannot read the {self.what} {file!r}: {getattr(error, 'strerror', error)}") from None
        if len(text) > self.max_bytes:
            raise FaultError(f"{self.what} {file!r} is larger than {self.max_bytes:,} bytes")
        return text

    def parse(self, text: bytes, file: str) -> dict[str, Any]:
        """Return the object that a content holds; FaultError for other keys or another version."""
        try:
            row = json.loads(text, parse_constant=_refuse, parse_float=lambda text: float(text) or number(text))
        except InputError as error:
            raise FaultError(f"{self.what} {file!r}: {error}") from None
        except (ValueError, RecursionError):
            raise FaultError(f"{self.what} {file!r} is not JSON; {self.document} describes the file") from None
        if not isinstance(row, dict):
            raise FaultError(f"{self.what} {file!r} holds no JSON object; {self.document} describes the file")
        check_keys(row, self.keys, f"{self.what} {file!r}")
        if row.get("version") != self.version:
            raise FaultError(
                f"{self.what} {file!r} has version {str(row.get('version'))[:40]}, this onnxfi reads version "
                f"{self.version}"
            )
        return row


@dataclass(frozen=True)
class DescribedFault(FaultModel):
    """Fault model that a file describes; a file whose digest is not `sha256`, where that is given, is refused."""

    file: str = ""
    sha256: str = ""
    described: ClassVar[Description]

    def content(self) -> bytes:
        """Return the content of the file, and keep its digest."""
        how = self.described
        if not self.file:
            raise FaultError(f"{self.name} takes file={how.example}; {how.document} describes the file")
        text = how.read(self.file)
        found = hashlib.sha256(text).hexdigest()
        if self.sha256 not in ("", found):
            raise FaultError(
                f"{how.what} {self.file!r} has the content {found}, not {self.sha256[:64]}; it was changed"
            )
        object.__setattr__(self, "sha256", found)
        return text


def check_keys(row: dict[str, Any], known: Collection[str], where: str) -> None:
    """Raise FaultError for a key that is not among the known ones."""
    for key in row:
        if key not in known:
            raise FaultError(f"{where}: unknown key {key[:80]!r}{closest(key[:80], known)}")


def probability(value: Any, where: str) -> float:
    """Return a probability; FaultError if it is none."""
    return real(value, where, 0.0, 1.0)


def real(value: Any, where: str, low: float, high: float) -> float:
    """Return a number within these ends; FaultError if it is none."""
    if type(value) not in (int, float) or not low <= value <= high:
        raise FaultError(f"{where}: {str(value)[:40]!r} is no number from {low:g} to {high:g}")
    return float(value)


def whole(value: Any, where: str, low: int, high: int) -> int:
    """Return a whole number within these ends; FaultError if it is none."""
    if type(value) is not int or not low <= value <= high:
        raise FaultError(f"{where}: {str(value)[:40]!r} is no whole number from {low:,} to {high:,}")
    return value


def objects(value: Any, where: str, most: int) -> list[dict[str, Any]]:
    """Return a list of JSON objects; FaultError if it is none, empty, or longer than `most`."""
    if not isinstance(value, list) or not 0 < len(value) <= most or not all(isinstance(one, dict) for one in value):
        raise FaultError(f"{where} is no list of 1 to {most:,} JSON objects")
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not strict JSON")
