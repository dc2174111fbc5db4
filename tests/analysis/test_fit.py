"""FIT: sums by hand from a store, what a mission brings, residency, and what does not fit together."""

from __future__ import annotations

import math
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_campaigns import mlp, ran, samples

from onnxfi.analysis.environment import Environment, Memory
from onnxfi.analysis.exposure import resident_shares
from onnxfi.analysis.fit import fit, moments
from onnxfi.analysis.vulnerability import vulnerabilities
from onnxfi.campaign.report.report import report
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError, SpecError
from onnxfi.graph.model.loading import load

SRAM = Memory("sram", ("weights",), 1 << 20, (0.5, 1.0, 2.0), "FIT/bit", 0.25, 10.0)
HERE = Environment((SRAM,), 1.0, 1000.0, 0.5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny network, a campaign in its weights, and one in its activations."""
    folder = tmp_path_factory.mktemp("fit")
    mlp(folder, hidden=2)
    samples(folder, 12)
    with chdir(folder):
        base = {"model": "m.onnx", "data": "d.npz", "provider": "cpu"}
        ran(Campaign(**base, single=True, margin=0.2, per="layer"), folder / "weights.db")
        ran(Campaign(**base, single=True, trials=60, target="activations"), folder / "activations.db")
        ran(Campaign(**base, ber=1e-3, repeat=3), folder / "sweep.db")
    return folder


def test_the_sum_is_that_by_hand(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found, layers = fit("weights.db", HERE), report("weights.db").by_layer
    each = report("weights.db", confidence=1 - 0.01 / len(layers)).by_layer
    rates = [fold.rate("sdc1") for fold in each]
    for end, upsets in (("low", 0.5), ("estimate", 1.0), ("high", 2.0)):
        by_hand = sum(f.population * upsets * getattr(i, end) * 0.75 for f, i in zip(each, rates, strict=True))
        assert found.fit[("low", "estimate", "high").index(end)] == pytest.approx(by_hand)
    bits = 8 * sum(f.population for f in each) / 8
    assert found.raw == pytest.approx((0.5 * bits, bits, 2 * bits))
    assert sum(target.size * 32 for target in load("m.onnx").targets) == bits
    assert found.document()["parts"][0]["memory"] == "sram"


def test_a_mission_by_hand(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    budget = fit("weights.db", HERE)
    mission = budget.mission()
    rate = budget.raw[1] * 0.75 / 1e9
    assert mission is not None and mission.upsets == pytest.approx(rate * 1000)
    assert mission.present == pytest.approx(rate * 10), "repaired every 10 h"
    assert mission.untouched == pytest.approx(math.exp(-rate * 1000))
    assert mission.none + mission.one + mission.more == pytest.approx(1)
    low, high = mission.accuracy or (1.0, 0.0)
    assert low <= high <= 1 and mission.golden is not None
    assert fit("weights.db", replace(HERE, mission_h=None)).mission() is None


@pytest.mark.parametrize("mu", [1e-9, 1e-6, 0.01, 1.0, 20.0])
def test_chances_at_a_random_moment_are_means_over_time(mu: float) -> None:
    t = (np.arange(200_000) + 0.5) / 200_000 * mu
    assert moments(mu) == pytest.approx((np.exp(-t).mean(), (t * np.exp(-t)).mean()), rel=1e-4, abs=1e-12)


def test_activations_count_while_they_are_in_memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    both = replace(HERE, memories=(replace(SRAM, holds=("weights", "activations")),))
    found = fit(["weights.db", "activations.db"], both)
    shares = resident_shares(load("m.onnx"))
    assert all(0 < share <= 1 for share in shares.values())
    for part in found.parts:
        wanted = shares[part.part.layer] * 0.5 if part.part.kind == "activations" else 1.0
        assert part.residency == pytest.approx(wanted)
    assert {part.part.kind for part in found.parts} == {"weights", "activations"}
    with pytest.raises(SpecError, match="activations are in memory while an inference runs; add"):
        fit("activations.db", replace(both, busy=None))


def test_what_does_not_fit_together(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    small = replace(HERE, memories=(replace(SRAM, size_bytes=8),))
    for stores, environment, error, message in (
        ("weights.db", small, SpecError, "memory 'sram' has 8 bytes, but what it holds takes"),
        ("weights.db", replace(HERE, memories=(replace(SRAM, holds=("none*",)),)), SpecError, "no memory of the env"),
        (["weights.db", "weights.db"], HERE, InputError, "two stores have faults in weights"),
        ("sweep.db", HERE, InputError, "holds a campaign of ber; a vulnerability comes from trials of one bit"),
    ):
        with pytest.raises(error, match=message):
            fit(stores, environment)
    with pytest.raises(InputError, match="rate 'nothing'"):
        vulnerabilities("weights.db", rate="nothing")
    assert vulnerabilities("weights.db", rate="any_sdc1").label == "any SDC-1"
