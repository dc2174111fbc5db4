"""Opening a campaign: external data, models without labels, and what is refused before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from offered_engines import offer
from tiny_campaigns import campaign, chance, ran, samples, save, tables
from unsteady_engines import Changing

from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import CampaignError


def meta(store: Path, key: str) -> Any:
    with Store.open(store) as opened:
        return opened.get(key)


@dataclass(frozen=True)
class WithState(Changing):
    """An engine whose sessions answer another way from their third run on, each as any other."""

    name: ClassVar[str] = "with-state"

    def added(self, run: int) -> float:
        return float(run >= 2)


def _rows(store: Path) -> list[Any]:
    with Store.open(store) as opened:
        return list(opened.rows())


def test_external_data_gives_the_same_answers(here: Path) -> None:
    whole = onnx.load("m.onnx")
    (here / "ext").mkdir()
    onnx.save(whole, here / "ext" / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    one, other = campaign(), campaign(model="ext/m.onnx")
    ran(one, here / "1.db")
    ran(other, here / "2.db")
    assert tables(here / "1.db")["results"] == tables(here / "2.db")["results"]
    assert sorted(file.name for file in (here / "ext").iterdir()) == ["m.data", "m.onnx"]
    ran(other, here / "3.db", workers=1)
    assert tables(here / "2.db") == tables(here / "3.db")


def test_models_without_labels(here: Path) -> None:
    samples(here, name="u.npz", labels=False)
    ran(campaign(), here / "1.db")
    ran(campaign(data="u.npz"), here / "2.db")
    for one, other in zip(_rows(here / "1.db"), _rows(here / "2.db"), strict=True):
        assert one.outcome == other.outcome and one.metrics["sdc1"] == other.metrics["sdc1"]
        assert set(one.metrics) - set(other.metrics) == {"top1", "top5", "balanced_accuracy", "critical"}
    made_up = campaign(data="synthetic")
    ran(made_up, here / "3.db")
    assert meta(here / "3.db", "golden")["synthetic"] and made_up.data.data is None


RANDOM = {
    "in the graph": "{ n = RandomNormalLike <seed = 3.0> (x) y = Add(x, n) }",
    "in a body": """{ b = Constant <value_float = 1.0> () c = Cast <to = 9> (b)
        y = If (c) <then_branch = t () => (float[N,3] a) { n = RandomUniformLike <seed = 3.0> (x) a = Add(x, n) },
        else_branch = e () => (float[N,3] d) { d = Identity(x) }> }""",
    "dropped": """<float r = {0.5}, bool t = {1}> { y = Dropout <seed = 3> (x, r, t) }""",
    "drawn": "{ p = Softmax(x) y = Bernoulli <seed = 3.0> (p) }",
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), [*((kind, 0) for kind in RANDOM), ("drawn", 2)])
def test_a_model_that_draws_random_numbers_is_refused(tmp_path: Path, kind: str, workers: int) -> None:
    model = save(tmp_path, "g (float[N,3] x) => (float[N,3] y) " + RANDOM[kind])
    np.savez(tmp_path / "x.npz", x=chance(4, 3))
    asked = Campaign(model, str(tmp_path / "x.npz"), target="inputs", single=True, trials=2)
    with pytest.raises(CampaignError, match=r"draws random numbers in \w+ \('\w+'\), so no effect of a fault"):
        run(asked, tmp_path / "s.db", workers=workers)


def test_random_numbers_that_are_not_scored_or_drop_nothing_are_no_matter(tmp_path: Path) -> None:
    graph = """g (float[N,3] x) => (float[N,3] y, float[N,3] z) <float r = {0.5}, bool t = {0}, float[1,3] w = {1,2,3}>
        { n = RandomNormalLike(x) z = Add(x, n) m = Mul(x, w) y = Dropout(m, r, t) }"""
    np.savez(tmp_path / "x.npz", x=chance(4, 3))
    asked = Campaign(save(tmp_path, graph), str(tmp_path / "x.npz"), single=True, trials=2, output="y")
    assert len(ran(asked, tmp_path / "s.db")) == 2


def test_an_operator_that_keeps_a_state_is_found_in_one_session(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, WithState)
    with pytest.raises(CampaignError, match="two golden runs differ, in one session"):
        run(campaign(provider="auto", engine="with-state", batch=6), here / "s.db")
