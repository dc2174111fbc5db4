"""Trials of flips against the faulty file by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxfi
from onnxfi.attacks.candidates import Flips
from onnxfi.attacks.flip_trials import FlipTrials, split_samples
from onnxfi.attacks.goals import Goal
from onnxfi.errors import InputError
from onnxfi.graph.model.loading import load
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import inputs_of

MODEL, DATA = Path("models/fashion_cnn.onnx"), Path("models/fashion_test.npz")


def test_gain_and_harm_are_those_of_the_faulty_file(tmp_path: Path) -> None:
    data = open_data(DATA, inputs_of(load(MODEL).proto), limit=60)
    batch, _, left = split_samples(data, 40, 0, tmp_path)
    assert left == 20
    trials = FlipTrials(MODEL, batch, Goal(), {})
    conv = trials.model.by_id["conv2.weight"]
    flips = Flips(conv, np.array([1920, 5, 77]), np.array([30, 31, 3], np.int16))
    gains = trials.gains(flips)
    for row in range(len(flips)):
        sites = [f"conv2.weight[{flips.index[row]}]:{flips.bit[row]}"]
        faulty = tmp_path / f"{row}.onnx"
        onnxfi.inject(MODEL, onnxfi.sample(MODEL, sites=sites), faulty)
        found = onnxfi.evaluate(faulty, open_data(batch, inputs_of(load(MODEL).proto))).metrics["top1"]
        harm = trials.harm(flips.faults(trials.model.targets, slice(row, row + 1)))
        assert harm.accuracy == found
        assert gains[row] == pytest.approx(trials.accuracy - found, abs=0.11)


def test_attack_batch_and_scored_samples_are_apart(tmp_path: Path) -> None:
    data = open_data(DATA, inputs_of(load(MODEL).proto), limit=30)
    first, second, _ = split_samples(data, 10, 3, tmp_path)
    a, b = (np.load(file)["image"].reshape(-1, 784) for file in (first, second))
    whole = np.load(DATA)["image"][:30].reshape(-1, 784)
    assert len(a) == 10 and len(b) == 20
    assert {row.tobytes() for row in a} | {row.tobytes() for row in b} == {row.tobytes() for row in whole}
    again = split_samples(data, 10, 3, tmp_path)[0]
    np.testing.assert_array_equal(np.load(again)["image"], np.load(first)["image"])


def test_samples_without_labels_or_left_over_are_refused(tmp_path: Path) -> None:
    ports = inputs_of(load(MODEL).proto)
    with pytest.raises(InputError, match="needs labelled samples"):
        split_samples(open_data(None, ports), 2, 0, tmp_path)
    with pytest.raises(InputError, match="--attack-samples 30 of 30 samples leave none"):
        split_samples(open_data(DATA, ports, limit=30), 30, 0, tmp_path)
