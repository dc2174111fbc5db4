"""The loop over one prompt, against runs of the whole text without a cache, in every layout of a decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_decoders as tiny
from onnx import TensorProto, helper
from tiny_decoders import COUNT, opened

from onnxfi import OrtEngine
from onnxfi.errors import EngineError, InputError
from onnxfi.runtime.generation.decoder_stages import EncoderStage
from onnxfi.runtime.generation.generation_engine import GenerationEngine
from onnxfi.runtime.generation.greedy_loop import LoopSettings


@pytest.mark.parametrize("layout", ["single", "merged", "two files"])
def test_a_loop_with_a_cache_writes_what_whole_runs_write(layout: str, tmp_path: Path) -> None:
    prefill = tiny.saved(tmp_path, "prefill", tiny.decoder(past=False))
    model = tiny.merged() if layout == "merged" else tiny.decoder()
    session = opened(model, {"prefill": str(prefill)} if layout == "two files" else {})
    for row in tiny.prompts():
        prompt = row[row >= 0]
        assert list(session.generated(prompt).last.tokens) == tiny.longhand(tiny.decoder(past=False), prompt, COUNT)


@pytest.mark.parametrize("own", ["encoder", "prefill", "decode"])
def test_any_model_of_an_encoder_and_two_decoders_may_be_the_one(own: str, tmp_path: Path) -> None:
    models = {"encoder": tiny.encoder(), "prefill": tiny.decoder(past=False, cross=True),
              "decode": tiny.decoder(cross=True, encode=False)}  # fmt: skip
    files = {name: str(tiny.saved(tmp_path, name, model)) for name, model in models.items()}
    session = opened(files.pop(own), files, start=3)
    encoder = OrtEngine(provider="cpu").prepare(models["encoder"].SerializeToString())
    for row in tiny.prompts():
        prompt = row[row >= 0]
        encoded = encoder.run({"input_ids": prompt[None]})["last_hidden_state"]
        wanted = tiny.longhand(models["prefill"], [3], COUNT, encoded)
        assert list(session.generated(prompt).last.tokens) == wanted


@pytest.mark.parametrize("own", ["encoder", "decode"])
def test_an_encoder_of_numbers_is_fed_them(own: str, tmp_path: Path) -> None:
    models = {"encoder": tiny.speech_encoder(), "prefill": tiny.decoder(past=False, cross=True),
              "decode": tiny.decoder(cross=True, encode=False)}  # fmt: skip
    files = {name: str(tiny.saved(tmp_path, name, model)) for name, model in models.items()}
    session = opened(files.pop(own), files, start=3)
    assert [(port.name, port.shape) for port in session.inputs] == [("input_features", ("N", tiny.BANDS, tiny.FRAMES))]
    encoder = OrtEngine(provider="cpu").prepare(models["encoder"].SerializeToString())
    texts = session.run({"input_features": tiny.speech()})["tokens"]
    for row, heard in enumerate(tiny.speech()):
        encoded = encoder.run({"input_features": heard[None]})["last_hidden_state"]
        assert texts[row].tolist() == tiny.longhand(models["prefill"], [3], COUNT, encoded)


def test_an_encoder_without_faults_runs_once_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"encoder": tiny.speech_encoder(), "prefill": tiny.decoder(past=False, cross=True)}
    files = {name: str(tiny.saved(tmp_path, name, model)) for name, model in models.items()}
    engine = GenerationEngine(OrtEngine(provider="cpu"), LoopSettings(tokens=4, start=3), files)
    runs, given = list[int](), EncoderStage.feeds
    monkeypatch.setattr(EncoderStage, "feeds", lambda *args: (runs.append(1), given(*args))[1])
    decoder = tiny.decoder(cross=True, encode=False).SerializeToString()
    texts = [engine.prepare(decoder).run({"input_features": tiny.speech()})["tokens"].tolist() for _ in range(2)]
    assert texts[0] == texts[1] and len(runs) == 3


def test_an_encoder_of_several_inputs_is_refused_with_their_names(tmp_path: Path) -> None:
    model = tiny.speech_encoder()
    model.graph.input.append(helper.make_tensor_value_info("speaker", TensorProto.FLOAT, ["N", 4]))
    files = {"encoder": str(tiny.saved(tmp_path, "encoder", model)),
             "prefill": str(tiny.saved(tmp_path, "prefill", tiny.decoder(past=False, cross=True)))}  # fmt: skip
    with pytest.raises(InputError, match="its inputs are 'input_features', 'speaker'"):
        opened(tiny.decoder(cross=True, encode=False), files)


@pytest.mark.parametrize(
    ("how", "words"),
    [({"tokens": 60}, r"the decoder has 40 positions, and 60 tokens need 60; take fewer, as tokens=40"),
     ({"start": 50}, r"the decoder begins with token 50, and knows 24")],
)  # fmt: skip
def test_what_a_decoder_behind_an_encoder_lacks_is_named(how: dict[str, int], words: str, tmp_path: Path) -> None:
    files = {"encoder": str(tiny.saved(tmp_path, "encoder", tiny.encoder())),
             "prefill": str(tiny.saved(tmp_path, "prefill", tiny.decoder(past=False, cross=True)))}  # fmt: skip
    session = opened(tiny.decoder(cross=True, encode=False), files, **how)
    with pytest.raises(EngineError, match=words):
        session.generated(tiny.prompts()[0])


def test_a_shared_prefix_changes_no_token() -> None:
    prompts = tiny.prompts(3, 8, prefix=5)
    shared = opened(tiny.decoder(), prefix=5).run({"input_ids": prompts})["tokens"]
    assert shared.tolist() == opened(tiny.decoder()).run({"input_ids": prompts})["tokens"].tolist()


def test_a_text_goes_on_from_any_step() -> None:
    session = opened(tiny.decoder())
    for prompt in tiny.prompts():
        whole = session.generated(prompt[prompt >= 0])
        assert whole.reusable
        for step in range(1, COUNT):
            again = session.loop.run(prompt[prompt >= 0], whole.before(step))
            assert (again.last.tokens, again.last.scores) == (whole.last.tokens, whole.last.scores)


def test_a_text_ends_with_its_end() -> None:
    prompt = tiny.prompts()[0]
    tokens = opened(tiny.decoder()).generated(prompt).last.tokens
    end = tokens[3]
    assert opened(tiny.decoder(), end=end).generated(prompt).last.tokens == tokens[: tokens.index(end) + 1]


def test_drawn_tokens_follow_from_the_seed() -> None:
    prompt = tiny.prompts()[0]
    drawn = [opened(tiny.decoder(), temperature=1.0, seed=seed).generated(prompt).last.tokens for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    cold = opened(tiny.decoder(), temperature=1e-6, seed=3).generated(prompt).last.tokens
    assert cold == opened(tiny.decoder()).generated(prompt).last.tokens


def test_scores_that_are_not_finite_are_kept() -> None:
    session = opened(tiny.decoder())
    spoilt = session.loop.run(
        tiny.prompts()[0],
        edit=lambda step, cache: {name: array * np.float32("nan") for name, array in cache.items()} if step == 2 else cache,
    )  # fmt: skip
    assert np.isfinite(spoilt.last.scores[:2]).all() and np.isnan(spoilt.last.scores[2:]).all()


def test_a_prompt_beyond_the_positions_is_named_with_what_fits() -> None:
    session = opened(tiny.decoder(), tokens=60)
    with pytest.raises(EngineError, match=r"40 positions, and a prompt of 6 tokens with 60 more needs 65.*tokens=35"):
        session.generated(tiny.prompts()[0])
    with pytest.raises(EngineError, match=r"40 positions, and a prompt has 41 tokens; take shorter ones"):
        session.generated(np.resize(tiny.prompts()[0], 41))
    assert len(opened(tiny.decoder(), tokens=35).generated(tiny.prompts()[0]).last.tokens) == 35
