"""Files that describe faults: JSON objects of bounded size, each with a version and a digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

from onnxfi.errors import FaultError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.file_fields import Fields, parse_json, read_bytes

VERSION, _MAX_BYTES = 1, 1 << 20


@dataclass(frozen=True)
class Description:
    """Kind of file: what messages call it, the document of its format, its fields and largest size."""

    what: str
    document: str
    fields: tuple[str, ...]
    example: str = ""
    max_bytes: int = _MAX_BYTES

    def read(self, file: str) -> bytes:
        """Return the content of a file; FaultError if it cannot be read, is too large, or no regular one."""
        return read_bytes(file, self.max_bytes, FaultError, regular=True)

    def parse(self, text: bytes, file: str) -> Fields:
        """Return the fields that a content holds; FaultError for other ones or another version."""
        where = f"{self.what} {file!r}"
        return Fields.of(parse_json(text, where, FaultError), self.fields, where, FaultError, version=VERSION)


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
