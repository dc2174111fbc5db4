"""Figures: the same every time, with names and units on their axes, legible without colour."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from reported_campaigns import campaign, singles, sweep
from tiny_campaigns import ran, samples, save

from onnxfi.campaign.report.curves import printable_name
from onnxfi.campaign.report.figures import figures, write_figures
from onnxfi.campaign.report.html_page import page
from onnxfi.campaign.report.report import report
from onnxfi.campaign.results.store import Store

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.slow
def test_figures_are_drawn_the_same_every_time_and_say_their_numbers(here: Path) -> None:
    found = [singles(here), sweep(here)]
    names = [path.name for path in write_figures(found, here / "figures")]
    assert names == [
        f"{name}.{kind}" for name in ("accuracy", "outcomes", "layers", "bits", "map-1") for kind in ("svg", "png")
    ]
    for figure in figures(found):
        if figure.draw is None:
            assert figure.name == "map-2" and "a trial of many faults" in figure.caption
            continue
        again = figure.bytes("svg")
        assert again == (here / "figures" / f"{figure.name}.svg").read_bytes()
        root = ET.fromstring(again)
        assert root.tag == f"{SVG}svg" and not list(root.iter(f"{SVG}script")) and not list(root.iter(f"{SVG}text"))
        assert figure.text.count("%") >= 3 and figure.text in "".join(root.itertext())
        png = (here / "figures" / f"{figure.name}.png").read_bytes()
        assert png.startswith(b"\x89PNG") and int.from_bytes(png[16:20], "big") > 1000
    top1 = found[1].by_rate[1].rate("top1")
    assert top1 is not None
    assert f"0.001: {100 * top1.estimate:.2f} % [{100 * top1.low:.2f}, {100 * top1.high:.2f}]" in figures(found)[0].text


def test_axes_have_names_and_units_and_colours_differ_in_grey(here: Path) -> None:
    from onnxfi.campaign.report import curves as drawing

    for figure in figures([singles(here), sweep(here)]):
        if figure.draw is None:
            continue
        canvas = figure.draw()
        named = [text for ax in canvas.axes for text in (ax.get_xlabel(), ax.get_ylabel()) if text]
        assert len(named) >= 2 and all(re.search(r"\(.+\)", text, re.S) for text in named), named
    greys = [0.299 * int(c[1:3], 16) + 0.587 * int(c[3:5], 16) + 0.114 * int(c[5:7], 16) for c in drawing.COLOURS[:2]]
    assert abs(greys[0] - greys[1]) > 25 or drawing.MARKS[0] != drawing.MARKS[1]


def test_what_a_figure_needs_and_a_store_lacks_is_said(here: Path) -> None:
    samples(here, labels=False)
    swept = figures([sweep(here)])
    assert "Without labels there is no accuracy" in swept[0].caption and swept[0].title.startswith("Top-1 changed over")
    assert [figure.draw is None for figure in swept] == [False, False, True, True, True]
    words = figures([singles(here, "zero.db", fault="zero")])
    assert words[2].draw is not None and "these faults change whole words" in words[3].caption + words[4].caption
    save(
        here,
        """g (float[N,4] x) => (float[N,4,1] y) <float[4] w = {1,2,3,4}>
        { two = Constant<value_ints = [2]>() a = Mul(x, w) y = Unsqueeze(a, two) }""",
    )
    ran(campaign(model="g.onnx", data=None, single=True, trials=20), here / "g.db")
    text = page([report(here / "g.db")])
    assert "synthetic" in text and "Golden top-1" not in text
    with Store.open(here / "g.db", create=True) as opened:
        opened.put(spec=None, canary=None, cells=[])
    older = page([report(here / "g.db")])
    assert "The store does not say which campaign it was" in older
    assert "No map of layers and bits here" in figures([report(here / "g.db")])[-1].caption


def test_many_layers_and_long_names(here: Path) -> None:
    assert printable_name("features.block.conv2.weight.of.a.long.name") == "features.bl….a.long.name"
    assert len(printable_name("x" * 100)) == 24 and printable_name("a\nb\x1b") == "a\\nb\\x1b"
