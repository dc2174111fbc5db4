r"""Comparing sentences by their embeddings: a small transformer (MiniLM in int8), and the mean of its tokens.

    python scripts/fetch_models.py --only minilm_int8 --only minilm_tokens
    onnxfi run examples.pipelines.sentences:pipeline --stage encoder --data examples.pipelines.sentences:sentences \
        --task embedding --ber 1e-6

Run it in the folder of the repository. Two sentences in a row are about one thing: each should be nearest to the
other.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxfi import Pipeline, Stage

MODELS = Path(os.environ.get("ONNXFI_MODELS", Path(__file__).parents[2] / "fetched"))
TOKENS = 16
TEXTS = (
    "A cat sleeps on the sofa.",
    "The dog runs in the park.",
    "Rain is expected tomorrow.",
    "It will be sunny all week.",
    "The train to Paris is late.",
    "Our flight leaves at noon.",
    "She plays the violin.",
    "He studies the piano.",
    "The satellite lost its signal.",
    "A rocket was launched at night.",
    "Stocks fell sharply today.",
    "The bank raised its rates.",
    "Boil the pasta for ten minutes.",
    "Bake the bread until golden.",
    "The doctor prescribed rest.",
    "The patient has a fever.",
)
Arrays = Mapping[str, NDArray[np.generic]]


def sentences(texts: Sequence[str] = TEXTS) -> Arrays:
    """Return the tokens of each sentence, cut or filled up to one length, which of them count, and what it is about."""
    known = json.loads((MODELS / "minilm_tokens.json").read_text(encoding="utf-8"))["model"]["vocab"]
    rows = [[known["[CLS]"], *[*tokens(text, known)][: TOKENS - 2], known["[SEP]"]] for text in texts]
    filled = [row + [known["[PAD]"]] * (TOKENS - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (TOKENS - len(row)) for row in rows]
    return {"ids": np.array(filled), "mask": np.array(mask), "labels": np.arange(len(texts)) // 2}


def tokens(text: str, known: Mapping[str, int]) -> Iterator[int]:
    """Yield the longest known parts of each word, one after the other (WordPiece)."""
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        start = 0
        while start < len(word):
            ends = range(len(word), start, -1)
            end = next(end for end in ends if ("##" if start else "") + word[start:end] in known)
            yield known[("##" if start else "") + word[start:end]]
            start = end


def mean(states: NDArray[np.float32], mask: NDArray[np.int64]) -> Arrays:
    """Return the mean of the tokens that count, as a vector of length 1."""
    summed = (states * mask[..., None]).sum(axis=1)
    return {"embedding": (summed / np.linalg.norm(summed, axis=1, keepdims=True)).astype(np.float32)}


def pipeline() -> Pipeline:
    """Return the pipeline."""
    fed = {"input_ids": "data.ids", "attention_mask": "data.mask", "token_type_ids": 0}
    return Pipeline(
        [
            Stage("encoder", model=str(MODELS / "minilm_int8.onnx"), inputs=fed),
            Stage("mean", function=mean, inputs={"states": "encoder.last_hidden_state", "mask": "data.mask"}),
        ]
    )
