"""Words: the layout of one stored number. Bit 0 is the least significant bit, always.

A tensor of any number format is a row of words. In memory onnxfi carries words as `uint64`, whatever their
width; in a file a word of 4 or 2 bits shares its byte with its neighbours (the first one in the low bits), and a
complex number is two words, real part first.

Source of the layouts: the ONNX tensor format (onnx.proto, `TensorProto.DataType`) and IEEE 754; the 8-bit and
narrower floats are those of ml_dtypes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import SelectorError, closest

Words = NDArray[np.uint64]
FIELDS = ("sign", "exponent", "mantissa")


@dataclass(frozen=True)
class Word:
    """Layout of one stored number.

    Attributes
    ----------
    name : str
        Name of the number format, as in numpy or ml_dtypes.
    bits : int
        Width in bits.
    signed : bool
        True if the top bit is a sign.
    exponent, mantissa : int
        Width of these fields in bits; 0 for integers.
    storage : int
        Bits that the number takes in a file: 8 for bool, whose one bit lies in a byte.
    parts : int
        Words of one number: 2 for a complex number.

    Examples
    --------
    >>> WORDS["float32"].field("exponent")
    range(23, 31)
    >>> WORDS["int4"].field("sign")
    range(3, 4)
    """

    name: str
    bits: int
    signed: bool
    exponent: int = 0
    mantissa: int = 0
    storage: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage", self.storage or self.bits)

    @property
    def is_float(self) -> bool:
        """True if the word has an exponent."""
        return self.exponent > 0

    @property
    def full(self) -> int:
        """Word with every bit set."""
        return (1 << self.bits) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy (or ml_dtypes) type that reads one word as a number; a complex number's parts are floats.

        >>> WORDS["complex64"].dtype
        dtype('float32')
        """
        name = f"float{self.bits}" if self.parts == 2 else self.name
        return np.dtype(getattr(ml_dtypes, name, None) or name)

    @property
    def carrier(self) -> np.dtype[Any]:
        """The unsigned integer type as wide as one stored word (one byte for packed ones)."""
        return np.dtype(f"<u{max(8, self.storage) // 8}")

    def field(self, name: str) -> range:
        """Return the bit positions of a field; empty if the format has none (integers have no exponent)."""
        if name == "mantissa":
            return range(self.mantissa)
        if name == "exponent":
            return range(self.mantissa, self.mantissa + self.exponent)
        if name == "sign":
            return range(self.bits - 1, self.bits) if self.signed else range(0)
        raise SelectorError(f"unknown bit field {name!r}{closest(name, FIELDS)}")

    def size_bytes(self, elements: int) -> int:
        """Bytes that `elements` words take, the last byte padded."""
        return (elements * self.storage + 7) // 8

    def values(self, words: Words) -> NDArray[Any]:
        """Read words (`uint64`, any shape) as numbers of `dtype`.

        >>> WORDS["bfloat16"].values(np.array([0x3FC0], np.uint64)).astype(float).tolist()
        [1.5]
        >>> WORDS["int4"].values(np.array([0xF], np.uint64)).astype(int).tolist()
        [-1]
        """
        if self.name == "bool":
            return (words & np.uint64(1)).astype(np.bool_)
        narrow = words.astype(self.carrier)
        if self.storage < 8 and not self.is_float:
            top = narrow.astype(np.int8)
            if self.signed:
                top = (top << (8 - self.bits)) >> (8 - self.bits)
            return top.astype(self.dtype)
        return narrow.view(self.dtype)

    def words(self, values: NDArray[Any]) -> Words:
        """Store numbers as words. Values of another type are converted first.

        Floats round as ml_dtypes and numpy do: to nearest, ties to even (float8_e8m0fnu: up; bfloat16 and the narrower
        ones by way of float32).
        For integers the value is rounded to the nearest integer, ties to even, and held at the ends of the range; NaN
        becomes 0 there.

        >>> [hex(w) for w in WORDS["int8"].words(np.array([-1.0, 300.0]))]
        ['0xff', '0x7f']
        """
        given = np.asarray(values)
        with np.errstate(all="ignore"):
            if self.is_float and given.dtype == object:  # whole numbers of more than 64 bits
                given = given.astype(np.float64)
            if not self.is_float and given.dtype != self.dtype and self.name != "bool":
                given = _to_integers(given, self)
            exact = np.ascontiguousarray(given.astype(self.dtype))
        if self.name == "bool":
            return exact.astype(np.uint64)
        narrow = exact.view(np.uint8) if self.storage < 8 else exact.view(self.carrier)
        return narrow.astype(np.uint64) & np.uint64(self.full)

    def unpack(self, data: bytes, start: int, count: int) -> Words:
        """Words `start … start + count` of a tensor whose bytes from word `start`'s own byte on are `data`."""
        if self.storage >= 8:
            return np.frombuffer(data, self.carrier, count).astype(np.uint64)
        per_byte = 8 // self.storage
        skip = start % per_byte
        raw = np.frombuffer(data, np.uint8)
        shifts = (np.arange(per_byte, dtype=np.uint8) * self.storage).astype(np.uint8)
        flat = (raw[:, None] >> shifts) & np.uint8(self.full)
        return flat.reshape(-1)[skip : skip + count].astype(np.uint64)

    def write(self, data: bytearray | memoryview, position: int, word: int) -> None:
        """Write one word at word number `position` of `data`, leaving its byte's other words as they are.

        >>> cell = bytearray([0x21])
        >>> WORDS["uint4"].write(cell, 1, 0xF); cell.hex()
        'f1'
        """
        if self.storage >= 8:
            size = self.storage // 8
            data[position * size : (position + 1) * size] = int(word).to_bytes(size, "little")
            return
        byte, shift = divmod(position * self.storage, 8)
        data[byte] = (data[byte] & ~(self.full << shift)) & 0xFF | (int(word) << shift)


def _to_integers(values: NDArray[Any], word: Word) -> NDArray[Any]:
    """Round to the nearest integer, ties to even, and hold at the ends of the word's range; exact up to 64 bits."""
    low = -(1 << (word.bits - 1)) if word.signed else 0
    high = (1 << (word.bits - int(word.signed))) - 1
    if word.bits <= 32 and values.dtype.kind in "iu":
        ends = np.iinfo(values.dtype)  # numpy before 2.1 takes no bound beyond the values' own format
        return np.asarray(np.clip(values, max(low, ends.min), min(high, ends.max)))
    if word.bits <= 32:
        rounded = np.nan_to_num(np.rint(values.astype(np.float64)), nan=0.0)
        return np.asarray(np.clip(rounded, low, high).astype(np.int64))
    # 2**63 - 1 is no float64, so the ends of 64-bit formats are held in exact integer arithmetic. NaN is on no side.
    exact = [
        round(v) if low < v < high else high if v >= high else low if v <= low else 0 for v in values.ravel().tolist()
    ]
    return np.array(exact, dtype=word.dtype).reshape(values.shape)


def _float(name: str, exponent: int, mantissa: int, *, signed: bool = True) -> Word:
    return Word(name, exponent + mantissa + int(signed), signed, exponent, mantissa)


_TABLE: tuple[Word, ...] = (
    _float("float64", 11, 52),
    _float("float32", 8, 23),
    _float("float16", 5, 10),
    _float("bfloat16", 8, 7),
    _float("float8_e4m3fn", 4, 3),
    _float("float8_e4m3fnuz", 4, 3),
    _float("float8_e5m2", 5, 2),
    _float("float8_e5m2fnuz", 5, 2),
    _float("float8_e8m0fnu", 8, 0, signed=False),
    _float("float4_e2m1fn", 2, 1),
    *(Word(f"int{n}", n, True) for n in (64, 32, 16, 8, 4, 2)),
    *(Word(f"uint{n}", n, False) for n in (64, 32, 16, 8, 4, 2)),
    Word("bool", 1, False, storage=8),
    Word("complex64", 32, True, 8, 23, parts=2),
    Word("complex128", 64, True, 11, 52, parts=2),
)
#: Every number format by name: one row of the table above each.
WORDS: MappingProxyType[str, Word] = MappingProxyType({w.name: w for w in _TABLE})


@dataclass(frozen=True)
class Mask:
    """Bitwise change of a word: the faulty word is `(word & keep) ^ flip`.

    This form covers a bit flip, a stuck-at, a multi-bit upset and the replacement of a whole word. Two masks in
    sequence are one mask: `first.then(second)`.

    Parameters
    ----------
    keep : int
        Bits that keep their value; the others are cleared.
    flip : int
        Bits that are inverted after that.

    Examples
    --------
    >>> flip = Mask(keep=0xFF, flip=0x01)
    >>> flip(0x10), flip.then(flip)(0x10)
    (17, 16)
    """

    keep: int
    flip: int

    def __call__(self, word: int) -> int:
        """Return the faulty word."""
        return (word & self.keep) ^ self.flip

    def then(self, second: Mask) -> Mask:
        """Return the mask that does `self` first and `second` after it."""
        return Mask(self.keep & second.keep, (self.flip & second.keep) ^ second.flip)


def parse_bits(text: str) -> tuple[str | tuple[int, int], ...]:
    """Read a bit selection: positions, ranges with both ends, field names, comma lists.

    >>> parse_bits("30,0-22,sign")
    ((30, 30), (0, 22), 'sign')
    """
    parts: list[str | tuple[int, int]] = []
    for part in (p.strip() for p in text.split(",")):
        low, dash, high = part.partition("-")
        if part in FIELDS:
            parts.append(part)
        elif low.isdecimal() and (not dash or high.isdecimal()) and len(part) < 12:
            ends = (int(low), int(high or low))
            if ends[0] > ends[1]:
                raise SelectorError(f"bit range {part!r} runs backwards; write {high}-{low}")
            parts.append(ends)
        else:
            hint = closest(part, FIELDS) if part else ""
            raise SelectorError(f"bits {part!r} are neither a position, a range as 0-22, nor a field{hint}")
    return tuple(parts)


def select_bits(parts: Iterable[str | tuple[int, int]], word: Word) -> tuple[int, ...]:
    """Return the positions that a bit selection selects in a word, ascending; a position beyond the width is an error.

    >>> select_bits(parse_bits("exponent,0"), WORDS["bfloat16"])
    (0, 7, 8, 9, 10, 11, 12, 13, 14)
    """
    chosen: set[int] = set()
    for part in parts:
        if isinstance(part, str):
            chosen.update(word.field(part))
        elif part[1] >= word.bits:
            raise SelectorError(
                f"bit {part[1]} is beyond {word.name}, whose bits are 0 to {word.bits - 1}; "
                f"choose bits inside it, or leave such tensors out with --dtype"
            )
        else:
            chosen.update(range(part[0], part[1] + 1))
    return tuple(sorted(chosen))
