"""Tasks by name, guessed, and a user's own: all that is declared is checked for every task that is known."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from task_examples import faulty_example, golden_example
from tiny_campaigns import mlp, ran, save

from onnxfi.campaign.gate.budget import Budget, BudgetLimit, load_budget
from onnxfi.campaign.gate.check import check
from onnxfi.campaign.report.html_page import page
from onnxfi.campaign.report.report import report
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.spec_file import load_spec
from onnxfi.errors import DataError, InputError, SpecError
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Port
from onnxfi.tasks.kinds.classification import CLASSIFICATION
from onnxfi.tasks.kinds.deviation import DEVIATION
from onnxfi.tasks.outcomes import failed, judge
from onnxfi.tasks.registry import choose_task, find_metric, find_task, known_tasks, outputs_read, with_metrics
from onnxfi.tasks.task import Metric, ModelOutputs, Task

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DATA = Data((), 4, None, False, "", None, None)
every_task = pytest.mark.parametrize("task", list(known_tasks()), ids=lambda task: task.name)


@pytest.mark.parametrize(("headline", "known"), [("sdc_samples", True), ("sdc", False), ("warm", False)])
def test_silent_errors_are_known_by_default_where_the_headline_is_their_share(headline: str, known: bool) -> None:
    warm = Metric("warm", lambda pair: 0.0, unit="cm", bounds=(0, np.inf))
    made = Task("thermo", (warm,), headline=headline, masked=lambda pair: pair.distances <= 1)
    assert (made.wrong is not None) is known
    assert "warm" not in made.panels, "bars are shares"
    assert len(set(made.panels)) == len(made.panels) and len(set(made.tiles)) == len(made.tiles)


@every_task
def test_a_task_is_declared_whole(task: Task) -> None:
    views = (*task.reported, *task.evaluated, *task.page_columns, *task.panels, *task.curves, *task.compared,
             *task.tiles, *task.classes, task.headline)  # fmt: skip
    nested = (*task.columns, *task.sums, *task.orders)
    assert {*views, *(name for names in nested for name in names)} <= task.by_name.keys()
    assert Task.declared(json.loads(json.dumps(task.row(), allow_nan=False))) == task


@every_task
def test_a_golden_answer_has_the_declared_values(task: Task) -> None:
    golden = golden_example(task, np.random.default_rng(0))
    same, lost = judge(golden, golden.run), failed(golden, "crash")
    for metric in task.metrics:
        value = metric.value(same.outcome, same.metrics)
        assert value is not None and metric.bounds[0] <= value <= metric.bounds[1], metric
        assert metric.unchanged is None or value == metric.unchanged, metric
        assert metric.value(lost.outcome, lost.metrics) is not None, "a trial without an answer has every metric"
    for names in task.sums:
        assert sum(task.metric(name).value(lost.outcome, lost.metrics) or 0 for name in names) == 1


@pytest.mark.slow
@every_task
def test_declared_orders_hold(task: Task) -> None:
    random = np.random.default_rng(0)
    golden = golden_example(task, random)
    for _ in range(50):
        found = judge(golden, faulty_example(golden, random))
        for low, high in task.orders:
            below, above = (task.metric(name).value(found.outcome, found.metrics) or 0.0 for name in (low, high))
            assert below <= above, (low, high)


def test_a_task_is_guessed_only_where_it_is_certain() -> None:
    scores = np.zeros((4, 3), np.float32)
    assert choose_task("auto", scores, "y", DATA) is CLASSIFICATION
    assert choose_task("auto", scores, "boxes", DATA) is DEVIATION
    assert choose_task("auto", scores[..., None], "y", DATA) is DEVIATION
    assert choose_task("deviation", scores, "y", DATA) is DEVIATION
    with pytest.raises(
        DataError,
        match=r"task classification does not fit: output 'y' has shape .* tasks that fit: regression, signal, dev",
    ):
        choose_task("classification", [Outputs(np.arange(4), {"y": scores[..., None]})], "y", DATA)


def test_labels_of_another_task_are_refused_with_those_that_fit() -> None:
    heads = [Outputs(np.arange(4), {"heads": np.zeros((4, 8, 64), np.float32)})]
    with pytest.raises(
        DataError, match=r"the labels are int64 \[4\]; boxes are .*; name labels of this task with --labels"
    ):
        choose_task("detection", heads, None, replace(DATA, labels=np.arange(4)))
    with pytest.raises(
        DataError, match=r"'y' \[4,3\] do not show their box format.*tasks that fit: classification, multi-label, "
    ):
        choose_task("detection", [Outputs(np.arange(4), {"y": np.zeros((4, 3), np.float32)})], "y", DATA)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("clasification", "no task 'clasification'; closest: 'classification'"),
        ("deviation:a=1", "task 'deviation:a=1' takes no options; leave out a"),
        ("deviation:a", "options are key=value"),
        ("segmentation:changed=0.1,changed=0.2", "changed is given twice"),
        ("no_such_module:task", "cannot be loaded: ModuleNotFoundError"),
        ("json:dumps", "failed: TypeError"),
        ("json:decoder", "is a module; give a Task"),
        ("own_task:thermometer:limits=1", "no option 'limits'; closest: 'limit'"),
    ],
)
def test_a_task_that_is_none(spec: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    with pytest.raises(InputError, match=says):
        find_task(spec)


def test_a_metric_of_ones_own_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    half = find_metric("own_metric:HALF")
    assert with_metrics(DEVIATION, [half]).metric("half_wrong") == half
    with pytest.raises(InputError, match="has a metric 'sdc' already"):
        with_metrics(DEVIATION, [replace(half, name="sdc")])
    with pytest.raises(InputError, match=r"no metric 'nothing'.*give module:name"):
        find_metric("nothing")


# Through every verb


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("own_metric.py", "own_task.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    mlp(tmp_path)
    return tmp_path


SWEEP = {"model": "m.onnx", "ber": 1e-2, "repeat": 12, "samples": 8}


def test_a_metric_and_a_task_of_ones_own_are_in_every_report(here: Path) -> None:
    campaign = Campaign(**SWEEP, task="own_task:thermometer:limit=0.25", metric=("own_metric:HALF",))
    ran(campaign, here / "s.db")
    for name in ("own_metric.py", "own_task.py"):
        (here / name).unlink()
    found = report(here / "s.db")
    assert (found.task.name, found.task.metric("error").unit) == ("thermometer", "K")
    error, half = found.everything.rate("error"), found.everything.rate("half_wrong")
    assert error is not None and error.low <= error.estimate <= error.high and error.method == "order statistics"
    assert half is not None and 0 <= half.low <= half.estimate <= half.high <= 1
    assert found.by_rate[0].rate("error") == error
    assert "half of the output wrong" in page([found]) and " K<" in page([found])
    assert "half_wrong" in next(found.details())


def test_a_budget_limits_deviations_and_ones_own_metrics(here: Path) -> None:
    sweep = Campaign("", ber=1e-3, repeat=30, samples=8, task="deviation", metric=("own_metric:HALF",))
    limits = (
        BudgetLimit("rel_l2", max=1e9),
        BudgetLimit("half_wrong", max=1),
        BudgetLimit("cosine", min=-1),
        BudgetLimit("max_abs", min=1e35),
    )
    found = check("m.onnx", Budget(sweep, limits))
    assert [one.verdict for one in found.findings][:3] == ["pass"] * 3 and found.findings[3].verdict == "fail"
    assert str(found.findings[3].limit) == "max_abs at 0.001: at least 1e+35"
    with pytest.raises(SpecError, match="max -1 is out of range; give a number from 0"):
        BudgetLimit("rel_l2", max=-1)
    with pytest.raises(SpecError, match=r"no rate 'half_wrong'"):
        Budget(replace(sweep, metric=()), limits)


@pytest.mark.parametrize(
    "line", ["task: own_task:thermometer", "metric: [own_metric:HALF]", "task: own_task:thermometer:limit=1"]
)
def test_a_file_that_names_code_is_refused(here: Path, line: str) -> None:
    (here / "spec.yaml").write_text(f"model: m.onnx\nber: 1e-3\n{line}\n")
    (here / "budget.yaml").write_text(f"version: 1\ncampaign: {{ber: 1e-3, {line}}}\nlimits: [{{rate: sdc, max: 1}}]\n")
    for read in (load_spec, load_budget):
        with pytest.raises(SpecError, match="has code run that this file names"):
            read(here / ("spec.yaml" if read is load_spec else "budget.yaml"))
        assert read(here / ("spec.yaml" if read is load_spec else "budget.yaml"), allow_code=True)


def test_numbers_of_any_shape_are_reported_as_deviations(here: Path) -> None:
    save(here, "g (float[N,4] x) => (float[N,4,1] y) <float[4] w = {1,2,3,4}>"
               "{ two = Constant<value_ints = [2]>() a = Mul(x, w) y = Unsqueeze(a, two) }")  # fmt: skip
    ran(Campaign(model="g.onnx", single=True, trials=60, samples=4), here / "d.db")
    found = report(here / "d.db")
    deviation = found.everything.rate("rel_l2")
    with_values = sorted(float(row["rel_l2"]) for row in found.details())
    assert deviation is not None and deviation.estimate == with_values[29]
    assert with_values[0] <= deviation.low <= deviation.estimate <= deviation.high <= with_values[-1]
    cosine = found.everything.rate("cosine")
    assert cosine is not None
    assert cosine.estimate == pytest.approx(np.mean([row["cosine"] for row in found.details()]))
    assert "relative L2" in page([found])


def test_metrics_know_their_unit() -> None:
    assert Metric("a", unit="K", bounds=(0, 9)).text(1.25) == "1.25 K"
    assert Metric("a").text(0.125) == "12.50 %"


@pytest.mark.parametrize(
    ("spec", "port", "message"),
    [
        (
            "segmentation", Port("y", "float32", ("N", 10)),
            r"no output is sure to hold masks.*'y' \(float32 \[N,10\]\).*; tasks that fit: classification, multi-label, "
            "regression, signal, embedding, deviation$",
        ),
        ("embedding", Port("y", "float32", ("N", 5, 8, 8)), "; tasks that fit: regression, signal, deviation, segmentation$"),
        ("sequence", Port("y", "float32", ("N", 9, 40)), r"scores \[N,T,classes\] take --task sequence:charset=FILE"),
    ],
)  # fmt: skip
def test_a_task_that_no_output_fits_names_those_that_do(spec: str, port: Port, message: str) -> None:
    declared = ModelOutputs((port,), None, DATA)
    with pytest.raises(DataError, match=message):
        outputs_read(find_task(spec), declared)
    assert outputs_read(find_task("regression"), declared) == ("y",)


def test_several_outputs_that_fit_are_listed_alone() -> None:
    ports = Port("a", "float32", ("N", 5, 8, 8)), Port("b", "float32", ("N", 5, 8, 8))
    with pytest.raises(DataError, match=r"several outputs could hold masks.*'b' \(float32 \[N,5,8,8\]\)$"):
        outputs_read(find_task("segmentation"), ModelOutputs(ports, None, DATA))
