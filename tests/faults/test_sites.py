"""Targets and sites: shapes in words, texts of sites read and written, and texts that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import names, targets

from onnxfi.errors import SelectorError
from onnxfi.faults.space import Site, Target, parse_site
from onnxfi.faults.words import WORDS


def test_shapes_in_words() -> None:
    scalar, empty = Target("s", WORDS["float32"], ()), Target("e", WORDS["int8"], (3, 0))
    pair = Target("c", WORDS["complex64"], (2,))
    assert [(t.size, t.bits, t.axes) for t in (scalar, empty, pair)] == [(1, 32, ()), (0, 0, (3, 0)), (4, 128, (2, 2))]
    assert pair.dtype == "complex64"


PAIR = [Target("w", WORDS["float32"], (4, 3)), Target("b", WORDS["float16"], (4,))]


@given(targets(), st.data())
def test_sites_are_read_as_they_are_written(chosen: tuple[Target, ...], data: st.DataObject) -> None:
    # The names of these targets hold `:`, `[`, `]`, `@` and blanks.
    target = data.draw(st.sampled_from(chosen))
    if not target.size:
        return
    number = st.none() | st.integers(0, 10**6)
    bit = data.draw(st.none() | st.integers(0, target.word.bits - 1))
    site = Site(target.id, data.draw(st.integers(0, target.size - 1)), bit, data.draw(number), data.draw(number))
    assert parse_site(str(site), chosen) == site


@given(names, st.lists(st.integers(1, 5), max_size=4).map(tuple), st.data())
def test_an_index_may_be_given_by_axis(name: str, shape: tuple[int, ...], data: st.DataObject) -> None:
    target = Target(name, data.draw(st.sampled_from([WORDS["int4"], WORDS["complex64"]])), shape)
    index = tuple(data.draw(st.integers(0, n - 1)) for n in target.axes)
    flat = int(np.ravel_multi_index(index, target.axes)) if index else 0
    text = f"{name}[{','.join(map(str, index))}]:3"
    assert parse_site(text, [target]) == Site(name, flat, 3)
    assert parse_site(f"{name}[ {' , '.join(map(str, index))} ]:3", [target]).index == flat


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("w[3]", Site("w", 3)),
        ("w[1,0]:31", Site("w", 3, 31)),
        ("  w[0]:0 ", Site("w", 0, 0)),
        ("w[0]@sample=3@step=2:30", Site("w", 0, 30, 3, 2)),
        ("w[0]@step=2@sample=3:30", Site("w", 0, 30, 3, 2)),
        ("w[0]@step=2", Site("w", 0, None, None, 2)),
        ("w[0][5]:1", Site("w[0]", 5, 1)),
        ("loop.body::w:0[1]:2", Site("loop.body::w:0", 1, 2)),
        ("x@sample=1[4]@sample=2:1", Site("x@sample=1", 4, 1, 2)),
        ("s[]:1", Site("s", 0, 1)),
        ("s[0]:1", Site("s", 0, 1)),
    ],
)
def test_sites_that_can_be_read(text: str, site: Site) -> None:
    tensors = {"w": (2, 3), "w[0]": (9,), "loop.body::w:0": (2,), "x@sample=1": (5,), "s": ()}
    assert parse_site(text, [Target(name, WORDS["float32"], shape) for name, shape in tensors.items()]) == site


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w", r"site 'w' is not of the form NAME\[index\]:bit, as conv1.weight\[3,0,1,2\]:30"),
        ("", r"site '' is not of the form"),
        ("w[0]:", r"is not of the form"),
        ("w[0]:-1", r"is not of the form"),
        ("w[-1]:1", r"is not of the form"),
        ("w[0]:1:2", r"is not of the form"),
        ("w[0]@axis=1:2", r"is not of the form"),
        ("w[0:2]:1", r"is not of the form"),
        ("[" * 200_000, r"is not of the form"),
        ("v[0]:1", r"no target 'v' in this model; known: 'w', 'b'"),
        ("conv1.wieght[0]:1", r"no target 'conv1.wieght' in this model"),
        ("w[12]:1", r"index \[12\] is beyond 'w' of shape 4×3: give 2 indices, or one below 12"),
        ("w[1,3]:1", r"index \[1, 3\] is beyond 'w'"),
        ("w[1,1,1]:1", r"index \[1, 1, 1\] is beyond 'w'"),
        ("w[]:1", r"index \[\] is beyond 'w'"),
        ("w[1 2]:1", r"has an index that is not a whole number"),
        ("w[1,,2]:1", r"has an index that is not a whole number"),
        ("w[" + "9" * 5000 + "]:1", r"has an index that is not a whole number"),
        ("w[0]@sample=" + "9" * 5000, r"has an index that is not a whole number"),
        ("w[0]@step=1@step=2:1", r"names its sample or step twice"),
        ("w[0]:32", r"bit 32 is beyond float32 of 'w': bits are 0 to 31"),
        ("b[0]:16", r"bit 16 is beyond float16 of 'b': bits are 0 to 15"),
        ("w[0]:" + "9" * 5000, r"is beyond float32"),
    ],
)
def test_sites_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(SelectorError, match=message):
        parse_site(text, PAIR)


def test_an_element_of_an_empty_tensor_does_not_exist() -> None:
    with pytest.raises(SelectorError, match=r"index \[0\] is beyond 'e' of shape 3×0"):
        parse_site("e[0]:1", [Target("e", WORDS["int8"], (3, 0))])
