"""Strata: their sizes are those of the statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.plan import Plan, make_plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.graph.model.loading import load
from onnxfi.statistics.sample_size import allocate, data_aware_p, margin_of_error, sample_size

LAYERS = {"fc1": 25 * 32, "fc2": 18 * 32}
SITES = 43 * 32


def planned(model: str = "m.onnx", **fields: Any) -> Plan:
    return make_plan(Campaign(model, **fields), FaultTargets.of(load(model)))


def test_sizes_are_those_of_the_statistics(here: Path) -> None:
    margin, confidence = 0.1, 0.95
    whole = planned(single=True, margin=margin, confidence=confidence)
    assert [g.trials for g in whole.strata] == [sample_size(SITES, margin, confidence)]
    layers = planned(single=True, margin=margin, confidence=confidence, per="layer")
    assert {g.label: (g.population, g.trials) for g in layers.strata} == {
        name: (n, sample_size(n, margin, confidence)) for name, n in LAYERS.items()
    }
    cells = planned(single=True, margin=margin, confidence=confidence, per="layer-bit")
    assert [(g.layer, g.bit, g.population, g.trials) for g in cells.strata] == [
        (layer, bit, n // 32, sample_size(n // 32, margin, confidence))
        for layer, n in LAYERS.items()
        for bit in range(32)
    ]
    assert whole.margin == margin_of_error(len(whole), SITES, confidence) <= margin
    assert layers.margin is None
    assert planned(exhaustive=True).margin == 0


def test_data_aware_sizes_follow_how_far_a_bit_moves_the_weights(here: Path) -> None:
    margin = 0.2
    plan = planned(single=True, margin=margin, per="data-aware")
    words = np.concatenate([numpy_helper.to_array(t).ravel() for t in onnx.load("m.onnx").graph.initializer]).view(
        np.uint32
    )
    with np.errstate(all="ignore"):
        moved = [
            np.abs((words ^ np.uint32(1 << bit)).view(np.float32).astype(np.float64) - words.view(np.float32)).mean()
            for bit in range(32)
        ]
    rates = data_aware_p(moved)
    sizes = [g.population for g in plan.strata]
    expected = allocate(sizes, margin, 0.99, per="data-aware", p=[rates[g.bit or 0] for g in plan.strata])
    assert tuple(g.trials for g in plan.strata) == expected
    assert plan.strata[0].trials < plan.strata[30].trials, "bit 0 asks for fewer than bit 30"


def test_cells_are_the_sites_by_layer_and_bit(here: Path) -> None:
    cells = planned(single=True, trials=3, bits="30,31").cells()
    assert sorted(cells) == [("fc1", 30, 25), ("fc1", 31, 25), ("fc2", 30, 18), ("fc2", 31, 18)]
    assert planned(exhaustive=True, fault="zero").cells() == [("fc1", None, 25), ("fc2", None, 18)]
    assert planned(ber=(1e-3,)).cells() == planned(mix=(dict(count=1),)).cells() == []


def words(model: str) -> dict[str, list[int]]:
    """The stored words, as the onnx package reads them."""
    return {
        t.name: numpy_helper.to_array(t).ravel().view(np.uint32).tolist() for t in onnx.load(model).graph.initializer
    }


def test_a_ranking_divides_catastrophic_flips_by_the_sign_of_the_weight(here: Path) -> None:
    made = planned(rank="layer")
    split = [one for one in made.strata if one.label[-1] in "+-"]
    assert {one.label for one in split} <= {f"{layer} 30{sign}" for layer in LAYERS for sign in "+-"}
    assert all(one.bit == 30 for one in split) and sum(one.population for one in made.strata) == SITES
    assert sum(one.population for one in split) == SITES // 32, "or all weights of a layer have one sign"
    assert not [one for one in planned(single=True, adaptive=True).strata if one.label[-1] in "+-"]
