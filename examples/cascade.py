"""A cascade: a small model answers what it is sure of, a larger one the rest.

    onnxfi run examples.cascade:pipeline --stage small --data models/fashion_test.npz --samples 200 --ber 1e-5

Run it in the folder of the repository, where both models are.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxfi import Pipeline, Stage

Arrays = Mapping[str, NDArray[np.float32]]
SURE = 0.9


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities of scores ([rows, classes])."""
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def unsure(image: NDArray[np.float32], scores: NDArray[np.float32]) -> Arrays:
    """Return the image where the small model is not sure of it: a row, or none."""
    sure = softmax(scores).max(axis=1) >= SURE
    return {"image": image[~sure]}


def answer(small: NDArray[np.float32], large: NDArray[np.float32]) -> Arrays:
    """Return the probabilities of the larger model where it was asked."""
    return {"probabilities": softmax(large if len(large) else small)}


def pipeline() -> Pipeline:
    """Return the cascade."""
    return Pipeline(
        [
            Stage("small", model="models/fashion_snn.onnx", inputs={"image": "data.image"}),
            Stage("unsure", function=unsure, inputs={"image": "data.image", "scores": "small.counts"}),
            Stage("large", model="models/fashion_cnn.onnx", inputs={"image": "unsure.image"}),
            Stage("answer", function=answer, inputs={"small": "small.counts", "large": "large.logits"}),
        ]
    )
