"""Faults of sensors: regions of an image by definition, and integers by an image that was one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.errors import FaultError
from onnxfi.faults.hardware.sensors import PixelFlip, StuckLine, StuckPixel
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.sites import Target
from onnxfi.faults.space import FaultSpace
from onnxfi.faults.trials import Sampler, draw_faults
from onnxfi.faults.words import WORDS


@given(st.sampled_from([("chw", (3, 4, 5)), ("hwc", (4, 5, 3))]), st.data())
def test_pixels_and_lines_are_those_of_all_channels(image: tuple[str, tuple[int, ...]], data: st.DataObject) -> None:
    layout, shape = image
    index = data.draw(st.integers(0, 59))
    rows, columns = (1, 2) if layout == "chw" else (0, 1)
    places = np.array(np.unravel_index(np.arange(60), shape)).T
    same = places == places[index]
    for model, wanted in (
        (StuckPixel(layout=layout), same[:, rows] & same[:, columns]),
        (StuckLine(layout=layout), same[:, rows]),
        (StuckLine(layout=layout, axis="column"), same[:, columns]),
    ):
        assert model.elements(shape, index).tolist() == np.flatnonzero(wanted).tolist()


@given(st.integers(0, 255), st.integers(0, 7), st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-2.1, 2.6)]))
def test_a_pixel_flips_in_the_integer_that_it_was(pixel: int, bit: int, ends: tuple[float, float]) -> None:
    low, high = ends
    fed = np.array([low + pixel / 255 * (high - low)], np.float32)
    faulty = PixelFlip(bit=bit, low=low, high=high).rule(fed)
    assert np.allclose(faulty, low + (pixel ^ (1 << bit)) / 255 * (high - low), atol=1e-6)


def test_a_byte_that_is_fed_as_a_byte_flips_exactly() -> None:
    before = np.arange(256, dtype=np.uint64)
    model = PixelFlip(bit=3, low=0, high=255)
    assert model.apply(WORDS["uint8"], before, np.full(256, -1, np.int16)).tolist() == [k ^ 8 for k in range(256)]


def test_salt_and_pepper_colour_whole_pixels() -> None:
    target = Target("x", WORDS["float32"], (3, 20, 20), "input", samples=1)
    model = parse_fault("salt-pepper:low=-1,high=2,salt=0.25")
    faults = draw_faults(FaultSpace.over((target,), model), Sampler("count", n=200), model)
    assert faults.events == 200 and len(faults) == 600
    by_event = [{fault.fault for fault in faults[k : k + 3]} for k in range(0, 600, 3)]
    assert all(len(one) == 1 for one in by_event)
    white = sum(one in ({"set:value=2"}, {"set:value=2.0"}) for one in by_event)
    assert 30 < white < 72  # 50 expected, σ = 6.1


@pytest.mark.parametrize(
    "text",
    ["stuck-pixel:layout=wh", "stuck-line:axis=both", "salt-pepper:salt=2", "salt-pepper:low=1", "pixel-flip:bits=0",
     "pixel-flip:bit=8", "pixel-flip:low=nan", "stuck-pixel:value=nan"],
)  # fmt: skip
def test_sensors_without_sense_are_refused(text: str) -> None:
    with pytest.raises(FaultError, match=r"unknown|out of range"):
        parse_fault(text)
    assert not StuckPixel().applies_to((8,))
