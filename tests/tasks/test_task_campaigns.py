"""Campaigns of each task: the same by every route, in reports and budgets; the task guessed from labels, and said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from tiny_campaigns import HEAD, chance, ran

from onnxfi.campaign.gate.budget import Budget, BudgetLimit, load_budget
from onnxfi.campaign.gate.check import check
from onnxfi.campaign.gate.write_budget import write_budget
from onnxfi.campaign.report.html_page import page
from onnxfi.campaign.report.report import report
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import DataError
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import Array, Port
from onnxfi.tasks.evaluation import evaluate

N = 10
X = Port("x", "float32", ("N", 4))


def net(folder: Path, outputs: int, tail: str) -> str:
    """A network of two layers into `outputs` numbers, with `tail` behind them."""
    model = parser.parse_model(
        f"{HEAD} net (float[N,4] x) => (float y) {{ a = MatMul(x, w1) c = Relu(a) d = MatMul(c, w2) {tail} }}"
    )
    for name, values in {"w1": chance(4, 5), "w2": chance(5, outputs, seed=1)}.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for name, node in zip(("fc1", "act", "fc2"), model.graph.node, strict=False):
        node.name = name
    if "ArgMax" in tail:
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for dim in ("N",) if "ArgMax" in tail else ("N", outputs) if "Reshape" not in tail else ("N", 4, outputs // 4):
        added = model.graph.output[0].type.tensor_type.shape.dim.add()
        if isinstance(dim, int):
            added.dim_value = dim
        else:
            added.dim_param = dim
    onnx.save(model, folder / "net.onnx")
    return str(folder / "net.onnx")


@dataclass(frozen=True)
class Case:
    """A task with what ends the network, labels of golden values, and the metric that compares with them."""

    task: str
    outputs: int
    tail: str
    labels: Callable[[Array], Any]
    metric: str


CASES = [
    Case("binary", 1, "y = Sigmoid(d)", lambda y: y[:, 0] > np.median(y), "accuracy"),
    Case("multi-label", 3, "y = Sigmoid(d)", lambda y: y > np.median(y, axis=0), "f1_micro"),
    Case("regression:relative=0.01,unit=K", 2, "y = Identity(d)", lambda y: y + 0.25, "mae"),
    Case("classification", 3, "y = ArgMax<axis = 1, keepdims = 0>(d)", lambda y: np.arange(N) % 3, "balanced_accuracy"),
    Case("signal:tolerance=0.1", 6, "y = Tanh(d)", lambda y: y + 0.25, "si_sdr"),
    Case("embedding", 6, "y = Identity(d)", lambda y: np.arange(N) // 2, "recall"),
    Case(
        "sequence:charset=letters.txt", 12, "s = Constant<value_ints = [0, 4, 3]>() y = Reshape(d, s)",
        lambda y: np.array(["ab"] * N), "cer",
    ),
]  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.task.partition(":")[0])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("letters.txt").write_text("a\nb\n")
    return tmp_path


def prepared(case: Case, folder: Path) -> dict[str, Any]:
    """Return the fields of a campaign of a case, with data in two files."""
    model, x = net(folder, case.outputs, case.tail), chance(N, 4, seed=9)
    golden = evaluate(model, {"x": x}, task="deviation").run[0].arrays["y"]
    np.savez(folder / "d.npz", x=x)
    np.savez(folder / "l.npz", labels=case.labels(golden))
    return {"model": model, "data": "d.npz", "labels": "l.npz", "task": case.task, "batch": 4}


@pytest.mark.slow
@every_case
def test_campaigns_agree_by_every_route(case: Case, here: Path) -> None:
    fields = prepared(case, here)
    seen: set[str] = set()
    for target in ("weights", "activations"):
        found = []
        for route in ("auto", "full"):
            asked = Campaign(**fields, single=True, trials=20, target=target, route=route, bits="20-31")
            found.append([(r.outcome, r.metrics) for r in ran(asked, here / f"{target}-{route}.db", workers=0)])
        assert found[0] == found[1]
        seen |= {outcome for outcome, _ in found[0]}
    assert "sdc" in seen
    store = here / "weights-auto.db"
    shown = report(store)
    assert shown.task.name == case.task.partition(":")[0]
    rate = shown.everything.rate(case.metric)
    assert rate is not None and rate.low <= rate.estimate <= rate.high
    assert shown.task.metric(case.metric).label in page([shown])


@pytest.mark.slow
@every_case
def test_a_budget_limits_the_metric_of_a_task(case: Case, here: Path) -> None:
    fields = prepared(case, here)
    sweep = Campaign(**{**fields, "model": ""}, ber=1e-3, repeat=12, bits="0-22")
    limits = (
        BudgetLimit(case.metric, max=1e9)
        if case.metric not in ("accuracy", "f1_micro", "recall", "balanced_accuracy")
        else BudgetLimit(case.metric, max=1),
    )
    assert check(fields["model"], Budget(sweep, limits), workers=0).verdict == "pass"
    more = Budget(sweep.with_fields(repeat=60))
    assert {"pass"} == {
        write_budget(fields["model"], more, "b.yaml").checked.verdict,
        check(fields["model"], load_budget("b.yaml"), workers=0).verdict,
    }


def test_a_figure_of_labelled_data_does_not_say_that_there_are_no_labels(here: Path) -> None:
    pytest.importorskip("matplotlib")
    ran(Campaign(**prepared(CASES[2], here), ber=1e-3, repeat=3), here / "s.db", workers=0)
    assert "Without labels" not in page([report(here / "s.db")])


def test_the_task_is_guessed_from_labels_and_said(here: Path) -> None:
    for case in (
        case for case in CASES if case.task.partition(":")[0] not in ("classification", "embedding", "sequence")
    ):
        fields = prepared(case, here)
        found = evaluate(fields["model"], open_data("d.npz", [X], labels="l.npz"))
        wanted = "regression" if case.task.startswith("signal") else case.task.partition(":")[0]
        assert found.task.name == wanted
        assert found.reading.startswith(f"task {wanted}, as the labels look; --task names another")
    texts = open_data({"x": chance(N, 4), "labels": np.array(["a"] * N)}, [X])
    with pytest.raises(DataError, match="of names take their places"):
        evaluate(net(here, 3, "y = Identity(d)"), texts)
    series = open_data({"x": chance(N, 4), "labels": chance(N, 4, 4)}, [X])
    with pytest.raises(
        DataError, match=r"labels are float32 \[10,4,4\], which several tasks take; name one with --task"
    ):
        evaluate(net(here, 3, "y = Identity(d)"), series)


def test_another_charset_is_another_campaign(here: Path) -> None:
    fields = prepared(CASES[-1], here)
    asked = Campaign(**fields, ber=1e-3, repeat=2)
    before = asked.identity()["task"]
    Path("letters.txt").write_text("a\nc\n")
    assert asked.identity()["task"] != before and before.startswith("sequence:charset=letters.txt#")
