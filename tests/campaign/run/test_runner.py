"""The runner: no campaign without proof; crashes, hangs and errors of trials become what they are, and nothing else."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from metric_replacement import replace_metric
from onnx import numpy_helper
from tiny_campaigns import campaign, deadly, outcomes, ran, same_but, save, tables

import onnxfi
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import make_plan, write_plan
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run import campaign_record, trial_limits
from onnxfi.campaign.run.runner import plan, run
from onnxfi.errors import CampaignError, DataError, OnnxfiError, ProviderError, StoreError
from onnxfi.runtime.engine.onnx_runtime import OrtSession
from onnxfi.tasks.kinds.classification import CLASSIFICATION

ROOT = Path(__file__).parents[3]


def meta(store: Path, key: str) -> Any:
    with Store.open(store) as opened:
        return opened.get(key)


def meta_count(store: Path) -> int:
    with closing(sqlite3.connect(store)) as db:
        made = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'meta'").fetchone()[0]
        return db.execute("SELECT count(*) FROM meta").fetchone()[0] if made else 0


# Before the trials


UNREACHED = """net (float[N,4] x) => (float[N,3] y, float[N,4] z) <float[4] far = {1,2,3,4}, float[1,3] near = {1,2,3}>
    { z = Mul(x, far) s = ReduceSum(x, axes) y = Mul(s, near) axes = Constant<value_ints = [1]>() }"""


# Errors of the harness


def test_a_metric_that_raises_is_no_outcome_and_its_trial_runs_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(campaign(), here / "whole.db")
    calls = itertools.count()

    def breaks(pair: Any) -> float:
        if next(calls) % 3 == 2:
            raise ZeroDivisionError("a metric went wrong")
        return changed(pair)

    changed = CLASSIFICATION.metric("changed").function
    assert changed is not None
    replace_metric(monkeypatch, "changed", breaks)
    results = ran(campaign(), here / "s.db")
    failed = [r.trial for r in results if r.error is not None]
    assert 5 < len(failed) < 12 and len(results) == 24
    assert all("ZeroDivisionError: a metric went wrong" in (r.error or "") for r in results if r.error is not None)
    with Store.open(here / "s.db") as opened:
        assert (opened.count("errors"), opened.count("results")) == (len(failed), 24 - len(failed))
        assert "test_runner.py" in opened.trial(failed[0])["error"]
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert [r.trial for r in ran(campaign(), here / "s.db")] == failed
    assert tables(here / "s.db") == tables(here / "whole.db")


def _rows(store: Path) -> list[Any]:
    with Store.open(store) as opened:
        return list(opened.rows())


# Workers that die, hang, or are not like the others


@pytest.mark.slow
def test_a_trial_that_kills_its_worker_twice_is_a_crash_and_takes_no_other_with_it(here: Path) -> None:
    ran(campaign(), here / "whole.db")
    trial = """
if number in (7, 20):
    again(number)
    os.kill(os.getpid(), signal.SIGKILL)
if number == 9 and again(9) == 1:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    results = ran(deadly(trial), here / "s.db", workers=2)
    assert sorted(r.trial for r in results) == list(range(1, 25))
    same_but(here / "s.db", here / "whole.db", {7: ("due", "crash"), 20: ("due", "crash")})
    for number in (7, 20):
        assert Path(f"seen-{number}").stat().st_size >= 2, "the same end twice, the second time alone"
    crashed = next(r for r in results if r.trial == 7)
    assert crashed.metrics["due_samples"] == 1.0 and crashed.metrics["top1"] == 0.0
    assert not ran(deadly(trial), here / "s.db", workers=1), "an outcome is an outcome: it is not run again"


@pytest.mark.slow
def test_memory_is_asked_for_once_more_alone(here: Path) -> None:
    ran(campaign(), here / "whole.db")
    trial = """
from onnxfi.tasks.outcomes import failed
if number == 11 and again(11):
    return failed(golden, "memory")
if number == 12 and again(12) == 1:
    return failed(golden, "memory")
"""
    ran(deadly(trial), here / "s.db", workers=1)
    same_but(here / "s.db", here / "whole.db", {11: ("due", "memory")})
    assert Path("seen-11").stat().st_size >= 2 and Path("seen-12").stat().st_size == 2


@pytest.mark.slow
def test_a_trial_that_hangs_is_ended_and_reported(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(campaign(), here / "whole.db")
    monkeypatch.setattr(trial_limits, "TIMEOUT_S", 3.0)
    monkeypatch.setattr(trial_limits, "TIMEOUT_GOLDEN_RUNS", 0)
    ran(deadly("if number == 5:\n    time.sleep(600)"), here / "s.db", workers=1)
    same_but(here / "s.db", here / "whole.db", {5: ("due", "timeout")})
    assert meta(here / "s.db", "timeout_s") == 3.0
    assert meta(here / "whole.db", "timeout_s") >= 10


@pytest.mark.slow
def test_workers_that_cannot_work_end_the_run_and_are_no_outcome(here: Path) -> None:
    for begin, message in (
        ("os.kill(os.getpid(), signal.SIGKILL)", "a worker process dies before its first trial"),
        ("arrays['x'] = arrays['x'] + 1", "the golden run of a worker differs"),
        ("raise ValueError('no data here')", "no data here"),
    ):
        with pytest.raises((CampaignError, DataError), match=message):
            ran(deadly(begin=begin), here / "s.db", workers=1)
        assert not outcomes(here / "s.db")


def test_workers_end_with_the_run_however_that_ends(here: Path) -> None:
    script = """
import os, sys
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign

if __name__ == "__main__":
    running = run(Campaign("m.onnx", "d.npz", single=True, trials=600, provider="cpu"), "s.db", workers=2)
    next(iter(running))
    import multiprocessing
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), 9)
"""
    Path("script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    children = [int(word) for word in done.stdout.split()]
    assert len(children) == 2
    while any(map(_alive, children)):  # or the test takes too long
        time.sleep(0.02)


@pytest.mark.slow
def test_workers_that_began_early_end_without_a_word_where_the_campaign_cannot_be(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(here, UNREACHED)
    for wanted, message in (
        (campaign(model="none.onnx"), "none.onnx"),
        (campaign(model="g.onnx", output="y", single=True, trials=5, include="far"), "no canary was seen"),
    ):
        with pytest.raises(OnnxfiError, match=message):
            run(wanted, here / "s.db", workers=2)
        for ending in multiprocessing.active_children():  # nobody waits for them, and none may stay
            ending.join(120)
        assert not multiprocessing.active_children() and capfd.readouterr() == ("", "")
    assert not (here / "s.db").exists(), "trials ran while the canary was asked for, and none was written"


def test_fewer_trials_than_workers(here: Path) -> None:
    one = campaign(exhaustive=True, include="=w1", elements=":1,:1", bits="30")
    ran(one, here / "whole.db")
    assert len(ran(one, here / "s.db", workers=2)) == 1
    assert tables(here / "s.db") == tables(here / "whole.db")


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_any_executor_gives_the_same_rows(here: Path) -> None:
    def threads() -> Executor:
        return ThreadPoolExecutor(3)

    ran(campaign(), here / "whole.db")
    ran(campaign(), here / "s.db", executor=threads, workers=3)
    assert tables(here / "s.db") == tables(here / "whole.db")


# Models and data of other kinds


def test_a_long_list_is_never_held_whole(here: Path) -> None:
    write_plan(plan(campaign(data=None))[0], "list.jsonl")
    bench = TrialExecutor.open(campaign(faults="list.jsonl"))
    made = make_plan(bench.opened.campaign, bench.opened.fault_targets)
    before = campaign_record.identity(bench.opened, made)["faults"]
    with open("list.jsonl", "a") as stream:
        stream.write("\n" * (1 << 25))
    tracemalloc.start()
    after = campaign_record.identity(bench.opened, made)["faults"]
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert before != after and held < 1 << 20


DETECTOR = """net (float[N,3,8,8] image) => (float[N,4,8,8] boxes, float[M,3] found)
    <float[4,3,1,1] w = {1,-2,3,-4,5,-6,7,-8,-9,-1,1,-2}, float half = {0.5}>
    { boxes = Conv(image, w) s = ReduceMax<keepdims = 0>(boxes, axes) axes = Constant<value_ints = [1]>()
      above = Greater(s, half) at = NonZero(above) t = Transpose(at) found = Cast<to = 1>(t) }"""


def test_detectors_whose_outputs_vary_in_shape(here: Path) -> None:
    save(here, DETECTOR)
    fields = {"model": "g.onnx", "data": None, "include": "=w", "bits": "30,31", "exhaustive": True}
    ran(campaign(**fields, output="boxes"), here / "boxes.db")
    ran(campaign(**fields, output="found"), here / "found.db")
    for name in ("boxes", "found"):
        rows = _rows(here / f"{name}.db")
        assert len(rows) == 24 and {row.outcome for row in rows} <= {"masked", "sdc", "due"}
        assert any(row.outcome == "sdc" for row in rows)
        assert "sdc1" not in rows[0].metrics, "rows of a number that varies are no samples, so they have no top-1"
    reshaped = [row for row in _rows(here / "found.db") if row.metrics["changed_samples"] == 1.0]
    assert reshaped and all(row.outcome != "masked" for row in reshaped)


INT8 = """net (float[N,4] x) => (float[N,3] y)
    <int8[4,3] w = {1,-2,3,-4,5,-6,7,-8,9,-10,11,127}, float scale = {0.1}, int8 zero = {0}>
    { d = DequantizeLinear(w, scale, zero) y = MatMul(x, d) }"""


def test_int8_models(here: Path) -> None:
    save(here, INT8)
    ran(campaign(model="g.onnx", exhaustive=True, include="=w"), here / "s.db")
    rows = _rows(here / "s.db")
    assert len(rows) == 96 and {row.bit for row in rows} == set(range(8))
    assert {row.outcome for row in rows} <= {"masked", "sdc"}
    weights = numpy_helper.to_array(onnx.load("g.onnx").graph.initializer[0])
    with np.load("d.npz") as held:
        x = held["x"]
    golden = (x @ (weights.astype(np.float32) * np.float32(0.1))).argmax(axis=1)
    for row in rows[::7]:
        with Store.open(here / "s.db") as opened:
            line = json.loads(opened.trial(row.trial)["lines"])
        faulty = weights.copy().view(np.uint8)
        faulty.flat[line["index"]] ^= 1 << line["bits"][0]
        scores = x @ (faulty.view(np.int8).astype(np.float32) * np.float32(0.1))
        assert row.metrics["sdc1"] == pytest.approx(np.mean(scores.argmax(axis=1) != golden), abs=0.09)


@pytest.mark.parametrize(
    "name", ["fashion_gru", "fashion_cnn", pytest.param("fashion_attention", marks=pytest.mark.slow)]
)
def test_the_shipped_models(here: Path, name: str) -> None:
    model, data = str(ROOT / "models" / f"{name}.onnx"), str(ROOT / "models" / "fashion_test.npz")
    ran(campaign(model=model, data=data, samples=20, single=True, trials=12, bits="30"), here / "s.db")
    rows = _rows(here / "s.db")
    assert len(rows) == 12 and any(row.metrics["sdc1"] > 0 for row in rows)
    assert meta(here / "s.db", "golden")["metrics"]["top1"] >= 0.7


def test_the_python_interface(here: Path) -> None:
    wanted = onnxfi.Campaign("m.onnx", "d.npz", ber=[1e-3, 1e-2], repeat=2, provider="cpu")
    seen = []
    for result in run(wanted):
        seen.append(result.trial)
        assert isinstance(result, onnxfi.Result) and result.outcome in ("masked", "sdc", "due") and result.time_s > 0
    assert seen == [1, 2, 3, 4]
    assert (here / "m.onnxfi.db").is_file()
    assert onnxfi.report("m.onnxfi.db").everything.trials == 4
    made, seconds = onnxfi.plan(wanted)
    assert len(made) == 4 and seconds is not None and 0 < seconds < 10
    assert onnxfi.plan(onnxfi.Campaign("m.onnx", ber=1e-3))[1] is None


def test_running_counts_the_trials_to_come(here: Path) -> None:
    running = run(campaign(), here / "s.db")
    assert (running.total, running.outcomes.total(), running.store) == (24, 0, here / "s.db")
    assert running.note.startswith("12 labelled samples of 'd.npz'") and running.golden_s > 0
    assert running.plan.describe() == [
        "one fault per trial, drawn per network: n = 24 trials",
        "population N = 1,376 bits, confidence 0.99",
        "margin at p = 0.5: ±26.07 %",
    ]
    running.close()
    assert list(running) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": "none.npz"}, "no data at 'none.npz'"),
        ({"model": "none.onnx"}, "none.onnx"),
        ({"output": "z"}, "no output 'z'"),
        ({"provider": "cdua"}, "no provider 'cdua'; closest"),
        ({"preprocess": "p.yaml"}, "preprocessing is for a folder of images"),
    ],
)
def test_what_cannot_be_run_makes_no_store(here: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(onnxfi.OnnxfiError, match=message):
        run(campaign(**fields), here / "s.db")
    assert not (here / "s.db").exists()


@pytest.mark.parametrize(
    ("fields", "limits", "message"),
    [
        ({"task": "segmentation"}, {}, "no output is sure to hold masks"),
        ({"labels": "other.npy"}, {}, "label"),
        ({}, {"timeout_s": 1e-6, "workers": 1}, "less than the golden run takes"),
        ({"include": "far", "model": "g.onnx", "output": "y"}, {}, "no canary was seen"),
        ({"model": "chance.onnx"}, {}, "draws random numbers"),
    ],
)
def test_what_is_refused_before_the_first_trial_is_no_obstacle(
    here: Path, fields: dict[str, Any], limits: dict[str, Any], message: str
) -> None:
    save(here, UNREACHED)
    chance = "net (float[N,4] x) => (float[N,3] y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,0,1,2}> {"
    save(here, chance + " m = MatMul(x, w) r = RandomNormalLike(m) y = Add(m, r) }", "chance.onnx")
    np.save(here / "other.npy", np.full(3, 99))
    for empty in (False, True):  # also where a run was killed before its first transaction
        if empty:
            (here / "s.db").touch()
        with pytest.raises(OnnxfiError, match=message):
            run(campaign(**fields), here / "s.db", **limits)
        assert not (here / "s.db").exists() or meta_count(here / "s.db") == 0
    ran(campaign(), here / "s.db")
    with pytest.raises(OnnxfiError, match=message):
        run(campaign(**fields), here / "s.db", **limits, fresh=True)
    assert not (here / "s.db.old").exists()


def test_two_new_runs_that_share_a_store_bind_it_once(here: Path) -> None:
    path = here / "s.db"
    with Store.draft(path) as one, Store.draft(path) as other:
        one.bind({"seed": 1, "strata": []})
        other.bind({"seed": 2, "strata": []})
        for draft in (one, one):
            with Store.open(path, create=True) as store:
                store.take(draft)
        with Store.open(path, create=True) as store, pytest.raises(StoreError, match="another campaign: seed"):
            store.take(other)
    assert meta(path, "identity")["seed"] == 1


class OneOf:
    """ONNX Runtime's session, which says that it is CUDA's as long as that loads: for so many sessions."""

    left = 4

    def __init__(self, model: Any, options: Any, providers: Any, **how: Any) -> None:
        self.name = providers[0][0]
        if self.name == "CUDAExecutionProvider":
            OneOf.left -= 1
            if OneOf.left < 0:
                raise RuntimeError("CUDA failure 2: out of memory")
        self.session = ORT_SESSION(model, options, providers=["CPUExecutionProvider"], **how)

    def get_providers(self) -> list[str]:
        return [self.name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


ORT_SESSION = onnxruntime.InferenceSession


@pytest.mark.parametrize("route", ["full", "auto"])
@pytest.mark.parametrize("loads", [1, 5, *(pytest.param(some, marks=pytest.mark.slow) for some in (2, 9))])
def test_a_provider_that_loads_no_more_ends_the_campaign(
    route: str, loads: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran_on = list[str]()
    monkeypatch.setattr(onnxruntime, "InferenceSession", OneOf)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr("onnxfi.runtime.engine.onnx_runtime.no_cuda", lambda: None)
    monkeypatch.setattr(
        OrtSession,
        "run_bound",
        lambda self, feeds, wanted, *rest: (
            ran_on.append(self.provider) or dict(zip(wanted, self._ort.run(wanted, feeds), strict=True))
        ),
    )
    monkeypatch.setattr(OneOf, "left", loads)
    with pytest.raises(ProviderError, match="provider 'cuda' does not load: CUDA failure 2: out of memory"):
        ran(campaign(provider="auto", route=route), here / "s.db")
    assert set(ran_on) <= {"CUDAExecutionProvider"}, "none on another provider"
    monkeypatch.setattr(OneOf, "left", 0)
    assert ran(campaign(provider="auto", route=route), here / "cpu.db")[0].outcome
    assert meta(here / "cpu.db", "environment")["provider"] == "CPUExecutionProvider"
    assert "provider: cpu" in meta(here / "cpu.db", "spec"), "the spec of the workers"
