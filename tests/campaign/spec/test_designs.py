"""Designs: each refuses the fields of others, and what it cannot be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from campaign_fields import (
    EXAMPLES,
    KEYS,
)

from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import DESIGNS
from onnxfi.campaign.spec.flat_fields import flat_fields
from onnxfi.errors import SpecError


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.key)
@pytest.mark.parametrize("name", sorted({name for design in DESIGNS for name in flat_fields(design)} - KEYS))
def test_each_design_refuses_the_fields_of_others(design: Any, name: str) -> None:
    value, _, _ = EXAMPLES[name]
    fields = {**EXAMPLES[design.key][2], design.key: EXAMPLES[design.key][0], name: value}
    if name not in flat_fields(design):
        with pytest.raises(
            SpecError, match=f"^{name} has no effect with {design.key}, only with .*; leave it out"
        ) as raised:
            Campaign("m.onnx", **fields)
        assert raised.value.field == name


def test_what_an_adaptive_campaign_cannot_be() -> None:
    for fields, message in (
        ({"rate": "due"}, "rate has no effect with single, only with adaptive; leave it out"),
        ({"relative_margin": 0.1}, "relative_margin has no effect with single, only with adaptive"),
        ({"adaptive": True, "trials": 9}, "trials has no effect with adaptive, only with single; leave it out"),
        ({"adaptive": True, "per": "layer"}, "per has no effect with adaptive, only with single; leave it out"),
        ({"adaptive": True, "rate": "sdc2"}, "rate 'sdc2' is unknown; closest: "),
        ({"adaptive": True, "method": "fast"}, "method 'fast' is unknown"),
        ({"rank": "layer"}, "rank has no effect with single, only with adaptive; leave it out"),
        ({"adaptive": True, "rank": "neuron"}, "rank 'neuron' is unknown"),
        ({"adaptive": True, "rank": "bit", "top": 0}, "top 0 is out of range"),
        (
            {"adaptive": True, "rank": "bit", "method": "simple"},
            "method has no effect with rank, which takes guaranteed or asymptotic",
        ),
        ({"adaptive": True, "rank": "bit", "relative_margin": 0.1}, "relative_margin has no effect with rank"),
        (
            {"adaptive": True, "relative_margin": 0.0},
            "relative_margin 0.0 is out of range; give a share between 0 and 1, as 0.1",
        ),
    ):
        with pytest.raises(SpecError, match=re.escape(message)):
            Campaign("m.onnx", single=True, **fields)
    with pytest.raises(SpecError, match="given: ber and adaptive"):
        Campaign("m.onnx", ber=1e-6, adaptive=True)


def test_a_relative_margin_takes_the_place_of_the_usual_one() -> None:
    base = Campaign("m.onnx", adaptive=True)
    assert base == Campaign("m.onnx", single=True, adaptive=True)
    assert base.adaptive.margin == 0.01
    assert base.with_fields(relative_margin=0.1).adaptive.margin == 1e-4
    assert base.with_fields(relative_margin=0.1, margin=0.002).adaptive.margin == 0.002
    assert base.with_fields(ber=(1e-6,)).adaptive is None


def test_the_identity_of_a_pattern_holds_its_content(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    found = []
    for shape in ("row", "column"):
        file.write_text(f'{{"version": 1, "shape": "{shape}"}}')
        found.append(Campaign("m.onnx", ber=1e-6, fault=f"pattern:file={file}").identity())
    assert found[0] != found[1]


def test_single_alone_is_sized_for_one_percentage_point() -> None:
    assert Campaign("m.onnx", single=True) == Campaign("m.onnx", single=True, margin=0.01)
    assert Campaign("m.onnx", single=True).with_fields(trials=7).design.margin is None
