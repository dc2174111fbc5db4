"""Language models: every metric against sums over the whole logits, items both ways, outcomes, what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxfi.errors import DataError, InputError
from onnxfi.graph.dataflow.batch_layout import BatchLayout
from onnxfi.graph.model.loading import load
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Port
from onnxfi.runtime.inject.weights import inject, sample
from onnxfi.tasks.evaluation import evaluate
from onnxfi.tasks.kinds.language_model import language_model
from onnxfi.tasks.kinds.token_scores import TokenScores
from onnxfi.tasks.outcomes import GoldenRun, judge
from onnxfi.tasks.registry import choose_task, find_task, known_tasks
from onnxfi.tasks.task import ModelOutputs, Task

VOCABULARY = 11


class Case:
    """Tokens, and golden and faulty runs of logits, of which some rows are the same."""

    def __init__(self, labels: Any = None, *, n: int = 6, length: int = 8, task: Task | None = None) -> None:
        draw = np.random.default_rng(7)
        self.ids = draw.integers(0, VOCABULARY, (n, length))
        place = BatchLayout(0, (("input_ids", 0),), None)
        self.data = Data.of_arrays({"input_ids": self.ids}, labels, place, "")
        self.logits = (3 * draw.standard_normal((n, length, VOCABULARY))).astype(np.float32)
        self.faulty = self.logits.copy()
        self.faulty[::2] += draw.standard_normal((n // 2, length, VOCABULARY)).astype(np.float32)
        self.reduction = TokenScores.of_data(self.data)
        self.golden = GoldenRun.of(
            self.run(self.logits), labels, task or find_task("language-model"), "auto", 0.0, ("nonfinite",)
        )

    def run(self, logits: Any) -> tuple[Outputs, ...]:
        """Two batches, reduced one by one."""
        cut = len(logits) // 2
        parts = (np.arange(cut), np.arange(cut, len(logits)))
        return tuple(self.reduction(Outputs(part, {"logits": logits[part]})) for part in parts)

    def metrics(self, logits: Any = None) -> dict[str, Any]:
        return judge(self.golden, self.run(self.faulty if logits is None else logits)).metrics


def log_shares(logits: Any) -> Any:
    values = logits.astype(np.longdouble)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def test_metrics_equal_sums_over_the_whole_logits() -> None:
    case = Case()
    p, q = log_shares(case.logits[:, :-1]), log_shares(case.faulty[:, :-1])
    target = case.ids[:, 1:, None]
    nll = -np.take_along_axis(q, target, -1).mean()
    before = -np.take_along_axis(p, target, -1).mean()
    kl = (np.exp(p) * (p - q)).sum(-1).astype(float).ravel()
    found = case.metrics()
    expected = {
        "nll": nll, "perplexity": np.exp(nll), "perplexity_ratio": np.exp(nll - before), "kl_mean": kl.mean(),
        "kl_p99": np.quantile(kl, 0.99, method="inverted_cdf"),
        "top1_agreement": np.mean(p.argmax(-1) == q.argmax(-1)),
        "sdc_samples": np.mean((p.argmax(-1) != q.argmax(-1)).mean(-1) > 0.01),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(
        {k: float(v) for k, v in expected.items()}, rel=1e-5
    )


@pytest.mark.frameworks
def test_torch_gives_the_same_perplexity_and_divergence() -> None:
    functional = pytest.importorskip("torch.nn.functional")
    torch = pytest.importorskip("torch")
    case = Case()
    one, two = (torch.tensor(x[:, :-1]).flatten(0, 1) for x in (case.logits, case.faulty))
    loss = functional.cross_entropy(two, torch.tensor(case.ids[:, 1:]).flatten())
    kl = functional.kl_div(two.log_softmax(-1), one.log_softmax(-1), log_target=True, reduction="batchmean")
    found = case.metrics()
    assert found["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)
    assert found["kl_mean"] == pytest.approx(float(kl), rel=1e-5)


def test_the_golden_run_against_itself_is_masked() -> None:
    case = Case()
    found = judge(case.golden, case.run(case.logits))
    assert found.outcome == "masked"
    assert [found.metrics[name] for name in ("perplexity_ratio", "kl_mean", "kl_p99", "top1_agreement")] == [1, 0, 0, 1]


def test_logits_that_move_without_another_token_are_masked() -> None:
    case = Case()
    found = judge(case.golden, case.run(case.logits * np.float32(1.001)))
    assert found.outcome == "masked" and found.metrics["kl_mean"] > 0


def test_a_share_of_changed_tokens_makes_a_sample_wrong() -> None:
    case = Case(task=language_model(changed=0.2))
    logits = case.logits.copy()
    logits[0, 0] = -logits[0, 0]  # one of seven
    assert judge(case.golden, case.run(logits)).outcome == "masked"
    logits[0, 1] = -logits[0, 1]
    found = judge(case.golden, case.run(logits))
    assert (found.outcome, found.metrics["sdc_samples"]) == ("sdc", pytest.approx(1 / 6))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_due(value: float) -> None:
    case = Case()
    logits = case.logits.copy()
    logits[2, 3, 4] = value
    found = judge(case.golden, case.run(logits))
    assert (found.outcome, found.cause, found.metrics["due_samples"]) == ("due", "nonfinite", pytest.approx(1 / 6))
    assert found.metrics["perplexity"] == found.metrics["kl_mean"] == "Infinity"
    assert found.metrics["top1_agreement"] == pytest.approx(1 - 1 / 42)
    logits = case.logits.copy()
    logits[2, -1, 4] = value
    assert judge(case.golden, case.run(logits)).outcome == "masked", "nothing is scored behind the last token"


def test_perplexity_saturates_and_agreement_does_not() -> None:
    case = Case()
    found = case.metrics(np.zeros_like(case.logits))
    assert found["perplexity"] == pytest.approx(VOCABULARY)
    top = np.mean(case.logits[:, :-1].argmax(-1) == 0)
    assert found["top1_agreement"] == pytest.approx(top)


def items() -> Case:
    """Three items of two choices each; rows 0, 3 and 4 are right."""
    labels = np.full((6, 8), -100)
    labels[:, 5:] = np.random.default_rng(7).integers(0, VOCABULARY, (6, 8))[:, 5:]
    labels[:, 0] = [1, 0, 2, 3, 5, 4]
    return Case(labels)


def test_answers_flip_both_ways() -> None:
    case = items()

    def answered(rows: tuple[int, ...]) -> Any:
        """Logits that give the tokens of these rows a high probability."""
        logits = np.zeros_like(case.logits)
        for row in rows:
            for t in range(4, 7):
                logits[row, t, case.golden.labels[row, t + 1]] = 5.0
        return logits

    case.reduction.forget()
    case.golden = GoldenRun.of(
        case.run(answered((0, 2, 4))), case.golden.labels, case.golden.task, "auto", 0.0, ("nonfinite",)
    )
    names = ("answer_accuracy", "answers_changed", "flips_to_wrong", "flips_to_right")
    found = judge(case.golden, case.run(answered((1, 3, 4))))
    assert [found.metrics[name] for name in names] == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3])
    assert found.metrics["sdc_samples"] == pytest.approx(4 / 6), "the rows of two items"
    lost = answered((0, 2, 4))
    lost[0] = np.nan
    found = judge(case.golden, case.run(lost))
    assert [found.metrics[name] for name in names] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert (found.outcome, found.metrics["due_samples"]) == ("due", pytest.approx(1 / 6))


def test_rows_without_items_have_no_metrics_of_items() -> None:
    assert "answers_changed" in items().metrics()
    assert "answers_changed" not in Case().metrics()


def test_the_output_of_the_logits_is_found() -> None:
    task, data = find_task("language-model"), Case().data
    logits, other = Port("logits", "float32", ("N", "T", 11)), Port("hidden", "float32", ("N", "T", 8))
    assert task.reads is not None
    assert task.reads(ModelOutputs((other, logits), None, data)) == ("logits",)
    assert task.reads(ModelOutputs((other,), None, data)) == ("hidden",)
    with pytest.raises(DataError, match=r"several outputs could hold logits, \[N,T,vocabulary\]"):
        task.reads(ModelOutputs((other, Port("scores", "float32", ("N", "T", 11))), None, data))


def test_what_does_not_fit_is_refused() -> None:
    case = Case()
    unscored = Data.of_arrays({"input_ids": case.ids}, np.full(case.ids.shape, -100), case.data.layout, "")
    run = (TokenScores.of_data(unscored)(Outputs.of(case.logits)),)
    with pytest.raises(DataError, match="no token is scored"):
        choose_task("language-model", run, None, unscored, "auto")
    with pytest.raises(DataError, match="a pipeline has none"):
        choose_task("language-model", (Outputs.of(case.logits),), None, case.data, "auto")
    with pytest.raises(InputError, match=r"changed must be in \[0, 1\), got 1"):
        find_task("language-model:changed=1")
    assert "language-model" in [task.name for task in known_tasks()]


@pytest.mark.fetched
def test_a_real_encoder_and_decoder_is_scored_with_given_tokens() -> None:
    fetched = Path(__file__).parents[3] / "fetched"
    model, known = fetched / "french_forms.onnx", fetched / "french_forms.json"
    if not (model.is_file() and known.is_file()):
        pytest.skip("no french_forms.onnx; python scripts/fetch_models.py brings it")
    place = {letter: k for k, letter in enumerate(json.loads(known.read_text())["itos"])}
    verbs = ("parler", "donner", "passer", "tomber", "porter", "monter", "fermer", "sauter")
    asked = [[*(place[c] for c in f"L:{verb}|W:VERB|P:FST_PL|M:INDI|T:IMPA"), 2] for verb in verbs]
    forms = np.array([[1, *(place[c] for c in verb[:-2] + "ions"), 2] for verb in verbs])
    labels = forms.copy()
    labels[:, 0] = -100
    data = {"src": np.array(asked), "tgt_in": forms, "labels": labels}
    golden = evaluate(model, data, task="language-model")
    assert golden.metrics["perplexity"] < 1.01, "parlions, donnions, …: it knows them"
    done = inject(load(model), sample(load(model), sites=["onnx::GRU_301[60003]:30"]))
    assert done.data is not None
    faulty = evaluate(done.data, data, golden=golden)
    assert faulty.metrics["top1_agreement"] == 1 and 1e-7 < faulty.metrics["kl_mean"] < 1
