"""The verbs in Python: load, inspect, sample, inject, replay, undo, evaluate."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxfi
from onnxfi.errors import DataError, FaultListError, InputError, ModelError, OutputError
from onnxfi.runtime.engine.onnx_runtime import OrtEngine

MODELS = Path(__file__).parents[3] / "models"
CNN = MODELS / "fashion_cnn.onnx"
CPU = OrtEngine(provider="cpu")
MATMUL = """g (float[N,3] x) => (float[N,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,9}, float[3] bias = {1,2,3}>
    { z = MatMul(x, w) y = Add(z, bias) }"""
LINEAR = """g (float[N,3] x) => (float[N,3] y) <float[3] w = {1,2,3}> { y = Mul(x, w) }"""


def proto(graph: str) -> onnx.ModelProto:
    """A model of a graph in ONNX's text form."""
    return parser.parse_model('<ir_version: 10, opset_import: ["": 21, "ai.onnx.ml": 3]>' + graph)


def model(graph: str) -> onnxfi.Model:
    return onnxfi.load(proto(graph).SerializeToString())


def weights(data: bytes | Path | None) -> dict[str, Any]:
    """The initializers of a serialised model, as onnx reads them."""
    assert data is not None
    read = onnx.load(data) if isinstance(data, Path) else onnx.ModelProto.FromString(data)
    return {t.name: numpy_helper.to_array(t) for t in read.graph.initializer}


def rows(data: dict[str, Any], graph: bytes | Path, **options: Any) -> Any:
    """Data in memory, checked against a model's inputs."""
    return onnxfi.open_data(data, CPU.prepare(graph).inputs, **options)


# Opening


def test_a_model_loads_from_a_path_bytes_and_a_proto() -> None:
    data = CNN.read_bytes()
    opened = [onnxfi.load(given) for given in (CNN, str(CNN), data, onnx.load(CNN))]
    assert len({found.targets for found in opened}) == 1
    assert opened[0].digest == opened[1].digest == opened[2].digest == hashlib.sha256(data).hexdigest()
    serialised = onnx.load(CNN).SerializeToString(deterministic=True)
    assert opened[3].digest == hashlib.sha256(serialised).hexdigest()
    assert [found.path for found in opened] == [CNN, CNN, None, None]


def test_the_same_faults_are_drawn_wherever_a_model_comes_from() -> None:
    found = [onnxfi.sample(onnxfi.load(given), ber=1e-4, seed=9) for given in (CNN, CNN.read_bytes(), onnx.load(CNN))]
    assert found[0].faults == found[1].faults == found[2].faults
    assert len(found[0].faults) == found[0].drawn > 100


def test_inspect_gives_plain_values() -> None:
    found = onnxfi.inspect(model(MATMUL))
    assert found["totals"] == {"targets": 2, "elements": 12, "bits": 384}
    assert found["model"] == "the model in memory"
    assert [t["target"] for t in found["targets"]] == ["w", "bias"]
    narrowed = onnxfi.inspect(model(MATMUL), onnxfi.Selector(include=("w",), bits="exponent", elements="0"))
    assert narrowed["totals"] == {"targets": 1, "elements": 3, "bits": 24}


@pytest.mark.parametrize("given", [b"", b"hello", b"\0" * 50, onnx.ModelProto()])
def test_what_is_no_model_is_refused(given: Any) -> None:
    with pytest.raises(ModelError, match="the model: "):
        onnxfi.load(given)


def test_external_data_needs_a_folder(tmp_path: Path) -> None:
    onnx.save(onnx.load(CNN), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=64)
    with pytest.raises(ModelError, match="load it from its file"):
        onnxfi.load((tmp_path / "m.onnx").read_bytes())
    opened = onnxfi.load(tmp_path / "m.onnx")
    with pytest.raises(OutputError, match="give an output file"):
        onnxfi.inject(opened, onnxfi.sample(opened, count=1))


# Drawing


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "exactly one of ber, count, voltage, temperature and sites .* given: none"),
        ({"ber": 0.1, "count": 1}, "exactly one of .* given: ber and count"),
        ({"count": 1, "sites": ["w[0]:1"]}, "exactly one of .* given: count and sites"),
        ({"ber": 0.1, "per_tensor": True}, "per_tensor goes with count"),
        ({"ber": -0.1}, "must be in"),
        ({"ber": float("nan")}, "must be in"),
        ({"count": -1}, "from 0"),
        ({"count": 385}, "384 sites"),
        ({"count": 1, "seed": -1}, "from 0 to"),
        ({"count": 1, "seed": 1 << 64}, "from 0 to"),
        ({"count": 1, "fault": "filp"}, "closest: 'flip'"),
        ({"count": 1, "selector": onnxfi.Selector(include=("v",))}, "matches nothing"),
        ({"sites": ["w[0]:1", "w[0,0]:1"]}, "named twice"),
        ({"count": 1, "trial": 0}, "trials count from 1"),
        ({"count": 1, "trial": -3}, "trials count from 1"),
    ],
)
def test_a_draw_that_cannot_be_is_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        onnxfi.sample(model(MATMUL), **how)


def test_a_sample_knows_its_words_and_its_population() -> None:
    found = onnxfi.sample(model(MATMUL), sites=["w[1,2]:31", "bias[0]:23"])
    assert [(f.target, f.index, f.value("before"), f.value("after")) for f in found.faults] == [
        ("w", 5, 6.0, -6.0),
        ("bias", 0, 1.0, 0.5),
    ]
    assert (found.drawn, found.expected, found.population_bits, found.header.population) == (2, 2.0, 384, 384)
    words = onnxfi.sample(model(MATMUL), count=3, fault="zero")
    assert (words.header.unit, words.header.population, words.population_bits) == ("word", 12, 384)


def test_other_trials_draw_other_faults_and_replay(tmp_path: Path) -> None:
    """The recipe of a trial names it; a draw of more faults than a list holds one by one."""
    opened = onnxfi.load(CNN)
    drawn = [onnxfi.sample(opened, count=1100, trial=trial) for trial in (1, 2)]
    assert drawn[0].faults != drawn[1].faults
    done = onnxfi.inject(opened, drawn[1], tmp_path / "f.onnx", save_faults=tmp_path / "l.jsonl")
    again = onnxfi.replay(opened, onnxfi.FaultList.open(tmp_path / "l.jsonl"))
    assert (again.faults, again.trial) == (drawn[1].faults, 2)
    assert onnxfi.inject(opened, again).faulty_digest == done.faulty_digest


def test_the_largest_changes_come_first() -> None:
    found = onnxfi.sample(model(MATMUL), sites=["w[0]:0", "w[1]:30", "w[2]:31", "bias[0]:30"])
    assert [str(f.site) for f in found.largest()] == ["bias[0]:30", "w[2]:31", "w[1]:30", "w[0]:0"]
    assert found.largest()[0].value("after") == float("inf")
    same = onnxfi.sample(model(MATMUL), sites=["w[0]:31"], fault="stuck-at-0")
    assert same.largest() == [] and not any(f.changed for f in same.faults)


def test_faults_are_counted_by_layer() -> None:
    found = onnxfi.sample(onnxfi.load(CNN), count=10, per_tensor=True, selector=onnxfi.Selector(exclude=("fc2",)))
    assert found.by_layer() == {  # the biases have few words, so some hold two faults
        "conv1": {"targets": 2, "population": 5120, "faults": 20, "changed": 17},
        "conv2": {"targets": 2, "population": 148_480, "faults": 20, "changed": 18},
        "fc1": {"targets": 2, "population": 3_213_312, "faults": 20, "changed": 20},
    }
    assert sum(row["changed"] for row in found.by_layer().values()) == len({(f.target, f.index) for f in found.faults})
    signs = onnxfi.sample(onnxfi.load(CNN), count=1, selector=onnxfi.Selector(include=("conv1",), bits="sign"))
    assert signs.by_layer() == {"conv1": {"targets": 2, "population": 160, "faults": 1, "changed": 1}}


def test_words_that_several_faults_change_count_once() -> None:
    every = onnxfi.sample(model(MATMUL), ber=1.0)
    words = len({(f.target, f.index) for f in every.faults})
    assert (every.drawn, every.faults.word_count) == (32 * words, words)
    assert sum(row["changed"] for row in every.by_layer().values()) == words
    back = onnxfi.sample(model(MATMUL), sites=["w[0]:3", "w[0]:4", "w[1]:5"], fault="stuck-at-0")
    stored = [f.before for f in back.faults]
    assert (
        sum(row["changed"] for row in back.by_layer().values())
        == len({f.index for f in back.faults if f.before != f.after})
        and len(stored) == 3
    )


# Injecting


def test_the_caller_s_model_never_changes(tmp_path: Path) -> None:
    given = proto(MATMUL)
    before = given.SerializeToString(deterministic=True)
    data = bytes(before)
    path = tmp_path / "m.onnx"
    path.write_bytes(before)
    for one in (given, data, path):
        opened = onnxfi.load(one)
        drawn = onnxfi.sample(opened, ber=0.5)
        onnxfi.inject(opened, drawn, tmp_path / "f.onnx")
        assert given.SerializeToString(deterministic=True) == data == path.read_bytes() == before
        assert onnxfi.sample(opened, ber=0.5).faults == drawn.faults


@pytest.mark.parametrize("fault", ["flip", "random-word", "set:value=nan", "burst:k=3"])
def test_the_result_in_memory_equals_the_file(tmp_path: Path, fault: str) -> None:
    opened = onnxfi.load(CNN)
    drawn = onnxfi.sample(opened, count=100, fault=fault)
    inside, outside = onnxfi.inject(opened, drawn), onnxfi.inject(opened, drawn, tmp_path / "f.onnx")
    assert inside.data == (tmp_path / "f.onnx").read_bytes() and outside.data is None
    assert (inside.out, outside.out) == (None, tmp_path / "f.onnx")
    assert inside.faulty_digest == outside.faulty_digest == hashlib.sha256(inside.data or b"").hexdigest()
    assert inside.digest == outside.digest == opened.digest
    assert onnxfi.load(inside.data or b"").digest == inside.faulty_digest


def test_just_the_faulty_words_differ() -> None:
    drawn = onnxfi.sample(model(MATMUL), sites=["w[1,2]:31", "bias[0]:23"])
    before, after = (weights(d) for d in (proto(MATMUL).SerializeToString(), onnxfi.inject(model(MATMUL), drawn).data))
    assert np.argwhere(before["w"] != after["w"]).tolist() == [[1, 2]]
    assert (after["w"][1, 2], after["bias"].tolist()) == (-6.0, [0.5, 2.0, 3.0])


def test_progress_is_reported_to_its_end(tmp_path: Path) -> None:
    opened, calls = onnxfi.load(CNN), []
    onnxfi.inject(opened, onnxfi.sample(opened, count=1), tmp_path / "f.onnx", progress=lambda *at: calls.append(at))
    assert calls[-1] == (CNN.stat().st_size, CNN.stat().st_size)
    assert calls == sorted(calls)


def test_faults_of_another_model_are_refused(tmp_path: Path) -> None:
    drawn = onnxfi.sample(model(MATMUL), sites=["w[8]:31"])
    for graph in (LINEAR, MATMUL.replace("float[3,3] w", "float[9] w")):
        with pytest.raises(InputError, match=r"drawn from another model: .*'w'"):
            onnxfi.inject(model(graph), drawn, tmp_path / "f.onnx")
    assert not any(tmp_path.iterdir())


def test_a_list_and_a_model_cannot_be_one_file(tmp_path: Path) -> None:
    opened = model(MATMUL)
    drawn = onnxfi.sample(opened, count=1)
    (tmp_path / "sub").mkdir()
    with pytest.raises(OutputError, match="cannot both be"):
        onnxfi.inject(opened, drawn, tmp_path / "x", save_faults=tmp_path / "sub" / ".." / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["sub"]


def test_a_list_can_be_saved_without_a_file_of_the_model(tmp_path: Path) -> None:
    opened = model(MATMUL)
    done = onnxfi.inject(opened, onnxfi.sample(opened, count=2), save_faults=tmp_path / "l.jsonl")
    saved = onnxfi.FaultList.open(tmp_path / "l.jsonl")
    assert (saved.header.model, saved.header.faulty) == (done.digest, done.faulty_digest)
    assert onnxfi.inject(opened, onnxfi.replay(opened, saved)).data == done.data


# Replaying and undoing


def test_rows_taken_out_of_a_sample_replay(tmp_path: Path) -> None:
    """They are too many for a list of lines, and no recipe gives them: they are saved as named sites."""
    opened = onnxfi.load(CNN)
    drawn = onnxfi.sample(opened, count=3000)
    some = replace(drawn, faults=drawn.faults[::2])
    done = onnxfi.inject(opened, some, tmp_path / "f.onnx", save_faults=tmp_path / "l.jsonl")
    saved = onnxfi.FaultList.open(tmp_path / "l.jsonl")
    assert (saved.header.sampler.kind, saved.header.sampler.n) == ("sites", 1500)
    assert onnxfi.inject(opened, onnxfi.replay(opened, saved)).faulty_digest == done.faulty_digest
    onnxfi.undo(onnxfi.load(tmp_path / "f.onnx"), saved, tmp_path / "r.onnx")
    assert (tmp_path / "r.onnx").read_bytes() == CNN.read_bytes()


@pytest.mark.parametrize("count", [5, 1500])
def test_undo_of_words_with_several_faults(tmp_path: Path, count: int) -> None:
    """The same sites stuck at 1, then flipped, then zeroed: a list of three trials, undone from its end."""
    opened = onnxfi.load(CNN)
    sites = [f"fc1.weight[{7 * k}]" for k in range(count)]
    text = ""
    before = opened
    for trial, fault in enumerate(("stuck-at-1", "flip", "zero"), 1):
        named = [site + ("" if fault == "zero" else ":30") for site in sites]
        drawn = onnxfi.sample(before, sites=named, fault=fault, trial=trial)
        data = onnxfi.inject(before, drawn, save_faults=tmp_path / "part.jsonl").data or b""
        header, *lines = (tmp_path / "part.jsonl").read_text().splitlines()
        text = text or header.replace(onnxfi.load(data).digest, "FAULTY")
        text += "\n" + "\n".join(lines)
        before = onnxfi.load(data)
    (tmp_path / "faulty.onnx").write_bytes(data)
    (tmp_path / "l.jsonl").write_text(text.replace("FAULTY", before.digest) + "\n")
    saved = onnxfi.FaultList.open(tmp_path / "l.jsonl")
    assert onnxfi.inject(opened, onnxfi.replay(opened, saved)).data == data
    onnxfi.undo(onnxfi.load(tmp_path / "faulty.onnx"), saved, tmp_path / "r.onnx")
    assert (tmp_path / "r.onnx").read_bytes() == CNN.read_bytes()


def test_a_list_of_another_model_is_refused(tmp_path: Path) -> None:
    opened = model(MATMUL)
    done = onnxfi.inject(opened, onnxfi.sample(opened, count=2), save_faults=tmp_path / "l.jsonl")
    saved = onnxfi.FaultList.open(tmp_path / "l.jsonl")
    other = model(LINEAR)
    with pytest.raises(FaultListError, match=f"{done.digest}, this one is {other.digest}"):
        onnxfi.replay(other, saved)
    with pytest.raises(FaultListError, match="--undo restores the original"):
        onnxfi.replay(onnxfi.load(done.data or b""), saved)
    with pytest.raises(FaultListError, match="this is the original"):
        onnxfi.undo(opened, saved, tmp_path / "r.onnx")


# Evaluating


def accuracy(data: Any, faulty: bytes | Path) -> Any:
    return onnxfi.evaluate(faulty, data, golden=onnxfi.evaluate(CNN, data, engine=CPU), engine=CPU)


def test_the_golden_model_equals_itself_and_a_faulty_one_does_not() -> None:
    data = onnxfi.open_data(MODELS / "fashion_test.npz", CPU.prepare(CNN).inputs, limit=100)
    same = accuracy(data, CNN).metrics
    assert (same["sdc1"], same["changed"], same["max_abs"], same["cosine"]) == (0.0, 0.0, 0.0, 1.0)
    opened = onnxfi.load(CNN)
    injected = onnxfi.inject(opened, onnxfi.sample(opened, sites=["fc2.bias[3]"], fault="set:value=1e9")).data or b""
    worse = accuracy(data, injected).metrics
    share = np.mean(data.labels == 3)
    assert worse["top1"] == share and worse["changed_samples"] == 1.0
    assert worse["max_abs"] == pytest.approx(1e9)


def test_golden_of_other_samples_is_refused() -> None:
    inputs = CPU.prepare(CNN).inputs
    few, more = (onnxfi.open_data(MODELS / "fashion_test.npz", inputs, limit=n) for n in (10, 20))
    golden = onnxfi.evaluate(CNN, few, engine=CPU)
    with pytest.raises(DataError, match="10 samples, the data has 20"):
        onnxfi.evaluate(CNN, more, golden=golden, engine=CPU)


def test_a_fixed_batch_gets_its_size_and_nothing_is_counted_twice() -> None:
    graph = proto(LINEAR.replace("[N,3]", "[4,3]")).SerializeToString()
    x = np.arange(27, dtype=np.float32).reshape(9, 3)
    found = onnxfi.evaluate(graph, rows({"x": x}, graph), engine=CPU, batch=32)
    assert found.samples == 9
    np.testing.assert_array_equal(found.scores, x * [1, 2, 3])


@pytest.mark.parametrize("n", ["N", "4"])
@pytest.mark.parametrize("out", ["T,N,3", "N,3", "3,N"])
def test_samples_along_another_axis_are_the_rows_of_the_scores(n: str, out: str) -> None:
    """Inputs [T, N, C]: the outputs' samples lie where the shapes say, else along the same axis, else along the first."""
    way = {"T,N,3": "y = Identity(x)", "N,3": "y = ReduceSum<keepdims = 0>(x, first)"}
    way["3,N"] = "z = ReduceSum<keepdims = 0>(x, first) y = Transpose(z)"
    graph = proto(f"""g (float[T,{n},3] x) => (float[{out.replace("N", n)}] y)
        {{ {way[out]} first = Constant<value_ints = [0]>() }}""").SerializeToString()
    x = np.arange(2 * 9 * 3, dtype=np.float32).reshape(2, 9, 3)
    data = onnxfi.open_data({"x": x}, CPU.prepare(graph).inputs, batch_axis=1)
    found = onnxfi.evaluate(graph, data, engine=CPU, batch=4, output="y")
    assert found.samples == 9 == len(found.scores)
    np.testing.assert_array_equal(found.scores, np.moveaxis(x, 1, 0) if out == "T,N,3" else x.sum(axis=0))


def test_labels_are_not_needed() -> None:
    graph = proto(LINEAR).SerializeToString()
    found = onnxfi.evaluate(graph, rows({"x": np.ones((2, 3), np.float32)}, graph), engine=CPU)
    assert found.metrics == {"nonfinite": 0.0}


def test_labels_beyond_the_classes_are_refused() -> None:
    graph = proto(LINEAR).SerializeToString()
    data = rows({"x": np.ones((2, 3), np.float32), "labels": [0, 3]}, graph)
    with pytest.raises(DataError, match="0 to 3, but the model scores 3 classes"):
        onnxfi.evaluate(graph, data, engine=CPU)


SEVERAL = """g (float[N,3] x) => (float[N,3] a, float[N,2,3] b, int64[N] c, string[N] d)
    <float[3] w = {1,2,3}, int64[1] one = {1}, int64[3] twice = {1,2,1}, string[1] s = {"a"}>
    { a = Mul(x, w) e = Unsqueeze(a, one) b = Tile(e, twice) c = ArgMax<axis = 1, keepdims = 0>(a)
      k = Shape<end = 1>(x) d = Expand(s, k) }"""


def test_several_outputs_are_compared_together() -> None:
    """The only output of two dimensions is scored; where there is none, all numbers lie side by side."""
    graph = proto(SEVERAL).SerializeToString()
    data = rows({"x": np.arange(6, dtype=np.float32).reshape(2, 3)}, graph)
    assert onnxfi.evaluate(graph, data, engine=CPU).output == "a"
    other = proto(SEVERAL)
    del other.graph.output[0]
    graph = other.SerializeToString()
    golden = onnxfi.evaluate(graph, data, engine=CPU)
    assert golden.output is None
    assert golden.scores.tolist() == [[0, 2, 6, 0, 2, 6, 2], [3, 8, 15, 3, 8, 15, 2]]
    opened = onnxfi.load(graph)
    injected = onnxfi.inject(opened, onnxfi.sample(opened, sites=["w[0]"], fault="set:value=10")).data or b""
    found = onnxfi.evaluate(injected, data, golden=golden, engine=CPU).metrics
    assert (found["changed"], found["changed_samples"], found["max_abs"]) == (3 / 14, 0.5, 27.0)
    named = onnxfi.evaluate(graph, data, engine=CPU, output="c")
    assert named.scores.tolist() == [2, 2]


def test_an_output_that_does_not_exist_is_refused() -> None:
    graph = proto(SEVERAL).SerializeToString()
    data = rows({"x": np.ones((1, 3), np.float32)}, graph)
    with pytest.raises(DataError, match="no output 'bb'; closest"):
        onnxfi.evaluate(graph, data, engine=CPU, output="bb")


ZIPMAP = """g (float[N,3] x) => (int64[N] label, seq(map(int64, float)) probabilities)
    { label, p = ai.onnx.ml.LinearClassifier<classlabels_ints = [0, 1, 2], post_transform = "SOFTMAX",
        coefficients = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], intercepts = [0.0, 0.0, 0.0]>(x)
      probabilities = ai.onnx.ml.ZipMap<classlabels_int64s = [0, 1, 2]>(p) }"""


def test_a_classical_classifier_gets_faults_and_is_compared_by_its_scores() -> None:
    graph = proto(ZIPMAP).SerializeToString()
    data = rows({"x": np.eye(3, dtype=np.float32)}, graph)
    golden = onnxfi.evaluate(graph, data, engine=CPU)
    assert golden.scores.shape == (3, 3) and golden.scores.argmax(1).tolist() == [0, 1, 2]
    opened = onnxfi.load(graph)
    target = next(t.id for t in opened.targets if t.id.endswith("coefficients"))
    injected = onnxfi.inject(opened, onnxfi.sample(opened, sites=[f"{target}[4]:31"])).data or b""
    found = onnxfi.evaluate(injected, data, golden=golden, engine=CPU)
    assert found.scores.argmax(1).tolist() == [0, 0, 2]
    assert found.metrics["sdc1"] == found.metrics["top1_changed"] == 1 / 3


def test_shapes_that_are_not_declared_run() -> None:
    """Outputs whose size is a symbol that nobody knows, and whose rank depends on the data."""
    graph = proto("""g (float[N,T,3] x) => (float[N,unk__3] y) <float[3,1] w = {1,2,3}, int64[1] two = {2}>
        { z = MatMul(x, w) y = Squeeze(z, two) }""")
    ones = {"x": np.ones((2, 5, 3), np.float32)}
    data = graph.SerializeToString()
    found = onnxfi.evaluate(data, rows(ones, data), engine=CPU)
    assert (found.output, found.scores.tolist()) == ("y", [[6.0] * 5] * 2)
    del graph.graph.node[1].input[1]  # without axes: every axis of size 1
    graph.graph.output[0].type.tensor_type.ClearField("shape")
    data = graph.SerializeToString()
    bare = onnxfi.evaluate(data, rows(ones, data), engine=CPU)
    assert (bare.output, bare.scores.tolist()) == (None, [[6.0] * 5] * 2)
    labelled = onnxfi.evaluate(data, rows(ones | {"labels": [0, 4]}, data), engine=CPU)
    assert (labelled.output, labelled.metrics["top1"]) == ("y", 0.5)


def test_outputs_of_varying_shape_are_one_row() -> None:
    """Batches that differ in length, as texts do: the outputs cannot be stacked, and are compared end to end."""
    graph = proto("g (float[N,T] x) => (float[N,T] y) <float[1] w = {2.0}> { y = Mul(x, w) }").SerializeToString()
    batches = [{"x": np.ones((1, n), np.float32)} for n in (3, 5)]
    module = type(sys)("varying_lengths")
    module.batches = lambda: batches  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        data = onnxfi.open_data("varying_lengths:batches", CPU.prepare(graph).inputs)
    finally:
        del sys.modules[module.__name__]
    assert onnxfi.evaluate(graph, data, engine=CPU).scores.shape == (1, 8)


def test_outputs_too_large_to_compare_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxfi.runtime.data import sample_outputs

    monkeypatch.setattr(sample_outputs, "MOST_OUTPUT_BYTES", 100)
    graph = proto(LINEAR).SerializeToString()
    data = rows({"x": np.ones((5, 3), np.float32)}, graph)
    with pytest.raises(DataError, match=r"12 bytes per sample.*--samples"):
        onnxfi.evaluate(graph, data, engine=CPU)


def test_conditions_are_reported() -> None:
    data = onnxfi.open_data(None, CPU.prepare(CNN).inputs, limit=2)
    found = onnxfi.evaluate(CNN, data, engine=CPU)
    assert found.synthetic and (found.samples, found.provider) == (2, "CPUExecutionProvider")
    assert found.conditions().endswith("CPUExecutionProvider; synthetic inputs say nothing about accuracy")


# The package


def test_importing_the_package_loads_no_library_that_takes_long() -> None:
    program = """
import sys, onnxfi
heavy = {"onnx", "onnxruntime", "numpy", "scipy", "rich", "click"} & set(sys.modules)
assert not heavy, heavy
assert set(onnxfi.__all__) == set(dir(onnxfi)), set(onnxfi.__all__) ^ set(dir(onnxfi))
for name in onnxfi.__all__:
    assert getattr(onnxfi, name) is not None
model = onnxfi.load("models/fashion_cnn.onnx")
assert "onnxruntime" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=MODELS.parent)


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="no attribute 'injekt'"):
        _ = onnxfi.injekt  # type: ignore[attr-defined]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    model, pipe = onnxfi.load("models/fashion_cnn.onnx"), tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(onnxfi.InputError, match="is a device or pipe; give the name of a file"):
        onnxfi.inject(model, onnxfi.sample(model, count=1), pipe)
    assert pipe.is_fifo() and [file.name for file in tmp_path.iterdir()] == ["pipe"]
