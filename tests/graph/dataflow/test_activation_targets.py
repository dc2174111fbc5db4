"""Activations as targets: which tensors a selection names, and why others cannot be faulty."""

from __future__ import annotations

from pathlib import Path

import pytest
from armed_models import parsed

from onnxfi.faults.space import Selector
from onnxfi.graph.dataflow.activation_targets import activations, select_activations
from onnxfi.graph.model.loading import load

MODELS = Path(__file__).parents[3] / "models"


def test_a_quantised_group_gets_its_fault_in_the_integer() -> None:
    plain = parsed("""
    g (float[N,4] x, float[4,4] w) => (float[N,4] y) {
      s = Constant<value_float=0.1>()
      z = Constant<value=uint8 {128}>()
      a = MatMul(x, w)
      r = Relu(a)
      q = QuantizeLinear(r, s, z)
      d = DequantizeLinear(q, s, z)
      y = Identity(d)
    }""")
    rows = activations(load(plain))
    assert [a.name for a in rows if a.default] == ["q"]
    assert [a.target.id for a in select_activations(rows, Selector()).activations] == ["q"]
    chosen = select_activations(rows, Selector(include=("=r",)))
    assert chosen.activations[0].name == "q" and "into its integer 'q' instead" in chosen.notes[0]
    assert select_activations(rows, Selector(include=("=d",))).activations[0].target.word.name == "uint8"
    assert [a.name for a in select_activations(rows, Selector(include=("=a",))).activations] == ["a"]


def test_where_activation_and_layer_are_meant_alike_the_fault_comes_after_both() -> None:
    rows = activations(load(MODELS / "fashion_cnn.onnx"))
    both_ = select_activations(rows, Selector(op=("Conv", "Relu"))).activations
    assert {a.target.op for a in both_} == {"Relu"}
    convs = select_activations(rows, Selector(op=("Conv",))).activations
    assert convs and {a.target.op for a in convs} == {"Conv"}


CLIP = "lo = Constant<value_float=0.0>() hi = Constant<value_float=6.0>()"


RESTRICTED = {
    # A layer with ReLU6, one with an activation function and a protection, both at once, and a residual sum.
    "a = MatMul(x, w) y = Clip(a, lo, hi)": ["a"],
    "a = MatMul(x, w) r = Relu(a) y = Clip(r, lo, hi)": ["r"],
    "a = MatMul(x, w) c = Clip(a, lo, hi) y = Relu(c)": ["a", "y"],
    "a = MatMul(x, w) c = Clip(a, lo, hi) y = Clip(c, lo, hi)": ["a"],
    "a = MatMul(x, w) c = Clip(a, lo, hi) y = Add(a, c)": ["a"],
    "s = Add(x, x) y = Clip(s, lo, hi)": ["s"],
    "c = Clip(x, lo, hi) y = Identity(c)": ["c"],
    # A protection behind a QDQ group, and a ReLU6 inside one, which the integer kernel takes in.
    "a = MatMul(x, w) q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z) y = Clip(d, lo, hi)": ["q"],
    "a = MatMul(x, w) c = Clip(a, lo, hi) q = QuantizeLinear(c, s, z) y = DequantizeLinear(q, s, z)": ["q"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "default"), RESTRICTED.items(), ids=range(len(RESTRICTED)))
def test_by_default_a_fault_lands_before_a_range_restriction(nodes: str, default: list[str]) -> None:
    quantisation = "s = Constant<value_float=0.1>() z = Constant<value=uint8 {128}>()" if "Quantize" in nodes else ""
    plain = parsed(f"g (float[N,4] x, float[4,4] w) => (float[N,4] y) {{ {CLIP} {quantisation} {nodes} }}")
    rows = activations(load(plain))
    assert [a.target.id for a in select_activations(rows, Selector()).activations] == default
    for end in (a for a in rows if a.target.op == "Clip"):  # by its own name it is a target all the same
        assert select_activations(rows, Selector(include=(f"={end.name}",))).activations[0].name in (
            end.name,
            end.quantized,
        )


def test_a_selected_layer_gets_its_fault_before_its_range_restriction() -> None:
    rows = activations(
        load(
            parsed(
                f"g (float[N,4] x, float[4,4] w) => (float[N,4] y) {{ {CLIP} a = MatMul(x, w) y = Clip(a, lo, hi) }}"
            )
        )
    )
    for selector in (Selector(op=("MatMul", "Clip")), Selector(include=("[ay]",))):
        assert [a.name for a in select_activations(rows, selector).activations] == ["a"]
    both_ = select_activations(rows, Selector(include=("=a", "=y"))).activations
    assert [a.name for a in both_] == ["a", "y"]
    assert "y" in [a.name for a in select_activations(rows, Selector(), every=True).activations]
