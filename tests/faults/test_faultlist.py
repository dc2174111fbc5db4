"""The fault list: pinned, read back as it was written, and refused for anything that it is not."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import U64, models, names, targets
from word_oracle import faulty

from onnxfi.errors import FaultListError
from onnxfi.faults import faultlist
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.faultlist import MAX_LINES, FaultList, Header, LineReader, fault_row, single_lines, trial_lines
from onnxfi.faults.models import Flip
from onnxfi.faults.registry import fault_models, parse_fault
from onnxfi.faults.space import FaultSpace, Selector, Sites, Target
from onnxfi.faults.trials import Fault, Faults, Sampler, apply_faults, draw_faults, faults_at_named_sites
from onnxfi.faults.words import WORDS, Words

NET = (
    Target("conv.weight", WORDS["float32"], (16, 9, 3, 3)),
    Target("conv.bias", WORDS["float16"], (8,)),
    Target("shape", WORDS["int64"], (2,), structural=True),
    Target("fc.weight", WORDS["int8"], (64, 20)),
)
DIGEST, FAULTY = "a" * 64, "b" * 64
ALL = range(len(NET))

Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Writes a list from a header and lines."""

    def write(header: Header | str, *body: str) -> Path:
        path = tmp_path / "faults.jsonl"
        path.write_text("\n".join([header if isinstance(header, str) else header.line(), *body, ""]), encoding="utf-8")
        return path

    return write


def stored(faults: Faults) -> Words:
    """Words that a model might hold, the same at the same place: multiples of ⅛ from -5 on, or whole numbers."""
    out = np.zeros(len(faults), np.uint64)
    for k, target in enumerate(faults.targets):
        here = faults.sites.target == k
        number = faults.sites.index[here] % 97 - 40
        out[here] = target.word.words(number / 8 if target.word.is_float else number)
    return out


def drawn(
    model: FaultModel, how: Sampler, selector: Selector | None = None, trial: int = 1
) -> tuple[Header, Faults, list[int]]:
    """A header, the faults of a trial over the selected targets, and those targets' numbers."""
    selector = selector or Selector()
    space = selector.space(NET, model)
    faults = draw_faults(space, how, model, trial)
    header = Header(DIGEST, str(model), selector, how, population=space.size, unit=model.unit, faulty=FAULTY)
    known, _ = apply_faults(faults, stored(faults))
    return header, known, [NET.index(t) for t in space.targets]


def over_all(faults: Faults, ordinals: Sequence[int]) -> Faults:
    """The same faults over all targets."""
    moved = np.array(ordinals, np.int64)[faults.sites.target]
    return dataclasses.replace(faults, targets=NET, sites=dataclasses.replace(faults.sites, target=moved))


def strict(line: str) -> dict[str, Any]:
    """Read strict JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not strict JSON")

    row = json.loads(line, parse_constant=refuse)
    assert isinstance(row, dict)
    return row


def read(path: Path, among: Sequence[Target] = NET) -> dict[int, Faults]:
    return dict(FaultList.open(path).trials(among))


# ------------------------------------------------------------------------------------------------ pins

PINNED = Path(__file__).with_name("pinned.jsonl")


def example() -> list[str]:
    """A list of three trials of a few flips, of random words, and of so many flips that they are a recipe."""
    how, many = Sampler("count", n=3, seed=7), Sampler("ber", rate=0.1, seed=7)
    header, one, ordinals = drawn(Flip(), how, Selector(bits="exponent"))
    _, two, others = drawn(parse_fault("random-word"), how, trial=2)
    _, three, _ = drawn(Flip(), many, Selector(bits="exponent"), trial=3)
    body = [
        *trial_lines(1, one, how, ordinals),
        *trial_lines(2, two, how, others),
        *trial_lines(3, three, many, ordinals),
    ]
    return [dataclasses.replace(header, tool="0.1.0").line(), *body]


def test_a_whole_list_is_pinned() -> None:
    """Whoever changes a random stream, or the format, changes what published lists mean: that needs a new version."""
    assert "\n".join(example()) + "\n" == PINNED.read_text(encoding="utf-8")


def test_the_pinned_list_is_read() -> None:
    trials = read(PINNED)
    assert {trial: len(faults) for trial, faults in trials.items()} == {1: 3, 2: 3, 3: 1032}
    assert all(line.startswith("{") and strict(line) for line in PINNED.read_text(encoding="utf-8").splitlines())
    assert FaultList.open(PINNED).header == Header(
        DIGEST, "flip", Selector(bits="exponent"), Sampler("count", n=3, seed=7), 10408, faulty=FAULTY, tool="0.1.0"
    )


# ------------------------------------------------------------------------------------------------ there and back

HEADERS = st.builds(
    Header,
    model=st.text(),
    fault=models.map(str),
    selector=st.builds(
        Selector,
        include=st.lists(names).map(tuple),
        exclude=st.lists(names).map(tuple),
        op=st.lists(names).map(tuple),
        dtype=st.lists(names).map(tuple),
        bits=st.text(max_size=5),
        elements=st.text(max_size=5),
    ),
    sampler=st.one_of(
        st.builds(Sampler, st.just("ber"), rate=st.floats(0, 1), seed=U64),
        st.builds(Sampler, st.sampled_from(["count", "per-tensor", "sites"]), n=st.integers(0, 10**9), seed=U64),
        st.builds(Sampler, st.just("exhaustive"), seed=U64),
    ),
    population=st.integers(0, 2**70),
    unit=st.sampled_from(["bit", "word"]),
    faulty=st.none() | st.text(),
)


@given(HEADERS)
def test_headers_are_read_as_they_are_written(header: Header) -> None:
    line = header.line()
    assert "\n" not in line
    assert strict(line)["version"] == 1
    assert Header.parse(line, "here") == header


def test_a_header_says_who_wrote_it() -> None:
    row = strict(Header(DIGEST, sampler=Sampler("ber", rate=1e-6, seed=3)).line())
    assert row["tool"] == Header(DIGEST).tool
    assert row["sampler"] == {"kind": "ber", "rate": 1e-6}
    assert (row["seed"], row["faulty"]) == (3, None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(targets(), st.lists(st.tuples(models, st.integers(0, 99), st.integers(0, 99), U64, U64), max_size=8))
def test_faults_are_read_as_they_are_written(
    written: Written, among: tuple[Target, ...], rows: list[tuple[FaultModel, int, int, int, int]]
) -> None:
    """Names with every character, all formats, all fault models, NaN and infinities among the values."""
    chosen, memory = [], []
    for model, at, bit, raw, word in rows:
        target = among[at % len(among)]
        spent, top = model.draw_parameters(raw, target.word), target.word.bits - model.width()
        if target.size and top >= 0 and faulty(spent, target.word, 0, 0) is not None:
            chosen.append((at % len(among), at % target.size, spent, bit % (top + 1) if model.unit == "bit" else -1))
            memory.append(word & target.word.full)
    columns = [
        np.array([row[k] for row in chosen], dtype) for k, dtype in ((0, np.int64), (1, np.int64), (3, np.int16))
    ]
    faults = Faults(among, Sites(*columns), tuple(row[2] for row in chosen) or (Flip(),))
    known, _ = apply_faults(faults, np.array(memory, np.uint64))
    body = list(trial_lines(5, known, Sampler("sites"), range(len(among))))
    path = written(Header(DIGEST), *body)
    assert read(path, among) == ({5: known} if chosen else {})
    for line, fault in zip(body, known, strict=True):
        row = strict(line)
        assert row == fault_row(5, fault) == json.loads(json.dumps(row, allow_nan=False))
        assert (int(row["before"], 16), int(row["after"], 16)) == (fault.before, fault.after)
        for when in ("before", "after"):
            value, wanted = row[f"{when}_value"], fault.value(when)
            if isinstance(value, str):
                assert value == {math.inf: "Infinity", -math.inf: "-Infinity"}.get(wanted, "NaN")
                assert not math.isfinite(wanted)
            else:
                assert repr(value) == repr(wanted)


def test_values_that_json_does_not_have_are_strings() -> None:
    words = (0x7F800000, 0xFF800000, 0x7FC00000, 0x3DCCCCCD)
    rows = [fault_row(1, Fault("w", 0, (0,), "flip", WORDS["float32"], w, w)) for w in words]
    assert [row["before_value"] for row in rows] == ["Infinity", "-Infinity", "NaN", 0.1]
    assert [row["changed"] for row in rows] == [False] * 4
    unknown = fault_row(1, Fault("w", 0, (0,), "flip", WORDS["float32"]))
    assert (unknown["before"], unknown["after"], unknown["before_value"]) == (None, None, None)


def test_words_are_as_wide_as_their_format() -> None:
    rows = [fault_row(1, Fault("w", 0, None, "zero", word, 1, 0)) for word in WORDS.values()]
    assert {row["before"]: row["after"] for row in rows} == {
        "0x" + "1".rjust(n, "0"): "0x" + "0" * n for n in (16, 8, 4, 2, 1)
    }
    assert "sample" not in rows[0]
    assert fault_row(1, Fault("w", 0, (3,), "flip", WORDS["int8"], sample=0, step=2))["sample"] == 0


def in_columns(faults: Faults) -> list[Any]:
    """All that thousands of faults say, without an object for each."""
    sites, events = faults.sites, [str(event) for event in faults.models]
    columns = (sites.target, sites.index, sites.bit, faults.before, faults.after)
    return [
        faults.targets,
        events * (len(faults) // len(events)),
        *(None if c is None else c.tolist() for c in columns),
    ]


#: One event of these changes many words, millions at these rates, or lies in activations alone.
_WIDE = ("stuck-pixel", "stuck-line", "salt-pepper", "cluster", "array", "intermittent")


@pytest.mark.parametrize(
    "text", [text for name, model in fault_models().items() for text in model.examples if name not in _WIDE]
)
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, id=how.kind, marks=marks)
        for marks, how in (
            ((), Sampler("ber", rate=0.9, seed=3)),
            (pytest.mark.slow, Sampler("count", n=1100, seed=3)),
            (pytest.mark.slow, Sampler("per-tensor", n=1100, seed=3)),
            ((), Sampler("exhaustive")),
        )
    ],
)
def test_recipes_give_the_same_faults_again(written: Written, text: str, how: Sampler) -> None:
    model = parse_fault(text)
    selector = Selector(include=("conv.weight",))
    header, faults, ordinals = drawn(model, how, selector, trial=9)
    (line,) = trial_lines(9, faults, how, ordinals)
    row = strict(line)
    assert len(line) < 400 + 12 * len(faults)
    assert row["n"] == len(faults) > MAX_LINES
    assert ("before" in row) == (not model.self_inverse)
    again = read(written(header, line))[9]
    wanted = over_all(faults, ordinals)
    assert again.targets == NET
    known, _ = apply_faults(again, stored(again))
    assert known[:100] == wanted[:100]
    assert in_columns(known) == in_columns(wanted)
    if not model.self_inverse:
        assert again.before is not None
        assert faults.before is not None
        assert np.array_equal(again.before, faults.before)


def test_few_and_named_faults_are_lines() -> None:
    how = Sampler("count", n=MAX_LINES, seed=1)
    _, faults, ordinals = drawn(Flip(), how)
    assert len(list(trial_lines(1, faults, how, ordinals))) == MAX_LINES
    more = Sampler("count", n=MAX_LINES + 1, seed=1)
    _, faults, ordinals = drawn(Flip(), more)
    assert len(list(trial_lines(1, faults, more, ordinals))) == 1
    assert len(list(trial_lines(1, faults, Sampler("sites"), ordinals))) == MAX_LINES + 1


def test_lines_and_recipes_stand_in_one_trial(written: Written) -> None:
    how = Sampler("count", n=1200, seed=1)
    header, faults, ordinals = drawn(Flip(), how)
    named, _ = apply_faults(faults_at_named_sites(["fc.weight[3]:1"], NET, Flip(), Selector()), np.zeros(1, np.uint64))
    (one,), (recipe,) = trial_lines(1, named, Sampler("sites"), ALL), trial_lines(1, faults, how, ordinals)
    trials = read(written(header, one, recipe, one))
    assert list(trials) == [1]
    assert len(trials[1]) == 1202
    assert trials[1][0].site == trials[1][-1].site == named[0].site
    assert [f.site for f in trials[1][1:-1]] == [f.site for f in over_all(faults, ordinals)]


def test_lists_of_one_fault_model_act_at_once(written: Written) -> None:
    _, faults, ordinals = drawn(Flip(), Sampler("count", n=50))
    again = read(written(Header(DIGEST), *trial_lines(1, faults, Sampler("sites"), ordinals)))[1]
    assert again.models == (Flip(),)


def test_a_bool_of_another_byte_comes_back(written: Written) -> None:
    # A file may hold a bool as any byte that is not 0; undoing must give that byte again.
    bools = (Target("b", WORDS["bool"], (2,)),)
    known, _ = apply_faults(faults_at_named_sites(["b[1]:0"], bools, Flip(), Selector()), np.array([0x80], np.uint64))
    again = read(written(Header(DIGEST), *trial_lines(1, known, Sampler("sites"), [0])), bools)[1]
    assert again.before is not None
    assert again.before.tolist() == [0x80]


# ------------------------------------------------------------------------------------------------ streams


def test_trials_are_a_stream(written: Written) -> None:
    (line,) = trial_lines(1, drawn(Flip(), Sampler("count", n=1))[1], Sampler("sites"), ALL)
    rows = [line.replace('"trial": 1', f'"trial": {k}') for k in range(1, 5001)]
    listed = FaultList.open(written(Header(DIGEST), *rows, "garbage"))
    trials = listed.trials(NET)
    tracemalloc.start()
    try:
        for number in range(1, 5000):
            trial, faults = next(trials)
            assert (trial, len(faults)) == (number, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 300e3, "a megabyte of lines is not held"
    with pytest.raises(FaultListError, match="line 5002 is not a line of a fault list"):
        list(trials)


def test_a_list_can_be_read_again_and_by_another_path(written: Written) -> None:
    path = written(*example())
    listed = FaultList.open(str(path))
    assert dict(listed.trials(NET)) == dict(listed.trials(list(NET))) == read(path)


def test_a_list_may_hold_no_trial(written: Written) -> None:
    assert read(written(Header(DIGEST))) == {}


# ------------------------------------------------------------------------------------------------ refused: whose it is


def test_a_list_is_bound_to_its_model(tmp_path: Path) -> None:
    listed = FaultList(tmp_path / "list.jsonl", Header(DIGEST, faulty=FAULTY))
    listed.check_model(DIGEST)
    listed.check_model(FAULTY, undo=True)
    other = "c" * 64
    with pytest.raises(FaultListError, match=f"list.jsonl belongs to the model {DIGEST}, this one is {other}$"):
        listed.check_model(other)
    with pytest.raises(FaultListError, match=f"belongs to the faulty model {FAULTY}, this one is {other}$"):
        listed.check_model(other, undo=True)
    with pytest.raises(
        FaultListError, match="this is the faulty model that the list made: --undo restores the original"
    ):
        listed.check_model(FAULTY)
    with pytest.raises(FaultListError, match="this is the original: leave --undo out"):
        listed.check_model(DIGEST, undo=True)
    with pytest.raises(FaultListError, match="was written without a faulty model, so there is nothing to undo"):
        FaultList(tmp_path / "list.jsonl", Header(DIGEST)).check_model(DIGEST, undo=True)


# ------------------------------------------------------------------------------------------------ refused: no list

NOT_ONE = "not a fault list|is not a line of a fault list"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"hello\n",
        b"{}\n",
        b"[]\n",
        b'"onnxfi-fault-list"\n',
        b"null\n",
        b'{"format": "another"}\n',
        b'{"format": "onnxfi-fault-list", "format": "onnxfi-fault-list", "version": 1}\n',
        b'{"format": "onnxfi-fault-list", "version": NaN}\n',
        b'{"format": "onnxfi-fault-list"',
        b"[" * 100_000,
        b"\x08\x0a\x12\x07pytorch\x1a\x052.0.1\x8a\xff\xfe" * 100,
        b"\x00" * 5000,
        "{}".encode("utf-16"),
        b"1" * 5000,
    ],
    ids=lambda content: repr(content[:24]),
)
def test_what_is_no_list_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_bytes(content)
    with pytest.raises(FaultListError, match=NOT_ONE) as caught:
        FaultList.open(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone", tmp_path / "nul\0"):
        with pytest.raises(FaultListError, match=r"no fault list .*; give a file that --save-faults or plan wrote"):
            FaultList.open(place)


def test_a_real_model_is_no_list() -> None:
    with pytest.raises(FaultListError, match="it is not text"):
        FaultList.open(Path(__file__).parents[2] / "models" / "fashion_cnn.onnx")


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5])
def test_another_version_is_refused(version: Any, written: Written) -> None:
    row = strict(Header(DIGEST).line()) | {"version": version}
    with pytest.raises(
        FaultListError, match=f"has version {version} of the fault list format, this onnxfi reads version 1"
    ):
        FaultList.open(written(json.dumps(row)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selector": None}, "the header is damaged"),
        ({"selector": {}}, "no 'include'"),
        (
            {"selector": {"include": "conv", "exclude": [], "op": [], "dtype": [], "bits": "", "elements": ""}},
            "are lists",
        ),
        ({"sampler": {"kind": "bre"}}, "unknown sampler 'bre'"),
        ({"sampler": {"kind": ["ber"]}}, "the header is damaged"),
        ({"sampler": {"kind": "ber", "rate": 2}}, "got 2.0; give a probability"),
        ({"sampler": {"kind": "ber", "rate": "nan"}}, "got nan; give a probability"),
        ({"sampler": {"kind": "count", "n": -1}}, "out of range"),
        ({"sampler": {"kind": "count", "n": "many"}}, "the header is damaged"),
        ({"fault": "filp"}, "unknown fault 'filp'; closest: 'flip'"),
        ({"fault": None}, "the header is damaged"),
        ({"seed": "x"}, "the header is damaged"),
        ({"seed": 1e400}, "the header is damaged"),
        ({"population": None}, "the header is damaged"),
    ],
)
def test_damaged_headers_are_refused(change: dict[str, Any], message: str, written: Written) -> None:
    row = json.dumps(strict(Header(DIGEST).line()) | change).replace("Infinity", "1e999")
    with pytest.raises(FaultListError, match=rf"faults\.jsonl: the header is damaged: .*|{message}") as caught:
        FaultList.open(written(row))
    assert message in str(caught.value)


@pytest.mark.parametrize("key", list(strict(Header(DIGEST).line())))
def test_a_header_has_all_its_keys(key: str, written: Written) -> None:
    row = strict(Header(DIGEST).line())
    del row[key]
    with pytest.raises(FaultListError):
        FaultList.open(written(json.dumps(row)))


# ------------------------------------------------------------------------------------------------ refused: bad lines


def good() -> dict[str, Any]:
    known, _ = apply_faults(
        faults_at_named_sites(["fc.weight[3]:1"], NET, Flip(), Selector()), np.array([0x5A], np.uint64)
    )
    return fault_row(1, known[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trial": 0}, "trial 0 is not a whole number from 1"),
        ({"trial": None}, "trial None is not a whole number from 1"),
        ({"trial": True}, "trial True is not a whole number"),
        ({"trial": 1.0}, "trial 1.0 is not a whole number"),
        ({"trial": "1"}, "trial '1' is not a whole number"),
        ({"target": "fc.wieght"}, "no 'fc.wieght' in this line or model; is it a list of another model, or of inputs"),
        ({"target": ["fc.weight"]}, "the line is damaged"),
        ({"index": 1280}, "'fc.weight' has no element 1280"),
        ({"index": -1}, "has no element -1"),
        ({"index": 1.0}, "has no element 1.0"),
        ({"index": True}, "has no element True"),
        ({"index": "3"}, "has no element 3"),
        ({"index": 10**30}, "has no element 1000"),
        ({"bits": None}, "flip changes no bits None of int8"),
        ({"bits": []}, "changes no bits"),
        ({"bits": [8]}, "flip changes no bits \\[8\\] of int8"),
        ({"bits": [-1]}, "changes no bits"),
        ({"bits": [1, 2]}, "flip changes no bits \\[1, 2\\] of int8"),
        ({"bits": [1.0]}, "the line is damaged"),
        ({"bits": 1}, "the line is damaged"),
        ({"bits": "1"}, "the line is damaged"),
        ({"fault": "zero"}, "zero changes no bits \\[1\\] of int8"),
        ({"fault": "burst:k=2"}, "burst:k=2 changes no bits"),
        ({"fault": "burst:k=999999999", "bits": [0, 1]}, "changes no bits"),
        ({"fault": "random-word", "bits": None}, "random-word has random parameters that were not drawn"),
        ({"fault": "noise", "bits": None}, "noise:sigma=0.1 has random parameters that were not drawn"),
        ({"fault": "filp"}, "unknown fault 'filp'"),
        ({"fault": None}, "the line is damaged"),
        ({"before": "0x1ff"}, "a word has more than the 8 bits of int8"),
        ({"after": "-0x1"}, "a word has more than the 8 bits of int8"),
        ({"after": "5z"}, "the line is damaged"),
        ({"before": 90}, "the line is damaged"),
        ({"sample": 1}, "a stored word has neither sample nor step"),
        ({"step": 0}, "a stored word has neither sample nor step"),
    ],
)
def test_damaged_lines_are_refused(change: dict[str, Any], message: str, written: Written) -> None:
    path = written(Header(DIGEST), json.dumps(good() | change))
    with pytest.raises(FaultListError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize("key", ["trial", "target", "index", "bits", "fault", "before", "after"])
def test_a_line_has_all_its_keys(key: str, written: Written) -> None:
    row = good()
    del row[key]
    with pytest.raises(FaultListError, match=f"no '{key}' in this line|trial None"):
        read(written(Header(DIGEST), json.dumps(row)))


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(good())[:-5],  # cut off
        json.dumps(good()).replace('"index": 3', '"index": 3, "index": 4'),  # a key given twice
        json.dumps(good()).replace("90", "NaN"),
        "",
        "[1]",
        "7",
        json.dumps(good()) + json.dumps(good()),
        "[" * 100_000,
    ],
    ids=lambda line: repr(line[-12:]),
)
def test_lines_that_are_no_json_object_are_refused(line: str, written: Written) -> None:
    path = written(Header(DIGEST), json.dumps(good()), line, json.dumps(good()))
    with pytest.raises(FaultListError, match=r"faults.jsonl, line 3 is not a line of a fault list"):
        read(path)


def test_another_header_in_the_middle_is_refused(written: Written) -> None:
    with pytest.raises(FaultListError, match="trial None is not a whole number from 1"):
        read(written(Header(DIGEST), json.dumps(good()), Header(DIGEST).line()))


def test_trials_ascend_and_their_lines_are_contiguous(written: Written) -> None:
    one, two = json.dumps(good()), json.dumps(good() | {"trial": 2})
    assert list(read(written(Header(DIGEST), one, one, two))) == [1, 2]
    with pytest.raises(
        FaultListError, match="trial 1 comes after trial 2; trials ascend, and the lines of each are contiguous"
    ):
        read(written(Header(DIGEST), one, two, one))


def test_text_that_ends_in_bytes_is_refused(written: Written) -> None:
    path = written(Header(DIGEST), json.dumps(good()))
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    with pytest.raises(FaultListError, match="it is not text"):
        read(path)


def test_endless_lines_are_refused(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faultlist, "LONGEST_LINE", 3 << 20)
    path = written(Header(DIGEST), "x" * (3 << 20))
    with pytest.raises(FaultListError, match="is not a fault list: a line is longer than 3 MB"):
        read(path)
    path.write_text("y" * (4 << 20))
    with pytest.raises(FaultListError, match="a line is longer than 3 MB"):
        FaultList.open(path)


# ------------------------------------------------------------------------------------------------ refused: bad recipes


def recipe(text: str = "zero", **change: Any) -> tuple[Header, str]:
    """The header and the recipe of 1,200 faults, changed."""
    how = Sampler("count", n=1200, seed=1)
    header, faults, ordinals = drawn(parse_fault(text), how)
    (line,) = trial_lines(1, faults, how, ordinals)
    return header, json.dumps(strict(line) | change)


def packed(words: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(words.astype("<u8").tobytes())).decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "does not give the faults that it states; it is from another tool or model"),
        ({"sha256": None}, "does not give the faults that it states"),
        ({"seed": 2}, "does not give the faults that it states"),
        ({"trial": 2}, "does not give the faults that it states"),
        ({"per": 1201}, "does not give the faults that it states"),
        ({"n": 1201}, "does not give the faults that it states"),
        ({"n": 0}, "does not give the faults that it states|does not give the 0 faults"),
        ({"per": 2600}, "--count 2600 is out of range"),
        ({"per": 20_000_001, "n": 10**9}, "more than 20,000,000"),
        ({"per": 10**9}, "does not give the 1200 faults that it states"),
        ({"per": -1}, "out of range"),
        ({"sampler": "exhaustive"}, "does not give the faults that it states"),
        ({"sampler": "sites"}, "unknown sampler 'sites'"),
        ({"sampler": "bre"}, "unknown sampler 'bre'"),
        ({"sampler": ["ber"]}, "unknown sampler"),
        ({"sampler": "ber", "rate": 2}, "got 2.0; give a probability"),
        ({"sampler": "ber", "rate": "NaN"}, "got nan; give a probability"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"seed": 2**64}, "out of range"),
        ({"seed": None}, "the recipe is damaged"),
        ({"trial": 2**64}, "the recipe is damaged"),
        ({"n": math.inf}, "the recipe is damaged"),
        ({"before": 5}, "the recipe is damaged"),
        ({"before": "five"}, "the recipe is damaged"),
        ({"before": "ø"}, "the recipe is damaged"),
        ({"before": base64.b64encode(b"no zlib").decode()}, "the recipe is damaged"),
        ({"before": packed(np.zeros(1199))}, "does not hold the words of its 1200 faults"),
        ({"before": packed(np.zeros(1201))}, "does not hold the words of its 1200 faults"),
        ({"before": packed(np.zeros(0))}, "does not hold the words of its 1200 faults"),
        ({"before": packed(np.full(1200, 1 << 32))}, "a word before has more bits than the words of its target"),
    ],
)
def test_tampered_recipes_are_refused(change: dict[str, Any], message: str, written: Written) -> None:
    header, line = recipe(**change)
    path = written(header, line.replace("Infinity", "1e999"))
    with pytest.raises(FaultListError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["trial", "seed", "n", "sha256"])
def test_a_recipe_has_all_its_keys(key: str, written: Written) -> None:
    header, line = recipe()
    row = strict(line)
    del row[key]
    with pytest.raises(FaultListError, match=f"no '{key}'|trial None"):
        read(written(header, json.dumps(row)))


def test_a_recipe_of_another_selection_or_model_is_refused(written: Written) -> None:
    header, line = recipe()
    for other in (Selector(dtype=("int8",)), Selector(exclude=("bias",)), Selector(include=("gone",))):
        with pytest.raises(FaultListError, match=r"does not give the faults|the recipe is damaged: "):
            read(written(dataclasses.replace(header, selector=other), line))
    with pytest.raises(FaultListError, match="does not give the faults"):
        read(written(header, line), [NET[1], NET[0], *NET[2:]])
    with pytest.raises(FaultListError, match="line 2: the recipe is damaged: the model has no tensor"):
        read(written(header, line), [])


def test_words_before_are_held_to_each_targets_own_width(written: Written) -> None:
    header, line = recipe()
    faults = read(written(header, line))[1]
    assert faults.before is not None
    words = faults.before.copy()
    row = int(np.flatnonzero(faults.sites.target == 3)[0])
    words[row] = 0x100  # fits in float32 and float16, not in int8
    with pytest.raises(FaultListError, match="a word before has more bits"):
        read(written(header, json.dumps(strict(line) | {"before": packed(words)})))


def test_a_zlib_bomb_is_not_blown_up(written: Written) -> None:
    pressed = zlib.compressobj(9)
    bomb = b"".join(pressed.compress(bytes(1 << 20)) for _ in range(128)) + pressed.flush()
    header, line = recipe(before=base64.b64encode(bomb).decode())
    path = written(header, line)
    tracemalloc.start()
    try:
        with pytest.raises(FaultListError, match="does not hold the words of its 1200 faults"):
            read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6, "128 MB in 130 kB stay packed"


def test_a_space_of_the_header_is_the_space_of_the_model() -> None:
    header, faults, ordinals = drawn(Flip(), Sampler("count", n=3, seed=7), Selector(bits="exponent"))
    assert header.population == FaultSpace.over([NET[k] for k in ordinals], Flip(), bits="exponent").size
    assert len(faults) == 3


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_whatever_is_changed_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """No change of a list's bytes ends in anything but a list or the one error that says what is wrong."""
    content = PINNED.read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = min(len(content), start + data.draw(st.sampled_from([0, 1, 1, 1, 5, 10**6])))
        new = data.draw(
            st.sampled_from(
                [b"", b"0", b"9", b"-1", b"1e999", b"null", b"[]", b"{", b'"', b",", b"\n", b"\xff", b"true"]
            )
        )
        content = content[:start] + new + content[end:]
    path = tmp_path / "changed.jsonl"
    path.write_bytes(content)
    try:
        trials = read(path)
    except FaultListError as refusal:
        assert str(path) in str(refusal)
        return
    assert all(isinstance(fault, Fault) for faults in trials.values() for fault in faults[:5])


@given(st.sampled_from(sorted(WORDS)), st.sampled_from(["flip", "stuck-at-1", "burst:k=3", "zero"]), U64)
def test_trials_of_one_fault_are_written_and_read_together(dtype: str, text: str, seed: int) -> None:
    word, event = WORDS[dtype], parse_fault(text)
    if event.unit == "bit" and word.bits < event.width():
        return
    several = tuple(Target(name, word, (40,)) for name in ("a", "b"))
    faults = draw_faults(Selector().space(several, event), Sampler("count", n=9, seed=seed), event)
    stored = np.random.default_rng(seed).integers(0, 1 << min(word.bits, 63), len(faults), np.uint64)
    plain, trials = dataclasses.replace(apply_faults(faults, stored)[0], real_values=None), range(5, 5 + len(faults))
    real = np.random.default_rng(seed).normal(size=(2, len(faults))).astype(np.float32)
    real[:, ::2] = np.nan
    for placed in (dataclasses.replace(plain, real_values=real), plain):
        lines = [*single_lines(trials, placed)]
        alone = [placed.pick(slice(n, n + 1)) for n in range(len(placed))]
        assert lines == [
            "\n".join(trial_lines(trial, one, Sampler("sites"), ())) for trial, one in zip(trials, alone, strict=True)
        ]
    header = Header("0" * 64, text, Selector(), Sampler("count", n=1))
    found = LineReader(header, several, "a list").singles([*lines, '{"trial": 99, "sampler": "count"}'])
    assert found[-1] is None and found[:-1] == alone
