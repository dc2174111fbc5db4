"""Codes over the memory that holds stored words: between the raw fault and the word that the runtime sees.

A code covers a block: some neighbouring words of a tensor with their check bits, or one word that holds its own check
bits in its lowest mantissa bits. `decode` says what is read from a block whose bits are faulty. Bits of a block are
numbered from 0: its data bits in memory order, then its check bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from types import MappingProxyType
from typing import ClassVar, Literal
from urllib.parse import quote, unquote

from onnxfi.errors import InputError
from onnxfi.faults.space import Selector, Target
from onnxfi.faults.text_form import parse_text_form, text_of
from onnxfi.faults.words import Word

Status = Literal["clean", "corrected", "detected", "missed"]
_ON_DETECTION = ("due", "keep", "zero")
#: Characters of a pattern that need no escape in an assignment.
_UNESCAPED = "/._-:*?=[]!()|+^$ "


@dataclass(frozen=True)
class MemoryCode(ABC):
    """A code by its name and parameters, a frozen dataclass; `str` gives its text form, `NAME[:key=value,…]`.

    Examples
    --------
    >>> from onnxfi.faults.words import WORDS
    >>> code = parse_memory_code("secded")
    >>> code.overhead_bits(Target("w", WORDS["float32"], (100,)))
    400
    """

    name: ClassVar[str]

    def check(self, target: Target) -> None:  # noqa: B027 (most codes take all words)
        """Raise InputError if the code cannot cover the words of a target."""

    def words_a_block(self, word: Word) -> int:
        """Return how many words of this format a block holds: one, unless a code joins several."""
        return 1

    def check_bits(self, word: Word) -> int:
        """Return how many bits a block has beside its words: none, unless a code needs them."""
        return 0

    def cleared(self, word: Word) -> int:
        """Return the bits of a word that the code takes for itself, and that read 0."""
        return 0

    @property
    def due(self) -> bool:
        """True if an error that is detected and not corrected ends the inference."""
        return False

    @abstractmethod
    def decode(self, word: Word, data: int, errors: int) -> tuple[int, Status]:
        """Return the words of a block as they are read, and what became of the errors.

        `data` are its stored words in memory order, without errors and with cleared bits; `errors` the flipped bits of
        the whole block.
        """

    def overhead_bits(self, target: Target) -> int:
        """Return the bits that a tensor takes beside its words."""
        return -(-target.size // self.words_a_block(target.word)) * self.check_bits(target.word)

    def __str__(self) -> str:
        """Return the text form with the parameters that differ from their defaults."""
        return text_of(self.name, self)


@dataclass(frozen=True)
class _BlockCode(MemoryCode):
    """A code over `bits` data bits with check bits beside them; `detected` is `due`, `keep` or `zero`.

    An error that is detected and not corrected ends the inference (DUE), or the words are taken as they are, or as 0.
    """

    bits: int = 64
    detected: str = "due"

    def __post_init__(self) -> None:
        if self.detected not in _ON_DETECTION:
            raise InputError(f"memory code {self.name!r}: detected is {self.detected!r}; give due, keep or zero")
        if self.bits not in (8, 16, 32, 64):
            raise InputError(f"memory code {self.name!r}: bits is {self.bits}; give 8, 16, 32 or 64")

    @property
    def due(self) -> bool:
        """True if an error that is detected ends the inference."""
        return self.detected == "due"

    def check(self, target: Target) -> None:
        """Refuse words that are wider than a block."""
        if target.word.storage > self.bits:
            raise InputError(
                f"memory code {self}: a block of {self.bits} bits holds no word of {target.id!r} ({target.dtype}); "
                f"give bits={target.word.storage}"
            )

    def words_a_block(self, word: Word) -> int:
        """Return how many words of this format a block holds."""
        return self.bits // word.storage

    def _uncorrected(self, data: int, errors: int) -> tuple[int, Status]:
        return (0 if self.detected == "zero" else data ^ (errors & ((1 << self.bits) - 1))), "detected"


class Parity(_BlockCode):
    """One bit for each block: an odd number of errors is detected, an even one is missed."""

    name = "parity"

    def check_bits(self, word: Word) -> int:
        """Return 1."""
        return 1

    def decode(self, word: Word, data: int, errors: int) -> tuple[int, Status]:
        """Detect an odd number of errors."""
        if errors.bit_count() % 2:
            return self._uncorrected(data, errors)
        return data ^ (errors & ((1 << self.bits) - 1)), "missed" if errors else "clean"


@cache
def hsiao_columns(bits: int) -> tuple[int, ...]:
    """Return the columns of the parity check matrix of Hsiao's code: those of the data bits, then of the check bits.

    All columns differ and have an odd number of ones, so that the sum of two is neither a column nor 0.

    References
    ----------
    .. [1] M. Y. Hsiao, A class of optimal minimum odd-weight-column SEC-DED codes, IBM J. Res. Dev. 14, 1970.

    Examples
    --------
    >>> found = hsiao_columns(64)
    >>> len(found), len(set(found)), {column.bit_count() % 2 for column in found}
    (72, 72, {1})
    """
    checks = hsiao_check_bits(bits)
    odd = (ones for weight in range(3, checks + 1, 2) for ones in combinations(range(checks), weight))
    data = [sum(1 << one for one in ones) for ones, _ in zip(odd, range(bits), strict=False)]
    return (*data, *(1 << k for k in range(checks)))


def hsiao_check_bits(bits: int) -> int:
    """Return the least number of check bits with which a Hsiao code covers so many data bits."""
    checks = 1
    while 2 ** (checks - 1) - checks < bits:
        checks += 1
    return checks


@cache
def hsiao_places(bits: int) -> Mapping[int, int]:
    """Return the place of each column in the block."""
    return MappingProxyType({column: place for place, column in enumerate(hsiao_columns(bits))})


def syndrome_of(bits: int, block: int) -> int:
    """Return the syndrome of a block of data bits and check bits: 0 for a word of the code.

    >>> check = syndrome_of(64, 0xDEADBEEF)
    >>> syndrome_of(64, 0xDEADBEEF | check << 64)
    0
    """
    found = 0
    for place, column in enumerate(hsiao_columns(bits)):
        if block >> place & 1:
            found ^= column
    return found


class SecDed(_BlockCode):
    """Hsiao's code: one error of a block is corrected, two are detected; 8 check bits for 64, as (72,64).

    Three errors and more are corrected wrongly, detected or missed, as the columns of the code have it.
    """

    name = "secded"

    def check_bits(self, word: Word) -> int:
        """Return the number of check bits."""
        return hsiao_check_bits(self.bits)

    def decode(self, word: Word, data: int, errors: int) -> tuple[int, Status]:
        """Correct the bit whose column is the syndrome; an even syndrome is a double error."""
        syndrome = syndrome_of(self.bits, errors)
        seen = data ^ (errors & ((1 << self.bits) - 1))
        if not syndrome:
            return seen, "missed" if errors else "clean"
        place = hsiao_places(self.bits).get(syndrome)
        if place is None:
            return self._uncorrected(data, errors)
        seen ^= 1 << place if place < self.bits else 0
        return seen, "corrected" if seen == data else "missed"


@dataclass(frozen=True)
class Tmr(MemoryCode):
    """Three copies of each word, and the majority of each bit; with `top` of the highest bits alone.

    `top` is how many bits of each word are kept thrice, 0 for all.
    """

    top: int = 0
    name = "tmr"

    def __post_init__(self) -> None:
        if not 0 <= self.top <= 64:
            raise InputError(f"memory code 'tmr': top is {self.top}; give 1 to 64 bits of a word, or 0 for all")

    def check(self, target: Target) -> None:
        """Refuse words that have fewer bits."""
        if self.top > target.word.bits:
            raise InputError(
                f"memory code {self} keeps more bits thrice than the words of {target.id!r} ({target.dtype}) have; "
                f"give top={target.word.bits} at most"
            )

    def _copied(self, word: Word) -> int:
        return self.top or word.storage

    def check_bits(self, word: Word) -> int:
        """Return the bits of two more copies."""
        return 2 * self._copied(word)

    def decode(self, word: Word, data: int, errors: int) -> tuple[int, Status]:
        """Take the majority of each bit that has copies."""
        held = self._copied(word)
        low = (word.bits if self.top else word.storage) - held
        own, full = errors & ((1 << word.storage) - 1), (1 << held) - 1
        one, two, three = own >> low & full, errors >> word.storage & full, errors >> word.storage + held & full
        wrong = ((one & two) | (one & three) | (two & three)) << low
        seen = data ^ (own & ~(full << low)) ^ wrong
        return seen, "missed" if seen != data else "corrected" if errors else "clean"


@dataclass(frozen=True)
class Mset(MemoryCode):
    """Most significant exponent bit triplicated: two copies replace the lowest mantissa bits, and the majority counts.

    All other bits have no protection. Source: faultforge and arXiv 2605.07417.
    """

    name = "mset"

    def check(self, target: Target) -> None:
        """Refuse words without an exponent, or with fewer than 4 mantissa bits."""
        if not target.word.is_float or target.word.mantissa < 4:
            raise InputError(
                f"memory code mset keeps copies of an exponent bit in 2 of at least 4 mantissa bits; {target.id!r} is "
                f"{target.dtype}: leave it out with --exclude, or take secded"
            )

    def cleared(self, word: Word) -> int:
        """Return the two lowest bits."""
        return 3

    def decode(self, word: Word, data: int, errors: int) -> tuple[int, Status]:
        """Take the majority of the three bits."""
        top = 1 << word.bits - 2
        flipped = bool(errors & top) + (errors & 1) + (errors >> 1 & 1) >= 2
        seen = data ^ (errors & ~(top | 3)) ^ (top if flipped else 0)
        return seen, "missed" if seen != data else "corrected" if errors else "clean"


@dataclass(frozen=True)
class Cep(MemoryCode):
    """Chunked embedded parity: from the top each `chunk` bits have a parity bit among the lowest mantissa bits.

    A chunk whose parity is wrong reads 0. Source: faultforge and arXiv 2605.07417.
    """

    chunk: int = 4
    name = "cep"

    def __post_init__(self) -> None:
        if not 1 <= self.chunk <= 32:
            raise InputError(f"memory code 'cep': chunk is {self.chunk}; give 1 to 32")

    def check(self, target: Target) -> None:
        """Refuse words without a mantissa that could hold the parity bits."""
        word = target.word
        if not word.is_float or not 1 <= self._chunks(word) <= word.mantissa:
            raise InputError(
                f"memory code {self} is wider than the words of {target.id!r}: it needs a float of more than "
                f"{self.chunk} bits whose mantissa holds the parity bits, {target.dtype} is none; leave it out with "
                f"--exclude, or take secded"
            )

    def _chunks(self, word: Word) -> int:
        return word.bits // (self.chunk + 1)

    def cleared(self, word: Word) -> int:
        """Return the lowest bits, one for each chunk."""
        return (1 << self._chunks(word)) - 1

    def decode(self, word: Word, data: int, errors: int) -> tuple[int, Status]:
        """Zero each chunk whose parity is wrong."""
        seen, found = data ^ (errors & ~self.cleared(word)), False
        for k in range(self._chunks(word)):
            mask = ((1 << self.chunk) - 1) << (word.bits - (k + 1) * self.chunk)
            if ((errors & mask).bit_count() + (errors >> k & 1)) % 2:
                seen, found = seen & ~mask, True
        if seen == data:
            return seen, "corrected" if errors else "clean"
        return seen, "detected" if found else "missed"


_OWN: tuple[type[MemoryCode], ...] = (Parity, SecDed, Tmr, Mset, Cep)


def memory_codes() -> Mapping[str, type[MemoryCode]]:
    """Return every memory code by its name.

    Examples
    --------
    >>> sorted(memory_codes())
    ['cep', 'mset', 'parity', 'secded', 'tmr']
    """
    return MappingProxyType({one.name: one for one in _OWN})


def parse_memory_code(text: str) -> MemoryCode:
    """Return the memory code that `NAME[:key=value,…]` describes.

    Examples
    --------
    >>> str(parse_memory_code("secded:bits=32,detected=due"))
    'secded:bits=32'
    """
    return parse_text_form(text, memory_codes(), "memory code")


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
            str(code) + ("@" + ",".join(quote(one, safe=_UNESCAPED) for one in patterns) if patterns else "")
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
