"""The campaign: the same from Python, flags and YAML; errors name field, line and column."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.campaign.gate.budget import load_budget
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import DESIGNS, FaultMixPart
from onnxfi.campaign.spec.flat_fields import build, flat, flat_fields, given_fields, parse_rates
from onnxfi.campaign.spec.settings import DUE, EngineSettings
from onnxfi.campaign.spec.spec_file import load_spec, parse_mix_part, print_spec
from onnxfi.cli import main
from onnxfi.errors import InputError, SpecError

SWEEP: dict[str, Any] = {"ber": (1e-6,)}
SINGLE: dict[str, Any] = {"single": True, "margin": 0.25}
ADAPTIVE: dict[str, Any] = {"adaptive": True}
KEYS = {design.key for design in DESIGNS}
PARTS = tuple(
    build(FaultMixPart, fields)
    for fields in (
        {"fault": "stuck-at-1", "count": 2, "include": ("fc1", "=w2"), "bits": "sign"},
        {"ber": 1e-5, "dtype": ("float32",)},
    )
)
#: For every field: a value that is not its default, the flags that say it, and fields that go with it.
EXAMPLES: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "model": ("net.onnx", [], SWEEP),
    "data": ("d.npz", ["--data", "d.npz"], SWEEP),
    "ber": ((1e-7, 1e-6, 1e-5), ["--ber", "1e-7:1e-5"], {}),
    "repeat": (3, ["--repeat", "3"], SWEEP),
    "single": (True, ["--single"], {"margin": 0.25}),
    "trials": (7, ["--trials", "7"], {"single": True}),
    "margin": (0.125, ["--margin", "0.125"], {"single": True}),
    "confidence": (0.95, ["--confidence", "0.95"], SWEEP),
    "per": ("layer-bit", ["--per", "layer-bit"], SINGLE),
    "adaptive": (True, ["--adaptive"], {}),
    "relative_margin": (0.125, ["--relative-margin", "0.125"], ADAPTIVE),
    "rate": ("any_sdc1", ["--rate", "any"], ADAPTIVE),
    "method": ("simple", ["--method", "simple"], ADAPTIVE),
    "rank": ("tensor", ["--rank", "tensor"], ADAPTIVE),
    "top": (3, ["--top", "3"], {**ADAPTIVE, "rank": "layer"}),
    "exhaustive": (True, ["--exhaustive"], {}),
    "faults": ("list.jsonl", ["--faults", "list.jsonl"], {}),
    "mix": (
        PARTS,
        [
            *("--mix", "fault: stuck-at-1, count: 2, include: [fc1, =w2], bits: sign"),
            *("--mix", "ber: 1e-5, dtype: float32"),
        ],
        {},
    ),
    "fault": ("burst:k=3", ["--fault", "burst:k=3"], SWEEP),
    "include": (("fc1", "re:^w"), ["--include", "fc1", "--include", "re:^w"], SWEEP),
    "exclude": (("=b1",), ["--exclude", "=b1"], SWEEP),
    "op": (("MatMul",), ["--op", "MatMul"], SWEEP),
    "dtype": (("float32", "int8"), ["--dtype", "float32", "--dtype", "int8"], SWEEP),
    "bits": ("30", ["--bits", "30"], SWEEP),
    "elements": ("1:30", ["--elements", "1:30"], SWEEP),
    "role": (("weight", "scale"), ["--role", "weight", "--role", "scale"], SWEEP),
    "per_sample": ((0.25, 0.5), ["--per-sample", "0.25,0.5"], {"target": ("inputs",)}),
    "target": (("weights", "inputs"), ["--target", "weights,inputs"], SWEEP),
    "persistence": ("permanent", ["--persistence", "permanent"], {**SWEEP, "target": ("activations",)}),
    "all": (True, ["--all"], {**SWEEP, "target": ("activations",)}),
    "seed": ((1 << 64) - 1, ["--seed", str((1 << 64) - 1)], SWEEP),
    "labels": ("l.json", ["--labels", "l.json"], SWEEP),
    "preprocess": ("p.yaml", ["--preprocess", "p.yaml"], SWEEP),
    "samples": (5, ["--samples", "5"], SWEEP),
    "batch": (4, ["--batch", "4"], SWEEP),
    "batch_axis": (1, ["--batch-axis", "1"], SWEEP),
    "output": ("123", ["--output", "123"], SWEEP),
    "task": ("deviation", ["--task", "deviation"], SWEEP),
    "metric": (("own:HALF",), ["--metric", "own:HALF"], SWEEP),
    "scores": ("counts", ["--scores", "counts"], SWEEP),
    "tolerance": (1e-3, ["--tolerance", "1e-3"], SWEEP),
    "due": (("crash", "nonfinite"), ["--due", "crash,nonfinite"], SWEEP),
    "engine": ("reference", ["--engine", "reference"], SWEEP),
    "provider": ("cpu", ["--provider", "cpu"], SWEEP),
    "provider_option": (("device_id=1",), ["--provider-option", "device_id=1"], {**SWEEP, "provider": "cuda"}),
    "threads": (2, ["--threads", "2"], SWEEP),
    "optimization": ("off", ["--optimization", "off"], SWEEP),
    "route": ("full", ["--route", "full"], SWEEP),
    "custom_ops": (("ops.so",), ["--custom-ops", "ops.so"], SWEEP),
    "stage": ("reader", ["--stage", "reader"], SWEEP),
    "allow_links": (True, ["--allow-links"], SWEEP),
    "expose": (True, ["--expose"], SWEEP),
    "memory_code": ("secded", ["--memory-code", "secded"], SWEEP),
    "scrub_interval": (0.01, ["--scrub-interval", "0.01"], {**SWEEP, "memory_code": "secded"}),
    "neurons": ("n.yaml", ["--neurons", "n.yaml"], {**SWEEP, "expose": True}),
    "time_axis": (1, ["--time-axis", "1"], SWEEP),
    "layers": ("tensors", ["--layers", "tensors"], SWEEP),
}


@pytest.fixture
def flags(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return the output of `onnxfi plan … --print-spec`."""

    def ran(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["onnxfi", "plan", *words, "--print-spec"])
        main()
        return capsys.readouterr().out

    return ran


def test_every_field_has_an_example_and_a_flag() -> None:
    assert set(EXAMPLES) == set(flat_fields(Campaign)) - {"allow_code"}  # which no file says
    assert set(EXAMPLES) > KEYS


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


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
lists = st.lists(texts, max_size=3).map(tuple)
rates = st.lists(st.floats(0, 1, exclude_min=True), min_size=1, max_size=4, unique=True).map(lambda r: tuple(sorted(r)))
parts = st.fixed_dictionaries(
    {"fault": st.sampled_from(["flip", "burst:k=2"]), "count": st.integers(0, 9), "include": lists, "bits": texts}
)
designs = st.one_of(
    st.fixed_dictionaries({"ber": rates, "repeat": st.integers(1, 1000), "include": lists, "bits": texts}),
    st.fixed_dictionaries({"single": st.just(True), "trials": st.integers(1, 10**12), "elements": texts}),
    st.fixed_dictionaries({"mix": st.lists(parts, min_size=1, max_size=3).map(tuple)}),
    st.fixed_dictionaries({"adaptive": st.just(True), "method": st.sampled_from(["simple", "guaranteed"])}),
    st.fixed_dictionaries({"exhaustive": st.just(True), "seed": st.integers(0, 9)}),
    st.fixed_dictionaries({"faults": texts.filter(bool)}),
)
others = st.fixed_dictionaries(
    {"model": texts, "data": st.none() | texts.filter(lambda t: t != "synthetic"), "output": st.none() | texts},
    optional={
        "confidence": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "tolerance": st.floats(0, 1e300),
        "due": st.lists(st.sampled_from(DUE), unique=True).map(tuple),
    },
)


@given(design=designs, other=others)
def test_a_printed_spec_is_read_back_as_the_same_campaign(
    design: dict[str, Any], other: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    campaign = Campaign(**design, **other)
    file = tmp_path_factory.mktemp("spec") / "c.yaml"
    file.write_text(print_spec(campaign), encoding="utf-8", newline="")
    assert load_spec(file, allow_code=True) == campaign


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


def test_values_can_be_given_as_a_whole() -> None:
    campaign = Campaign("m.onnx", ber=1e-6, engine=EngineSettings(threads=2))
    assert campaign == Campaign("m.onnx", ber=1e-6, threads=2)
    assert dataclasses.replace(campaign, model="n.onnx", repeat=3).design.repeat == 3


def test_yaml_takes_what_people_write(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: m.onnx\nber: 1e-7:1e-5\nbits: 30\ninclude: conv\ndata: ~\ntolerance: 1e-3\nrepeat: 0x10\n")
    campaign = load_spec(file)
    assert campaign == Campaign(
        "m.onnx", ber=(1e-7, 1e-6, 1e-5), bits="30", include=("conv",), tolerance=1e-3, repeat=16
    )
    file.write_text("model: m.onnx\nber: [1e-6, 0.5]\n")
    assert load_spec(file).design.rates == (1e-6, 0.5)


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


BAD: list[tuple[str, str]] = [
    ("berr: 1e-6", "line 2, column 1: unknown field 'berr'; closest: 'ber'"),
    ("ber: 1e-6\nrepaet: 3", "line 3, column 1: unknown field 'repaet'; closest: 'repeat'"),
    ("ber: 1e-6\nrepeat: three", "line 3, column 9: repeat must be a whole number; given 'three'"),
    ("ber: 1e-6\nrepeat: '3'", "line 3, column 9: repeat must be a whole number; given '3'"),
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
        "line 2, column 9: exactly one of ber, per_sample, single, adaptive, exhaustive, faults, mix",
    ),
    (
        "seed: 1",
        "exactly one of ber, per_sample, single, adaptive, exhaustive, faults, mix says which trials there are; given: none",
    ),
    ("ber: 1e-6\nmargin: 0.1", "line 3, column 9: margin has no effect with ber, only with single, adaptive"),
    ("ber: 1e-6\nper: layer", "line 3, column 6: per has no effect with ber, only with single"),
    (
        "exhaustive: true\nrepeat: 3",
        "line 3, column 9: repeat has no effect with exhaustive, only with ber, per_sample, mix",
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


WHOLE = [
    (b"", "holds no campaign"),
    (b"- a\n", "holds no campaign; a campaign maps field names to values"),
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


@pytest.mark.timeout(120)  # who opens it never ends
def test_an_anchor_bomb_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    bomb = "include:\n- &a0 [x, x]\n" + "".join(f"- &a{k} [*a{k - 1}, *a{k - 1}]\n" for k in range(1, 64))
    file.write_text(f"model: m.onnx\nber: 1e-6\n{bomb}")
    with pytest.raises(SpecError, match="a campaign holds at most 20,000 values, aliases written out"):
        load_spec(file)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("repeat", "3"), ("repeat", True), ("repeat", 2.0), ("seed", None), ("single", 1), ("bits", 30)),
        *(
            ("ber", "1e-6"),
            ("include", [1]),
            ("model", None),
            ("tolerance", "0"),
            ("due", [3]),
        ),
    ],
)
def test_wrong_types_are_refused_in_python_too(name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"^{name} must be "):
        Campaign(**{"model": "m.onnx", "ber": (1e-6,), name: value})
    with pytest.raises(SpecError, match=r"^mix must be a part; given 'flip'"):
        Campaign("m.onnx", mix="flip")


# Flags and specs together


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


def test_other_fields_keep_the_rest() -> None:
    base = Campaign("m.onnx", "d.npz", mix=({"count": 1},), repeat=3, samples=9)
    assert base.with_fields() == base
    assert base.with_fields(ber=(1e-3,)) == Campaign("m.onnx", "d.npz", ber=(1e-3,), repeat=3, samples=9)
    assert "repeat" not in flat(base.with_fields(exhaustive=True))
    with pytest.raises(SpecError, match="margin has no effect"):
        base.with_fields(margin=0.1)


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


FREE = {
    "model",
    "data",
    "labels",
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
            "method has no effect with rank, which takes guaranteed",
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


def test_other_campaigns_are_identified_as_before_there_were_adaptive_ones() -> None:
    assert not {"adaptive", "rate", "method", "relative_margin"} & set(Campaign("m.onnx", single=True).identity())


def test_the_identity_of_a_pattern_holds_its_content(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    found = []
    for shape in ("row", "column"):
        file.write_text(f'{{"version": 1, "shape": "{shape}"}}')
        found.append(Campaign("m.onnx", ber=1e-6, fault=f"pattern:file={file}").identity())
    assert found[0] != found[1]


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


def test_the_spec_in_the_document_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "spec.md").read_text(encoding="utf-8")
    (block,) = (part.partition("```")[0] for part in text.split("```yaml\n")[1:])
    (tmp_path / "c.yaml").write_text(block)
    campaign = load_spec(tmp_path / "c.yaml")
    assert (campaign.design.key, len(campaign.draws), campaign.design.repeat) == ("mix", 2, 20)


#: What a file may hold that has code of its author run, and whether naming something else by a flag is enough.
CODE = {
    "data: own.module:function": "data",
    "data: own:function\nsamples: 3": "data",
    "task: detection:score=0.5,decode=own.module:boxes": "task",
    "custom_ops: [ops.so]": "custom_ops",
    "provider: tensorrt\nprovider_option: [device_id=0, trt_extra_plugin_lib_paths=own.so]": "provider_option",
    "provider: cuda\nprovider_option: gpu_external_alloc=1": "provider_option",
    "provider: qnn\nprovider_option: x=/tmp/own.so": "provider_option",
}


@pytest.mark.parametrize("text", CODE)
def test_a_file_has_code_run_only_where_that_is_allowed(text: str, tmp_path: Path) -> None:
    (tmp_path / "ops.so").touch()
    text = text.replace("ops.so", str(tmp_path / "ops.so"))
    name = next(name for said, name in CODE.items() if said.split("[")[0] == text.split("[")[0])
    file = tmp_path / "c.yaml"
    file.write_text(f"model: m.onnx\nber: 1e-6\n{text}\n")
    wrong = rf"c.yaml, line \d, column \d+: {name} has code run that this file names .* add --allow-code"
    with pytest.raises(SpecError, match=wrong):
        load_spec(file)
    with pytest.raises(SpecError, match=wrong):
        load_spec(file, instead=["model", "seed"])
    assert load_spec(file, allow_code=True) == load_spec(file, instead=[name])
    budget = tmp_path / "b.yaml"
    inner = text.replace("\n", "\n  ")
    budget.write_text(f"version: 1\ncampaign:\n  ber: 1e-6\n  {inner}\n")
    with pytest.raises(SpecError, match=wrong.replace("c.yaml", "b.yaml")):
        load_budget(budget)
    assert load_budget(budget, allow_code=True) == load_budget(budget, instead=[name])


def test_options_and_data_that_run_nothing_are_not_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: m.onnx\nber: 1e-6\ndata: a/b.npz\nprovider: cuda\nprovider_option: device_id=1\n")
    assert load_spec(file).engine.provider_option == ("device_id=1",)


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


@pytest.mark.parametrize("kind", ["large", "below 0", "many", "listed", "infinite", "none"])
def test_numbers_of_any_length_from_python_too(kind: str) -> None:
    large: Any = {"large": 1 << 20_000, "below 0": -(1 << 20_000), "many": 10**13, "listed": [1 << 20_000]}
    number = (large | {"infinite": math.inf, "none": math.nan})[kind]
    for name in ("seed", "repeat", "samples", "batch", "batch_axis", "threads", "time_axis", "confidence", "tolerance"):
        if (name, number) not in (("seed", 10**13), ("tolerance", 10**13)):
            with pytest.raises(SpecError):
                Campaign("m.onnx", ber=1e-6, **{name: number})


def test_single_alone_is_sized_for_one_percentage_point() -> None:
    assert Campaign("m.onnx", single=True) == Campaign("m.onnx", single=True, margin=0.01)
    assert Campaign("m.onnx", single=True).with_fields(trials=7).design.margin is None


def test_numbers_and_arrays_of_numpy_are_taken() -> None:
    rates = np.logspace(-6, -4, 3)
    asked = Campaign("m.onnx", ber=rates, repeat=np.int64(3), batch=np.uint8(8), bits=np.str_("sign"))
    assert asked == Campaign("m.onnx", ber=rates.tolist(), repeat=3, batch=8, bits="sign")
    assert asked.with_fields(per_sample=rates, target="activations").design.rates == tuple(rates.tolist())
    with pytest.raises(SpecError, match="ber must be a number"):
        Campaign("m.onnx", ber=np.array([["a"]]))
