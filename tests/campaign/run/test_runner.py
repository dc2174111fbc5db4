"""The runner: no campaign without proof; crashes, hangs and errors of trials become what they are, and nothing else."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
from metric_replacement import replace_metric
from offered_engines import offer
from onnx import numpy_helper
from tiny_campaigns import campaign, chance, deadly, mlp, outcomes, ran, same_but, samples, save, tables

import onnxfi
from onnxfi.campaign.execute import canary
from onnxfi.campaign.execute.export_trial import export_trial
from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan import open_model
from onnxfi.campaign.plan.plan import make_plan, write_plan
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run import runner
from onnxfi.campaign.run.runner import plan, run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.workers.process_pool import ProcessPool
from onnxfi.errors import CampaignError, DataError, EngineError, OnnxfiError, OutputError, ProviderError, StoreError
from onnxfi.faults.space import Target
from onnxfi.graph.model import byte_source
from onnxfi.graph.model.loading import load
from onnxfi.runtime.data.sample_outputs import as_run
from onnxfi.runtime.data.sources import open_data
from onnxfi.runtime.engine import onnx_runtime
from onnxfi.runtime.engine.onnx_runtime import OrtEngine, OrtSession
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.runtime.engine.temporary_tensors import TemporaryTensors
from onnxfi.tasks.evaluation import evaluate
from onnxfi.tasks.kinds.classification import CLASSIFICATION

ROOT = Path(__file__).parents[3]


def meta(store: Path, key: str) -> Any:
    with Store.open(store) as opened:
        return opened.get(key)


# Before the trials


@dataclass(frozen=True)
class Changing(Engine):
    """An engine whose sessions add to their answers what `added` says, and counts what it prepares."""

    name: ClassVar[str] = "changing"
    cuts: ClassVar[bool] = True
    prepared: ClassVar[list[type]] = []

    def added(self, run: int) -> float:
        """Return the number that is added in the n-th run of a session."""
        return 0.0

    def prepare(self, model: Any) -> Any:
        self.prepared.append(bytes if isinstance(model, bytes) else Path)
        session, runs = OrtEngine("cpu").prepare(model), itertools.count()

        def answers(feeds: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, Any]:
            return {k: v + np.float32(self.added(next(runs))) for k, v in session.run(feeds, names).items()}

        ports = {"inputs": session.inputs, "outputs": session.outputs, "non_tensors": {}}
        return SimpleNamespace(**ports, provider="P", note="P", run=answers)


@dataclass(frozen=True)
class Noisy(Changing):
    """An engine whose answers are never the same."""

    name: ClassVar[str] = "noisy"
    count: ClassVar[Iterator[int]] = itertools.count()

    def added(self, run: int) -> float:
        return 1e-3 * next(self.count)


@dataclass(frozen=True)
class WithState(Changing):
    """An engine whose sessions answer another way from their third run on, each as any other."""

    name: ClassVar[str] = "with-state"

    def added(self, run: int) -> float:
        return float(run >= 2)


def test_golden_runs_twice_and_must_be_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Noisy)
    with pytest.raises(CampaignError, match="two golden runs differ"):
        run(campaign(provider="auto", engine="noisy"), here / "s.db")
    with Store.open(here / "s.db") as opened:
        assert (opened.count("plan"), opened.count("results")) == (24, 0)


def test_golden_goes_through_the_door_of_the_trials(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Changing)
    Changing.prepared.clear()
    TrialExecutor.open(campaign(provider="auto", engine="changing")).golden_runs.run()
    assert Changing.prepared == [Path, bytes], "as the file lies, and as a trial is"


def test_golden_that_does_not_run_on_made_up_inputs_asks_for_real_ones(here: Path) -> None:
    save(here, "g (float[N,M] x) => (float[N,M] y) <float[7] w = {1,2,3,4,5,6,7}> { y = Mul(x, w) }")
    with pytest.raises(EngineError, match="these are synthetic inputs, give real ones with --data"):
        run(campaign(model="g.onnx", data=None), here / "s.db")


def test_kept_outputs_stand_for_the_first_run_only_where_they_agree(here: Path) -> None:
    bench = TrialExecutor.open(campaign())
    golden, seconds = bench.golden_runs.run()
    assert bench.golden_runs.run(golden.run)[0].run is golden.run and seconds > 0
    wrong = as_run(golden.scores + 1)
    assert np.array_equal(bench.golden_runs.run(wrong)[0].scores, golden.scores)


@pytest.mark.parametrize("beside", [False, True], ids=["in the file", "beside it"])
def test_a_large_model_is_opened_from_a_draft_and_answers_alike(
    here: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    plain = campaign(route="full", trials=5)
    small = [(r.outcome, r.metrics) for r in run(plain, here / "small.db")]
    if beside:
        onnx.save(onnx.load("m.onnx"), "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    asked: list[bool] = []
    monkeypatch.setattr(open_model, "LARGE_BYTES", 1)
    monkeypatch.setattr(open_model, "give_back", lambda: asked.append(True))
    monkeypatch.setattr(open_model, "faulty_bytes", lambda *_: pytest.fail("the whole model was put into memory"))
    assert [(r.outcome, r.metrics) for r in run(plain, here / "large.db")] == small and asked


@pytest.mark.parametrize("beside", [False, True], ids=["in the file", "beside it"])
def test_weights_are_held_by_the_runtime_alone(here: Path, monkeypatch: pytest.MonkeyPatch, beside: bool) -> None:
    rng, width, layers = np.random.default_rng(0), 256, 12
    body = " ".join(f"m{k} = MatMul(y{k}, w{k}) y{k + 1} = Relu(m{k})" for k in range(layers))
    save(here, f"net (float[N,{width}] y0) => (float[N,{width}] y{layers}) {{ {body} }}")
    net = onnx.load("g.onnx")
    for k in range(layers):
        weight = rng.standard_normal((width, width)).astype(np.float32) / 16
        net.graph.initializer.append(numpy_helper.from_array(weight, f"w{k}"))
    onnx.save(net, "g.onnx", save_as_external_data=beside, location="g.data", size_threshold=0)
    np.savez("wide.npz", y0=rng.standard_normal((4, width)).astype(np.float32))
    size, loans = layers * width * width * 4, list[TemporaryTensors]()
    monkeypatch.setattr(
        onnx_runtime, "TemporaryTensors", lambda given: loans.append(TemporaryTensors(given)) or loans[-1]
    )
    wanted = campaign(model="g.onnx", data="wide.npz", trials=2 * layers)
    usual = [(r.outcome, r.metrics, r.route) for r in run(wanted, here / "usual.db")]
    loans.clear()
    tracemalloc.start()
    try:
        running, found = run(wanted, here / "tight.db", kept_bytes=size // 4), []
        for result in running:
            found.append((result.outcome, result.metrics, result.route))
            if len(found) == layers:
                read = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, byte_source.__file__)])
    finally:
        tracemalloc.stop()
    assert found == usual and {route for _, _, route in found} != {None}
    lent = sum(array.nbytes for loan in loans for array in loan.arrays)
    assert lent >= size and not any(array.any() for loan in loans for array in loan.arrays if array.nbytes >= 1 << 16)
    assert sum(trace.size for trace in read.traces) <= size // 2, "of what was read, a few that have faults are kept"


def test_processes_have_a_model_open_beside_each_other_where_there_is_room(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("m.onnx")
    assert open_model.beside(model, 1), "a small one always"
    monkeypatch.setattr(open_model, "LARGE_BYTES", 1)
    monkeypatch.setattr(open_model, "give_back", lambda: None)
    assert open_model.beside(model, 2 * model.source.size) and not open_model.beside(model, 2 * model.source.size - 1)
    order: list[str] = []
    changes, submit = canary.changes, ProcessPool.submit

    def seen(bench: TrialExecutor, target: Target) -> bool:
        order.append("here")
        return changes(bench, target)

    def given(pool: ProcessPool, call: Any, *args: Any) -> Any:
        order.append(call.__name__)
        return submit(pool, call, *args)

    monkeypatch.setattr(canary, "changes", seen)
    monkeypatch.setattr(ProcessPool, "submit", given)
    ran(campaign(trials=4), here / "wide.db", workers=1)
    assert order[:3] == ["open_early", "shown", "work"] and "here" in order
    order.clear()
    ran(campaign(trials=4), here / "tight.db", workers=1, kept_bytes=1)
    assert order[:4] == ["int", "here", "shown", "work"]
    assert tables(here / "tight.db") == tables(here / "wide.db")


def test_where_there_is_no_room_for_a_draft_bytes_do(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OutputError("cannot write it: No space left on device")

    monkeypatch.setattr(open_model, "LARGE_BYTES", 1)
    monkeypatch.setattr(open_model, "give_back", lambda: None)
    monkeypatch.setattr(open_model, "write_scratch_copy", full)
    assert len([*run(campaign(route="full", trials=2), here / "s.db")]) == 2


UNREACHED = """net (float[N,4] x) => (float[N,3] y, float[N,4] z) <float[4] far = {1,2,3,4}, float[1,3] near = {1,2,3}>
    { z = Mul(x, far) s = ReduceSum(x, axes) y = Mul(s, near) axes = Constant<value_ints = [1]>() }"""


def test_the_canary_must_be_seen(here: Path) -> None:
    save(here, UNREACHED)
    both = campaign(model="g.onnx", output="y", single=True, trials=20, bits="exponent")
    ran(both, here / "s.db")
    assert meta(here / "s.db", "canary") == {"seen": "near", "unseen": ["far"], "routes": {"partial": "near"}}
    with pytest.raises(
        CampaignError, match="no canary was seen: all exponent bits set in far changed nothing in"
    ) as raised:
        run(campaign(model="g.onnx", output="y", single=True, trials=5, include="far"), here / "t.db")
    assert "select other targets, or score another --output" in str(raised.value)


def test_the_canary_covers_every_part_of_a_mix_and_the_targets_of_a_list(here: Path) -> None:
    save(here, UNREACHED)
    parts = (dict(count=1, include=("far",)), dict(count=1, include=("near",)))
    ran(campaign(model="g.onnx", output="y", mix=parts, repeat=2), here / "s.db")
    assert meta(here / "s.db", "canary") == {"seen": "near", "unseen": ["far"], "routes": {"partial": "near"}}
    write_plan(plan(campaign(model="g.onnx", data=None, single=True, trials=2, include="far"))[0], "far.jsonl")
    with pytest.raises(CampaignError, match="no canary was seen"):
        run(campaign(model="g.onnx", output="y", faults="far.jsonl"), here / "t.db")


def test_the_canary_is_not_fooled_by_outputs_whose_shape_varies(here: Path) -> None:
    save(
        here,
        """net (float[N,4] x) => (float[M,2] found) <float[4] far = {1,2,3,4}, float zero = {0}>
        { z = Mul(x, far) above = Greater(x, zero) at = NonZero(above) t = Transpose(at) found = Cast<to = 1>(t) }""",
    )
    with pytest.raises(CampaignError, match="no canary was seen"):
        run(campaign(model="g.onnx", data=None, batch=2, include="=far"), here / "s.db")


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


GATHER = """net (float[N,4] x) => (float[N,3] y)
    <int64[2] index = {0, 1}, float[2,3] w = {1,2,3,4,5,6}>
    { a = Gather<axis = 1>(x, index) y = MatMul(a, w) }"""


def test_what_the_runtime_refuses_is_due_to_the_fault(here: Path) -> None:
    save(here, GATHER)
    ran(campaign(model="g.onnx", exhaustive=True, include="=index"), here / "s.db")
    found = outcomes(here / "s.db")
    assert len(found) == 128
    rows = {row.trial: row for row in _rows(here / "s.db")}
    errors = {rows[trial].bit for trial, outcome in found.items() if outcome == ("due", "error")}
    assert errors == set(range(2, 64)), "an index beyond the four numbers cannot be gathered"
    some = next(row for row in rows.values() if row.cause == "error")
    assert some.metrics["due_samples"] == 1.0 and some.metrics["top1"] == 0.0
    ran(campaign(model="g.onnx", exhaustive=True, include="=index", due=("nonfinite",)), here / "silent.db")
    silent = outcomes(here / "silent.db")
    assert {silent[trial] for trial, outcome in found.items() if outcome == ("due", "error")} == {("sdc", "error")}


def _rows(store: Path) -> list[Any]:
    with Store.open(store) as opened:
        return list(opened.rows())


def test_python_that_runs_out_of_memory_is_due_to_the_fault(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = OpenCampaign.faulty_session
    for error in (MemoryError(), EngineError("Failed to allocate memory for requested buffer of size 1")):
        count = itertools.count()

        def faulty(self: OpenCampaign, faults: Any, error: Any = error, count: Any = count) -> Any:
            if next(count) == 3:
                raise error
            return whole(self, faults)

        monkeypatch.setattr(OpenCampaign, "faulty_session", faulty)
        store = here / f"{type(error).__name__}.db"
        ran(campaign(route="full"), store)
        assert [trial for trial, found in outcomes(store).items() if found == ("due", "memory")] == [3]
    monkeypatch.undo()


# Workers that die, hang, or are not like the others


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
    monkeypatch.setattr(runner, "TIMEOUT_S", 3.0)
    monkeypatch.setattr(runner, "TIMEOUT_GOLDEN_RUNS", 0)
    ran(deadly("if number == 5:\n    time.sleep(600)"), here / "s.db", workers=1)
    same_but(here / "s.db", here / "whole.db", {5: ("due", "timeout")})
    assert meta(here / "s.db", "timeout_s") == 3.0
    assert meta(here / "whole.db", "timeout_s") >= 10


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
        assert not multiprocessing.active_children() and capfd.readouterr() == ("", "")
    assert not outcomes(here / "s.db"), "trials ran while the canary was asked for, and none was written"


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
    before = runner.identity(bench.opened, made)["faults"]
    with open("list.jsonl", "a") as stream:
        stream.write("\n" * (1 << 25))
    tracemalloc.start()
    after = runner.identity(bench.opened, made)["faults"]
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert before != after and held < 1 << 20


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
        assert set(one.metrics) - set(other.metrics) == {"top1", "top5", "critical"}
    made_up = campaign(data="synthetic")
    ran(made_up, here / "3.db")
    assert meta(here / "3.db", "golden")["synthetic"] and made_up.data.data is None


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


def test_a_trial_is_what_inject_and_eval_find(here: Path) -> None:
    ran(campaign(ber=(0.02,), repeat=3), here / "s.db")
    data = open_data("d.npz", OrtEngine("cpu").prepare("m.onnx").inputs)
    golden = evaluate("m.onnx", data, engine=OrtEngine("cpu"))
    for row in _rows(here / "s.db"):
        export_trial(here / "s.db", row.trial, here / f"{row.trial}.onnx")
        found = evaluate(here / f"{row.trial}.onnx", data, golden=golden, engine=OrtEngine("cpu"))
        assert {name: row.metrics[name] for name in found.metrics} == found.summary()
        drawn = onnxfi.sample(load("m.onnx"), ber=0.02, trial=row.trial)
        assert onnxfi.inject(load("m.onnx"), drawn).data == (here / f"{row.trial}.onnx").read_bytes()


def test_an_export_needs_the_model_as_it_was(here: Path) -> None:
    ran(campaign(ber=(0.02, 1.0), repeat=1), here / "s.db")
    export_trial(here / "s.db", 2, here / "all.onnx")
    words = [
        numpy_helper.to_array(t).view(np.uint32)
        for name in ("m.onnx", "all.onnx")
        for t in onnx.load(name).graph.initializer
    ]
    assert all(
        np.array_equal(one ^ np.uint32(0xFFFFFFFF), other) for one, other in zip(words[:4], words[4:], strict=True)
    )
    mlp(here, seed=4)
    with pytest.raises(StoreError, match=r"s.db is of the model [0-9a-f]{64}, m.onnx is [0-9a-f]{64} now"):
        export_trial(here / "s.db", 1, here / "out.onnx")


def test_trials_without_faults_are_golden(here: Path) -> None:
    ran(campaign(ber=(0.0,), repeat=3), here / "s.db")
    golden = meta(here / "s.db", "golden")["metrics"]
    assert [(r.outcome, r.faults, r.metrics) for r in _rows(here / "s.db")] == [("masked", 0, golden)] * 3
    export_trial(here / "s.db", 2, here / "same.onnx")
    assert (here / "same.onnx").read_bytes() == (here / "m.onnx").read_bytes()


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


RANDOM = {
    "in the graph": "{ n = RandomNormalLike <seed = 3.0> (x) y = Add(x, n) }",
    "in a body": """{ b = Constant <value_float = 1.0> () c = Cast <to = 9> (b)
        y = If (c) <then_branch = t () => (float[N,3] a) { n = RandomUniformLike <seed = 3.0> (x) a = Add(x, n) },
        else_branch = e () => (float[N,3] d) { d = Identity(x) }> }""",
    "dropped": """<float r = {0.5}, bool t = {1}> { y = Dropout <seed = 3> (x, r, t) }""",
    "drawn": "{ p = Softmax(x) y = Bernoulli <seed = 3.0> (p) }",
}


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
