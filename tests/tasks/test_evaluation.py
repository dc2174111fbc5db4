"""Evaluations: the metrics that numpy finds, with their conditions, alone and beside a golden one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxfi.errors import DataError, EngineError
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.reference import ReferenceEngine
from onnxfi.tasks.evaluation import does_not_run, evaluate, scored_names

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
X = np.random.default_rng(2).standard_normal((20, 4)).astype(np.float32)
W = np.random.default_rng(3).standard_normal((4, 3)).astype(np.float32)
LABELS = (X @ W).argmax(1) * (np.arange(20) % 4 > 0)


def model(nodes: str = "y = MatMul(x, w)", declared: str = "float[N,3] y", w: np.ndarray = W, rows: str = "N") -> bytes:
    made = parser.parse_model(f"{HEAD} g (float[{rows},4] x) => ({declared}) {{ {nodes} }}")
    made.graph.initializer.append(numpy_helper.from_array(w, "w"))
    return made.SerializeToString()


def data(**more: Any) -> dict[str, Any]:
    return {"x": X, "labels": LABELS} | more


@pytest.mark.parametrize("engine", [OrtEngine("cpu"), ReferenceEngine()], ids=["onnxruntime", "reference"])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_metrics_are_those_of_numpy_whatever_the_batch(engine: Any, batch: int) -> None:
    golden = evaluate(model(), data(), engine=engine, batch=batch)
    assert golden.metrics["top1"] == np.mean((X @ W).argmax(1) == LABELS)
    np.testing.assert_allclose(golden.scores, X @ W, rtol=1e-5)
    assert (golden.samples, golden.output, golden.task.name) == (20, "y", "classification")
    faulty = -W
    found = evaluate(model(w=faulty), data(), golden=golden, engine=engine, batch=batch)
    assert found.metrics["top1"] == np.mean((X @ faulty).argmax(1) == LABELS)
    assert found.metrics["sdc1"] == np.mean((X @ faulty).argmax(1) != (X @ W).argmax(1))
    same = evaluate(model(), data(), golden=golden, engine=engine, batch=batch)
    assert same.metrics["sdc1"] == same.metrics["max_abs"] == 0.0


def test_numbers_of_another_shape_are_compared() -> None:
    text = model("a = MatMul(x, w) y = Relu(a)", "float[N,3] y"), "x"
    golden = evaluate(text[0], {"x": X}, task="deviation")
    assert golden.task.name == "deviation" and "top1" not in golden.metrics
    found = evaluate(model("a = MatMul(x, w) b = Relu(a) y = Add(b, b)"), {"x": X}, golden=golden)
    assert found.metrics["rel_l2"] == pytest.approx(1.0) and found.metrics["cosine"] == pytest.approx(1.0)


def test_a_model_of_one_batch_size_runs_in_such_batches() -> None:
    golden = evaluate(model(rows="8", declared="float[8,3] y"), data(), batch=3)
    assert golden.scores.shape == (20, 3) and golden.metrics["top1"] == np.mean((X @ W).argmax(1) == LABELS)


def test_spikes_are_counted_along_the_axis_of_time(tmp_path: Path) -> None:
    steps = parser.parse_model(
        f"""{HEAD} g (float[N,4] x) => (float[T,N,3] y) {{ z = Constant<value_ints = [0]>() o = MatMul(x, w)
        p = Constant<value_float = 0.0>() s = Greater(o, p) f = Cast<to = 1>(s) a = Unsqueeze(f, z)
        y = Concat<axis = 0>(a, a) }}"""
    )
    steps.graph.initializer.append(numpy_helper.from_array(W, "w"))
    onnx.save(steps, tmp_path / "s.onnx")
    found = evaluate(tmp_path / "s.onnx", data(), output="y", time_axis=0)
    np.testing.assert_array_equal(found.scores, 2.0 * (X @ W > 0))


def test_golden_on_other_samples_is_refused() -> None:
    golden = evaluate(model(), data())
    with pytest.raises(DataError, match="golden was taken on 20 samples, the data has 19; take the same"):
        evaluate(model(), {"x": X[1:], "labels": LABELS[1:]}, golden=golden)


def test_outputs_that_are_no_tensors_are_remarked_on() -> None:
    text = (
        f"{HEAD} g (float[N,4] x) => (float[N,3] y, seq(float[N,3]) s) {{ y = MatMul(x, w) s = SequenceConstruct(y) }}"
    )
    made = parser.parse_model(text)
    made.graph.initializer.append(numpy_helper.from_array(W, "w"))
    found = evaluate(made.SerializeToString(), {"x": X}, task="deviation")
    assert found.reading.startswith("passed over, since they are no tensors: 's' (")


@pytest.mark.parametrize(
    ("fixed", "size", "helps"),
    [(None, 8, "; a model that takes one sample at a time runs with --batch 1"), (None, 1, ""), (8, 8, "")],
)
def test_an_error_says_what_may_help(fixed: int | None, size: int, helps: str) -> None:
    from types import SimpleNamespace

    given: Any = SimpleNamespace(synthetic=False, layout=SimpleNamespace(fixed=fixed), samples=20)
    assert str(does_not_run(EngineError("it fails"), given, size)) == f"it fails{helps}"
    given.synthetic = True
    assert "these are synthetic inputs, give real ones with --data" in str(does_not_run(EngineError("it"), given, size))


def test_memory_below_the_need_of_a_model_is_said() -> None:
    from types import SimpleNamespace

    given: Any = SimpleNamespace(synthetic=False, layout=SimpleNamespace(fixed=None), samples=20)
    found = str(does_not_run(EngineError("Status Message: std::bad_alloc"), given, 8))
    assert found.endswith("; the model needs more memory than there is: free some, or take a smaller --batch")


def test_scored_outputs_are_those_that_the_task_reads() -> None:
    session = OrtEngine("cpu").prepare(model("y = MatMul(x, w) z = Neg(y)", "float[N,3] y, float[N,3] z"))
    from onnxfi.runtime.data.open_data import open_data

    opened = open_data(data(), session.inputs)
    assert scored_names(session, "z", opened) == ("z",) and scored_names(session, None, opened, task="deviation") == ()
    with pytest.raises(DataError):
        scored_names(session, "none", opened)
