"""Stored tensors in the same bytes: one target under several names, or noted where it is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import protobuf_reader
import pytest
from build_models import graph, node
from external_data import external, numbers, saved

from onnxfi.errors import ModelError, SelectorError
from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.weights import inject, inspect, sample


def test_tensors_that_share_their_bytes_are_noted_and_never_have_contradictory_faults(tmp_path: Path) -> None:
    path = saved(tmp_path, [external("a", "w.bin", [2]), external("b", "w.bin", [2], offset=4)], w_dot_bin=numbers(3))
    held = load(path)
    assert [n for n in held.notes if "'b'" in n and "'a'" in n and "share" in n]
    with pytest.raises(ModelError, match="change byte 4 through two of them"):
        inject(held, sample(held, sites=["a[1]:0", "b[0]:1"]), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
    for selector in (Selector(), Selector(include=("=b", "=a"))):  # the word that is both would count twice
        with pytest.raises(SelectorError, match=r"'a' and 'b' share some of their bytes.*leave one of them out"):
            sample(held, ber=0.5, selector=selector)
        with pytest.raises(SelectorError, match="share some of their bytes"):
            inspect(held, selector)
    assert inspect(held, Selector(exclude=("=b",)))["totals"]["bits"] == 64
    inject(held, sample(held, sites=["a[1]:31", "b[1]:31"]), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == np.array([1, -2, -3], "<f4").tobytes()


def test_one_weight_under_several_names_counts_once_and_is_found_by_each(tmp_path: Path) -> None:
    body = graph(
        [node("Mul", ["x", "c"], ["z"], name="inner")], [external("c", "w.bin", [4])], inputs=(), outputs=["z"]
    )
    nodes = [
        node("MatMul", ["x", "a"], ["h"], name="first"), node("Add", ["h", "b"], ["i"], name="second"),
        node("If", ["i"], name="if", then_branch=body, else_branch=body),
    ]  # fmt: skip
    stored = [external(name, "w.bin", shape) for name, shape in (("dead", [4]), ("a", [2, 2]), ("b", [4]))]
    held = load(saved(tmp_path, [*stored, external("d", "w.bin", [4], offset=16)], nodes, w_dot_bin=numbers(8)))
    one, other = held.targets
    assert (one.id, one.aliases) == ("dead", ("a", "b", "if.else_branch::c", "if.then_branch::c"))
    assert (one.op, one.layer, one.unused, other.unused) == ("MatMul", "first", False, True)
    assert one.ops == ("MatMul", "Add", "Mul")
    for selector in ("=b", "if.then_branch::c", "second", "inner"):
        assert Selector(include=(selector,)).space(held.targets).targets == (one,)
    assert inspect(held)["totals"]["bits"] == 4 * 32
    assert "also 'a'" in held.notes[0] and "'d'" in held.notes[1]
    done = inject(held, sample(held, sites=["b[3]:31"]), tmp_path / "out.onnx")
    assert (done.sample.faults[0].target, done.sample.header.population) == ("dead", 128)
    assert (
        protobuf_reader.read(tmp_path / "out.onnx")["a"].words.tolist()[3]
        == protobuf_reader.read(tmp_path / "out.onnx")["b"].words[3]
    )
    with pytest.raises(SelectorError, match="named twice"):
        sample(held, sites=["b[3]:31", "a[3]:31"])


def test_bytes_read_as_two_number_formats_are_not_one_weight(tmp_path: Path) -> None:
    held = load(saved(tmp_path, [external("a", "w.bin", [2]), external("b", "w.bin", [2], 12)], w_dot_bin=numbers(2)))
    assert [t.aliases for t in held.targets] == [(), ()]
    with pytest.raises(SelectorError, match="share some of their bytes"):
        sample(held, count=1)
