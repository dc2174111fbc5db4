"""Spec files: printed and read back, and replaced by flags."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaign_fields import (
    designs,
    others,
)
from hypothesis import given

from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.flat_fields import given_fields
from onnxfi.campaign.spec.spec_file import load_spec, parse_mix_part, print_spec
from onnxfi.errors import SpecError


@given(design=designs, other=others)
def test_a_printed_spec_is_read_back_as_the_same_campaign(
    design: dict[str, Any], other: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    campaign = Campaign(**design, **other)
    file = tmp_path_factory.mktemp("spec") / "c.yaml"
    file.write_text(print_spec(campaign), encoding="utf-8", newline="")
    assert load_spec(file, allow_code=True) == campaign


WHOLE = [
    (b"", "holds no campaign"),
    (b"- a\n", r"holds no campaign; a campaign maps .* \(docs/reference/spec.md\)"),
    (b"just text", "holds no campaign"),
    (b"\xff\xfe\x00", "is not a readable YAML"),
    (b"model: [", "is not a readable YAML"),
    (b"model: \x00", "is not a readable YAML"),
    (b"model: a\n---\nmodel: b\n", "is not a readable YAML"),
    (b"a: " + b"[" * 100_000, "is not a readable YAML"),
    (b"model: m.onnx\nber: 1e-6\ninclude: &a [*a]\n", r"line 3: \*a stands within itself"),
    (b"ber: 1e-6\n", "a campaign names its model; add model: FILE.onnx"),
    (b"model: m.onnx\n" + b"#" * (1 << 20), "has more than 1,048,576 bytes"),
]


@pytest.mark.parametrize(("text", "message"), WHOLE, ids=[message for _, message in WHOLE])
def test_what_is_no_campaign_at_all(text: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(text)
    with pytest.raises(SpecError, match=message):
        load_spec(file)
    with pytest.raises(SpecError, match="cannot read"):
        load_spec(tmp_path / "absent.yaml")
    with pytest.raises(SpecError, match="cannot read"):
        load_spec(tmp_path)


def test_flags_replace_the_spec_and_what_they_exclude(here: Path, flags: Callable[..., str]) -> None:
    (here / "c.yaml").write_text("model: m.onnx\nsingle: true\nmargin: 0.1\nper: layer\nseed: 5\ninclude: [w1, w2]\n")
    seen = [yaml.safe_load(flags("c.yaml", *words.split())) for words in ("", "--seed 0", "--include b1")]
    base = {"version": 1, "model": "m.onnx", "single": True, "margin": 0.1, "per": "layer"}
    assert seen[0] == {**base, "seed": 5, "include": ["w1", "w2"]}
    assert seen[1] == {**base, "include": ["w1", "w2"]}
    assert seen[2] == {**base, "seed": 5, "include": ["b1"]}
    sweep = yaml.safe_load(flags("c.yaml", "--ber", "1e-6"))
    assert sweep == {"version": 1, "model": "m.onnx", "ber": [1e-6], "seed": 5, "include": ["w1", "w2"]}
    trials = yaml.safe_load(flags("c.yaml", "--trials", "9", "--per", "network"))
    assert (trials["trials"], "margin" in trials) == (9, False)


def test_an_error_in_a_part_given_by_flag_names_its_place() -> None:
    assert given_fields(parse_mix_part("ber: 1e-6, include: [a, 'b: c']")) == {"ber": 1e-6, "include": ("a", "b: c")}
    for text, message in (
        ("cuont: 1", "--mix {cuont: 1}, line 1, column 2: unknown field 'cuont'; closest: 'count'"),
        ("count: x", "--mix {count: x}, line 1, column 9: count must be a whole number"),
        ("fault: flip, ber: 3", "--mix {fault: flip, ber: 3}, line 1, column 20: ber: rate must be in [0, 1], got 3.0"),
        ("}", "is not a readable YAML"),
        ("", "each part of mix takes ber or count"),
    ):
        with pytest.raises(SpecError) as raised:
            parse_mix_part(text)
        assert message in str(raised.value)


def test_the_spec_in_the_document_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "spec.md").read_text(encoding="utf-8")
    (block,) = (part.partition("```")[0] for part in text.split("```yaml\n")[1:])
    (tmp_path / "c.yaml").write_text(block)
    campaign = load_spec(tmp_path / "c.yaml")
    assert (campaign.design.key, len(campaign.draws), campaign.design.repeat) == ("mix", 2, 20)
