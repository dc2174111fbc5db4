"""Clusters of cells against an array of cells that is written out, and flips that prefer a direction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.errors import FaultError
from onnxfi.faults.hardware.cells import AsymmetricFlip, CellArray
from onnxfi.faults.models import Flip, StuckAt0, StuckAt1
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.sites import Target
from onnxfi.faults.space import FaultSpace
from onnxfi.faults.trials import Sampler, draw_faults, faults_of_event
from onnxfi.faults.words import WORDS


def written_out(bits: int, words: int, line: int, interleave: int) -> np.ndarray:
    """The array as a table of (word, bit), a line each; -1 where there is no word."""
    lines = -(-words // line)
    table = np.full((lines, line * bits, 2), -1)
    for word in range(words):
        row, place = divmod(word, line)
        group, turn = divmod(place, interleave)
        for bit in range(bits):
            table[row, group * bits * interleave + bit * interleave + turn] = word, bit
    return table


@given(st.integers(1, 20), st.sampled_from([(1, 1), (4, 1), (4, 2), (6, 3), (4, 4)]), st.data())
def test_neighbours_are_those_of_the_array(words: int, shape: tuple[int, int], data: st.DataObject) -> None:
    line, interleave = shape
    table = written_out(8, words, line, interleave)
    index, bit = data.draw(st.integers(0, words - 1)), data.draw(st.integers(0, 7))
    [[at, column]] = np.argwhere((table == (index, bit)).all(axis=-1)).tolist()
    offsets = [(down, right) for down in (-1, 0, 1) for right in (-2, 0, 1)]
    found = CellArray(line, interleave).cluster(8, words, index, bit, offsets)
    rows, columns = table.shape[:2]
    there = [(at + d, column + r) for d, r in offsets if 0 <= at + d < rows and 0 <= column + r < columns]
    assert found == [tuple(table[place].tolist()) for place in there if table[place][0] >= 0]


def test_interleaving_puts_a_row_of_cells_into_different_words() -> None:
    target = Target("w", WORDS["float32"], (16,))
    for text, cells in (
        ("cluster:rows=1,cols=3", [(5, 30), (5, 31)]),  # the third would be beyond the word
        ("cluster:rows=2,cols=1", [(5, 30), (6, 30)]),
        ("cluster:rows=1,cols=3,line=4,interleave=4", [(5, 30), (6, 30), (7, 30)]),
        ("cluster:rows=2,cols=2,line=4,interleave=4", [(5, 30), (6, 30), (9, 30), (10, 30)]),
    ):
        model = parse_fault(text)
        faults = faults_of_event("w[5]:30", FaultSpace.over((target,), model), model, 0, 1)
        assert [(fault.index, *fault.bits) for fault in faults if fault.bits] == cells
        assert {fault.fault for fault in faults} == {"flip"}


@pytest.mark.parametrize(
    "text", ["cluster:rows=0", "cluster:rows=9,cols=9", "cluster:line=4,interleave=3", "cluster:line=0"]
)
def test_clusters_without_sense_are_refused(text: str) -> None:
    with pytest.raises(FaultError, match="out of range"):
        parse_fault(text)


def test_the_rarer_direction_has_its_share() -> None:
    target = Target("w", WORDS["float32"], (400,))
    for text, alone in (("asymmetric-flip:up=1,down=0.25", StuckAt1()), ("asymmetric-flip:up=0.25,down=1", StuckAt0())):
        model = parse_fault(text)
        drawn = draw_faults(FaultSpace.over((target,), model), Sampler("count", n=4000), model)
        both = sum(one == Flip() for one in drawn.models)
        assert both + sum(one == alone for one in drawn.models) == 4000
        assert abs(both / 4000 - 0.25) < 0.03
    assert AsymmetricFlip(1, 0).draw_parameters(5, WORDS["float32"]) == StuckAt1()
    with pytest.raises(FaultError, match="likelier"):
        AsymmetricFlip(0.5, 0.5)


@pytest.mark.parametrize("shares", ["up=1,down=nan", "up=nan,down=1", "up=0.5,down=0.5", "up=1,down=-0.1"])
def test_an_asymmetric_flip_has_a_likelier_direction_and_a_share(shares: str) -> None:
    with pytest.raises(FaultError, match="give 1 for the likelier direction"):
        parse_fault(f"asymmetric-flip:{shares}")
