"""Settings of a campaign: what fixes an answer is its identity, the rest is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from campaign_fields import (
    EXAMPLES,
    KEYS,
)

from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.flat_fields import flat
from onnxfi.errors import SpecError


def test_other_fields_keep_the_rest() -> None:
    base = Campaign("m.onnx", "d.npz", mix=({"count": 1},), repeat=3, samples=9)
    assert base.with_fields() == base
    assert base.with_fields(ber=(1e-3,)) == Campaign("m.onnx", "d.npz", ber=(1e-3,), repeat=3, samples=9)
    assert "repeat" not in flat(base.with_fields(exhaustive=True))
    with pytest.raises(SpecError, match="margin has no effect"):
        base.with_fields(margin=0.1)


FREE = {
    "model",
    "data",
    "labels",
    "dim",
    "preprocess",
    "neurons",
    "allow_links",
    "repeat",
    "trials",
    "margin",
    "relative_margin",
    "top",
    "confidence",
}
LENGTHS = {"trials": {"single": True, "trials": 5}, "margin": {"single": True, "margin": 0.5}}


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - KEYS))
def test_the_identity_holds_what_fixes_an_answer_and_no_more(name: str, here: Path) -> None:
    (here / "ops.so").touch()
    value, _, beside = EXAMPLES[name]
    base = {"model": "m.onnx", "data": "d.npz", **LENGTHS.get(name, beside)}
    one, other = Campaign(**base), Campaign(**{**base, name: value})
    assert (one.identity() == other.identity()) == (name in FREE)
