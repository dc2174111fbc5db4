"""Flat fields: a campaign as one table of names, and values of any type checked."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from campaign_fields import (
    designs,
    others,
)
from hypothesis import given

from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.flat_fields import flat, given_fields
from onnxfi.errors import SpecError


@pytest.mark.slow
@given(design=designs, other=others)
def test_flat_fields_give_the_campaign_and_the_campaign_gives_them(
    design: dict[str, Any], other: dict[str, Any]
) -> None:
    campaign = Campaign(**design, **other)
    assert Campaign(**flat(campaign)) == Campaign(**given_fields(campaign)) == campaign
    assert flat(Campaign(**flat(campaign))) == flat(campaign)
    assert dataclasses.replace(campaign) == campaign.with_fields() == campaign
    given = {name: value for name, value in {**design, **other}.items() if name != "mix"}
    kept = flat(campaign)
    assert {name: kept[name] for name in given} == given


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("repeat", "x"), ("repeat", True), ("repeat", 2.5), ("seed", None), ("single", 1), ("bits", 30)),
        *(
            ("ber", ["x"]),
            ("include", [1]),
            ("model", None),
            ("tolerance", "x"),
            ("due", [3]),
        ),
    ],
)
def test_wrong_types_are_refused_in_python_too(name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"^{name} must be "):
        Campaign(**{"model": "m.onnx", "ber": (1e-6,), name: value})
    with pytest.raises(SpecError, match=r"^mix must be a part; given 'flip'"):
        Campaign("m.onnx", mix="flip")
    with pytest.raises(SpecError, match=r"labels must be a text; given '.*'; arrays .* as \(samples, labels\)"):
        Campaign("m.onnx", "d.npz", ber=1e-6, labels=np.array([3, 1]))


@pytest.mark.parametrize("kind", ["large", "below 0", "many", "listed", "infinite", "none"])
def test_numbers_of_any_length_from_python_too(kind: str) -> None:
    large: Any = {"large": 1 << 20_000, "below 0": -(1 << 20_000), "many": 10**13, "listed": [1 << 20_000]}
    number = (large | {"infinite": math.inf, "none": math.nan})[kind]
    for name in ("seed", "repeat", "samples", "batch", "batch_axis", "threads", "time_axis", "confidence", "tolerance"):
        if (name, number) not in (("seed", 10**13), ("tolerance", 10**13)):
            with pytest.raises(SpecError):
                Campaign("m.onnx", ber=1e-6, **{name: number})


def test_numbers_and_arrays_of_numpy_are_taken() -> None:
    rates = np.logspace(-6, -4, 3)
    asked = Campaign("m.onnx", ber=rates, repeat=np.int64(3), batch=np.uint8(8), bits=np.str_("sign"))
    assert asked == Campaign("m.onnx", ber=rates.tolist(), repeat=3, batch=8, bits="sign")
    assert asked.with_fields(per_sample=rates, target="activations").design.rates == tuple(rates.tolist())
    with pytest.raises(SpecError, match="ber must be a number"):
        Campaign("m.onnx", ber=np.array([["a"]]))


def test_numbers_as_text_are_taken_as_on_the_command_line() -> None:
    asked = Campaign("m.onnx", ber="1e-6:1e-5", repeat="3", samples=20.0, confidence="0.95")
    assert asked == Campaign("m.onnx", ber=[1e-6, 1e-5], repeat=3, samples=20, confidence=0.95)
    one = Campaign("m.onnx", ber=1e-6)
    assert (
        one == Campaign("m.onnx", ber="1e-6") == Campaign("m.onnx", ber=["1e-6"]) == one.with_fields(ber=iter([1e-6]))
    )
    with pytest.raises(SpecError, match=r"ber '1e-6:1e-5:2' is not a rate"):
        Campaign("m.onnx", ber="1e-6:1e-5:2")
    assert Campaign("m.onnx", ber="0e-400").design.rates == (0.0,)
    for tiny in ("1e-400", ["1e-400", "1e-6"], "1e-400,1e-6", Decimal("1e-400")):
        with pytest.raises(SpecError, match=r"ber: '1[eE]-400' is so small that it would be taken as 0; give 0"):
            Campaign("m.onnx", ber=tiny)
