"""The choice of flips."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxfi.attacks.goals import Goal
from onnxfi.attacks.search import Rules, chosen_flips
from onnxfi.faults.models import Flip
from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import load

MODEL = Path("models/fashion_cnn.onnx")


def by_words(method: str, flips: int, layers: int = 3) -> list[str]:
    space = Selector(role=("weight",)).space(load(MODEL).targets, Flip())
    rules = Rules(method, flips, first_tensors=layers)
    return [flip.site for flip in chosen_flips(MODEL, space, Path(), Goal(), rules, {}, Path())]


def test_signs_of_the_largest_words_of_the_first_tensor() -> None:
    model = load(MODEL)
    conv = model.targets[0]
    numbers = np.abs(conv.word.values(model.words(conv, np.arange(conv.size)))).reshape(16, -1)
    sites = by_words("sign", 16, layers=1)
    index = [int(site.partition("[")[2].partition("]")[0]) for site in sites]
    assert sites[0] == f"conv1.weight[{numbers.argmax()}]:31"
    assert sorted(index) == sorted(int(row) * 9 + int(k) for row, k in enumerate(numbers.argmax(axis=1)))


def test_the_top_exponent_bit_is_flipped_where_the_word_stays_finite() -> None:
    sites = by_words("exponent", 5)
    assert len(sites) == 5 and all(site.endswith(":30") for site in sites)
    model = load(MODEL)
    for site in sites:
        name, _, rest = site.partition("[")
        target = model.targets[model.by_id[name]]
        word = model.words(target, np.array([int(rest.partition("]")[0])]))
        assert np.isfinite(target.word.values(word ^ np.uint64(1 << 30)))[0]
