"""YAML values: what people write, and errors with line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.spec_file import load_spec
from onnxfi.errors import InputError, SpecError


def test_yaml_takes_what_people_write(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: m.onnx\nber: 1e-7:1e-5\nbits: 30\ninclude: conv\ndata: ~\ntolerance: 1e-3\nrepeat: 0x10\n")
    campaign = load_spec(file)
    assert campaign == Campaign(
        "m.onnx", ber=(1e-7, 1e-6, 1e-5), bits="30", include=("conv",), tolerance=1e-3, repeat=16
    )
    file.write_text("model: m.onnx\nber: [1e-6, 0.5]\n")
    assert load_spec(file).design.rates == (1e-6, 0.5)


BAD: list[tuple[str, str]] = [
    ("berr: 1e-6", "line 2, column 1: unknown field 'berr'; closest: 'ber'"),
    ("ber: 1e-6\nrepaet: 3", "line 3, column 1: unknown field 'repaet'; closest: 'repeat'"),
    ("ber: 1e-6\nrepeat: three", "line 3, column 9: repeat must be a whole number; given 'three'"),
    ("ber: 1e-6\nrepeat: 3.5", "line 3, column 9: repeat must be a whole number; given '3.5'"),
    ("ber: 1e-6\nrepeat: true", "line 3, column 9: repeat must be a whole number; given 'True'"),
    ("ber: 1e-6\nrepeat: [3]", "line 3, column 9: repeat takes a plain value"),
    ("ber: 1e-6\nrepeat: {a: 1}", "line 3, column 9: repeat takes a plain value"),
    ("ber: 1e-6\nrepeat:", "line 3, column 8: repeat must be a whole number; given 'None'"),
    ("ber: 1e-6\nrepeat: 0", "line 3, column 9: repeat 0 is out of range; give 1 to 1,000,000,000,000"),
    ("ber: 1e-6\ntolerance: x", "line 3, column 12: tolerance must be a number; given 'x'"),
    ("ber: 1e-6\ntolerance: .nan", "line 3, column 12: tolerance nan is out of range"),
    ("ber: 1e-6\ntolerance: .inf", "line 3, column 12: tolerance inf is out of range"),
    ("ber: 1e-6\nallow_links: 1", "line 3, column 14: allow_links must be true or false; given '1'"),
    ("ber: 1e-6\nbits:", "line 3, column 6: bits must be a text; given 'None'"),
    ("ber: 1e-6\ninclude: [a, [b]]", "line 3, column 14: include takes a plain value"),
    ("ber: 1e-6\nseed: -1", "line 3, column 7: seed -1 is out of range; give a whole number from 0 to 2**64 - 1"),
    ("ber: 1e-6\nseed: 18446744073709551616", "line 3, column 7: seed 18446744073709551616 is out of range"),
    ("ber: 1e-6\nsamples: 0", "line 3, column 10: samples 0 is out of range"),
    ("ber: 1e-6\nconfidence: 1", "line 3, column 13: confidence 1.0 is out of range; give a share between 0 and 1"),
    ("ber: 1e-6\nscores: logit", "line 3, column 9: scores 'logit' is unknown; closest: 'logits'"),
    ("ber: 1e-6\ndue: [crash, tiemout]", "line 3, column 6: due 'tiemout' is unknown; closest: 'timeout'"),
    ("ber: 1e-6\nfault: filp", "line 3, column 8: fault: unknown fault 'filp'; closest: 'flip'"),
    ("ber: 1e-6\noptimization: some", "line 3, column 15: optimization: no optimization 'some'"),
    ("ber: 1e-6\nengine: openvno", "line 3, column 9: engine: no engine 'openvno'; closest: 'openvino'"),
    (
        "ber: 1e-6\nengine: openvino\noptimization: off",
        "line 4, column 15: optimization is not a setting of the engine 'openvino'",
    ),
    (
        "ber: 1e-6\nengine: reference\nthreads: 2",
        "line 4, column 10: threads is not a setting of the engine 'reference'",
    ),
    ("ber: 1e-6\nthreads: 0", "line 3, column 10: threads 0 is out of range"),
    ("ber: 1e-6\ncustom_ops: none.so", "line 3, column 13: custom_ops has code run that this file names ('none.so')"),
    ("ber: 1e-6\nprovider_option: [a]", "line 3, column 18: provider_option must be of the form KEY=VALUE, got 'a'"),
    ("ber: 1e-6\nprovider_option: a=b", "line 3, column 18: provider_option: provider 'auto' takes no options"),
    ("ber: 1e-5,1e-6", "line 2, column 6: ber 1e-05, 1e-06 is out of order; give rising rates, each once"),
    ("ber: [1e-6, 1e-6]", "line 2, column 6: ber 1e-06, 1e-06 is out of order"),
    ("ber: 1e-3:1e-7", "line 2, column 6: ber '1e-3:1e-7': decades run from a smaller rate"),
    ("ber: 2", "line 2, column 6: ber: rate must be in [0, 1], got 2.0"),
    ("ber: [x]", "line 2, column 6: ber must be a number; given 'x'"),
    ("single: true\nmargin: 0", "line 3, column 9: margin 0.0 is out of range; give a share between 0 and 1"),
    ("single: true\nmargin: -0.1", "line 3, column 9: margin -0.1 is out of range"),
    ("single: true\ntrials: 0", "line 3, column 9: trials 0 is out of range; give 1 to 1,000"),
    ("single: true\nmargin: 0.1\nper: layers", "line 4, column 6: per 'layers' is unknown; closest: 'layer'"),
    ("single: true\nmargin: 0.1\ntrials: 9", "line 3, column 9: single takes trials or margin"),
    ("single: true\ntrials: 9\nper: layer", "line 4, column 6: per 'layer' sizes each stratum by a margin"),
    (
        "single: true\nmargin: 0.1\nber: 1e-6",
        "line 2, column 9: exactly one of ber, per_sample, voltage, temperature, single, adaptive, exhaustive, faults, mix",
    ),
    (
        "seed: 1",
        "exactly one of ber, per_sample, voltage, temperature, single, adaptive, exhaustive, faults, mix says which trials there are; given: none",
    ),
    ("ber: 1e-6\nmargin: 0.1", "line 3, column 9: margin has no effect with ber, only with single, adaptive"),
    ("ber: 1e-6\nper: layer", "line 3, column 6: per has no effect with ber, only with single"),
    (
        "exhaustive: true\nrepeat: 3",
        "line 3, column 9: repeat has no effect with exhaustive, only with ber, per_sample, voltage, temperature, mix",
    ),
    ("faults: f.jsonl\nfault: zero", "line 3, column 8: fault has no effect with faults"),
    ("faults: f.jsonl\nseed: 3", "line 3, column 7: seed has no effect with faults"),
    ("mix: [{ber: 1e-6}]\ninclude: w", "line 3, column 10: include has no effect with mix"),
    ("mix: [{ber: 1e-6, count: 1}]", "line 2, column 7: each part of mix takes ber or count"),
    ("mix: [{fault: flip}]", "line 2, column 7: each part of mix takes ber or count"),
    ("mix: [{ber: 7}]", "line 2, column 13: ber: rate must be in [0, 1], got 7.0"),
    ("mix: [{count: -1}]", "line 2, column 15: count -1 is out of range"),
    ("mix: [{count: 1, fualt: flip}]", "line 2, column 18: unknown field 'fualt'; closest: 'fault'"),
    ("mix: [{count: 1, fault: flap}]", "line 2, column 25: fault: unknown fault 'flap'"),
    ("mix: [flip]", "line 2, column 7: takes field names and their values"),
    ("ber: 1e-6\nber: 1e-5", "line 3, column 1: ber is given twice"),
    ("ber: 1e-6\n[a]: b", "line 3, column 1: unknown field ''"),
    ("version: 2\nber: 1e-6", "line 2, column 10: version 2 of a campaign; this onnxfi reads version 1"),
    ("version: true\nber: 1e-6", "line 2, column 10: version True of a campaign"),
    ("ber: 1e-6\ndata: !!python/name:os.system ''", "line 3, column 7: the tag 'tag:yaml.org,2002:python/name:os.syst"),
    ("ber: 1e-6\ndata: !!python/object/apply:os.system [x]", "line 3, column 7: data takes a plain value"),
    ("ber: 1e-6\ndata: !mine x", "line 3, column 7: the tag '!mine' is not allowed"),
    ("ber: 1e-6\nseed: !!binary aGk=", "line 3, column 7: the tag 'tag:yaml.org,2002:binary' is not allowed"),
    ("ber: 1e-6\n<<: {seed: 1}", "line 3, column 1: unknown field '<<'"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[text.replace("\n", "; ") for text, _ in BAD])
def test_errors_have_line_and_column(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"model: m.onnx\n{text}\n")
    with pytest.raises(SpecError) as raised:
        load_spec(file)
    assert str(raised.value).startswith(str(file))
    assert message in str(raised.value)
    assert isinstance(raised.value, InputError)


@pytest.mark.timeout(120)  # who opens it never ends
def test_an_anchor_bomb_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    bomb = "include:\n- &a0 [x, x]\n" + "".join(f"- &a{k} [*a{k - 1}, *a{k - 1}]\n" for k in range(1, 64))
    file.write_text(f"model: m.onnx\nber: 1e-6\n{bomb}")
    with pytest.raises(SpecError, match="a campaign holds at most 20,000 values, aliases written out"):
        load_spec(file)


#: Values of which Python writes no digits, or that take minutes to read.
HUGE = (
    "0x" + "f" * 5000,
    "9" * 5000,
    "-" + "9" * 5000,
    "1" + ":59" * 3000,
    "0b" + "1" * 30_000,
    "1e999",
    ".inf",
    ".nan",
)


@pytest.mark.parametrize("number", HUGE, ids=lambda number: number[:6])
def test_errors_of_numbers_of_any_length_take_one_line(number: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for name in ("seed", "trials", "samples", "batch_axis", "margin", "confidence", "tolerance", "version"):
        way = "single: true" if name in ("trials", "margin") else "ber: 1e-6"
        file.write_text(f"model: m.onnx\n{way}\n{name}: {number}\n")
        with pytest.raises(SpecError) as raised:
            load_spec(file)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 300 + len(str(file))
