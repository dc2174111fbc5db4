"""The fault models by example: the texts of every registered one, and what both test modules do with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.registry import fault_models
from onnxfi.faults.words import Word

EXAMPLES = [(name, text) for name, model in fault_models().items() for text in model.examples]
every_example = pytest.mark.parametrize(("name", "text"), EXAMPLES, ids=[text for _, text in EXAMPLES])


def evaluated(model: FaultModel) -> Any:
    """`eval(repr(model))`, with the names that a reader of the text has."""
    kinds = {kind.__name__: kind for kind in fault_models().values()}
    return eval(repr(model), {"nan": math.nan, "inf": math.inf} | kinds)


def after(model: FaultModel, word: Word, before: int, bit: int) -> int:
    (new,) = model.apply(word, np.array([before], np.uint64), np.array([bit], np.int16))
    return int(new)
