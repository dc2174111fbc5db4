"""The columns of Hsiao's code, on which its distance rests."""

from __future__ import annotations

import pytest

from onnxfi.protection.hsiao import check_bits, columns, places, syndrome_of


@pytest.mark.parametrize(("bits", "checks"), [(8, 5), (16, 6), (32, 7), (64, 8)])
def test_hsiao_columns_make_a_code_of_distance_four(bits: int, checks: int) -> None:
    found = columns(bits)
    assert len(found) == bits + checks and len(set(found)) == len(found)
    assert all(column.bit_count() % 2 for column in found), "the sum of two columns is even, so it is none of them"
    assert check_bits(bits) == checks and [places(bits)[column] for column in found] == [*range(bits + checks)]


def test_the_syndrome_is_the_sum_of_the_columns_of_flipped_bits() -> None:
    found = columns(32)
    assert syndrome_of(32, 1 << 5 | 1 << 17 | 1 << 38) == found[5] ^ found[17] ^ found[38] and syndrome_of(32, 0) == 0
