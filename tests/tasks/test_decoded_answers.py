"""Answers that a task decodes: outputs of any length, compared bit for bit, decoded again where they differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import DataError, EngineError
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Array
from onnxfi.tasks.answers import AnswerPair, Flags, share
from onnxfi.tasks.decoded_answers import same_answer
from onnxfi.tasks.outcomes import GoldenRun, judge
from onnxfi.tasks.task import Metric, Task


def changed(pair: AnswerPair) -> Flags:
    values = zip(pair.golden.values, pair.values, strict=True)
    return np.array([not same_answer(*both) for both in values], np.bool_)


def words_of(outputs: Outputs) -> list[str]:
    """A letter for each score above 0.5 of a sample: a text of any length."""
    return ["".join("abc"[k] for k in np.flatnonzero(row > 0.5)) for row in outputs.arrays["y"]]


def boxes_of(outputs: Outputs) -> list[Array]:
    """Rows (sample, x, y) belong to the samples that they name, so their number is not that of the samples."""
    rows = outputs.arrays["boxes"]
    return [rows[rows[:, 0] == sample, 1:] for sample in outputs.samples]


def spelling(decode: Callable[[Outputs], object] = words_of, *, apart: bool = True) -> Task:
    return Task(
        "spelling", (Metric("wrong", lambda pair: share(changed(pair)), silent=True),), headline="wrong", decode=decode,
        wrong=changed, apart=apart,
    )  # fmt: skip


def golden_of(arrays: dict[str, Array], samples: int, task: Task) -> GoldenRun:
    return GoldenRun.of((Outputs(np.arange(samples), arrays),), None, task, "auto", 0.0, ("nonfinite",))


def outcome(golden: GoldenRun, arrays: dict[str, Array]) -> tuple[str, float]:
    judged = judge(golden, (Outputs(golden.run[0].samples, arrays),))
    return judged.outcome, judged.metrics["wrong"]


def test_a_text_is_compared_and_not_the_scores_behind_it() -> None:
    y = np.array([[0.9, 0.1, 0.1], [0.2, 0.3, 0.4], [0.6, 0.7, 0.8]], np.float32)
    golden = golden_of({"y": y}, 3, spelling())
    assert list(golden.answers.values) == ["a", "", "abc"], "no letter is an answer too"
    assert outcome(golden, {"y": y.copy()}) == ("masked", 0.0)
    near = y.copy()
    near[0, 0] = 0.8
    assert outcome(golden, {"y": near})[1] == 0.0, "other scores, the same text"
    other = y.copy()
    other[1, 2] = 0.5001
    assert outcome(golden, {"y": other}) == ("sdc", pytest.approx(1 / 3))
    broken = y.copy()
    broken[2, 0] = np.nan
    assert outcome(golden, {"y": broken})[0] == "due"


def test_rows_that_name_their_sample_may_be_more_fewer_or_none() -> None:
    boxes = np.array([[0, 1, 1], [0, 5, 5], [2, 3, 3]], np.float32)
    golden = golden_of({"boxes": boxes}, 3, spelling(boxes_of, apart=False))
    assert [len(rows) for rows in golden.answers.values] == [2, 0, 1]
    assert outcome(golden, {"boxes": boxes[[2, 0, 1]]})[1] == 0.0, "another order of the pictures"
    assert outcome(golden, {"boxes": boxes[:2]}) == ("sdc", pytest.approx(1 / 3)), "one is lost"
    assert outcome(golden, {"boxes": np.concatenate([boxes, [[1, 0, 0]]]).astype(np.float32)})[1] == pytest.approx(
        1 / 3
    )
    assert outcome(golden, {"boxes": boxes[:0]})[1] == pytest.approx(2 / 3), "all are lost"


def test_another_number_of_answers_than_samples_is_refused() -> None:
    golden = golden_of({"y": np.zeros((3, 3), np.float32)}, 3, spelling(lambda outputs: ["one"]))
    with pytest.raises(DataError, match="decode gave 1 answers for 3 samples; give one per sample"):
        _ = golden.answers.values


def test_outputs_that_a_fault_left_undecodable_are_no_answer() -> None:
    """The trial fails in the host code behind the model, as where a later stage of a pipeline does."""

    def strict(outputs: Outputs) -> list[str]:
        if (outputs.arrays["y"] > 1).any():
            raise DataError("an output beyond 1")
        return words_of(outputs)

    for apart in (True, False):
        golden = golden_of({"y": np.zeros((3, 3), np.float32)}, 3, spelling(strict, apart=apart))
        with pytest.raises(EngineError, match="an output beyond 1"):
            outcome(golden, {"y": np.full((3, 3), 2, np.float32)})


@dataclass(frozen=True)
class Found:
    """An answer of several parts."""

    text: str
    where: Array


def test_answers_are_equal_in_every_bit() -> None:
    one = Found("a", np.zeros(2))
    assert same_answer(one, Found("a", np.zeros(2))) and not same_answer(one, Found("b", np.zeros(2)))
    assert not same_answer(one, Found("a", -np.zeros(2))) and not same_answer(one, "a")
    assert same_answer((1, [one]), (1, [one])) and not same_answer([1], [1, 2])


NET = """<ir_version: 10, opset_import: ["": 21]> net (float[N,4] x) => (float[N,3] y)
    <float[4,3] w = {0.3, -0.2, 0.5, 0.1, 0.9, -0.4, -0.6, 0.2, 0.8, 0.4, 0.3, -0.1}> { y = MatMul(x, w) }"""
TASK = """import numpy as np
from onnxfi.tasks.answers import share
from onnxfi.tasks.task import Metric, Task


def decode(outputs):
    return ["".join("abc"[k] for k in np.flatnonzero(row > 0.5)) for row in outputs.arrays["y"]]


def changed(pair):
    return np.array([one != other for one, other in zip(pair.golden.values, pair.values)], bool)


texts = Task(
    "texts", (Metric("wrong_text", lambda pair: share(changed(pair)), silent=True),), headline="wrong_text",
    decode=decode, wrong=changed,
)
"""


def test_campaigns_agree_by_every_route(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(parser.parse_model(NET), "m.onnx")
    np.savez("d.npz", x=np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32))
    Path("decoding_texts.py").write_text(TASK)
    found = []
    for route in ("auto", "full"):
        asked = Campaign(
            "m.onnx", data="d.npz", single=True, trials=60, task="decoding_texts:texts", route=route, batch=3
        )
        found.append([(r.outcome, r.metrics["wrong_text"]) for r in run(asked, tmp_path / f"{route}.db").results])
    assert found[0] == found[1]
    assert {outcome for outcome, _ in found[0]} >= {"sdc"} and any(0 < rate < 1 for _, rate in found[0])
