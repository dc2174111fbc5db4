"""The part that a model has in a loop, and what it is fed."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_decoders as tiny

from onnxfi import OrtEngine
from onnxfi.errors import InputError
from onnxfi.runtime.generation.decoder_stages import DecoderStage, Part, part_of

ENGINE = OrtEngine(provider="cpu")


def test_the_part_follows_from_inputs_and_outputs() -> None:
    models = {Part.ENCODER: tiny.encoder(), Part.PREFILL: tiny.decoder(past=False), Part.DECODE: tiny.merged()}
    for part, model in models.items():
        assert part_of(ENGINE.prepare(model.SerializeToString()), "it") is part


def test_a_merged_decoder_is_fed_its_branch() -> None:
    stage = DecoderStage.of(ENGINE.prepare(tiny.merged().SerializeToString()), "it")
    first, later = (stage.feeds(np.array([1]), stage.empty(), seen)["use_cache_branch"].tolist() for seen in (0, 4))
    assert stage.has("use_cache_branch") and (first, later) == ([False], [True])
    assert stage.feeds(np.array([1, 2]), stage.empty(), 4)["position_ids"].tolist() == [[4, 5]]


def test_a_decoder_of_prompts_must_give_the_cache_of_the_other() -> None:
    decode = DecoderStage.of(ENGINE.prepare(tiny.decoder().SerializeToString()), "it")
    other = ENGINE.prepare(tiny.decoder(past=False, cross=True).SerializeToString())
    with pytest.raises(InputError, match=r"'present\.0\.key'"):
        DecoderStage.of(other, "prefill=", decode.cache)
