"""Memory layouts: from the bytes of a model's files to physical addresses, and to row, bank, column, chip and DQ lane.

The file, JSON of version 1, is described in docs/reference/memory-layout.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError
from onnxfi.faults.hardware.fault_description import Description
from onnxfi.faults.sampling import permute
from onnxfi.faults.sites import Target
from onnxfi.file_fields import Fields

_KEYS = (
    "version", "name", "source", "bases", "pages", "memory_bytes", "row_bytes", "banks", "lanes", "chips", "order",
    "address_bits",
)  # fmt: skip
FILE = Description("memory layout", "docs/reference/memory-layout.md", _KEYS, "LAYOUT.json", max_bytes=1 << 26)
ORDERS = ("row-bank-column", "bank-row-column")
_MOST_BYTES = 1 << 50
_MOST_FRAMES = 1 << 22
_MOST_BITS = 50
_BITS = '{"row": "17-29", "column": "0-5,7-13", "bank": ["16,19", "15,18", "14,17", "6,13"]}'
_SAYS = "docs/reference/memory-layout.md describes them"

Index = NDArray[np.int64]


@dataclass(frozen=True)
class AddressBits:
    """Bits of a physical address that make up row, column and bank; a bit of the bank is the parity of several.

    Attributes
    ----------
    row, column : tuple of int
        Address bits of the row and of the byte in the row, from the lowest bit on.
    bank : tuple of tuple of int
        For each bit of the bank, from the lowest on, the address bits that are combined by exclusive or.
    """

    row: tuple[int, ...]
    column: tuple[int, ...]
    bank: tuple[tuple[int, ...], ...]

    def split(self, physical: Index) -> tuple[Index, Index, Index]:
        """Return row, bank and byte in the row of physical addresses."""
        ones = ((one,) for one in self.row), iter(self.bank), ((one,) for one in self.column)
        row, bank, column = (
            sum((_parity(physical, bits) << k for k, bits in enumerate(every)), np.zeros_like(physical))
            for every in ones
        )
        return row, bank, column

    @property
    def one_to_one(self) -> bool:
        """Tell whether no two addresses have the same row, bank and column."""
        left = [sum(1 << bit for bit in bits) for bits in (*((one,) for one in self.row + self.column), *self.bank)]
        count, rank = len(left), 0
        while left:
            pivot = left.pop()
            if pivot:
                low, rank = pivot & -pivot, rank + 1
                left = [mask ^ pivot if mask & low else mask for mask in left]
        return rank == count


@dataclass(frozen=True, eq=False)
class MemoryLayout:
    """Geometry of a memory, and where a model's files lie in it.

    Addresses are physical, in bytes. A row of a bank holds `row_bytes`; the bus has `lanes` DQ lanes, so one beat
    carries lanes / 8 bytes, and each chip an equal part of the lanes. `frames` are the physical pages of the model's
    pages in order (empty: the same addresses), `shuffled` is the seed of a random order. `bits`, where they are known,
    say which address lies where, in the place of `order`.
    """

    bases: dict[int, int]
    memory_bytes: int
    row_bytes: int
    banks: int
    lanes: int
    chips: int
    order: str = ORDERS[0]
    page_bytes: int = 4096
    frames: tuple[int, ...] = ()
    shuffled: int | None = None
    bits: AddressBits | None = None

    def place(self, target: Target, file: str = "") -> int:
        """Return the address of a target's first byte before paging; FaultError if it has none."""
        if not target.stored:
            raise FaultError(
                f"{target.id!r} does not lie in one run of bytes of a file, so it has no address; leave it out with "
                f"--exclude"
            )
        number, offset = target.stored
        if number not in self.bases:
            raise FaultError(
                f"memory layout {file!r} has no base for file {number} of the model (0: the model, 1 and on: its "
                f"external data in order), where {target.id!r} lies"
            )
        return self.bases[number] + offset

    def physical(self, address: Index) -> Index:
        """Return the physical addresses of addresses before paging; FaultError beyond the memory."""
        page, inside = np.divmod(address, self.page_bytes)
        if self.frames:
            if page.size and page.max() >= len(self.frames):
                raise FaultError(
                    f"the layout has {len(self.frames):,} pages, the model needs {int(page.max()) + 1:,}: a layout of "
                    f"another memory size"
                )
            page = np.array(self.frames, np.int64)[page]
        elif self.shuffled is not None:
            page = _shuffle(self.memory_bytes // self.page_bytes, self.shuffled, page)
        found = page * self.page_bytes + inside
        if found.size and found.max() >= self.memory_bytes:
            raise FaultError(
                f"address {int(found.max()):,} is beyond the memory of {self.memory_bytes:,} bytes: a layout of "
                f"another memory size"
            )
        return found

    @property
    def beat_bytes(self) -> int:
        """Bytes that the lanes carry together."""
        return self.lanes // 8

    def coordinates(self, physical: Index) -> dict[str, Index]:
        """Return page, row, bank and column of physical byte addresses, and the lane of each byte's bit 0."""
        if self.bits is not None:
            row, bank, inside = self.bits.split(physical)
        else:
            chunk, inside = np.divmod(physical, self.row_bytes)
            rows = max(1, self.memory_bytes // (self.row_bytes * self.banks))
            bank, row = (
                (chunk % self.banks, chunk // self.banks) if self.order == ORDERS[0] else (chunk // rows, chunk % rows)
            )
        return {
            "page": physical // self.page_bytes, "row": row, "bank": bank, "column": inside // self.beat_bytes,
            "lane": inside % self.beat_bytes * 8,
        }  # fmt: skip


def read_layout(file: str) -> MemoryLayout:
    """Return a layout; FaultError if its file is damaged."""
    return parse_layout(FILE.read(file), file)


@lru_cache(maxsize=16)
def parse_layout(text: bytes, file: str) -> MemoryLayout:
    """Return the layout that a content holds; FaultError if it is damaged."""
    row = FILE.parse(text, file)
    bits = _address_bits(row)
    if bits is not None:
        row = replace(row, values={
            **row.values, "memory_bytes": 1 << len(bits.row + bits.column + bits.bank),
            "row_bytes": 1 << len(bits.column), "banks": 1 << len(bits.bank),
        })  # fmt: skip
    size = row.whole("memory_bytes", 1, _MOST_BYTES)
    row_bytes = row.whole("row_bytes", 1, size, default=8192)
    lanes = row.whole("lanes", 8, 4096, default=64)
    chips = row.whole("chips", 1, lanes, default=8)
    banks = row.whole("banks", 1, 1 << 20, default=16)
    if lanes % 8 or lanes % chips or row_bytes % (lanes // 8) or size % (row_bytes * banks):
        raise row.fail(
            f"lanes are a multiple of 8 and of the chips, row_bytes of lanes / 8, and memory_bytes of "
            f"row_bytes × banks; given {lanes} lanes, {chips} chips, {row_bytes} and {size} bytes, {banks} banks"
        )
    return MemoryLayout(
        _bases(row, size), size, row_bytes, banks, lanes, chips, row.one_of("order", ORDERS, ORDERS[0]), bits=bits,
        **_pages(row, size),
    )  # fmt: skip


def _address_bits(row: Fields) -> AddressBits | None:
    """Return the bits of the address that a layout names; None if it names none."""
    if "address_bits" not in row:
        return None
    if twice := [key for key in ("memory_bytes", "row_bytes", "banks", "order") if key in row]:
        raise row.fail(f"address_bits say what {twice[0]} says; leave {twice[0]} out")
    given = row.inner("address_bits", ("row", "column", "bank"))
    try:
        row_bits, column = (_positions(given.required(key)) for key in ("row", "column"))
        bank = tuple(map(_positions, given.take("bank", lambda value: isinstance(value, list), "a list of bits")))
    except ValueError as error:
        raise given.fail(f"{error}; as {_BITS}") from None
    bits = AddressBits(row_bits, column, bank)
    known = len(row_bits + column + bank)
    if known > _MOST_BITS or max((*row_bits, *column, *(one for every in bank for one in every))) >= known:
        raise given.fail(f"they name {known} bits, at most {_MOST_BITS}, so the highest is {known - 1}; {_SAYS}")
    if not bits.one_to_one:
        raise given.fail(f"two addresses would have the same row, bank and column; {_SAYS}")
    return bits


def _positions(text: Any) -> tuple[int, ...]:
    """Return the bits that a text such as '0-5,7-13' names, in its order; ValueError for another."""
    found: list[int] = []
    for part in text.split(",") if isinstance(text, str) and len(text) < 1000 else ("",):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or max(map(len, (first, last))) > 2:
            raise ValueError(f"{str(text)[:40]!r} are no bits")
        found += range(int(first), int(last or first) + 1)
    if len(set(found)) < len(found) or not found:
        raise ValueError(f"{str(text)[:40]!r} names a bit twice, or none")
    return tuple(found)


def _parity(physical: Index, bits: tuple[int, ...]) -> Index:
    """Return the exclusive or of some bits of addresses."""
    found = np.zeros_like(physical)
    for bit in bits:
        found ^= physical >> bit & 1
    return found


def _bases(row: Fields, size: int) -> dict[int, int]:
    if "bases" not in row:
        return {0: 0}
    given = row.inner("bases")
    if len(given.values) > 1000 or not all(key.isdecimal() and len(key) < 5 for key in given.values):
        raise row.fail("bases maps the model's files to addresses, as {'0': 0, '1': 65536}")
    return {int(key): given.whole(key, 0, size - 1) for key in given.values}


def _pages(row: Fields, size: int) -> dict[str, Any]:
    given = row.inner("pages", ("size", "frames", "seed")) if "pages" in row else replace(row, values={})
    page = given.whole("size", 1, size, default=4096)
    if size % page or ("frames" in given and "seed" in given):
        raise given.fail("give a size that divides memory_bytes, and either frames or a seed")
    frames: tuple[int, ...] = ()
    if "frames" in given:
        frames = given.wholes("frames", 0, size // page - 1, range(1, _MOST_FRAMES + 1))
        if len(set(frames)) < len(frames):
            raise given.fail("frames are different pages of the memory; give each once")
    return {"page_bytes": page, "frames": frames, "shuffled": given.whole("seed", 0, (1 << 64) - 1, default=None)}


def _shuffle(pages: int, seed: int, page: Index) -> Index:
    if page.size and page.max() >= pages:
        raise FaultError(
            f"page {int(page.max()):,} is beyond the memory of {pages:,} pages: a layout of another memory size"
        )
    unique, back = np.unique(page, return_inverse=True)
    return np.asarray(permute(pages, seed, 0, unique.astype(np.uint64)).astype(np.int64)[back].reshape(page.shape))
