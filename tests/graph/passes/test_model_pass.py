"""Every model pass of the registry against its contract: one suite, on models that exercise each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pass_contract import (
    MODELS,
    OFF,
    SOURCES,
    Arrays,
    Source,
    check,
    external,
)
from pass_rules import EVERY_PASS, RULES, passes_of_onnxfi

from onnxfi.errors import EngineError, PassError
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.dataflow.random_nodes import RANDOM_OPERATORS
from onnxfi.graph.model.loading import load, parse
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.graph.protection.range_restriction import restrictable


@pytest.fixture(scope="module")
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source.of(SOURCES[request.param](tmp_path_factory.mktemp(request.param)))


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, indirect=True)
@pytest.mark.parametrize("name", EVERY_PASS)
def test_a_neutral_pass_keeps_what_a_model_is(name: str, source: Source) -> None:
    check(EVERY_PASS[name], source)


@pytest.mark.parametrize("name", EVERY_PASS)
def test_some_model_exercises_every_pass(name: str, tmp_path: Path) -> None:
    neutral, _ = RULES[EVERY_PASS[name]]
    assert any(neutral(make(tmp_path)) is not None for make in SOURCES.values())


def test_every_pass_has_rules() -> None:
    assert set(passes_of_onnxfi()) == set(RULES)


def node_tests() -> Iterator[tuple[str, onnx.ModelProto, Arrays]]:
    """The node tests of the onnx package that have bodies, and every 40th of the others."""
    from onnx.backend.test.case.node import collect_testcases

    for k, case in enumerate(sorted(collect_testcases(), key=lambda c: c.name)):
        bodies = any(a.HasField("g") for node in case.model.graph.node for a in node.attribute)
        if (bodies or k % 40 == 0) and not any(node.op_type in RANDOM_OPERATORS for node in case.model.graph.node):
            made = onnx.ModelProto()
            made.CopyFrom(case.model)
            made.ir_version = min(made.ir_version, 10)
            values = [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in case.data_sets[0][0]]
            yield case.name, made, dict(zip([v.name for v in made.graph.input], values, strict=False))


def holds_only_plain_numbers(source: Source) -> bool:
    """True where no activation is infinite, NaN or -0: a range holds the first two, and the runtime's Where the last."""
    proto = parse(source.model)
    have = {o.name for o in proto.graph.output}
    names = [a.name for a in activations(source.model) if restrictable(a)]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    try:
        found = OFF.prepare(proto.SerializeToString()).run(dict(source.feeds), names)
    except EngineError:
        return False
    return all(bool(np.isfinite(a).all() and not (np.signbit(a) & (a == 0)).any()) for a in found.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the test data of the onnx package warn of overflows
def test_passes_keep_the_node_tests_of_onnx() -> None:
    checked: dict[str, int] = {}
    for case, proto, feeds in node_tests():
        try:
            source = Source.of(load(proto), feeds)
        except Exception:  # what this runtime does not run, or takes no arrays
            continue
        if not all(isinstance(array, np.ndarray) for array in source.outputs.values()):
            continue
        plain = holds_only_plain_numbers(source)
        for name, one in EVERY_PASS.items():
            if "protection" in one.__module__ and not plain:
                continue
            try:
                checked[name] = checked.get(name, 0) + check(one, source)
            except AssertionError as error:
                raise AssertionError(f"{name} on {case}: {error}") from error
    assert checked["restrict-ranges"] > 20 and checked["filter-non-finite"] > 20
    assert checked["arm-faults"] > 30 and checked["output-shapes"] > 30


# ---------------------------------------------------------------------- the contract itself


@dataclass(frozen=True)
class Careless(ModelPass[None]):
    """A pass that changes what its parameters name."""

    edit: Callable[[onnx.ModelProto], object]
    name = "careless"

    def apply(self, proto: onnx.ModelProto) -> None:
        self.edit(proto)


@pytest.mark.parametrize(
    ("edit", "broken"),
    [
        (lambda p: p.graph.output[0].__setattr__("name", "other"), "the output 'logits' is gone"),
        (
            lambda p: p.graph.output.insert(0, onnx.ValueInfoProto(name="first")),
            "the output 'logits' is gone, has moved",
        ),
        (lambda p: p.graph.input.pop(), "the input 'image' is gone"),
        (lambda p: p.graph.input.append(onnx.ValueInfoProto(name="more")), "the new input 'more' has no default"),
        (lambda p: p.graph.output[0].type.tensor_type.__setattr__("elem_type", 10), "has another type"),
        (lambda p: p.opset_import[0].__setattr__("version", 9), "opset 18 of the domain 'ai.onnx' was changed"),
    ],
)
def test_a_broken_promise_is_an_error_that_names_it(edit: Callable[[Any], object], broken: str) -> None:
    model = load(MODELS / "fashion_cnn.onnx")
    with pytest.raises(PassError, match=f"the pass 'careless' breaks its contract: .*{broken}"):
        Careless(edit).run(parse(model))


def test_external_data_that_moves_is_a_broken_promise(tmp_path: Path) -> None:
    model = external(tmp_path, onnx.load(MODELS / "fashion_cnn.onnx"))
    with pytest.raises(PassError, match=r"the external data of 'conv1.weight' has moved"):
        Careless(lambda p: p.graph.initializer[0].external_data[0].__setattr__("value", "x")).run(parse(model))
