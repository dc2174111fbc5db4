"""Faults as values, draws as pure functions, and several faults on one word against a plain loop."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import U64, formats, models, targets, words_of
from word_oracle import decode, faulty

from onnxfi.errors import InputError, SelectorError
from onnxfi.faults import sampling, trials
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.models import Burst, Flip, SetWord, Zero
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.space import FaultSpace, Selector, Site, Sites, Target
from onnxfi.faults.trials import (
    SAMPLERS,
    Fault,
    Faults,
    Sampler,
    apply_faults,
    apply_separately,
    concatenate_faults,
    draw_faults,
    fault_model,
    faults_at_named_sites,
    json_value,
)
from onnxfi.faults.words import WORDS, Word

NET = (
    Target("w", WORDS["float32"], (4, 3), layer="conv"),
    Target("q", WORDS["int4"], (5,), layer="fc"),
    Target("c", WORDS["complex64"], (2,), layer="fc"),
    Target("shape", WORDS["int64"], (2,), structural=True),
)

Row = tuple[int, int, FaultModel, int]


def faults_of(rows: Sequence[Row], among: tuple[Target, ...]) -> Faults:
    """Faults from rows of (target, element, model, bit)."""
    columns = [np.array([row[k] for row in rows], dtype) for k, dtype in ((0, np.int64), (1, np.int64), (3, np.int16))]
    return Faults(among, Sites(*columns), tuple(row[2] for row in rows) if rows else (Flip(),))


@st.composite
def rows(draw: st.DrawFn, among: tuple[Target, ...], most: int = 12) -> list[Row]:
    """Faults of any kinds that these targets can have, few places, so that several hit one word."""
    drawn: list[Row] = []
    for _ in range(draw(st.integers(0, most))):
        ordinal = draw(st.integers(0, len(among) - 1))
        word = among[ordinal].word
        model = draw(models).draw_parameters(draw(U64), word)
        top = word.bits - model.width()
        if among[ordinal].size and top >= 0 and faulty(model, word, 0, 0) is not None:
            bit = draw(st.integers(0, top)) if model.unit == "bit" else -1
            drawn.append((ordinal, draw(st.integers(0, min(2, among[ordinal].size - 1))), model, bit))
    return drawn


@st.composite
def stored(draw: st.DrawFn, among: tuple[Target, ...]) -> list[list[int]]:
    """The words of each target."""
    return [draw(st.lists(words_of(t.word), min_size=t.size, max_size=t.size)) for t in among]


# ------------------------------------------------------------------------------------------------ one fault


@given(formats, st.data())
def test_values_are_the_numbers_of_the_words(word: Word, data: st.DataObject) -> None:
    before, after = data.draw(words_of(word)), data.draw(words_of(word))
    fault = Fault("w", 3, (0,), "flip", word, before, after)
    for when, bits in (("before", before), ("after", after)):
        value = fault.value(when)
        assert type(value) is (bool if word.name == "bool" else float if word.is_float else int)
        if math.isnan(decode(word, bits)):
            assert math.isnan(value)
        else:
            # The shortest decimal of the format itself: not the same float64, but the same word again.
            assert word.words(np.array([value], object if word.bits == 64 else None)).tolist() == [bits]
        json.dumps(json_value(value), allow_nan=False)
    assert fault.changed == (before != after)


def test_a_fault_is_a_value() -> None:
    fault = Fault("w", 3, (30,), "flip", WORDS["float32"], 0x3F800000, 0x7F800000)
    assert fault == dataclasses.replace(fault)
    assert len({fault, dataclasses.replace(fault), dataclasses.replace(fault, index=4)}) == 2
    assert fault.site == Site("w", 3, 30)
    assert dataclasses.replace(fault, bits=None).site == Site("w", 3)
    assert dataclasses.replace(fault, sample=2, step=1).site == Site("w", 3, 30, 2, 1)
    assert (fault.value("before"), fault.value("after")) == (1.0, math.inf)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fault.index = 4  # type: ignore[misc]


def test_words_are_none_until_they_are_known() -> None:
    fault = Fault("w", 3, (30,), "flip", WORDS["float32"])
    assert fault.value("before") is None
    assert fault.value("after") is None
    assert not fault.changed


def test_values_are_short_in_their_own_format() -> None:
    assert Fault("w", 0, None, "zero", WORDS["float32"], 0x3DCCCCCD).value("before") == 0.1
    assert Fault("w", 0, None, "zero", WORDS["float16"], 0x2E66).value("before") == 0.1
    assert Fault("w", 0, None, "zero", WORDS["uint64"], 2**64 - 1).value("before") == 2**64 - 1


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity"), (-0.0, -0.0), (2**64, 2**64), (True, True)],
)
def test_numbers_in_strict_json(value: float, wanted: object) -> None:
    assert repr(json_value(value)) == repr(wanted)
    assert json_value(None) is None


# ------------------------------------------------------------------------------------------------ many faults


@given(st.data())
def test_faults_are_a_sequence(data: st.DataObject) -> None:
    chosen = data.draw(rows(NET))
    faults = faults_of(chosen, NET)
    plain = [
        Fault(NET[t].id, i, None if b < 0 else tuple(range(b, b + m.width())), str(m), NET[t].word)
        for t, i, m, b in chosen
    ]
    assert list(faults) == plain
    assert len(faults) == len(plain)
    assert [faults[k - len(plain)] for k in range(len(plain))] == plain
    cut = slice(
        *(data.draw(st.none() | st.integers(-8, 8)) for _ in range(2)), data.draw(st.sampled_from([None, 2, -1]))
    )
    assert list(faults[cut]) == plain[cut]
    picked = data.draw(st.lists(st.integers(0, len(plain) - 1), max_size=5)) if plain else []
    assert list(faults.pick(np.array(picked, np.int64))) == [plain[k] for k in picked]
    assert list(faults.pick(slice(1, 3))) == plain[1:3]
    mask = [k % 3 != 1 for k in range(len(plain))]
    assert list(faults.pick(np.array(mask, bool))) == [fault for fault, keep in zip(plain, mask, strict=True) if keep]
    assert (plain[0] in faults) if plain else (faults_of([], NET) == faults)
    with pytest.raises(IndexError):
        faults[len(plain)]


@given(st.data())
def test_equal_faults_are_equal(data: st.DataObject) -> None:
    chosen = data.draw(rows(NET))
    one, other = faults_of(chosen, NET), faults_of(chosen, NET)
    assert one == other
    assert hash(one) == hash(other)
    assert one != faults_of([*chosen, (0, 0, Flip(), 3)], NET)
    assert one != list(one)
    known, _ = apply_faults(one, np.zeros(len(one), np.uint64))
    assert (known == one) == (len(one) == 0)


@given(st.data())
def test_several_rows_are_one(data: st.DataObject) -> None:
    parts = [faults_of(data.draw(rows(NET, most=4)), NET) for _ in range(data.draw(st.integers(1, 4)))]
    parts = [apply_faults(p, np.zeros(len(p), np.uint64))[0] for p in parts]
    together = concatenate_faults(parts)
    assert list(together) == [fault for part in parts for fault in part]
    if len(parts) > 1:
        unknown = dataclasses.replace(parts[0], before=None, after=None)
        assert concatenate_faults([unknown, *parts[1:]]).before is None


def test_one_model_for_all_rows_stays_one() -> None:
    flips = [draw_faults(FaultSpace.over(NET, Flip()), Sampler("count", n=3, seed=s), Flip()) for s in range(3)]
    assert concatenate_faults(flips).models == (Flip(),)
    assert list(concatenate_faults(flips)) == [fault for part in flips for fault in part]


# ------------------------------------------------------------------------------------------------ before and after


@given(targets(), st.data())
def test_several_faults_on_one_word_act_in_order(among: tuple[Target, ...], data: st.DataObject) -> None:
    chosen, memory = data.draw(rows(among)), data.draw(stored(among))
    given_ = np.array([memory[t][i] for t, i, _, _ in chosen], np.uint64)
    before, after = [], []
    for t, i, model, bit in chosen:  # one after the other, as in memory
        before.append(memory[t][i])
        new = faulty(model, among[t].word, memory[t][i], bit)
        assert new is not None
        memory[t][i] = new
        after.append(new)
    known, final = apply_faults(faults_of(chosen, among), given_)
    assert known.before is not None
    assert known.after is not None
    assert known.before.tolist() == before
    assert known.after.tolist() == after
    assert final.tolist() == [memory[t][i] for t, i, _, _ in chosen]
    assert sum(f.changed for f in known) == sum(a != b for a, b in zip(after, before, strict=True))


@given(st.data())
def test_faults_apart_do_not_see_each_other(data: st.DataObject) -> None:
    chosen, memory = data.draw(rows(NET)), data.draw(stored(NET))
    given_ = np.array([memory[t][i] for t, i, _, _ in chosen], np.uint64)
    known = apply_separately(faults_of(chosen, NET), given_)
    assert known.after is not None
    assert known.after.tolist() == [faulty(m, NET[t].word, memory[t][i], b) for t, i, m, b in chosen]


def test_one_model_on_several_formats() -> None:
    space = FaultSpace.over(NET[:3], Flip(), bits="sign")
    faults = draw_faults(space, Sampler("exhaustive"), Flip())
    known, final = apply_faults(faults, np.arange(len(faults), dtype=np.uint64) % np.uint64(8))
    wanted = [k % 8 ^ 1 << (f.word.bits - 1) for k, f in enumerate(faults)]
    assert final.tolist() == wanted
    assert [f.after for f in known] == wanted


def test_no_faults_resolve_to_none() -> None:
    for model in (Flip(), parse_fault("random-word")):
        none = draw_faults(FaultSpace.over(NET[:1], model), Sampler("count", n=0), model)
        known, final = apply_faults(none, np.zeros(0, np.uint64))
        assert (len(known), len(final)) == (0, 0)


def test_a_stuck_at_that_meets_its_own_value_is_kept() -> None:
    faults = faults_at_named_sites(["w[0]:3", "w[1]:3"], NET, parse_fault("stuck-at-0"), Selector())
    known, _ = apply_faults(faults, np.array([0b0101, 0b1101], np.uint64))
    assert [f.changed for f in known] == [False, True]


# ------------------------------------------------------------------------------------------------ draws


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ber", "count", "per-tensor", "exhaustive"])
@given(seed=U64, trial=st.integers(1, 10**9))
def test_a_draw_is_a_pure_function(kind: str, seed: int, trial: int) -> None:
    space = FaultSpace.over(NET[:3], Flip())
    how = Sampler(kind, rate=0.01, n=5, seed=seed)
    drawn = draw_faults(space, how, Flip(), trial)
    assert drawn == draw_faults(space, how, Flip(), trial)
    wanted = {
        "ber": lambda: sampling.ber(space.size, 0.01, seed, trial),
        "count": lambda: sampling.count(space.size, 5, seed, trial),
        "per-tensor": lambda: sampling.per_tensor(space.sizes, 5, seed, trial),
        "exhaustive": lambda: sampling.exhaustive(space.size),
    }[kind]()
    assert [fault.site for fault in drawn] == [space[int(number)] for number in wanted]


def test_trials_seeds_and_parts_draw_differently() -> None:
    space, word = FaultSpace.over(NET[:1], Zero()), parse_fault("random-word")
    space = FaultSpace.over([Target("w", WORDS["float32"], (10**6,))], Zero())
    draws = [
        draw_faults(space, Sampler("count", n=20, seed=s), word, t, part=p)
        for s, t, p in ((0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1))
    ]
    assert len({fault.site for drawn in draws for fault in drawn}) == 80
    assert len({fault.fault for drawn in draws for fault in drawn}) == 80


def test_each_word_spends_its_own_chance() -> None:
    space = FaultSpace.over(NET[:2], Zero())
    drawn = draw_faults(space, Sampler("exhaustive", seed=9), parse_fault("random-word"), trial=4)
    raw = sampling.raw_words(9, 4, sampling.VALUE, 17).tolist()
    assert drawn.models == tuple(SetWord(r & f.word.full) for r, f in zip(raw, drawn, strict=True))
    assert str(drawn[0].fault).startswith("set-word:word=0x")


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        (Sampler("ber", rate=0.25), 101.0),
        (Sampler("count", n=7), 7.0),
        (Sampler("per-tensor", n=2), 4.0),
        (Sampler("exhaustive"), 404.0),
        (Sampler("sites", n=3), 3.0),
    ],
)
def test_what_a_draw_is_expected_to_give(how: Sampler, wanted: float) -> None:
    assert how.expected_count(FaultSpace.over(NET[:2], Flip())) == wanted


@pytest.mark.parametrize("rate", [math.nan, -1e-9, 1.5, math.inf])
def test_rates_are_checked_when_they_are_given(rate: float) -> None:
    with pytest.raises(InputError, match="rate must be in"):
        Sampler("ber", rate=rate)


def test_draws_that_cannot_be() -> None:
    with pytest.raises(InputError, match="--count -1 is out of range; give a whole number from 0"):
        Sampler("count", n=-1)
    with pytest.raises(InputError, match="unknown sampler 'bre'; closest: 'ber'"):
        Sampler("bre", rate=0.5)
    with pytest.raises(InputError, match="--count 405 is out of range: the selection has 404 sites"):
        draw_faults(FaultSpace.over(NET[:2], Flip()), Sampler("count", n=405), Flip())
    assert SAMPLERS == ("ber", "count", "per-tensor", "exhaustive", "per-sample", "voltage", "temperature", "sites")


@pytest.mark.parametrize("how", [Sampler("ber", rate=0.01), Sampler("count", n=20_000_001), Sampler("exhaustive")])
def test_more_faults_than_memory_holds_are_refused(how: Sampler) -> None:
    space = FaultSpace.over([Target("w", WORDS["float32"], (10**10,))], Flip())
    with pytest.raises(
        InputError, match=r"faults in one trial are expected, more than 20,000,000; lower the rate or count"
    ):
        draw_faults(space, how, Flip())


# ------------------------------------------------------------------------------------------------ named sites


def test_named_sites_have_faults_in_the_order_of_their_names() -> None:
    faults = faults_at_named_sites(["q[4]:0", "w[1,2]:31", "c[1,0]:5"], NET, Flip(), Selector())
    assert [fault.site for fault in faults] == [Site("q", 4, 0), Site("w", 5, 31), Site("c", 2, 5)]
    assert faults.models == (Flip(),)
    assert [f.bits for f in faults_at_named_sites(["w[0]:5"], NET, Burst(3), Selector())] == [(5, 6, 7)]
    assert faults_at_named_sites(["shape[0]:1"], NET, Flip(), Selector())[0].site == Site("shape", 0, 1)
    assert len(faults_at_named_sites([], NET, Flip(), Selector())) == 0


def test_named_sites_spend_chance_of_their_seed() -> None:
    word = parse_fault("random-word")
    one, other = (faults_at_named_sites(["w[0]", "q[1]"], NET, word, Selector(), seed) for seed in (1, 2))
    assert one == faults_at_named_sites(["w[0]", "q[1]"], NET, word, Selector(), 1)
    assert [f.fault for f in one] != [f.fault for f in other]


@pytest.mark.parametrize(
    ("sites", "fault", "options", "message"),
    [
        (["w[0]"], "flip", {}, r"site 'w\[0\]' needs a bit for flip, as w\[0\]:31"),
        (["w[0]:1"], "zero", {}, r"site 'w\[0\]:1' names a bit, but zero changes whole words; leave the bit out"),
        (["w[0]:30"], "burst:k=3", {}, r"burst:k=3 at 'w\[0\]:30' reaches beyond the 32 bits of float32"),
        (["q[0]:0"], "burst:k=5", {}, r"burst:k=5 at 'q\[0\]:0' reaches beyond the 4 bits of int4"),
        (["w[0]@sample=1:3"], "flip", {}, r"a stored word has neither sample nor step; leave them out"),
        (["w[0]:1", "w[0,0]:1"], "flip", {}, r"site 'w\[0\]:1' is named twice"),
        (["v[0]:1"], "flip", {}, r"no target 'v' in this model"),
        (["w[0]:1"], "flip", {"exclude": ("w",)}, r"site 'w\[0\]:1' is left out by the other selectors"),
        (["w[0]:1"], "flip", {"dtype": ("int4",)}, r"is left out by the other selectors"),
        (["w[0]:1"], "flip", {"op": ("Conv",)}, r"is left out by the other selectors"),
        (["w[0]:1"], "flip", {"bits": "exponent"}, r"site 'w\[0\]:1' is left out by the other selectors"),
        (["w[0,0]:1"], "flip", {"elements": ":,1:"}, r"site 'w\[0\]:1' is left out by the other selectors"),
    ],
)
def test_sites_that_cannot_have_a_fault(sites: list[str], fault: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(SelectorError, match=message):
        faults_at_named_sites(sites, NET, parse_fault(fault), Selector(**options))  # type: ignore[arg-type]


def test_other_options_narrow_named_sites_and_include_does_not() -> None:
    selector = Selector(include=("q",), bits="23-30", elements=":,1:", dtype=("float32",))
    assert [f.site for f in faults_at_named_sites(["w[1]:23"], NET, Flip(), selector)] == [Site("w", 1, 23)]


def test_many_sites_are_named_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    equal = Site.__eq__

    def counted(self: Site, other: object) -> bool:
        nonlocal compared
        compared += 1
        return equal(self, other)

    monkeypatch.setattr(Site, "__eq__", counted)
    wide = [Target("w", WORDS["float32"], (2000,))]
    assert len(faults_at_named_sites([f"w[{k}]:0" for k in range(2000)], wide, Flip(), Selector())) == 2000
    assert compared < 4000


def test_a_model_may_be_its_text() -> None:
    assert fault_model("burst:k=3") == fault_model(Burst(3)) == Burst(3)


def test_twenty_million_is_the_documented_limit() -> None:
    assert trials.MOST_FAULTS == 20_000_000
