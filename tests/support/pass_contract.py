"""The contract of model passes, and small models that exercise each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import quantized_models
from onnx import helper, numpy_helper, parser
from pass_rules import RULES

from onnxfi.errors import ModelError
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import Model, load, parse
from onnxfi.graph.passes.graph_edit import names_in
from onnxfi.graph.passes.model_pass import ModelPass
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.inject.neurons import expose_neurons

OFF = OrtEngine(provider="cpu", optimization="off")


MODELS = Path(__file__).parents[2] / "models"


SPIKING = Path(__file__).parents[1] / "graph/spiking"


def text(graph: str, opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}]> {graph}')


LOOPS = """g (float[N,3] x, int64 n, bool c) => (float[N,3] y, float[n,N,3] rows) {
  y, rows = Loop(n, c, x)<body = b (int64 i, bool go, float[N,3] s) => (bool on, float[N,3] t, float[N,3] row) {
    on = Identity(go)  f = Cast<to=1>(i)
    inner = Loop(i, go, s)<body = d (int64 j, bool g2, float[N,3] u) => (bool o2, float[N,3] w) {
      o2 = Identity(g2)  w = Mul(u, f) }>
    t = Add(inner, s)  row = Relu(t) }> }"""


SCAN = """g (float[T,3] x, float[3] h) => (float[3] last, float[T,3] every) {
  last, every = Scan<num_scan_inputs=1, body = b (float[3] s, float[3] v) => (float[3] t, float[3] o) {
    a = Add(s, v)  t = Tanh(a)  o = Relu(t) }>(h, x) }"""


BRANCHES = """g (float[N,3] x, bool c) => (float[N,3] y) {
  z = Relu(x)
  y = If(c)<then_branch = p () => (float[N,3] a) { a = Neg(z) }, else_branch = q () => (float[N,3] b) {
    e = Exp(z)  b = Clip(e) }> }"""


LOCAL = """g (float[N,3] x) => (float[N,3] y) { z = own.twice(x) y = Relu(z) }
<domain: "own", opset_import: ["": 17]> twice (a) => (b) { b = Add(a, a) }"""


def local_function() -> onnx.ModelProto:
    made = text(LOCAL)
    made.opset_import.append(helper.make_opsetid("own", 1))
    return made


def trained_for_quantisation() -> onnx.ModelProto:
    """A weight as quantisation-aware training leaves it, once as an initializer and once as a constant."""
    return text(
        """g (float[N,4] x) => (float[N,2] y) <float[4,2] w = {1.0, -0.3, 9.0, 0.05, 0.15, 0.2, -7.0, 0.0}, float s = {0.1},
        int8 z = {1}> {
      wq = QuantizeLinear(w, s, z)  wd = DequantizeLinear(wq, s, z)
      v = Constant<value = float[2] {0.5, -0.26}>()  vq = QuantizeLinear(v, s, z)  vd = DequantizeLinear(vq, s, z)
      p = MatMul(x, wd)  y = Add(p, vd) }""",
        opset=19,
    )


def weights_as_inputs() -> onnx.ModelProto:
    made = text("g (float[N,2] x, float[2] w) => (float[N,2] y) { t = Add(x, w)  y = Relu(t) }", opset=9, ir=3)
    made.graph.initializer.append(numpy_helper.from_array(np.array([1, -2], np.float32), "w"))
    return made


def taken_names() -> onnx.ModelProto:
    """Names that passes would choose themselves."""
    made = text("g (float[N,2] x) => (float[N,2] y) { t = Relu(x) f = Neg(t) s = Neg(f) y = Neg(s) }")
    for node in made.graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                names[k] = {"f": "t.fault_free", "s": "onnxfi.shape"}.get(name, name)
    return made


def formats() -> onnx.ModelProto:
    """One activation of each format that Cast makes."""
    nodes = [helper.make_node("Relu", ["x"], ["f"])]
    kinds = {"h": 10, "d": 11, "i": 6, "l": 7, "b": 9, "u": 2, "s": 5}
    nodes += [helper.make_node("Cast", ["f"], [name], to=kind) for name, kind in kinds.items()]
    values = [helper.make_tensor_value_info(n, k, ["N", 3]) for n, k in kinds.items()]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, ["N", 3])], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(folder: Path, proto: onnx.ModelProto) -> Model:
    """The model with its weights in external data."""
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    size = 0 if len(proto.graph.initializer) < 5 else 64  # the runtime wants shapes inside
    onnx.save(proto, folder / "external.onnx", save_as_external_data=True, location="weights.bin", size_threshold=size)
    model = load(folder / "external.onnx")
    assert model.external
    return model


MAPS = """g (float[N,3] x) => (int64[N] label, seq(map(int64, float)) maps)
    { label, scores = ai.onnx.ml.LinearClassifier<classlabels_ints = [0, 1, 2], post_transform = "SOFTMAX",
        coefficients = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], intercepts = [0.0, 0.0, 0.0]>(x)
      maps = ai.onnx.ml.ZipMap<classlabels_int64s = [0, 1, 2]>(scores) }"""


def maps() -> onnx.ModelProto:
    made = text(MAPS)
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return made


SOURCES: dict[str, Callable[[Path], Model]] = {
    "cnn": lambda _: load(MODELS / "fashion_cnn.onnx"),
    "cnn-external": lambda folder: external(folder, onnx.load(MODELS / "fashion_cnn.onnx")),
    "snn-unrolled": lambda _: load(SPIKING / "subtract_dynamo.onnx"),
    "snn-exposed": lambda _: load(expose_neurons(load(SPIKING / "subtract_dynamo.onnx")).data),
    "loops": lambda _: load(text(LOOPS)),
    "scan": lambda _: load(text(SCAN)),
    "maps": lambda _: load(maps()),
    "branches": lambda _: load(text(BRANCHES)),
    "local-function": lambda _: load(local_function()),
    "quantisation-aware": lambda _: load(trained_for_quantisation()),
    "quantisation-aware-external": lambda folder: external(folder, trained_for_quantisation()),
    "qdq": lambda _: load(quantized_models.qdq_matmul().model),
    "weights-as-inputs": lambda _: load(weights_as_inputs()),
    "taken-names": lambda _: load(taken_names()),
    "formats": lambda _: load(formats()),
}


Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A model of the suite, with what it is fed and what it puts out then."""

    model: Model
    feeds: Arrays
    outputs: Arrays

    def run(self, proto: onnx.ModelProto) -> Arrays:
        folder = self.model.path.parent if self.model.external and self.model.path else None
        return OFF.prepare(proto.SerializeToString(), folder).run(dict(self.feeds), list(self.outputs) or None)

    @classmethod
    def of(cls, model: Model, feeds: Arrays | None = None) -> Source:
        empty = cls(model, {}, {})
        folder = model.path.parent if model.external and model.path else None
        session = OFF.prepare(parse(model).SerializeToString(), folder)
        data = open_data(None, session.inputs, limit=2)
        fed = next(iter(data.batches(data.layout.fixed or 2))).feeds if feeds is None else feeds
        fed = {name: np.array(3) if name == "n" else np.array(True) if name == "c" else a for name, a in fed.items()}
        return cls(model, fed, cls(empty.model, fed, {}).run(parse(model)))


def assert_same(found: Arrays, wanted: Arrays) -> None:
    for name, array in wanted.items():
        assert np.asarray(found[name]).dtype == np.asarray(array).dtype, name
        assert np.asarray(found[name]).tobytes() == np.asarray(array).tobytes(), name


def assert_kept(before: onnx.ModelProto, after: onnx.ModelProto, model: Model) -> None:
    """Names and external data are what they were, but for weights that are replaced."""
    there = set(names_in(after.graph))
    assert {a.name for a in activations(model) if a.target.kind == "activation" and a.target.op != "Identity"} <= there
    stored = {t.name: t for t in after.graph.initializer}
    for tensor in before.graph.initializer:
        if tensor.name in stored and tensor.external_data:
            assert list(stored[tensor.name].external_data) == list(tensor.external_data)
            assert not stored[tensor.name].raw_data


def check(one: type[ModelPass[Any]], source: Source) -> bool:
    """Hold a pass to its contract on one model; False where it finds nothing to do there."""
    neutral, twice = RULES[one]
    applied = neutral(source.model)
    if applied is None:
        return False
    given = parse(source.model)
    before = given.SerializeToString(deterministic=True)
    made, _ = applied.run(given)
    assert given.SerializeToString(deterministic=True) == before, "the model that it was given has changed"
    if not source.model.external:
        onnx.checker.check_model(made)
    assert_same(source.run(made), source.outputs)
    assert_kept(given, made, source.model)
    if twice == "refused":
        with pytest.raises(ModelError):
            applied.run(made)
    else:
        again, _ = applied.run(made)
        assert (again == made) is (twice == "unchanged")
        assert_same(source.run(again), source.outputs)
    return True
