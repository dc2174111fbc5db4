"""Plans by exposure: trials by layer against exposures by hand, and the FIT of a replayed one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_campaigns import mlp, ran, samples

from onnxfi.analysis.environment import Environment, Memory
from onnxfi.analysis.exposure import plan_by_exposure
from onnxfi.analysis.fit import fit
from onnxfi.campaign.plan.plan import write_plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import SpecError

HOT = Memory("hot", ("fc2",), 1 << 20, (9.0, 9.0, 9.0), "FIT/bit")
COLD = Memory("cold", ("weights",), 1 << 20, (1.0, 1.0, 1.0), "FIT/bit", coverage=0.5)
HERE = Environment((HOT, COLD), 1.0, None, None)


def campaign(**fields: object) -> Campaign:
    return Campaign("m.onnx", "d.npz", **{"provider": "cpu", "single": True, "trials": 40, **fields})  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    mlp(tmp_path)
    samples(tmp_path, 8)
    return tmp_path


def test_trials_go_where_upsets_do_and_fit_takes_them(folder: Path) -> None:
    made = plan_by_exposure(campaign(), HERE)
    exposed = [s.population * (9.0 if s.layer == "fc2" else 0.5) for s in made.strata]
    for stratum, weight in zip(made.strata, exposed, strict=True):
        assert stratum.trials == pytest.approx(40 * weight / sum(exposed), abs=1.5)
    assert len(made) == 40
    write_plan(made, "list.jsonl")
    ran(campaign(single=False, trials=None, faults="list.jsonl"), folder / "s.db")
    found = fit(folder / "s.db", HERE)
    assert [part.part.trials for part in found.parts] == [s.trials for s in made.strata]
    assert found.raw[1] == sum(p.part.bits * (9.0 if p.part.layer == "fc2" else 1.0) for p in found.parts)


def test_a_layer_in_no_memory_gets_no_trial(folder: Path) -> None:
    made = plan_by_exposure(campaign(), replace(HERE, memories=(HOT,)))
    assert {s.layer: s.trials > 0 for s in made.strata} == {"fc1": False, "fc2": True}


@pytest.mark.parametrize(
    ("fields", "here", "said"),
    [
        ({"trials": None, "margin": 0.1}, HERE, "give --single and --trials"),
        ({"target": ("weights", "activations")}, HERE, "plan each by itself"),
        ({}, replace(HERE, memories=(replace(HOT, holds=("other",)),)), "no memory of the environment holds"),
    ],
)
def test_what_has_no_exposure_is_refused(folder: Path, fields: dict[str, object], here: Environment, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        plan_by_exposure(campaign(**fields), here)
