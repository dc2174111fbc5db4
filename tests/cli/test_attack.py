"""`onnxfi attack`: its tables, its fault list, its document, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Run = Callable[..., Any]


@pytest.mark.slow
def test_tables_fit_80_columns_and_the_list_replays(run: Run, models: Path, here: Path) -> None:
    model, data = models / "fashion_cnn.onnx", models / "fashion_test.npz"
    small = ("--data", data, "--samples", "120")
    ran = run("attack", model, *small, "--flips", "1", "--random-trials", "2", "-o", "a.jsonl")
    assert ran.code == 0, ran.err
    assert max(map(len, ran.out.splitlines())) <= 80
    for text in ("attack batch of 64 samples; scored on 56 others", "Chosen flips, seed 0", "guessing (top-1 at most"):
        assert text in ran.out
    replayed = run("run", model, "--faults", "a.jsonl", *small, "-o", "a.db", "--workers", "0")
    assert replayed.code == 0, replayed.err
    assert "1 of 1 trials" in replayed.out


def test_document_of_a_data_free_attack(run: Run, models: Path) -> None:
    found = run("attack", models / "fashion_cnn.onnx", "--data", models / "fashion_test.npz", "--samples", "120",
                "--method", "sign", "--flips", "2", "--seeds", "2", "--random-trials", "0", "--json").json  # fmt: skip
    assert found["rules"]["method"] == "sign"
    assert [len(search["harm"]) for search in found["searches"]] == [2, 2]
    assert found["searches"][0]["flips"] == found["searches"][1]["flips"], "the words decide, not the samples"
    assert len(found["to_chance"]) == 2


@pytest.mark.parametrize("flags", [(), ("--data", "synthetic")])
def test_samples_without_labels_get_a_remedy(run: Run, models: Path, flags: tuple[str, ...]) -> None:
    ran = run("attack", models / "fashion_cnn.onnx", *flags)
    assert ran.code == 2
    assert "give --data with labelled samples" in ran.err


def test_gradients_of_another_model_are_refused(run: Run, models: Path, here: Path) -> None:
    np.savez("g.npz", other=np.ones(3))
    ran = run("attack", models / "fashion_cnn.onnx", "--data", models / "fashion_test.npz", "--method", "gradient",
              "--gradients", "g.npz")  # fmt: skip
    assert ran.code == 2
    assert "the gradients name no selected tensor: they are of 'other'" in ran.err


def test_flips_to_guessing_over_several_seeds_have_their_median(run: Run, models: Path) -> None:
    ran = run("attack", models / "fashion_cnn.onnx", "--data", models / "fashion_test.npz", "--samples", "120",
              "--include", "conv2.weight", "--flips", "1", "--seeds", "2", "--random-trials", "0")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "flips, in 2 of 2 searches" in ran.out
    assert "\\n" not in ran.out
