"""Detectors against what the stored answers say."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_campaigns import altered

import onnxfi
from onnxfi.analysis.detectors import chosen_inputs, detectors
from onnxfi.campaign.results.store import Store
from onnxfi.errors import InputError
from onnxfi.tasks.outcomes import unpacked

MODELS = Path(__file__).parents[2] / "models"
MODEL, DATA = MODELS / "fashion_cnn.onnx", MODELS / "fashion_test.npz"


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=12), st.integers(1, 5))
def test_each_chosen_input_finds_most_of_what_is_left(rows: list[list[bool]], most: int) -> None:
    flags = np.array(rows)
    chosen = chosen_inputs(flags, most)
    left = flags
    for sample in chosen:
        assert left.sum(axis=0)[sample] == left.sum(axis=0).max() > 0
        left = left[~left[:, sample]]
    assert len(chosen) == most or not left.any()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("detectors") / "s.db"
    onnxfi.run(MODEL, DATA, file, single=True, trials=80, bits="29-30", samples=40, progress=False)
    return file


def test_coverage_is_that_of_the_held_out_half(store: Path) -> None:
    found = detectors(store, timed=False)
    assert not found.untested
    with Store.open(store) as opened:
        flags = np.array([unpacked(row.changed or b"", 40) for row in opened.rows()])
    held = flags[1::2][flags[1::2].any(axis=1)]
    tests = [one for one in found.detectors if one.inputs]
    assert tests
    for one in tests:
        assert (one.found, one.harmful) == (held[:, list(one.inputs)].any(axis=1).sum(), len(held))
        assert one.coverage.low <= one.found / one.harmful <= one.coverage.high
    assert [one.found for one in tests] == sorted(one.found for one in tests)
    assert found.detectors[-1].name == "hash of tensors" and found.detectors[-1].coverage.low == 1
    assert found.figure.draw is None
    json.dumps(found.document(), allow_nan=False)


def test_too_few_harmful_trials_are_said(tmp_path: Path) -> None:
    onnxfi.run(MODEL, DATA, tmp_path / "s.db", single=True, trials=6, bits="0-3", samples=10, progress=False)
    with pytest.raises(InputError, match="0 of 6 trials silently change an answer, too few"):
        detectors(tmp_path / "s.db", timed=False)


def test_alarms_are_scored_where_no_harm_is_silent(store: Path, tmp_path: Path) -> None:
    seen, silent = tmp_path / "alarmed.db", 0
    shutil.copy(store, seen)
    with altered(seen) as db:  # as if a detector had raised an alarm in every trial with another answer, and in others
        nothing = zlib.compress(bytes(5))
        db.execute("UPDATE results SET outcome = 'due', cause = 'alarm', changed = ?", (nothing,))
    with Store.open(store) as opened:
        silent = sum(any(unpacked(row.changed or b"", 40)) for row in opened.rows())
    found = detectors(seen, timed=False)
    alarms, hashed = found.detectors
    assert found.harmful == 0 and found.untested.startswith("0 of 80 trials silently change")
    assert (alarms.name, alarms.found, alarms.harmful) == ("alarms of protections", silent, silent) and silent > 10
    assert hashed.found == silent


@pytest.mark.slow
def test_the_command_times_checks_and_draws(run: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ran = run("report", store, "--detectors", "--figures", tmp_path / "f")
    assert ran.code == 0, ran.err
    assert "hash of tensors" in ran.out and "self test, 1 input" in ran.out
    assert (tmp_path / "f/detectors.svg").stat().st_size > 1000
    assert max(map(len, ran.out.splitlines()[:-2])) <= 100
    assert run("report", store, store, "--detectors").code == 2
