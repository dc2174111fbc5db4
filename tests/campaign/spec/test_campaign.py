"""The campaign: the same from Python, flags and YAML; errors name field, line and column."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from campaign_fields import (
    EXAMPLES,
    KEYS,
)

from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import FaultMixPart
from onnxfi.campaign.spec.flat_fields import flat_fields, parse_rates
from onnxfi.campaign.spec.settings import EngineSettings
from onnxfi.campaign.spec.spec_file import load_spec, print_spec
from onnxfi.errors import SpecError


def test_every_field_has_an_example_and_a_flag() -> None:
    assert set(EXAMPLES) == set(flat_fields(Campaign)) - {"allow_code"}  # which no file says
    assert set(EXAMPLES) > KEYS


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_python_yaml_and_flags_say_the_same(name: str, here: Path, flags: Callable[..., str]) -> None:
    (here / "ops.so").touch()
    value, words, beside = EXAMPLES[name]
    wanted = Campaign(**{"model": "net.onnx", **beside, name: value})
    assert flat_fields(Campaign)[name].default != value, "the example must not be the default"
    for with_, more in EXAMPLES.items():
        if with_ in beside:
            given = beside[with_]
            words = [*words, "--" + with_.replace("_", "-"), *([] if given is True else [_text(given)])]
            assert more
    printed = flags("net.onnx", *words)
    (here / "flags.yaml").write_text(printed)
    (here / "python.yaml").write_text(print_spec(wanted))
    flagged, written = (load_spec(here / name, allow_code=True) for name in ("flags.yaml", "python.yaml"))
    assert flagged == wanted == written
    assert printed == print_spec(wanted)
    assert (name in yaml.safe_load(printed)) or name == "model"


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_values_can_be_given_as_a_whole() -> None:
    campaign = Campaign("m.onnx", ber=1e-6, engine=EngineSettings(threads=2))
    assert campaign == Campaign("m.onnx", ber=1e-6, threads=2)
    assert dataclasses.replace(campaign, model="n.onnx", repeat=3).design.repeat == 3


def test_python_takes_lists_single_values_and_paths() -> None:
    assert Campaign(Path("m.onnx"), ber=1e-6, include="conv") == Campaign("m.onnx", ber=[1e-6], include=["conv"])
    assert Campaign("m.onnx", mix={"count": 1}).design.mix == (FaultMixPart(count=1),)
    assert Campaign("m.onnx", "synthetic", exhaustive=True).data.data is None
    assert isinstance(Campaign("m.onnx", ber=1).design.rates[0], float)


def test_rates() -> None:
    assert parse_rates("1e-7:1e-3") == (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
    assert parse_rates("0, 0.5") == (0.0, 0.5)
    assert parse_rates("1e-300:1e-298") == (1e-300, 1e-299, 1e-298)
    for text in ("", "x", "1e-3:1e-7", "0:1", "1e-7:2", "nan:1", "1e-7:inf", "1e-9999999:1", "1:2:3", "-1e-3:1e-2"):
        with pytest.raises(SpecError, match="ber"):
            Campaign("m.onnx", ber=parse_rates(text))


# Flags and specs together


def test_other_campaigns_are_identified_as_before_there_were_adaptive_ones() -> None:
    assert not {"adaptive", "rate", "method", "relative_margin"} & set(Campaign("m.onnx", single=True).identity())


# The document


def test_the_document_lists_every_field_with_its_type_and_default() -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "spec.md").read_text(encoding="utf-8")
    lines = text[text.index("| field |") :].partition("\n\n")[0].splitlines()[2:]
    documented = {}
    for line in lines:
        name, kind, default, what = (cell.strip() for cell in line.strip("|").split("|"))
        documented[name.strip("`")] = kind, yaml.safe_load(default.strip("`")) if default else dataclasses.MISSING
        assert what
    kinds = {str: "text", int: "whole number", float: "number", bool: "true or false", FaultMixPart: "part"}

    def written(kind: Any) -> str:
        inner = get_args(kind)[0] if get_args(kind) else kind
        if get_origin(kind) is tuple:
            return f"{kinds[str if get_origin(inner) is Literal else inner]}s"
        return kinds[str if isinstance(inner, str) else inner]

    fields = [(name, f) for name, f in flat_fields(Campaign).items() if not f.metadata.get("unwritten")]
    assert documented == {
        name: (written(f.kind), list(f.default) if isinstance(f.default, tuple) else f.default) for name, f in fields
    }
    assert list(documented) == [name for name, _ in fields], "in the order of the fields"
