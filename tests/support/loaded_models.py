"""Models that are loaded: their targets and words, and the messages with which they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxfi.errors import ModelError
from onnxfi.faults.space import Target
from onnxfi.graph.model.loading import Model, load


def refused(given: Path | bytes | ModelProto, message: str, **more: Any) -> str:
    """The model is refused with this message, which is one line and harmless on a terminal."""
    with pytest.raises(ModelError, match=message) as error:
        load(given, **more)
    text = str(error.value)
    assert text.isprintable()
    assert len(text) < 1000
    return text


def ids(held: Model) -> list[str]:
    return [target.id for target in held.targets]


def by_id(held: ModelProto | bytes) -> dict[str, Target]:
    return {target.id: target for target in load(held).targets}


def words(held: Model, name: str) -> list[int]:
    target = held.targets[held.by_id[name]]
    return held.words(target, np.arange(target.size)).tolist()
