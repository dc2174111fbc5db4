"""Hsiao's code, which corrects one error of a block and detects two: its columns, syndromes and check bits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import combinations
from types import MappingProxyType


@cache
def columns(bits: int) -> tuple[int, ...]:
    """Return the columns of the parity check matrix of Hsiao's code: those of the data bits, then of the check bits.

    All columns differ and have an odd number of ones, so that the sum of two is neither a column nor 0.

    References
    ----------
    .. [1] M. Y. Hsiao, A class of optimal minimum odd-weight-column SEC-DED codes, IBM J. Res. Dev. 14, 1970.

    Examples
    --------
    >>> found = columns(64)
    >>> len(found), len(set(found)), {column.bit_count() % 2 for column in found}
    (72, 72, {1})
    """
    checks = check_bits(bits)
    odd = (ones for weight in range(3, checks + 1, 2) for ones in combinations(range(checks), weight))
    data = [sum(1 << one for one in ones) for ones, _ in zip(odd, range(bits), strict=False)]
    return (*data, *(1 << k for k in range(checks)))


def check_bits(bits: int) -> int:
    """Return the least number of check bits with which a Hsiao code covers so many data bits."""
    checks = 1
    while 2 ** (checks - 1) - checks < bits:
        checks += 1
    return checks


@cache
def places(bits: int) -> Mapping[int, int]:
    """Return the place of each column in the block."""
    return MappingProxyType({column: place for place, column in enumerate(columns(bits))})


def syndrome_of(bits: int, block: int) -> int:
    """Return the syndrome of a block of data bits and check bits: 0 for a word of the code.

    >>> check = syndrome_of(64, 0xDEADBEEF)
    >>> syndrome_of(64, 0xDEADBEEF | check << 64)
    0
    """
    found = 0
    for place, column in enumerate(columns(bits)):
        if block >> place & 1:
            found ^= column
    return found
