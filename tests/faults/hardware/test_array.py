"""Faults of a systolic array against a simulation of the array, cycle by cycle, element by element."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from onnxfi.errors import FaultError, SelectorError
from onnxfi.faults.hardware.array import Array, ProductElements
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.sites import Target
from onnxfi.faults.space import FaultSpace, Selector
from onnxfi.faults.trials import faults_of_event
from onnxfi.faults.words import WORDS

RNG = np.random.default_rng(7)
ROWS, COLS = 3, 4


def simulated(a: Any, b: Any, dataflow: str, bad: tuple[int, int], when: Any = None) -> Any:
    """The product a @ b on an array of ROWS × COLS whose PE `bad` adds 1 to each sum that leaves it.

    `when` says in which (tile, cycle) it does; in all if it is None. Loops alone: no mapping of onnxfi is used.
    """
    (m, k), n = a.shape, b.shape[1]
    out = np.zeros((m, n), np.int64)
    steps = {"ws": (k, n, m), "is": (k, m, n), "os": (m, n, k)}[dataflow]  # over rows, over columns, over time
    for top, left in product(range(0, steps[0], ROWS), range(0, steps[1], COLS)):
        for cycle in range(steps[2] if dataflow != "os" else 1):
            for col in range(min(COLS, steps[1] - left)):
                passed = 0  # of the stationary weights or inputs: the sum that goes down a column
                for row in range(ROWS):
                    r, c, used = top + row, left + col, top + row < steps[0]
                    faulty = (row, col) == bad and (when is None or when == ((top, left), cycle))
                    if dataflow == "ws":
                        passed += (a[cycle, r] * b[r, c] if used else 0) + faulty
                    elif dataflow == "is":
                        passed += (a[c, r] * b[r, cycle] if used else 0) + faulty
                    elif used:
                        out[r, c] += sum(a[r, t] * b[t, c] for t in range(steps[2])) + faulty
                if dataflow == "ws":
                    out[cycle, left + col] += passed
                elif dataflow == "is":
                    out[left + col, cycle] += passed
    return out


def affected(model: Array, target: Target, index: int = 0) -> set[int]:
    faults = faults_of_event(f"{target.id}[{index}]:3", FaultSpace.over((target,), model), model, 0, 1)
    return set(faults.sites.index.tolist())


@pytest.mark.parametrize("dataflow", ["ws", "os", "is"])
@pytest.mark.parametrize(("m", "k", "n"), [(5, 7, 6), (2, 2, 9), (7, 3, 3)])
def test_a_bad_element_is_in_the_outputs_that_the_simulation_gets_wrong(dataflow: str, m: int, k: int, n: int) -> None:
    a, b = RNG.integers(-9, 9, (m, k)), RNG.integers(-9, 9, (k, n))
    target = Target("y", WORDS["int32"], (m, n), "activation", gemm=(-1, 1))
    for bad in product(range(ROWS), range(COLS)):
        wrong = np.flatnonzero((simulated(a, b, dataflow, bad) != a @ b).ravel())
        model = Array(ROWS, COLS, dataflow, pe=f"{bad[0]}.{bad[1]}")
        assert affected(model, target) == set(wrong.tolist()), (dataflow, bad)


def im2col(x: Any, kernel: int) -> Any:
    """The positions of an image [C, H, W] as rows of a matrix."""
    h, w = x.shape[1:]
    side = h - kernel + 1, w - kernel + 1
    return np.array([x[:, i : i + kernel, j : j + kernel].ravel() for i in range(side[0]) for j in range(side[1])])


@pytest.mark.parametrize("dataflow", ["ws", "os", "is"])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_are_products_of_positions_and_channels(dataflow: str, groups: int) -> None:
    x, w = RNG.integers(-9, 9, (4, 5, 4)), RNG.integers(-9, 9, (6, 4 // groups, 2, 2))
    target = Target("y", WORDS["int32"], (6, 4, 3), "activation", gemm=(-3, groups))
    parts = [
        (im2col(x[g * 4 // groups : (g + 1) * 4 // groups], 2), w[g * 6 // groups : (g + 1) * 6 // groups].reshape(6 // groups, -1).T)
        for g in range(groups)
    ]  # fmt: skip
    for bad in product(range(ROWS), range(COLS)):
        wrong = [simulated(a, b, dataflow, bad) != a @ b for a, b in parts]
        mapped = np.concatenate([part.T.reshape(-1, 4, 3) for part in wrong])  # [channel, height, width]
        found = affected(Array(ROWS, COLS, dataflow, pe=f"{bad[0]}.{bad[1]}"), target)
        assert found == set(np.flatnonzero(mapped).tolist()), bad


@pytest.mark.parametrize("dataflow", ["ws", "os", "is"])
def test_one_tile_and_one_cycle_are_those_of_the_simulation(dataflow: str) -> None:
    m, k, n = 5, 7, 6
    a, b = RNG.integers(-9, 9, (m, k)), RNG.integers(-9, 9, (k, n))
    target = Target("y", WORDS["int32"], (m, n), "activation", gemm=(-1, 1))
    steps = {"ws": (k, n, m), "is": (k, m, n), "os": (m, n, 1)}[dataflow]
    for top, left in product(range(0, steps[0], ROWS), range(0, steps[1], COLS)):
        for bad in product(range(ROWS), range(COLS)):
            whole = [simulated(a, b, dataflow, bad, ((top, left), cycle)) != a @ b for cycle in range(steps[2])]
            tile = set(np.flatnonzero(np.any(whole, axis=0)).tolist())
            for wrong in map(np.flatnonzero, whole):
                if len(wrong):  # one cycle: one output, and the mapping gives its tile
                    assert affected(Array(ROWS, COLS, dataflow, "cycle"), target, int(wrong[0])) == set(wrong.tolist())
                    assert affected(Array(ROWS, COLS, dataflow, "tile"), target, int(wrong[0])) == tile


def test_an_accumulator_with_a_stuck_bit_holds_what_the_fault_says() -> None:
    a, b = RNG.integers(-9, 9, (5, 7)), RNG.integers(-9, 9, (7, 6))
    golden, bad, bit = a @ b, (1, 2), 5
    # Output-stationary: the sum stays in the PE, and is read with its stuck bit at the end.
    stuck = golden.copy()
    for i, j in product(range(5), range(6)):
        if (i % ROWS, j % COLS) == bad:
            stuck[i, j] |= 1 << bit
    target = Target("y", WORDS["int32"], (5, 6), "activation", gemm=(-1, 1))
    model = parse_fault(f"array:rows={ROWS},cols={COLS},dataflow=os,effect=stuck-at-1,pe=1.2")
    faults = faults_of_event(f"y[0]:{bit}", FaultSpace.over((target,), model), model, 0, 1)
    words = golden.astype(np.int32).view(np.uint32).ravel().astype(np.uint64)
    words[faults.sites.index] = faults.models[0].apply(target.word, words[faults.sites.index], faults.sites.bit)
    assert words.astype(np.uint32).view(np.int32).tolist() == stuck.ravel().tolist()


def test_a_permanent_fault_is_in_every_layer_of_the_format_and_a_drawn_element_in_its_own() -> None:
    targets = (
        Target("c", WORDS["float32"], (8, 2, 2), "activation", gemm=(-3, 1)),
        Target("g", WORDS["float32"], (10,), "activation", gemm=(-1, 1)),
        Target("q", WORDS["int8"], (10,), "activation", gemm=(-1, 1)),
        Target("r", WORDS["float32"], (10,), "activation"),
    )
    model = Array(4, 4, "ws")
    space = FaultSpace.over(targets, model)
    assert [t.id for t in space.targets] == ["c", "g", "q"]
    found = {(f.target, f.index) for f in faults_of_event("c[21]:30", space, model, 0, 1)}  # channel 5: column 1
    assert found == {("c", ch * 4 + k) for ch in (1, 5) for k in range(4)} | {("g", n) for n in (1, 5, 9)}


def test_an_array_that_no_layer_fits_is_refused() -> None:
    pooled = Target("p", WORDS["float32"], (8,), "activation", op="MaxPool")
    for target in (Target("w", WORDS["float32"], (8,), op="Conv"), pooled):
        with pytest.raises(
            SelectorError, match=r"no layer fits .* outputs of Conv, Gemm, MatMul.* --target activations"
        ):
            Selector().space([target], Array())


def test_products_of_matrices_have_their_rows_before_their_channels() -> None:
    found = ProductElements.of((2, 3, 4), -1, 1)
    assert found.m.reshape(2, 3, 4)[1, :, 0].tolist() == [0, 1, 2]
    assert found.product.reshape(2, 3, 4)[:, 0, 0].tolist() == [0, 1]
    assert ProductElements.of((4,), -1, 1).m.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("array:rows=0", "rows=0 is out of range"),
        ("array:dataflow=rs", "give ws, os, is"),
        ("array:lasts=ever", "give permanent, tile, cycle"),
        ("array:effect=burst", "effect='burst' is unknown"),
        ("array:pe=3", "no row and column"),
        ("array:pe=16.0", "beyond the array of 16 rows"),
    ],
)
def test_descriptions_of_no_array_are_refused(text: str, why: str) -> None:
    with pytest.raises(FaultError, match=why):
        parse_fault(text)
