"""A decoder in ONNX as a model of lm-eval (`pip install lm-eval`), and its tasks under faults in the weights.

Run as `python examples/adapters/lm_eval_model.py DECODER.onnx TOKENIZER.json TASK [BER] [TRIALS]`.
"""

import sys
from typing import Any

import numpy as np
import onnxruntime
from lm_eval import simple_evaluate, utils
from lm_eval.api.model import LM
from tokenizers import Tokenizer

import onnxfi


class OnnxDecoder(LM):
    """Log-likelihoods of texts by a decoder, a file or its bytes, which run whole, with an empty cache."""

    def __init__(self, model: str | bytes, tokenizer: str, longest: int = 256) -> None:
        super().__init__()
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.tokenizer, self.longest = Tokenizer.from_file(tokenizer), longest

    def follows(self, context: list[int], rest: list[int]) -> tuple[float, bool]:
        """Return the log-likelihood of tokens behind a context, and whether greedy decoding gives them."""
        tokens = (context + rest)[-self.longest :]
        n, rest, feeds = len(tokens), rest[-(len(tokens) - 1) :], {}
        given = {"input_ids": [tokens], "attention_mask": [[1] * n], "position_ids": [[*range(n)]]}
        for one in self.session.get_inputs():  # a cache has one text, and nothing past
            sizes = [size if isinstance(size, int) else int(axis == 0) for axis, size in enumerate(one.shape)]
            feeds[one.name] = np.array(given[one.name]) if one.name in given else np.zeros(sizes, np.float32)
        logits = self.session.run(None, feeds)[0][0].astype(np.float64)[-len(rest) - 1 : -1]
        with np.errstate(all="ignore"):  # a faulty network gives any number
            scores = np.nan_to_num(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), nan=-1e9, neginf=-1e9)
        return float(scores[range(len(rest)), rest].sum()), bool((scores.argmax(1) == rest).all())

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        texts = ([self.tokenizer.encode(text).ids for text in one.args] for one in requests)
        return [self.follows(context or [0], rest) for context, rest in texts]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        texts = (self.tokenizer.encode(one.args[0]).ids for one in requests)
        windows = [utils.get_rolling_token_windows(ids, 0, self.longest - 1, 1) for ids in texts]
        return [sum(self.follows(*utils.make_disjoint_window(one))[0] for one in some) for some in windows]

    def generate_until(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("texts that a decoder writes: onnxfi run --task generation")


def main(model: str, tokenizer: str, task: Any, ber: str = "1e-5", trials: str = "3") -> list[dict[str, Any]]:
    faults = (onnxfi.sample(model, ber=float(ber), seed=seed) for seed in range(int(trials)))
    networks = [OnnxDecoder(one, tokenizer) for one in (model, *(onnxfi.inject(model, one).data for one in faults))]
    return [simple_evaluate(one, tasks=[task], bootstrap_iters=0)["results"] for one in networks]


if __name__ == "__main__":
    print(*main(*sys.argv[1:]), sep="\n")
