"""The engine that a campaign names runs it: in this process and in workers, and no other one continues its store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from offered_engines import needs_openvino, offer
from own_engine import LeanEngine
from tiny_campaigns import mlp, ran, samples, save

from onnxfi.campaign.execute.export_trial import export_trial
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.golden_run_cache import cached_golden
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import EngineError, ProviderError, SpecError, StoreError
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

ENGINES = ("onnxruntime", "reference", "openvino", "lean")


@pytest.fixture
def model(here: Path) -> str:
    """A small network beside its data, d.npz."""
    samples(here)
    return mlp(here)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "openvino":
        needs_openvino()
    offer(monkeypatch, LeanEngine)
    name: str = request.param
    return name


def campaign(model: str, **fields: Any) -> Campaign:
    return Campaign(**{"model": model, "data": "d.npz", "single": True, "trials": 24, **fields})


def outcomes(rows: Any) -> list[tuple[int, str]]:
    return [(row.trial, row.outcome) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["weights", "activations"])
def test_every_engine_gives_the_outcomes_of_the_definitions(engine: str, target: str, model: str, here: Path) -> None:
    known = ran(campaign(model, engine="reference", route="full", target=target), here / "known.db")
    for route in ("full", "auto"):
        found = ran(campaign(model, engine=engine, route=route, target=target), here / f"{route}.db")
        # Another order of summation may change the last bits of an answer that a fault hardly touches.
        far = [one for one, other in zip(known, found, strict=True) if one.metrics["sdc1"] != other.metrics["sdc1"]]
        assert not far and [row.trial for row in found] == [row.trial for row in known]
    with Store.open(here / "full.db") as opened:
        assert opened.get("identity")["engine"] == engine


@dataclass(frozen=True)
class Watched(LeanEngine):
    """An engine that keeps count of its sessions."""

    name: ClassVar[str] = "watched"
    cuts: ClassVar[bool] = True
    prepared: ClassVar[list[int]] = []

    def prepare(self, model: Any) -> Any:
        self.prepared.append(1)
        return super().prepare(model)


@pytest.mark.parametrize("route", ["full", "auto"])
@pytest.mark.parametrize("target", ["weights", "activations"])
def test_no_other_engine_runs_anything(
    target: str, route: str, model: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, Watched)
    Watched.prepared.clear()
    monkeypatch.setattr(OrtEngine, "prepare", lambda *given: pytest.fail("ONNX Runtime was not asked for"))
    wanted = campaign(model, engine="watched", target=target, route=route)
    assert len(ran(wanted, here / "s.db")) == 24 and Watched.prepared
    cached_golden(TrialExecutor.open(wanted))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reference", "openvino"])
def test_workers_run_the_engine_of_the_campaign(name: str, model: str, here: Path) -> None:
    if name == "openvino":
        needs_openvino()
    wanted = campaign(model, engine=name, trials=6)
    alone = outcomes(ran(wanted, here / "alone.db"))
    found = outcomes(sorted(run(wanted, here / "workers.db", workers=1), key=lambda row: row.trial))
    assert found == alone
    with Store.open(here / "workers.db") as opened:
        assert opened.get("environment")["runtime"].startswith({"reference": "onnx ", "openvino": "openvino "}[name])


@pytest.mark.slow
def test_a_store_of_another_engine_is_refused_and_so_are_other_settings(model: str, here: Path) -> None:
    ran(campaign(model, engine="reference"), here / "s.db")
    with pytest.raises(StoreError, match=r'another campaign: engine: "reference" in the store, now "onnxruntime"'):
        run(campaign(model), here / "s.db")
    assert ran(campaign(model, engine="reference", trials=30), here / "s.db")
    export_trial(here / "s.db", 1, here / "out.onnx")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine": "onnxrt"}, "engine: no engine 'onnxrt'; closest: 'onnxruntime'"),
        ({"engine": "openvino", "provider": "cpu"}, "provider is not a setting of the engine 'openvino'; leave it out"),
        ({"engine": "reference", "threads": 2}, "threads is not a setting of the engine 'reference'; leave it out"),
        ({"engine": "lean", "optimization": "off"}, "optimization is not a setting of the engine 'lean'; leave it out"),
        ({"engine": "lean", "route": "early-stop"}, "the engine 'lean' runs whole models only; leave route out"),
    ],
)
def test_what_an_engine_does_not_take_is_refused(
    fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, LeanEngine)
    with pytest.raises(SpecError, match=message):
        campaign("m.onnx", **fields)


def test_an_engine_that_is_not_installed_is_an_error_before_anything_is_written(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxfi.runtime.engine.openvino.is_installed", lambda: False)
    with pytest.raises(EngineError, match=r"^openvino is not installed; pip install 'onnxfi\[openvino\]'$"):
        run(campaign(model, engine="openvino"), here / "s.db")
    assert not (here / "s.db").exists()


def test_faults_in_a_loop_are_refused_where_the_engine_takes_no_fed_faults(here: Path) -> None:
    needs_openvino()
    samples(here)
    looped = """g (float[N,4] x) => (float[N,4] y) <int64 n = {3}, bool go = {1}> { y = Loop(n, go, x) <body = b
        (int64 i, bool c, float[N,4] v) => (bool d, float[N,4] w) { d = Identity(c) u = Relu(v) w = Add(u, v) }> }"""
    wanted = campaign(save(here, looped), engine="openvino", target="activations", all=True, trials=6)
    with pytest.raises(ProviderError, match="the engine 'openvino' takes no fault operators whose faults are fed"):
        ran(wanted, here / "s.db")
