"""Campaigns on a simulated NVIDIA device: the CPU's answers, what is recorded, lost devices, workers on devices."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from simulated_cuda import Simulation, environment, install
from tiny_campaigns import mlp, samples

from onnxfi.campaign.exhaustive.exhaustive_run import exhaustive_outcomes
from onnxfi.campaign.results.rows import Result
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.workers.scheduling import cores, default_workers
from onnxfi.errors import CampaignError, DeviceError, OnnxfiError, RouteError, SpecError, StoreError

Device = Callable[..., Simulation]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A function that puts a simulated device in place, here and in worker processes."""

    def placed(**given: Any) -> Simulation:
        simulation = Simulation(**given)
        for name, value in environment(simulation).items():
            monkeypatch.setenv(name, value)
        return install(simulation, monkeypatch.setattr)

    return placed


def campaign(folder: Path, **given: Any) -> Campaign:
    if not (folder / "m.onnx").exists():
        mlp(folder)
        samples(folder)
    given = {"provider": "cuda", "single": True, "trials": 12, "batch": 4} | given
    return Campaign(str(folder / "m.onnx"), str(folder / "d.npz"), **given)


def ran(campaign: Campaign, store: Path, workers: int = 0) -> list[Result]:
    return sorted(run(campaign, store, workers=workers), key=lambda result: result.trial)


def outcomes_of(results: list[Result]) -> list[tuple[object, ...]]:
    return [(r.trial, r.outcome, r.cause, r.metrics) for r in results]


def kept(store: Path, name: str) -> Any:
    with Store.open(store) as opened:
        return opened.get(name)


def events(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["weights", "activations"])
@pytest.mark.parametrize("route", ["auto", "full"])
def test_a_device_that_rounds_as_the_cpu_has_its_outcomes(
    target: str, route: str, device: Device, tmp_path: Path
) -> None:
    simulation = device()
    asked = {"target": target, "route": route}
    on_device = ran(campaign(tmp_path, **asked), tmp_path / "cuda.db")
    assert simulation.count("run")
    assert outcomes_of(on_device) == outcomes_of(ran(campaign(tmp_path, provider="cpu", **asked), tmp_path / "cpu.db"))
    assert not {str(result.route) for result in on_device} & {"channel-delta"}


def test_golden_activations_go_on_without_the_host(device: Device, tmp_path: Path) -> None:
    simulation = device()
    ran(campaign(tmp_path, include="w2"), tmp_path / "s.db")
    assert simulation.count("stayed") > simulation.count("upload")


def test_golden_activations_leave_a_device_that_is_small(device: Device, tmp_path: Path) -> None:
    """A quarter of 400 bytes holds an activation or two of 4 samples; outcomes are the same."""
    simulation = device(memory_bytes=400)
    found = ran(campaign(tmp_path, include="w2", trials=6), tmp_path / "s.db")
    little = simulation.count("stayed")
    simulation = device()
    assert outcomes_of(found) == outcomes_of(ran(campaign(tmp_path, include="w2", trials=6), tmp_path / "t.db"))
    assert little < simulation.count("stayed")


def test_the_memory_of_a_device_is_limited_by_a_flag(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    simulation = device()
    asked = campaign(tmp_path)
    words = (
        "run",
        asked.model,
        "--data",
        asked.data.data,
        "--single",
        "--trials",
        2,
        "--workers",
        0,
        "-o",
        tmp_path / "s.db",
    )
    ended = run(*words, "--provider", "cuda", "--memory-device", "1GB")
    assert ended.code == 0, ended.err
    assert [event["bytes"] for event in simulation.events if event["what"] == "arena"] == [10**9]
    ended = run(*words, "--fresh", "--memory-device", "1GB")
    assert ended.code == 2 and "--memory-device needs the provider of the device; add --provider cuda" in ended.err


def test_a_lost_device_is_one_line_on_the_terminal(device: Device, tmp_path: Path, run: Any) -> None:
    device(sticky_nonfinite=True)
    asked = campaign(tmp_path)
    ended = run(
        "run", asked.model, "--data", asked.data.data, "--single", "--trials", 60, "--bits", "30", "--provider", "cuda",
        "--workers", 0, "-o", tmp_path / "s.db",
    )  # fmt: skip
    assert ended.code == 2
    assert "can no longer use its device" in ended.err.splitlines()[-1] and "--workers 1" in ended.err


def test_what_fixes_the_bits_is_in_the_store_and_in_the_identity(device: Device, tmp_path: Path) -> None:
    device(devices=2)
    store = tmp_path / "s.db"
    ran(campaign(tmp_path), store)
    assert kept(store, "identity")["arithmetic"] == {
        "use_deterministic_compute": "1", "cudnn_conv_algo_search": "HEURISTIC", "cudnn_conv_use_max_workspace": "0",
        "use_tf32": "0",
    }  # fmt: skip
    assert "Simulated 0" in kept(store, "environment")["device"]
    assert "on CUDAExecutionProvider" in kept(store, "environment")["device"]
    ran(campaign(tmp_path, provider_option=("device_id=1", "gpu_mem_limit=1000000000")), store)
    with pytest.raises(StoreError):
        ran(campaign(tmp_path, provider_option="use_tf32=1"), store)


@pytest.mark.parametrize("option", ["cudnn_conv_algo_search=EXHAUSTIVE"])
def test_golden_runs_that_differ_name_the_option(option: str, device: Device, tmp_path: Path) -> None:
    device()
    with pytest.raises(CampaignError, match=f"leave --provider-option {option} out"):
        ran(campaign(tmp_path, provider_option=option, route="full"), tmp_path / "s.db")


def test_a_campaign_keeps_the_provider_of_its_first_session(device: Device, tmp_path: Path) -> None:
    device()
    store = tmp_path / "s.db"
    first = outcomes_of(ran(campaign(tmp_path, provider="auto", trials=4), store))
    assert kept(store, "environment")["provider"] == "CUDAExecutionProvider"
    device(loads=0)  # the driver is there, the provider loads no more: nothing goes on with the CPU
    with pytest.raises(OnnxfiError):
        ran(campaign(tmp_path, provider="auto", trials=8), store)
    with Store.open(store) as opened:
        assert opened.count("results") == 4
    device()
    again = outcomes_of(ran(campaign(tmp_path, provider="auto", trials=8), store))
    assert len(again) == 4 and first + again == outcomes_of(ran(campaign(tmp_path, trials=8), tmp_path / "t.db"))


def test_proofs_of_exhaustive_outcomes_are_the_cpus_alone(device: Device, tmp_path: Path) -> None:
    device()
    asked = campaign(tmp_path, exhaustive=True, outcomes="class", single=False, trials=None, include="b2")
    with pytest.raises(
        SpecError, match=r"rests on the rounding of the CPU's kernels, and CUDAExecutionProvider.*provider cpu"
    ):
        exhaustive_outcomes(asked, tmp_path / "table.npz")


def test_campaigns_of_classes_run_all_their_trials_on_a_device(device: Device, tmp_path: Path) -> None:
    device()
    asked = {"outcomes": "class", "include": "w2", "trials": 6}
    found, truth = (
        {r.trial: r.metrics for r in ran(campaign(tmp_path, provider=name, **asked), tmp_path / f"{name}.db")}
        for name in ("cuda", "cpu")
    )
    assert not any(metrics["proved_samples"] for metrics in found.values())
    assert any(metrics["proved_samples"] for metrics in truth.values())
    assert all(
        metrics | {"proved_samples": 0} == truth[trial] | {"proved_samples": 0} for trial, metrics in found.items()
    )


def test_tensorrt_runs_whole_models(device: Device, tmp_path: Path) -> None:
    device()
    for target in ("weights", "activations"):
        found = ran(campaign(tmp_path, provider="tensorrt", trials=3, target=target), tmp_path / f"{target}.db")
        assert {str(result.route) for result in found} <= {"full", "None"}
    with pytest.raises(SpecError, match="provider 'tensorrt' runs whole models only; leave route out"):
        campaign(tmp_path, provider="tensorrt", route="late-start")


def test_a_lost_device_ends_a_campaign_without_workers(device: Device, tmp_path: Path) -> None:
    device(sticky_nonfinite=True)
    with pytest.raises(DeviceError, match="--workers 1"):
        ran(campaign(tmp_path, bits="30", trials=40), tmp_path / "s.db")


@pytest.mark.slow
def test_a_worker_that_loses_its_device_is_no_outcome(device: Device, tmp_path: Path) -> None:
    """One error, whose trial is run again in a process of its own: every trial has the outcome that it has without."""
    once, log = tmp_path / "once", tmp_path / "log"
    device(single_error_file=str(once), log=str(log))
    whole = outcomes_of(ran(campaign(tmp_path), tmp_path / "whole.db"))

    running = run(campaign(tmp_path), tmp_path / "s.db", workers=2)
    once.touch()
    found = sorted(running, key=lambda result: result.trial)
    assert not once.exists(), "the error came"
    assert outcomes_of(found) == whole


@pytest.mark.slow
def test_two_devices_have_a_worker_each(device: Device, tmp_path: Path) -> None:
    log = tmp_path / "log"
    device(devices=2, log=str(log))
    asked = campaign(tmp_path, trials=40)
    assert default_workers(asked) == 2
    found = outcomes_of(ran(asked, tmp_path / "s.db", workers=default_workers(asked)))
    by_process: dict[int, set[int]] = {}
    for event in events(log):
        if event["what"] == "run":
            by_process.setdefault(event["pid"], set()).add(event["device"])
    assert all(len(used) == 1 for used in by_process.values())
    workers = [used for process, used in by_process.items() if process != os.getpid()]
    assert workers and set.union(*workers) <= {0, 1}
    # One that starts late may find no trial left; of two that ran, each has a device of its own.
    assert len(set.union(*workers)) == len(workers)
    assert found == outcomes_of(ran(campaign(tmp_path, provider="cpu", trials=40), tmp_path / "cpu.db"))
    assert default_workers(campaign(tmp_path, provider_option="device_id=1")) == 1


def test_workers_by_default_are_cores_where_no_device_is_used(device: Device, tmp_path: Path) -> None:
    device(devices=3)
    assert default_workers(campaign(tmp_path, provider="auto")) == 3
    assert default_workers(campaign(tmp_path, provider="cpu")) == cores()
    device(devices=3, loads=0)  # a driver, and a provider that does not load
    assert default_workers(campaign(tmp_path, provider="auto")) == cores()


@pytest.mark.slow
def test_workers_that_cannot_use_their_device_say_so(device: Device, tmp_path: Path) -> None:
    device()
    running = campaign(tmp_path)
    simulation = Simulation(dead=(0,))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(simulation).items():
            patch.setenv(name, value)
        with pytest.raises(CampaignError, match="cannot use its device"):
            ran(running, tmp_path / "s.db", workers=1)


def test_a_canary_that_is_not_seen_names_the_options_of_the_device(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device()
    monkeypatch.setattr("onnxfi.campaign.execute.canary.shown", lambda executor, target, batches: False)
    monkeypatch.setattr("onnxfi.campaign.execute.canary.changes_answer", lambda executor, target, batches: False)
    with pytest.raises(CampaignError, match=r"no canary was seen.*ran with use_deterministic_compute=1.*use_tf32=0"):
        ran(campaign(tmp_path), tmp_path / "s.db")
    monkeypatch.setattr("onnxfi.campaign.execute.canary.changes_answer", lambda executor, target, batches: True)
    with pytest.raises(RouteError, match=r"--route full; CUDAExecutionProvider ran with .*use_tf32=1 out"):
        ran(campaign(tmp_path, provider_option="use_tf32=1"), tmp_path / "t.db")
