"""Made-up inputs: sizes of open dimensions, by name or by axis, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data_sources import refused

from onnxfi.runtime.data.sources import open_data
from onnxfi.runtime.engine.ports import Port

IDS, MASK = Port("ids", "int64", ("N", "T")), Port("mask", "int64", ("N", "T"))
LOOSE = Port("x", "float32", ("N", None, 3))


def shapes(*ports: Port, dim: list[str], **how: Any) -> list[tuple[int, ...]]:
    (batch,) = open_data(None, ports, dim=dim, **how).batches(8)
    return [batch.feeds[port.name].shape for port in ports]


def test_one_name_sizes_every_input_that_has_it() -> None:
    assert shapes(IDS, MASK, LOOSE, dim=["T=512", "x[1]=5"]) == [(8, 512), (8, 512), (8, 5, 3)]
    assert shapes(IDS, dim=[], limit=2) == [(2, 32)]
    assert open_data(None, [IDS], dim=["T=512"]).description.endswith("open dimensions of 32, T 512")


def test_another_size_is_other_data() -> None:
    digests = {open_data(None, [IDS], dim=[f"T={n}"]).digest for n in (31, 32, 33)}
    assert len(digests) == 3 and open_data(None, [IDS]).digest in digests


@pytest.mark.parametrize(
    ("dim", "says"),
    [
        ("T", "dim is 'T'; it takes NAME=SIZE, as T=512"),
        ("T=0", "dim is 'T=0'; it takes"),
        ("T=1e3", "dim is 'T=1e3'; it takes"),
        ("t=4", "no open dimension 't' of the inputs; known: 'T'"),
        ("N=4", "no open dimension 'N' of the inputs"),
    ],
)
def test_what_is_no_dimension_is_named(dim: str, says: str) -> None:
    assert refused(None, IDS, dim=[dim]).startswith(says)


def test_data_has_its_own_sizes() -> None:
    assert "leave one of them out" in refused({"ids": np.zeros((2, 3), np.int64)}, IDS, dim=["T=3"])
