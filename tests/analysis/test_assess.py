"""Assessments: the verdict against the stores, going on, stopping, and a time that is too short."""

from __future__ import annotations

import math
import time
from contextlib import chdir
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_campaigns import mlp, ran, samples, tables

from onnxfi.analysis.assess import RANKING, SWEEP, Assessment, assess, next_rate, sweep_rates, write_assessment
from onnxfi.analysis.environment import Environment, Memory
from onnxfi.analysis.verdict import verdict
from onnxfi.campaign.report.findings import KEPT, Curve, harm_shares
from onnxfi.campaign.report.report import report
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.spec_file import parse_spec
from onnxfi.errors import InputError

#: Each takes seconds of a given time.
pytestmark = pytest.mark.slow
HERE = Environment((Memory("sram", ("weights",), 1 << 20, (1.0, 1.0, 1.0), "FIT/bit"),))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Assessment]:
    """A folder with a tiny network, and its assessment in as much time as this machine needs for a sweep as well."""
    for seconds in (6, 20, 60, 180):
        folder = tmp_path_factory.mktemp("assess")
        mlp(folder, hidden=4)
        samples(folder, 16)
        with chdir(folder):
            found = assess("m.onnx", "d.npz", time_s=seconds, out="a", environment=HERE, provider="cpu", samples=16)
        if found.sweep is not None:
            break
    return folder, found


def test_it_says_what_its_stores_hold(place: tuple[Path, Assessment], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = place
    monkeypatch.chdir(folder)
    assert found.ranking is not None and found.sweep is not None and found.budget is not None
    text = "\n".join(found.verdict.sentences)
    golden = found.ranking.golden["metrics"]["top1"]
    assert found.verdict.sentences[0] == f"Without faults top-1 is {100 * golden:.2f} %, on 16 samples."
    assert f"{found.ranking.everything.trials:,} trials" in text and "Of all single bit flips 3.1 %" in text
    assert "In the given environment" in text and "nearly always at bit 30 of float32" in text
    assert not found.stopped and found.document()["folder"] == "a"
    assert sum(share for _, share in harm_shares(found.ranking, "bit")) == pytest.approx(1)
    measured = [fold for fold in found.sweep.by_rate if fold.trials]
    assert measured and all(fold.trials >= 4 for fold in measured[:1])
    assert any(command.endswith("-o a/ranking.db") for command in found.verdict.commands)


def test_running_on_extends_the_stores(place: tuple[Path, Assessment], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = place
    monkeypatch.chdir(folder)
    before = tables(folder / "a" / SWEEP)["results"]
    with Store.open(folder / "a" / SWEEP) as store:
        campaign = parse_spec(store.get("spec"))
    assert isinstance(campaign, Campaign)
    ran(campaign.with_fields(ber=campaign.design.ber, repeat=4), folder / "a" / SWEEP)
    after = tables(folder / "a" / SWEEP)["results"]
    assert len(after) >= 4 * len(campaign.design.ber) and set(before) <= set(after)


def test_a_stop_assesses_what_there_is(place: tuple[Path, Assessment], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = place
    monkeypatch.chdir(folder)

    seen: list[Assessment] = []

    def stop(found: Assessment) -> None:
        seen.append(found)
        if len(seen) == 1:
            raise KeyboardInterrupt

    early = time.monotonic() - 600  # a first assessment is due as soon as there are results
    found = assess("m.onnx", "d.npz", time_s=2400, began=early, out="b", provider="cpu", samples=16, on_found=stop)
    assert seen[-1] is found
    assert found.stopped and found.sweep is None and found.ranking is not None
    assert not (folder / "b" / SWEEP).exists() and (folder / "b" / RANKING).is_file()
    assert any(line.startswith("Ranking of layers: ") for line in found.verdict.sentences)


def test_a_time_in_which_nothing_can_begin_is_refused(
    place: tuple[Path, Assessment], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = place
    monkeypatch.chdir(folder)
    with pytest.raises(
        InputError, match=r"0.001 s are too short for one golden run and a trial: .* give \d+ s or more"
    ):
        assess("m.onnx", "d.npz", time_s=0.001, out="c", provider="cpu")


def test_the_page_has_the_verdict_and_escapes_names(place: tuple[Path, Assessment]) -> None:
    pytest.importorskip("matplotlib")
    folder, found = place
    with chdir(folder):
        text = write_assessment(found, folder / "page.html").read_text()
    assert "<h2>Verdict</h2>" in text and "Weakest layers" in text and "FIT [low, high]" in text
    assert text.count("<script>") == 3, "two libraries and the page's own; a name adds none"


def test_few_trials_give_no_estimate(place: tuple[Path, Assessment], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = place
    monkeypatch.chdir(folder)
    ran(Campaign("m.onnx", "d.npz", single=True, trials=3, bits="30", provider="cpu"), folder / "few.db")
    lines = verdict(found.census, report("few.db"), None, None).sentences
    assert any("is still open" in line or "No answer changed" in line for line in lines)
    assert not any("of the harm comes from" in line for line in lines)


def test_a_network_that_nothing_hurts_is_said_so(
    place: tuple[Path, Assessment], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = place
    monkeypatch.chdir(folder)
    ran(Campaign("m.onnx", "d.npz", single=True, trials=30, bits="0-3", provider="cpu"), folder / "quiet.db")
    lines = verdict(found.census, report("quiet.db"), None, None).sentences
    assert any(
        line.startswith("No answer changed under one flipped bit in 30 trials: SDC-1 is below") for line in lines
    )


@given(st.integers(1, 40), st.integers(0, 40))
def test_bisection_ends_at_the_knee_of_any_falling_curve(rates: int, knee: int) -> None:
    losses: dict[int, float] = {}
    while (place := next_rate(rates, Curve(losses))) is not None:
        assert place not in losses
        losses[place] = 0.0 if place < knee else 0.5
    curve = Curve(losses)
    assert curve.kept == min(knee, rates) - 1
    assert curve.lost == (knee if knee < rates else None)
    assert len(losses) <= math.ceil(math.log2(rates + 1)) + 1
    assert all(0 <= place < rates for place in curve.around(rates))


@given(st.dictionaries(st.integers(0, 9), st.floats(-0.1, 1), max_size=10))
def test_a_noisy_curve_ends_too(noise: dict[int, float]) -> None:
    losses: dict[int, float] = {}
    for _ in range(11):
        place = next_rate(10, Curve(losses))
        if place is None:
            break
        losses[place] = noise.get(place, KEPT)
    assert next_rate(10, Curve(losses)) is None


@given(st.integers(1, 10**12))
def test_rates_rise_and_go_from_a_part_of_a_flip_to_many(bits: int) -> None:
    rates = sweep_rates(bits)
    assert all(one < other for one, other in pairwise(rates)) and rates[0] > 0 and rates[-1] <= 0.5
    assert rates[0] * bits <= 10 and rates[-1] * bits <= 10_100
    assert rates[-1] * bits >= min(3_000, 0.1 * bits) * 0.9
