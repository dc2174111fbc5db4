"""Spaces against a plain list of their sites, and selectors by example."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import bit_selections, element_selections, targets

from onnxfi.errors import SelectorError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.models import Burst, Flip, StuckAt0, Zero
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.space import FaultSpace, NamePattern, Selector, Site, Target
from onnxfi.faults.trials import faults_at_named_sites
from onnxfi.faults.words import FIELDS, WORDS

Case = tuple[tuple[Target, ...], FaultModel, str, str]
MODELS = st.sampled_from([Flip(), StuckAt0(), Zero()]) | st.integers(1, 5).map(Burst)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Targets, a model, and selections of bits and elements that fit them all."""
    chosen, model = draw(targets()), draw(MODELS)
    bits = "" if model.unit == "word" else draw(bit_selections(min(t.word.bits for t in chosen)))
    axes = [t.axes or (1,) for t in chosen]
    smallest = tuple(min(column) for column in zip(*axes, strict=False))
    return chosen, model, bits, draw(st.just("") | element_selections(smallest))


def listed(case: Case) -> list[Site]:
    """Every site in order, written out: targets, then elements, then bits."""
    chosen, model, bits, elements = case
    sites = []
    for target in chosen:
        numbers = np.arange(np.prod(target.axes, dtype=int)).reshape(target.axes or (1,))
        kept = numbers[eval(f"np.s_[{elements}]")] if elements else numbers
        places: list[Any] = [None]
        if model.unit == "bit":
            wanted = set(range(target.word.bits)) if not bits else set()
            for part in filter(None, bits.split(",")):
                ends = part.split("-")
                wanted |= (
                    set(target.word.field(part)) if part in FIELDS else set(range(int(ends[0]), int(ends[-1]) + 1))
                )
            places = [b for b in sorted(wanted) if b + model.width() <= target.word.bits]
        sites += [Site(target.id, int(e), b) for e in kept.ravel() for b in places]
    return sites


def space_of(case: Case) -> FaultSpace:
    return FaultSpace.over(case[0], case[1], bits=case[2], elements=case[3])


# ------------------------------------------------------------------------------------------------ the space


@given(cases())
def test_a_space_is_the_list_of_its_sites(case: Case) -> None:
    wanted, space = listed(case), space_of(case)
    assert len(space) == space.size == sum(space.sizes) == len(wanted)
    assert [space[i] for i in range(len(space))] == wanted
    assert [space[i - len(space)] for i in range(len(space))] == wanted
    assert space.unit == case[1].unit
    assert all(len(str(site)) for site in wanted)


@given(cases(), st.data())
def test_many_sites_are_located_at_once_in_any_order(case: Case, data: st.DataObject) -> None:
    wanted, space = listed(case), space_of(case)
    if not wanted:
        return
    picked = data.draw(st.lists(st.integers(0, len(wanted) - 1), max_size=30))
    sites = space.locate(np.array(picked, np.uint64))
    found = [
        Site(space.targets[t].id, i, None if b < 0 else b)
        for t, i, b in zip(sites.target.tolist(), sites.index.tolist(), sites.bit.tolist(), strict=True)
    ]
    assert found == [wanted[k] for k in picked]
    assert len(sites) == len(picked)


@given(cases(), st.data())
def test_membership_is_membership_in_the_list(case: Case, data: st.DataObject) -> None:
    wanted, space = listed(case), space_of(case)
    assert all(site in space for site in wanted[:50])
    target = data.draw(st.sampled_from(case[0]))
    bit = data.draw(st.none() | st.integers(0, target.word.bits))
    site = Site(target.id, data.draw(st.integers(-1, 70)), bit)
    assert (site in space) == (site in wanted)
    assert "w[0]:1" not in space


@given(cases())
def test_populations_count_words_and_bits(case: Case) -> None:
    space = space_of(case)
    words = {(site.target, site.index) for site in listed(case)}
    by_id = {t.id: t for t in case[0]}
    assert sum(space.element_counts) == len(words)
    assert space.bits == sum(by_id[name].word.bits for name, _ in words)


@given(cases(), st.data())
def test_a_part_is_a_space_of_one_layer_and_bit(case: Case, data: st.DataObject) -> None:
    space = space_of(case)
    layer = data.draw(st.none() | st.sampled_from([t.layer for t in case[0]]))
    bit = data.draw(st.none() | st.integers(0, 33)) if case[1].unit == "bit" else None
    layers = {t.id: t.layer for t in case[0]}
    part = space.subspace(layer, bit)
    wanted = [s for s in listed(case) if layer in (None, layers[s.target]) and bit in (None, s.bit)]
    assert [part[i] for i in range(len(part))] == wanted


def test_a_space_beyond_any_list() -> None:
    huge = [Target("a", WORDS["float32"], (1 << 30, 7)), Target("b", WORDS["float16"], (3,))]
    space = FaultSpace.over(huge, Flip())
    assert len(space) == 7 * 2**35 + 48
    assert space[len(space) - 49] == Site("a", 7 * 2**30 - 1, 31)
    assert space[-48] == Site("b", 0, 0)
    assert Site("a", 5 * 2**30, 3) in space


def test_a_population_beyond_a_machine_word_is_known() -> None:
    space = Selector().space([Target("a", WORDS["float32"], (1 << 40, 1 << 30))])
    assert space.size == 2**75


@pytest.mark.parametrize("number", [48, -49, 10**30])
def test_a_site_beyond_the_space_is_an_index_error(number: int) -> None:
    space = FaultSpace.over([Target("b", WORDS["float16"], (3,))], Flip())
    with pytest.raises(IndexError, match="of a space of 48"):
        space[number]


def test_a_burst_leaves_room_for_itself() -> None:
    space = FaultSpace.over([Target("w", WORDS["uint8"], ()), Target("n", WORDS["int2"], (5,))], Burst(3))
    assert [s.bit for s in (space[i] for i in range(len(space)))] == [0, 1, 2, 3, 4, 5]
    assert [t.id for t in space.targets] == ["w"]


def test_elements_may_run_backwards() -> None:
    space = FaultSpace.over([Target("w", WORDS["uint8"], (4,))], Zero(), elements="::-2")
    assert [space[i].index for i in range(len(space))] == [3, 1]


# ------------------------------------------------------------------------------------------------ what is refused

PAIR = [Target("w", WORDS["float32"], (4, 3)), Target("b", WORDS["float16"], (4,))]


def test_positions_leave_formats_out_that_do_not_hold_them() -> None:
    mixed = [Target("w", WORDS["float32"], (2,)), Target("q", WORDS["int8"], (3,)), Target("h", WORDS["float16"], (4,))]
    for bits, wanted in (("30", {"w": 2}), ("7", {"w": 2, "q": 3, "h": 4}), ("0-9,7", {"w": 20, "q": 3, "h": 40})):
        space = Selector(bits=bits).space(mixed)
        assert dict(zip([t.id for t in space.targets], space.sizes, strict=True)) == wanted


def test_flips_are_not_drawn_where_a_word_stands_for_what_is_computed() -> None:
    words = [
        Target("lif/threshold", WORDS["float32"], (2,), role="threshold"),
        Target("lif/spike", WORDS["float32"], (2,), role="spike"),
    ]
    assert [t.id for t in Selector().space(words, parse_fault("flip")).targets] == ["lif/threshold"]
    for fault in ("dead", "saturated", "set:value=1", "random-word"):
        assert len(Selector(role=("spike",)).space(words, parse_fault(fault))) == 2
    for fault in ("flip", "stuck-at-1", "scale:factor=2", "noise:sigma=0.1"):
        with pytest.raises(SelectorError, match=r"'lif/spike' holds forced outputs of neurons .* use dead"):
            Selector(role=("spike",)).space(words, parse_fault(fault))
    with pytest.raises(SelectorError, match="'lif/spike' holds forced outputs of neurons"):
        faults_at_named_sites(["lif/spike[0]:30"], words, parse_fault("flip"), Selector())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elements": "0,0"}, r"--elements '0,0' has 2 axes, 'b' has 1; narrow the targets with --include"),
        ({"elements": "9"}, r"--elements '9': 9 is beyond 'w', axis length 4"),
        ({"elements": "-5"}, r"-5 is beyond 'w', axis length 4"),
        ({"elements": "a:b"}, r"'a:b' is not a slice of Python, such as 0:8 or ::2"),
        ({"elements": "1:2:3:4"}, r"'1:2:3:4' is not a slice of Python"),
        ({"elements": "::0"}, r"'::0' is not a slice of Python"),
        ({"elements": "9" * 5000}, r"is not a slice of Python"),
        ({"elements": "1.5"}, r"'1.5' is not a slice of Python"),
        ({"bits": "32"}, r"bit 32 is beyond float32, whose bits are 0 to 31"),
        ({"bits": "top"}, r"bits 'top' are neither"),
        (
            {"include": ("=w",), "elements": "4:"},
            r"--elements '4:' leaves no element of 'w', whose shape is \[.*\]; give",
        ),
        ({"include": ("nothing",)}, r"--include 'nothing' matches nothing in this model; known: 'w', 'b'"),
        ({"include": ("re:(",)}, r"'re:\(' is no regular expression: "),
        ({"op": ("Conv",)}, r"--op 'Conv' matches nothing in this model$"),
        ({"dtype": ("int8",)}, r"--dtype 'int8' matches nothing in this model; known: 'float32', 'float16'"),
        ({"dtype": ("float",)}, r"unknown number format 'float'; closest: '[b]?float"),
        ({"exclude": ("w", "b")}, r"no tensor matches all selectors together"),
        ({"exclude": ("",)}, r"an empty selector matches everything; leave it out"),
        ({"include": ("w", "")}, r"an empty selector matches everything; leave it out"),
        ({"include": ("w",), "dtype": ("float16",)}, r"though each matches some"),
    ],
)
def test_selections_that_leave_nothing_say_why(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectorError, match=message):
        Selector(**options).space(PAIR)


def test_the_closest_name_is_named() -> None:
    weights = [Target(f"layer{i}.conv.weight", WORDS["float32"], (1,), op="Conv") for i in range(20)]
    with pytest.raises(SelectorError, match=r"--include 'layer3.conv.wieght' .*; closest: 'layer3.conv.weight'"):
        Selector(include=("layer3.conv.wieght",)).space(weights)
    with pytest.raises(SelectorError, match=r"--op 'Convv' matches nothing in this model; closest: 'Conv'"):
        Selector(op=("Convv",)).space(weights)
    with pytest.raises(SelectorError, match=r"--include '=layer9.conv' .*; closest: 'layer9.conv.weight'"):
        Selector(include=("=layer9.conv",)).space(weights)


def test_a_format_is_no_substring() -> None:
    # "int8" is in "uint8" as text; the message must not say that it matches something.
    with pytest.raises(SelectorError, match="--dtype 'int8' matches nothing in this model; closest: 'uint8'"):
        Selector(dtype=("int8",)).space([Target("w", WORDS["uint8"], (3,))])


def test_a_model_without_tensors() -> None:
    with pytest.raises(SelectorError, match="the model has no tensor that faults can be injected into"):
        Selector().space([])


def test_words_are_not_narrowed_by_bits() -> None:
    with pytest.raises(SelectorError, match="--bits has no effect on zero, which changes whole words; leave it out"):
        Selector(bits="3").space(PAIR, Zero())


def test_a_field_that_a_format_has_not_leaves_its_tensors_out() -> None:
    mixed = [Target("q", WORDS["int8"], (5,)), Target("w", WORDS["float16"], (2,))]
    space = Selector(bits="exponent").space(mixed)
    assert [t.id for t in space.targets] == ["w"]
    assert len(space) == 10
    with pytest.raises(SelectorError, match=r"flip with bits exponent does not fit int8"):
        Selector(bits="exponent").space(mixed[:1])


# ------------------------------------------------------------------------------------------------ selectors

NET = (
    Target("conv1.weight", WORDS["float32"], (4,), op="Conv", node="/conv1/Conv", layer="conv1"),
    Target("conv1.bias", WORDS["float32"], (4,), op="Conv", node="/conv1/Conv", layer="conv1"),
    Target("conv10.weight", WORDS["float16"], (4,), op="Conv", node="/conv10/Conv", layer="conv10"),
    Target("fc.weight", WORDS["float32"], (4,), op="Gemm", node="/fc/Gemm", layer="head.fc"),
    Target("fc.weight_q", WORDS["int8"], (4,), op="QLinearMatMul", node="", layer=""),
    Target("shape", WORDS["int64"], (2,), op="Reshape", node="/Reshape", structural=True),
)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, "conv1.weight conv1.bias conv10.weight fc.weight fc.weight_q"),
        ({"include": ("conv1",)}, "conv1.weight conv1.bias conv10.weight"),
        ({"include": ("Conv1",)}, ""),  # case matters
        ({"include": ("=conv1",)}, "conv1.weight conv1.bias"),  # the layer, exactly
        ({"include": ("=conv1.weight",)}, "conv1.weight"),
        ({"include": ("=/conv10/Conv",)}, "conv10.weight"),  # the node, exactly
        ({"include": ("*.bias",)}, "conv1.bias"),
        ({"include": ("*.weight",)}, "conv1.weight conv10.weight fc.weight"),
        ({"include": ("conv1?.weight",)}, "conv10.weight"),
        ({"include": ("conv1[.0]*",)}, "conv1.weight conv1.bias conv10.weight"),
        ({"include": ("re:^conv\\d\\.",)}, "conv1.weight conv1.bias"),
        ({"include": ("re:q$|bias",)}, "conv1.bias fc.weight_q"),
        ({"include": ("bias", "fc")}, "conv1.bias fc.weight fc.weight_q"),  # several are OR-ed
        ({"include": ("bias", "fc"), "op": ("Gemm",)}, "fc.weight"),  # options are AND-ed
        ({"include": ("bias", "fc"), "dtype": ("int8", "float16")}, "fc.weight_q"),
        ({"op": ("Conv", "=Gemm")}, "conv1.weight conv1.bias conv10.weight fc.weight"),
        ({"op": ("MatMul",)}, "fc.weight_q"),
        ({"op": ("=MatMul",)}, ""),
        ({"dtype": ("float16",)}, "conv10.weight"),
        ({"include": ("conv",), "exclude": ("bias", "conv10")}, "conv1.weight"),  # exclude comes last
        ({"include": ("=conv1.weight",), "exclude": ("weight",)}, ""),
        (
            {"exclude": ("re:^$", "=")},
            "conv1.weight conv1.bias conv10.weight fc.weight fc.weight_q",
        ),  # no name, no match
        ({"include": ("shape",)}, ""),  # shapes and indices only by their exact name
        ({"include": ("*",)}, "conv1.weight conv1.bias conv10.weight fc.weight fc.weight_q"),
        ({"include": ("=/Reshape",)}, ""),
        ({"include": ("=shape",)}, "shape"),
        ({"include": ("=shape", "bias")}, "conv1.bias shape"),
        ({"include": ("=shape",), "dtype": ("float32",)}, ""),
    ],
)
def test_what_a_selector_keeps(options: dict[str, Any], kept: str) -> None:
    assert [t.id for t in NET if Selector(**options).selects(t)] == kept.split()


def test_shapes_are_explained_when_they_are_asked_for_loosely() -> None:
    with pytest.raises(SelectorError, match=r"shapes and indices are left out unless --include '=NAME' names them"):
        Selector(include=("shape",)).space(NET)


def test_order_is_file_order_whatever_the_options() -> None:
    space = Selector(include=("fc", "bias", "conv10")).space(NET)
    assert [t.id for t in space.targets] == ["conv1.bias", "conv10.weight", "fc.weight", "fc.weight_q"]


@given(targets(), st.data())
def test_a_selection_is_the_space_over_what_it_keeps(chosen: tuple[Target, ...], data: st.DataObject) -> None:
    selector = Selector(
        include=tuple("=" + name for name in data.draw(st.lists(st.sampled_from([t.id for t in chosen])))),
        exclude=tuple("=" + name for name in data.draw(st.lists(st.sampled_from([t.id for t in chosen]), max_size=1))),
        dtype=tuple(data.draw(st.lists(st.sampled_from([t.dtype for t in chosen]), max_size=2))),
    )
    kept = [
        t
        for t in chosen
        if (not selector.include or "=" + t.id in selector.include)
        and (not t.structural or "=" + t.id in selector.include)
        and "=" + t.id not in selector.exclude
        and (not selector.dtype or t.dtype in selector.dtype)
    ]
    if any(t.size for t in kept):
        assert selector.space(chosen) == FaultSpace.over(kept, Flip())
    else:
        with pytest.raises(SelectorError):
            selector.space(chosen)


def test_globs_and_regular_expressions_take_names_as_they_are() -> None:
    assert NamePattern("*.conv").matches(["A.conv"])
    assert not NamePattern("*.CONV").matches(["A.conv"])  # on every system
    assert NamePattern("re:[0-9]{2}").matches(["layer12"])
    assert NamePattern("=a*b").matches(["a*b"])
    assert not NamePattern("=a*b").matches(["axb"])
    assert NamePattern("").matches(["anything"])


def test_models_with_parameters_are_named_in_messages() -> None:
    with pytest.raises(SelectorError, match=r"burst:k=9 with bits all does not fit uint8"):
        Selector().space([Target("w", WORDS["uint8"], (3,))], parse_fault("burst:k=9"))
