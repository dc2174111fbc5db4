"""Kernels that saturate are found out, on each form of a layer; exact ones pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from proved_networks import integer_layer

from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.runtime.engine.reference import ReferenceEngine
from onnxfi.runtime.proofs.integer_kernels import adds_exactly, largest_weights


@dataclass(frozen=True)
class Saturating(Engine):
    """The reference evaluator with sums that come out half as large."""

    name: ClassVar[str] = "saturating"

    def prepare(self, model: str | Path | bytes) -> Any:
        session = ReferenceEngine().prepare(model)
        return SimpleNamespace(run=lambda feeds: {"y": session.run(feeds)["y"] / 2})


@pytest.mark.parametrize("lowest, zero", [(0, 3), (0, 128), (-128, 5)])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("operator", ["QLinearConv", "Conv", "Gemm"])
def test_only_exact_sums_pass(operator: str, dtype: str, lowest: int, zero: int) -> None:
    layer = integer_layer(operator, dtype, zero, lowest)
    assert adds_exactly(ReferenceEngine(), layer)
    assert not adds_exactly(Saturating(), layer)


@pytest.mark.parametrize("operator", ["QLinearConv", "Conv", "Gemm", "QGemm"])
def test_kernels_of_unsigned_weights_are_exact(operator: str) -> None:
    """They extend both numbers to 16 bits before they multiply, on every processor with AVX2."""
    assert adds_exactly(OrtEngine(provider="cpu"), integer_layer(operator, "uint8"))


def test_weights_are_limited_by_the_pairs_that_they_are_in() -> None:
    """255 · (60 + 68) = 32,640 fits into 16 bits, 255 · (60 + 69) does not; nor do two products with 100."""
    assert largest_weights(integer_layer()).tolist() == [68.0, 68.0, -1.0]
