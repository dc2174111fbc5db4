"""Hypothesis strategies that all tests share: number formats, words, masks, targets, selections, fault models."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.registry import fault_models, parse_fault
from onnxfi.faults.space import Target
from onnxfi.faults.words import FIELDS, WORDS, Mask, Word

#: 1 in the core tests, more in thorough ones: a property whose examples take long runs so many times its own few.
TIMES = settings.default.max_examples // 20
U64 = st.integers(0, 2**64 - 1)
#: Every number format; the narrow ones first, since hypothesis shrinks towards the front.
formats = st.sampled_from(sorted(WORDS.values(), key=lambda w: (w.bits, w.name)))
#: Rank 0, size 0 and small tensors.
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
#: Names as real files have them, and as nobody should: with every character that a site's text uses itself.
names = st.text(st.sampled_from("ab/.:[]@=,0 \n%") | st.characters(codec="utf-8"), min_size=1, max_size=12)


def words_of(word: Word) -> st.SearchStrategy[int]:
    """Words of a format, those with many equal bits among them."""
    corners = [0, 1, word.full, word.full - 1, word.full >> 1, 1 << (word.bits - 1)]
    return st.sampled_from(corners) | st.integers(0, word.full)


@st.composite
def masks(draw: st.DrawFn, bits: int = 64) -> Mask:
    """Any mask on words of so many bits."""
    number = st.integers(0, (1 << bits) - 1)
    return Mask(draw(number), draw(number))


@st.composite
def targets(draw: st.DrawFn, *, most: int = 4) -> tuple[Target, ...]:
    """Some targets of different names, formats and shapes, in file order."""
    ids = draw(st.lists(names, min_size=1, max_size=most, unique=True))
    return tuple(
        Target(
            name,
            draw(formats),
            draw(shapes),
            op=draw(st.sampled_from(["Conv", "Gemm", "LSTM", ""])),
            node=draw(st.sampled_from(["/conv1/Conv", "node_7", ""])),
            layer=draw(st.sampled_from(["conv1", "layer1.0", "fc", ""])),
            structural=draw(st.booleans()) and draw(st.booleans()),
        )
        for name in ids
    )


@st.composite
def bit_selections(draw: st.DrawFn, width: int) -> str:
    """A bit selection that fits in words of `width` bits: positions, ranges and fields; "" for all."""
    position = st.integers(0, width - 1)
    span = st.tuples(position, position).map(lambda ends: f"{min(ends)}-{max(ends)}")
    return ",".join(draw(st.lists(position.map(str) | span | st.sampled_from(FIELDS), max_size=3)))


@st.composite
def element_selections(draw: st.DrawFn, axes: tuple[int, ...]) -> str:
    """A Python index that fits a tensor of these axes, without the brackets; "" for all."""
    end = st.none() | st.integers(-5, 5)
    parts = []
    for n in axes[: draw(st.integers(0, len(axes)))]:
        if n and draw(st.booleans()):
            parts.append(str(draw(st.integers(-n, n - 1))))
        else:
            start, stop, step = draw(end), draw(end), draw(st.sampled_from([None, 1, 2, 3, -1, -2]))
            text = ":".join("" if at is None else str(at) for at in (start, stop))
            parts.append(text if step is None else f"{text}:{step}")
    return ",".join(parts)


#: Fault models of every kind, with any parameters that are in range; without those of other packages.
models: st.SearchStrategy[FaultModel] = st.one_of(
    st.sampled_from(["flip", "stuck-at-0", "stuck-at-1", "random-word", "zero", "sign-flip"]).map(parse_fault),
    st.builds(fault_models()["burst"], k=st.integers(1, 9)),
    st.builds(fault_models()["set-word"], word=st.integers(0, 3)),
    st.builds(fault_models()["set"], value=st.floats() | st.integers(-(2**64), 2**64)),
    st.builds(fault_models()["scale"], factor=st.floats(allow_nan=False) | st.integers(-(2**64), 2**64)),
    st.builds(fault_models()["random-scale"], low=st.floats(-1e9, 1), high=st.floats(1, 1e9)),
    st.builds(fault_models()["add"], value=st.floats(allow_nan=False) | st.integers(-(2**64), 2**64)),
    st.builds(fault_models()["noise"], sigma=st.floats(0, allow_infinity=False, allow_nan=False)),
)
