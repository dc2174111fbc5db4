"""Distributions: what is drawn against the table, by chi-square, and files that are refused."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from onnxfi.errors import FaultError, SelectorError
from onnxfi.faults.faultlist import fault_row
from onnxfi.faults.hardware.distribution import Distribution
from onnxfi.faults.models import FlipMask, Scale, Set
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.sites import Target
from onnxfi.faults.space import FaultSpace
from onnxfi.faults.trials import Faults, Sampler, draw_faults, faults_of_event
from onnxfi.faults.words import WORDS

EXAMPLES = Path(__file__).parents[3] / "examples" / "hardware"
WEIGHTS = Target("w", WORDS["float32"], (64, 64), op="Conv", layer="conv1")
#: Below it a test that should pass fails: once in a million seeds, and the seeds are fixed.
LEAST_P = 1e-6


def distribution(folder: Path, *rows: dict[str, Any], **table: Any) -> Distribution:
    file = folder / "table.json"
    file.write_text(json.dumps({"version": 1, "tables": [{"rows": rows, **table}]}))
    return Distribution(str(file))


def drawn(model: Distribution, n: int, *targets: Target, seed: int = 0) -> Faults:
    space = FaultSpace.over(targets or (WEIGHTS,), model)
    return draw_faults(space, Sampler("count", n=n, seed=seed), model)


def follows(counts: list[int], chances: list[float]) -> bool:
    """Return whether counts are as likely as these chances make them, by Pearson's chi-square."""
    expected = np.array(chances) * sum(counts)
    assert min(expected) >= 5, "a chi-square needs five of each"
    return bool(chisquare(counts, expected).pvalue > LEAST_P)


def test_rows_are_drawn_with_their_probabilities(tmp_path: Path) -> None:
    rows = [
        {"p": 0.01, "value": "nan"}, {"p": 0.02, "value": "inf"}, {"p": 0.37, "bits": 1}, {"p": 0.3, "bits": 2},
        {"p": 0.2, "bits": 5}, {"p": 0.1, "mask": "0x80000001"},
    ]  # fmt: skip
    faults = drawn(distribution(tmp_path, *rows), 4000)
    kinds = Counter(
        "mask" if (word := getattr(m, "word", None)) == 0x80000001 else str(word.bit_count()) if word else str(m)
        for m in faults.models
    )
    names = ["set:value=nan", "set:value=inf", "1", "2", "5", "mask"]
    assert sum(kinds.values()) == sum(kinds[name] for name in names) == 4000
    assert follows([kinds[name] for name in names], [row["p"] for row in rows])
    assert not follows([kinds[name] for name in names], [0.01, 0.02, 0.3, 0.37, 0.2, 0.1])  # it can fail


def test_positions_follow_their_table_bit_by_bit(tmp_path: Path) -> None:
    position = {"sign": 0.1, "exponent": 0.4, "0-9": 0.5}
    faults = drawn(distribution(tmp_path, {"p": 1, "bits": 1, "position": position}), 2000)
    found = Counter(m.word.bit_length() - 1 for m in faults.models if isinstance(m, FlipMask))
    chances = {31: 0.1} | {bit: 0.05 for bit in range(23, 31)} | {bit: 0.05 for bit in range(10)}
    assert found.keys() == chances.keys()
    assert follows([found[bit] for bit in chances], [*chances.values()])


def test_two_bits_are_drawn_without_repetition(tmp_path: Path) -> None:
    faults = drawn(distribution(tmp_path, {"p": 1, "bits": 2, "position": {"0": 0.5, "1": 0.3, "2": 0.2}}), 1500)
    found = Counter(m.word for m in faults.models if isinstance(m, FlipMask))
    first = {0: 0.5, 1: 0.3, 2: 0.2}
    pair = {(1 << a | 1 << b): first[a] * first[b] * (1 / (1 - first[a]) + 1 / (1 - first[b]))
            for a, b in ((0, 1), (0, 2), (1, 2))}  # fmt: skip
    assert math.isclose(sum(pair.values()), 1)
    assert follows([found[word] for word in pair], [*pair.values()])


def test_adjacent_bits_are_neighbours(tmp_path: Path) -> None:
    faults = drawn(distribution(tmp_path, {"p": 1, "bits": 3, "adjacent": True, "position": {"mantissa": 1}}), 500)
    words = {m.word >> ((m.word & -m.word).bit_length() - 1) for m in faults.models if isinstance(m, FlipMask)}
    assert words == {0b111}


def test_value_errors_follow_a_logarithmic_scale(tmp_path: Path) -> None:
    faults = drawn(distribution(tmp_path, {"p": 1, "value": {"relative": [0.001, 1]}}), 1000)
    sizes = np.array([m.factor - 1 for m in faults.models if isinstance(m, Scale)])
    assert follows([int((sizes > 0).sum()), int((sizes < 0).sum())], [0.5, 0.5])
    decades = np.histogram(np.log10(np.abs(sizes)), bins=[-3.0001, -2, -1, 0.0001])[0]
    assert follows(decades.tolist(), [1 / 3] * 3)


@pytest.mark.parametrize(
    ("row", "covered"),
    [
        ({"shape": "row"}, lambda site, at: site[0] == at[0]),
        ({"shape": "channel"}, lambda site, at: site[0] == at[0]),
        ({"shape": "channel", "axis": 1}, lambda site, at: site[1] == at[1]),
        ({"shape": "tile", "size": [2, 3]}, lambda s, a: (s[0] // 2, s[1] // 3) == (a[0] // 2, a[1] // 3)),
        ({"shape": "block", "size": 5}, lambda s, a: (s[0] * 6 + s[1]) // 5 == (a[0] * 6 + a[1]) // 5),
        ({"shape": "stride", "size": 4}, lambda s, a: (s[0] * 6 + s[1]) % 4 == (a[0] * 6 + a[1]) % 4),
        ({"shape": "element"}, lambda site, at: site == at),
    ],
)
def test_shapes_cover_the_elements_of_their_definition(row: dict[str, Any], covered: Any, tmp_path: Path) -> None:
    model = distribution(tmp_path, {"p": 1, "bits": 1} | row)
    target = Target("w", WORDS["float32"], (4, 6))
    for index in range(24):
        site = divmod(index, 6)
        space = FaultSpace.over((target,), model)
        faults = faults_of_event(f"w[{index}]", space, model, 0, 1)
        assert faults.sites.index.tolist() == [k for k in range(24) if covered(site, divmod(k, 6))]
        assert len(set(faults.models)) == 1


def test_each_element_draws_its_own_bits_and_a_share_of_them_is_faulty(tmp_path: Path) -> None:
    model = distribution(tmp_path, {"p": 1, "bits": 1, "shape": "channel", "share": 0.25, "each": True})
    faults = drawn(model, 64)
    assert len({m.word for m in faults.models if isinstance(m, FlipMask)}) > 20
    others = len(faults) - 64
    assert follows([others, 64 * 63 - others], [0.25, 0.75])


def test_tables_hold_for_operators_layers_formats_and_sizes(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    tables = [
        {"op": "Gemm", "rows": [{"p": 1, "value": "zero"}]},
        {"layer": ["conv*"], "least_elements": 10, "rows": [{"p": 1, "value": "nan"}]},
        {"dtype": ["int8"], "rows": [{"p": 1, "mask": "0x80"}]},
    ]
    file.write_text(json.dumps({"version": 1, "tables": tables}))
    model = Distribution(str(file))
    targets = (
        Target("g", WORDS["float32"], (8,), op="Gemm"), Target("c", WORDS["float32"], (12,), op="Conv", layer="conv1"),
        Target("b", WORDS["float32"], (4,), op="Conv", layer="conv1"), Target("i", WORDS["int8"], (8,), op="Add"),
    )  # fmt: skip
    faults = drawn(model, 28, *targets)
    found = {(fault.target, fault.fault) for fault in faults}
    assert found == {("g", str(Set(0.0))), ("c", str(Set(math.nan))), ("i", str(FlipMask(0x80)))}


def test_clusters_flip_the_cells_of_the_table() -> None:
    model = Distribution(str(EXAMPLES / "sram_beam.json"))
    for table in model.tables:
        counts = Counter({len(row.cells): 0 for row in table.rows})
        for row in table.rows:
            counts[len(row.cells)] += round(308 * row.p)
        assert counts == {1: 253, 2: 35, 3: 13, 4: 7}, "events of the published test by their cells"
    faults = drawn(model, 3000)
    assert faults.events == 3000
    assert 1.2 < len(faults) / 3000 < 390 / 308 + 0.02, "less at the edges of the tensor"
    assert {str(model) for model in faults.models} == {"flip"}


def test_the_shipped_gpu_table_has_the_published_shares() -> None:
    model = Distribution(str(EXAMPLES / "gpu_sdc.json"))
    for table in model.tables:
        nonfinite = math.fsum(row.p for row in table.rows if row.value_kind == "set" and not math.isfinite(row.low))
        singles = math.fsum(row.p for row in table.rows if row.bits == 1)
        assert math.isclose(nonfinite, 0.0101)
        assert singles / (1 - nonfinite) < 0.4


def test_draws_are_recorded_without_chance_and_never_change(tmp_path: Path) -> None:
    model = distribution(tmp_path, {"p": 0.5, "bits": 3}, {"p": 0.5, "value": {"factor": [0.5, 2]}, "shape": "row"})
    faults = drawn(model, 3, seed=7)
    assert faults == drawn(model, 3, seed=7)
    assert all(not parse_fault(fault_row(1, fault)["fault"]).is_random for fault in faults)


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ([{"rows": [{"p": 0.5, "bits": 1}, {"p": 0.4, "bits": 2}]}], "sum to 0.9, not to 1"),
        ([{"rows": [{"p": 1, "bits": 1, "position": {"sign": 0.5}}]}], "positions sum to 0.5"),
        ([{"rows": [{"p": 1, "bits": 1, "position": {" 0\n" + ",0" * 300: 2}}]}], r"' 0\\n,0,0,"),
        ([{"rows": [{"p": 1, "bits": 1, "position": {str(k): 1 / 65 for k in range(65)}}]}], "names 65 positions"),
        ([{"rows": [{"p": 1}]}], "exactly one of bits, mask, cells, value"),
        ([{"rows": [{"p": 1, "bits": 1, "value": "nan"}]}], "exactly one of"),
        ([{"rows": [{"bits": 1}]}], "p is missing"),
        ([{"rows": [{"p": 2, "bits": 1}]}], "a number from 0 to 1"),
        ([{"rows": [{"p": 1, "bits": 0}]}], "a whole number from 1"),
        ([{"rows": [{"p": 1, "bits": True}]}], "a whole number from 1"),
        ([{"rows": [{"p": 1, "mask": 3}]}], "hexadecimal"),
        ([{"rows": [{"p": 1, "bits": 1, "shape": "rows"}]}], "closest: 'row'"),
        ([{"rows": [{"p": 1, "bits": 1, "shape": "tile"}]}], "size"),
        ([{"rows": [{"p": 1, "bits": 1, "shape": "tile", "size": [0]}]}], "whole numbers from 1"),
        ([{"rows": [{"p": 1, "cells": [[1, 1]]}]}], r"\[0, 0\]"),
        ([{"rows": [{"p": 1, "cells": [[0, 0]], "shape": "row"}]}], "leave shape"),
        ([{"rows": [{"p": 1, "cells": [[0, 0]], "line": 4, "interleave": 3}]}], "divisor|interleave is"),
        ([{"rows": [{"p": 1, "value": {"relative": [2, 1]}}]}], "relative is"),
        ([{"rows": [{"p": 1, "value": {"relative": [0, 1]}}]}], "two numbers from"),
        ([{"rows": [{"p": 1, "bits": 1, "wide": 1}]}], "unknown field 'wide'"),
        ([{"dtype": "float33", "rows": [{"p": 1, "bits": 1}]}], "unknown number format"),
        ([{"op": 3, "rows": [{"p": 1, "bits": 1}]}], "a text or list of texts"),
        ([{"rows": []}], "a list of 1 to"),
        ([], "a list of 1 to"),
        ("x", "a list of 1 to"),
    ],
)
def test_tables_that_say_nothing_sure_are_refused(tables: Any, why: str, tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"version": 1, "tables": tables}))
    with pytest.raises(FaultError, match=why) as caught:
        Distribution(str(file))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_hostile_files_are_refused_in_one_line(tmp_path: Path) -> None:
    for text, why in (
        ('{"version": 2, "tables": []}', "version 2"), ('{"version": 1, "tables": NaN}', "not JSON"),
        ("[" * 100_000, "not JSON"), (" " * (2 << 20), "has more than"), ("[]", "holds no fields"), ("\xff", "not JSON"),
    ):  # fmt: skip
        file = tmp_path / "t.json"
        file.write_text(text, encoding="latin-1")
        with pytest.raises(FaultError, match=why):
            Distribution(str(file))
    with pytest.raises(FaultError, match="cannot read"):
        Distribution(str(tmp_path))
    with pytest.raises(FaultError, match="takes file"):
        Distribution()


@pytest.mark.parametrize(
    ("row", "shape", "word", "why"),
    [
        ({"bits": 1, "shape": "tile", "size": [8, 8]}, (4, 16), "float32", "tile of 8×8 is larger than the tensor"),
        ({"bits": 1, "shape": "block", "size": 65}, (4, 16), "float32", "block of 65 is larger"),
        ({"bits": 1, "shape": "channel", "axis": 2}, (4, 16), "float32", "no axis 2"),
        ({"bits": 9}, (4,), "int8", "beyond the 8 of int8"),
        ({"bits": 1, "position": {"exponent": 1}}, (4,), "int8", "int8 has no exponent"),
        ({"bits": 2, "position": {"sign": 1}}, (4,), "int8", "fewer than 2 bits"),
        ({"value": "nan"}, (4,), "int8", "int8 cannot hold nan"),
        ({"mask": "0x100"}, (4,), "int8", "beyond the 8"),
    ],
)
def test_rows_that_do_not_fit_a_tensor_name_it(
    row: dict[str, Any], shape: tuple[int, ...], word: str, why: str, tmp_path: Path
) -> None:
    model = distribution(tmp_path, {"p": 1} | row)
    with pytest.raises(SelectorError, match=why):
        FaultSpace.over((Target("w", WORDS[word], shape),), model)


def test_another_content_is_refused(tmp_path: Path) -> None:
    text = str(distribution(tmp_path, {"p": 1, "bits": 1}))
    assert parse_fault(text) == distribution(tmp_path, {"p": 1, "bits": 1})
    (tmp_path / "table.json").write_text('{"version": 1, "tables": [{"rows": [{"p": 1, "bits": 2}]}]}')
    with pytest.raises(FaultError, match="it was changed"):
        parse_fault(text)
