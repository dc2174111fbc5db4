"""Memory codes by tensor: one code over all weights, or another one over each of some tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from onnxfi.errors import InputError
from onnxfi.faults.space import Selector, Target
from onnxfi.protection.memory_codes import Cep, MemoryCode, Mset, Tmr, parse_memory_code

#: Characters of a pattern that need no escape in an assignment.
_PLAIN = "/._-:*?=[]!()|+^$ "


@dataclass(frozen=True)
class CodeAssignment:
    """Codes, each over the targets that one of its patterns matches; the first that matches is taken.

    `str` gives its text form: `CODE`, or `CODE@PATTERN,…;CODE@PATTERN,…`. A target that no pattern matches has no code.

    Examples
    --------
    >>> found = parse_code_assignment("secded:bits=32@conv1,conv2;mset@=fc1.weight")
    >>> [str(code) for code, _ in found.parts], found.parts[1][1]
    (['secded:bits=32', 'mset'], ('=fc1.weight',))
    """

    parts: tuple[tuple[MemoryCode, tuple[str, ...]], ...]

    def code_of(self, target: Target) -> MemoryCode | None:
        """Return the code over the words of a target; None if there is none."""
        for code, patterns in self.parts:
            if not patterns or Selector(include=patterns).selects(target):
                return code
        return None

    def check_used(self, targets: Iterable[Target]) -> None:
        """Raise InputError for a pattern that matches none of the targets."""
        known = tuple(targets)
        for code, patterns in self.parts:
            for pattern in patterns:
                if not any(Selector(include=(pattern,)).selects(target) for target in known):
                    raise InputError(
                        f"memory code {code}: {pattern!r} matches no weight that faults are drawn in; leave it out"
                    )

    @property
    def leaves_single_faults(self) -> bool:
        """True if one flipped bit may be read as it is, or otherwise wrong: in words or bits without a code."""
        return all(patterns for _, patterns in self.parts) or any(
            isinstance(code, Mset | Cep) or (isinstance(code, Tmr) and code.top) for code, _ in self.parts
        )

    def __str__(self) -> str:
        """Return the text form."""
        return ";".join(
            str(code) + ("@" + ",".join(quote(one, safe=_PLAIN) for one in patterns) if patterns else "")
            for code, patterns in self.parts
        )


def parse_code_assignment(text: str) -> CodeAssignment:
    """Return the assignment that `CODE` or `CODE@PATTERN,…;…` describes.

    Other characters of names than letters, digits and punctuation without a meaning here are written as in a URL:
    `%2C` is a comma.

    Raises
    ------
    InputError
        For an unknown code, or an empty pattern.

    Examples
    --------
    >>> str(parse_code_assignment("tmr:top=2@conv*"))
    'tmr:top=2@conv*'
    """
    parts = []
    for one in text.split(";"):
        code, at, rest = one.strip().partition("@")
        patterns = tuple(unquote(pattern.strip()) for pattern in rest.split(",")) if at else ()
        if at and not all(patterns):
            raise InputError(f"memory code {one[:60]!r} has an empty pattern behind @; write CODE@PATTERN,PATTERN")
        parts.append((parse_memory_code(code), patterns))
    return CodeAssignment(tuple(parts))
