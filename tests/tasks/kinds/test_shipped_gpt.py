"""The shipped GPT: its cache, its card, and campaigns on its texts by every route."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import onnxfi
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import DataError
from onnxfi.graph.partition.route import Route
from onnxfi.runtime.data.decoder_inputs import completed
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

MODELS = Path(__file__).parents[3] / "models"
GPT, TEXTS = MODELS / "char_gpt.onnx", MODELS / "char_gpt_test.npz"
VERSIONS = ("char_gpt", "char_gpt_fp16", "char_gpt_int8", "char_gpt_int4")


def session_of(name: str) -> Any:
    return onnxruntime.InferenceSession(MODELS / f"{name}.onnx", providers=["CPUExecutionProvider"])


def ids(count: int) -> Any:
    with np.load(TEXTS) as held:
        return held["input_ids"][:count]


def windows(name: str, tokens: Any) -> Any:
    """The logits of whole windows, fed without onnxfi."""
    session = session_of(name)
    cache = np.zeros((len(tokens), 4, 0, 24), np.float32)
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    feeds["position_ids"] = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
    feeds |= {f"past_key_values.{k}.{part}": cache for k in range(4) for part in ("key", "value")}
    return session.run(["logits"], feeds)[0]


@pytest.mark.parametrize("name", VERSIONS)
def test_perplexity_is_what_the_runtime_alone_gives(name: str) -> None:
    tokens = ids(2)
    logits = windows(name, tokens)[:, :-1].astype(np.float64)
    shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(shares, tokens[:, 1:, None], -1).mean()
    found = onnxfi.evaluate(
        MODELS / f"{name}.onnx", {"input_ids": tokens}, task="language-model", engine=OrtEngine("cpu")
    )
    assert found.metrics["perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)
    assert found.metrics["perplexity"] < 5


def test_the_cache_gives_the_logits_of_the_whole_window() -> None:
    tokens, session = ids(2)[:, :24], session_of("char_gpt")
    whole = windows("char_gpt", tokens)
    ports = OrtEngine("cpu").prepare(GPT).inputs
    past: dict[str, Any] = {}
    names = [output.name for output in session.get_outputs()]
    for first, last in ((0, 16), (16, 17), (17, 24)):
        feeds = {"input_ids": tokens[:, first:last], "attention_mask": np.ones((2, last), np.int64), **past}
        feeds["position_ids"] = np.tile(np.arange(first, last), (2, 1))
        found = dict(zip(names, session.run(names, completed(feeds, ports)), strict=True))
        np.testing.assert_allclose(found["logits"], whole[:, first:last], atol=1e-4)
        past = {f"past_key_values{name.removeprefix('present')}": found[name] for name in names if name != "logits"}
    assert past["past_key_values.3.value"].shape == (2, 4, 24, 24)


@pytest.mark.slow
def test_trials_have_the_metrics_of_the_whole_model(tmp_path: Path) -> None:
    campaign = Campaign(
        str(GPT), str(TEXTS), samples=2, batch=2, single=True, trials=6, provider="cpu", bits="exponent", seed=3,
        task="language-model",
    )  # fmt: skip
    short = list(run(campaign, tmp_path / "short.db"))
    full = Campaign(
        str(GPT), str(TEXTS), samples=2, batch=2, single=True, trials=6, provider="cpu", bits="exponent", seed=3,
        task="language-model", route="full",
    )  # fmt: skip
    whole = list(run(full, tmp_path / "full.db"))
    assert {one.route for one in whole} == {Route.FULL} and Route.FULL not in {one.route for one in short}
    for one, other in zip(sorted(short, key=lambda r: r.trial), sorted(whole, key=lambda r: r.trial), strict=True):
        assert one.outcome == other.outcome
        assert one.metrics["top1_agreement"] == pytest.approx(other.metrics["top1_agreement"], abs=0.01)
    found = onnxfi.report(tmp_path / "short.db")
    assert found.golden["metrics"]["perplexity"] < 5


def test_texts_longer_than_the_positions_are_refused() -> None:
    ports = OrtEngine("cpu").prepare(GPT).inputs
    data = open_data({"input_ids": ids(2).reshape(1, 512)}, ports)
    with pytest.raises(DataError, match="take windows of 256 tokens or fewer"):
        onnxfi.evaluate(GPT, data, task="language-model", engine=OrtEngine("cpu"))
    wrong = open_data({"input_ids": ids(1) + 7}, ports)
    with pytest.raises(DataError, match="take the tokenizer of the model"):
        onnxfi.evaluate(GPT, wrong, task="language-model", engine=OrtEngine("cpu"))


def test_items_and_texts_are_read_as_the_card_says() -> None:
    pytest.importorskip("tokenizers")
    ports, how = OrtEngine("cpu").prepare(GPT).inputs, MODELS / "char_gpt_text.yaml"
    data = open_data(MODELS / "char_gpt_test.txt", ports, preprocess=how, limit=2)
    [batch] = data.batches(2)
    assert (batch.feeds["input_ids"][0] == ids(1)[0]).all()
    items = open_data(MODELS / "char_gpt_items.jsonl", ports, preprocess=how, limit=16)
    found = onnxfi.evaluate(GPT, items, task="language-model", engine=OrtEngine("cpu")).metrics
    assert 0 <= found["answer_accuracy"] <= 1
