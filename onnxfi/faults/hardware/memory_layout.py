"""Memory layouts: from the bytes of a model's files to physical addresses, and to row, bank, column, chip and DQ lane.

The file, JSON of version 1, is described in docs/reference/memory-layout.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import FaultError
from onnxfi.faults.hardware.description_file import Description, check_keys, digest, whole
from onnxfi.faults.sampling import permute
from onnxfi.faults.sites import Target

_KEYS = ("version", "name", "source", "bases", "pages", "memory_bytes", "row_bytes", "banks", "lanes", "chips", "order")
FILE = Description("memory layout", "docs/reference/memory-layout.md", _KEYS, max_bytes=1 << 26)
ORDERS = ("row-bank-column", "bank-row-column")
_MOST_BYTES = 1 << 50
_MOST_FRAMES = 1 << 22

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MemoryLayout:
    """Geometry of a memory, and where a model's files lie in it.

    Addresses are physical, in bytes. A row of a bank holds `row_bytes`; the bus has `lanes` DQ lanes, so one beat
    carries lanes / 8 bytes, and each chip an equal part of the lanes. `frames` are the physical pages of the model's
    pages in order (empty: the same addresses), `shuffled` is the seed of a random order.
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
        chunk, inside = np.divmod(physical, self.row_bytes)
        rows = max(1, self.memory_bytes // (self.row_bytes * self.banks))
        bank, row = (
            (chunk % self.banks, chunk // self.banks) if self.order == ORDERS[0] else (chunk // rows, chunk % rows)
        )
        return {
            "page": physical // self.page_bytes, "row": row, "bank": bank, "column": inside // self.beat_bytes,
            "lane": physical % self.beat_bytes * 8,
        }  # fmt: skip


def read_layout(file: str) -> tuple[MemoryLayout, str]:
    """Return a layout and the digest of its file; FaultError if it is damaged."""
    text = FILE.read(file)
    return _parse(text, file), digest(text)


@lru_cache(maxsize=16)
def _parse(text: bytes, file: str) -> MemoryLayout:
    row, where = FILE.parse(text, file), f"memory layout {file!r}"
    size = whole(row.get("memory_bytes"), f"{where}: memory_bytes", 1, _MOST_BYTES)
    row_bytes = whole(row.get("row_bytes", 8192), f"{where}: row_bytes", 1, size)
    lanes = whole(row.get("lanes", 64), f"{where}: lanes", 8, 4096)
    chips = whole(row.get("chips", 8), f"{where}: chips", 1, lanes)
    banks = whole(row.get("banks", 16), f"{where}: banks", 1, 1 << 20)
    order = row.get("order", ORDERS[0])
    if order not in ORDERS:
        raise FaultError(f"{where}: order {str(order)[:40]!r} is unknown; give {' or '.join(ORDERS)}")
    if lanes % 8 or lanes % chips or row_bytes % (lanes // 8) or size % (row_bytes * banks):
        raise FaultError(
            f"{where}: lanes are a multiple of 8 and of the chips, row_bytes of lanes / 8, and memory_bytes of "
            f"row_bytes × banks; given {lanes} lanes, {chips} chips, {row_bytes} and {size} bytes, {banks} banks"
        )
    return MemoryLayout(
        _bases(row.get("bases", {"0": 0}), size, where), size, row_bytes, banks, lanes, chips, order,
        **_pages(row.get("pages", {}), size, where),
    )  # fmt: skip


def _bases(given: Any, size: int, where: str) -> dict[int, int]:
    if (
        not isinstance(given, dict)
        or not 0 < len(given) <= 1000
        or not all(k.isdecimal() and len(k) < 5 for k in given)
    ):
        raise FaultError(f"{where}: bases maps the model's files to addresses, as {{'0': 0, '1': 65536}}")
    return {int(k): whole(v, f"{where}: base {k}", 0, size - 1) for k, v in given.items()}


def _pages(given: Any, size: int, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise FaultError(f"{where}: pages is an object of size, frames or seed")
    check_keys(given, ("size", "frames", "seed"), f"{where}: pages")
    page = whole(given.get("size", 4096), f"{where}: pages: size", 1, size)
    if size % page or ("frames" in given and "seed" in given):
        raise FaultError(f"{where}: pages takes a size that divides memory_bytes, and either frames or a seed")
    made: dict[str, Any] = {"page_bytes": page}
    if "seed" in given:
        made["shuffled"] = whole(given["seed"], f"{where}: pages: seed", 0, (1 << 64) - 1)
    if "frames" in given:
        frames = given["frames"]
        if not isinstance(frames, list) or not 0 < len(frames) <= _MOST_FRAMES or set(map(type, frames)) != {int}:
            raise FaultError(f"{where}: frames is no list of 1 to {_MOST_FRAMES:,} whole numbers")
        if min(frames) < 0 or max(frames) >= size // page or len(set(frames)) < len(frames):
            raise FaultError(f"{where}: frames are different pages of the memory, below {size // page:,}")
        made["frames"] = tuple(frames)
    return made


def _shuffle(pages: int, seed: int, page: Index) -> Index:
    if page.size and page.max() >= pages:
        raise FaultError(
            f"page {int(page.max()):,} is beyond the memory of {pages:,} pages: a layout of another memory size"
        )
    unique, back = np.unique(page, return_inverse=True)
    return np.asarray(permute(pages, seed, 0, unique.astype(np.uint64)).astype(np.int64)[back].reshape(page.shape))
