"""A decoder with its loop as a session: prompts in, tokens out, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_decoders as tiny
from tiny_decoders import COUNT, opened

from onnxfi.errors import DataError, EngineError, InputError
from onnxfi.tasks.evaluation import evaluate


def test_prompts_of_several_lengths_run_one_by_one() -> None:
    prompts, session = tiny.prompts(), opened(tiny.decoder())
    whole = session.run({"input_ids": prompts})
    assert whole["tokens"].shape == whole["score"].shape == (3, COUNT)
    for row, prompt in enumerate(prompts):
        alone = session.run({"input_ids": prompt[None]})
        assert all((alone[name][0] == array[row]).all() for name, array in whole.items())


@pytest.mark.parametrize(
    ("prompts", "words"),
    [([[1, 2, 30]], "scores 24 tokens; the tokenizer is of another vocabulary"), ([[-1, -1]], "has no token"),
     ([[1, -7, 2]], "the token -7")],
)  # fmt: skip
def test_prompts_that_do_not_fit_are_refused(prompts: list[list[int]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        opened(tiny.decoder()).run({"input_ids": np.array(prompts)})


def test_prompts_without_the_shared_prefix_are_refused() -> None:
    with pytest.raises(DataError, match="differ in their first 5 tokens"):
        opened(tiny.decoder(), prefix=5).run({"input_ids": tiny.prompts(2, 8)})
    with pytest.raises(DataError, match="none behind the shared prefix"):
        opened(tiny.decoder(), prefix=6).run({"input_ids": tiny.prompts(1, 6)})


def test_a_prompt_that_is_too_long_is_refused_without_a_word_on_batches() -> None:
    with pytest.raises(EngineError, match="take shorter prompts") as caught:
        evaluate(tiny.decoder(), {"input_ids": tiny.prompts()}, task="generation:tokens=60")
    assert "--batch" not in str(caught.value)


def test_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="decode=FILE"):
        opened(tiny.decoder(past=False))
    with pytest.raises(InputError, match="encoder=FILE"):
        opened(tiny.decoder(cross=True, encode=False))
    with pytest.raises(InputError, match="export the decoder with past key values"):
        opened(str(Path("models/fashion_cnn.onnx")))
    prefill = str(tiny.saved(tmp_path, "prefill", tiny.decoder(past=False)))
    with pytest.raises(InputError, match=r"give it as prefill="):
        opened(tiny.decoder(), {"encoder": prefill})
    with pytest.raises(InputError, match="end is 24, and the model scores 24 tokens"):
        opened(tiny.decoder(), end=24)
    with pytest.raises(InputError, match="prefix needs"):
        opened(tiny.decoder(), {"prefill": prefill}, prefix=2)


def test_an_input_that_no_loop_feeds_is_named() -> None:
    model = tiny.decoder()
    model.graph.input.append(onnx.helper.make_tensor_value_info("temperature", 1, [1]))
    with pytest.raises(InputError, match="'temperature'"):
        opened(model)
