"""Rates by element: an exhaustive campaign's against the rows of its store, planes, and what is refused."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from onnxfi.campaign.report.figures import figures, write_figures
from onnxfi.campaign.report.html_page import page
from onnxfi.campaign.report.report import report
from onnxfi.campaign.results.element_rates import element_rates, plane
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import SelectorError

MODELS = Path(__file__).parents[3] / "models"
CNN, IMAGES = str(MODELS / "fashion_cnn.onnx"), str(MODELS / "fashion_test.npz")


def ran(store: Path, **fields: object) -> Path:
    for _ in run(Campaign(CNN, IMAGES, samples=6, provider="cpu", **fields), store):
        pass
    return store


@pytest.fixture(scope="module")
def by_bit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exponents' highest bits of one filter of conv1, each flipped once, and no other filter's."""
    place = tmp_path_factory.mktemp("elements") / "s.db"
    return ran(place, include=("conv1.weight",), bits="29,30", elements="3:5", exhaustive=True)


def test_means_are_those_of_the_rows_of_each_element(by_bit: Path) -> None:
    found = element_rates(by_bit, "conv1.weight")
    assert (found.shape, found.metric.name) == ((16, 1, 3, 3), "sdc1")
    values: dict[int, list[float]] = {}
    with sqlite3.connect(by_bit) as store:
        for lines, metrics in store.execute("SELECT lines, metrics FROM plan JOIN results USING (trial)"):
            values.setdefault(json.loads(lines)["index"], []).append(json.loads(metrics)["sdc1"])
    assert sorted(values) == list(range(27, 45))
    for index in range(144):
        assert found.trials[index] == len(values.get(index, []))
        expected = np.mean(values[index]) if index in values else np.nan
        np.testing.assert_allclose(found.means[index], expected)


@pytest.mark.slow
def test_the_figure_is_written_and_on_the_page(by_bit: Path, tmp_path: Path) -> None:
    one = report(by_bit)
    written = [path.name for path in write_figures([one], tmp_path, ("conv1.weight",))]
    assert written[-2:] == ["elements-1.svg", "elements-1.png"]
    (figure,) = (f for f in figures([one], ("conv1.weight",)) if f.name == "elements-1")
    assert "2 in each of 18 of 144 elements" in figure.caption and figure.text.startswith("Highest elements: [")
    assert figure.bytes() == (tmp_path / "elements-1.svg").read_bytes()
    assert "Elements of conv1.weight" in page([one], ("conv1.weight",))
    both = [f.name for f in figures([one, one], ("conv1.weight",))]
    assert both[-2:] == ["elements-1-1", "elements-1-2"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), (1, 1)), ((5,), (1, 5)), ((100,), (10, 10)), ((101,), (10, 11)), ((3, 4), (3, 4)), ((1, 7, 7), (7, 7)),
        ((5, 2, 3), (5, 11)), ((4, 3, 2, 2), (4, 12)),
    ],
)  # fmt: skip
def test_a_plane_holds_each_element_once_in_order(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    size = int(np.prod(shape))
    sheet, _, columns = plane(np.arange(float(size)), shape)
    assert sheet.shape == expected and columns
    assert sorted(sheet[np.isfinite(sheet)].tolist()) == list(range(size))
    if len(shape) != 3:
        assert sheet[np.isfinite(sheet)].tolist() == list(range(size))


def test_what_has_no_rates_by_element_is_refused(by_bit: Path, tmp_path: Path) -> None:
    with pytest.raises(SelectorError, match=r"closest: 'conv1\.weight'"):
        element_rates(by_bit, "conv1.weigh")
    sweep = ran(tmp_path / "sweep.db", ber=(1e-4,), repeat=1)
    with pytest.raises(SelectorError, match="trials of many faults"):
        element_rates(sweep, "conv1.weight")
    aware = ran(tmp_path / "aware.db", single=True, per="data-aware", margin=0.9, include=("fc2.bias",))
    with pytest.raises(SelectorError, match="drew some bits more often"):
        element_rates(aware, "fc2.bias")
    one = ran(tmp_path / "one.db", single=True, trials=1, include=("fc2.*",))
    for target in ("fc2.weight", "fc2.bias"):
        if target not in _targets(one):
            with pytest.raises(SelectorError, match="no trial with a fault in"):
                element_rates(one, target)


def _targets(store: Path) -> set[str]:
    with sqlite3.connect(store) as opened:
        return {json.loads(lines)["target"] for (lines,) in opened.execute("SELECT lines FROM plan")}
