"""Narrow changes: what convolutions give where few input channels differ, bit for bit as the runtime gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from campaign_networks import flips
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from strategies import TIMES

from onnxfi.campaign.execute.trial_executor import PreparedTrial, TrialExecutor
from onnxfi.campaign.execute.weight_routes import WeightRoutes, faulty_targets
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.conv_partial_sums import largest_conv_sum
from onnxfi.graph.partition.route import Route
from onnxfi.graph.partition.segments import EntrySubgraph
from onnxfi.graph.partition.subgraph import partition_graph
from onnxfi.runtime.data.sample_outputs import stacked
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.ports import same_bytes
from onnxfi.runtime.partial import conv_delta
from onnxfi.runtime.partial.conv_delta import ConvDelta, FirstSegments
from onnxfi.runtime.partial.entry_subgraph import EntrySession
from onnxfi.runtime.partial.segmented_model import SampleRows


def numbers(*shape: int, seed: int) -> NDArray[np.float32]:
    words = np.random.Philox(seed).random_raw(int(np.prod(shape))) >> 40
    return (words.astype(np.float64) / 2**25 - 0.25).astype(np.float32).reshape(shape)


def net(folder: Path, *, channels: int = 64, kernel: int = 3, bias: bool = True, **how: Any) -> str:
    """A block of a ResNet between a first convolution and a classifier."""
    weights = {
        "w0": numbers(channels, 3, 3, 3, seed=1), "b0": numbers(channels, seed=2),
        "w1": numbers(channels, channels, kernel, kernel, seed=3), "b1": numbers(channels, seed=4),
        "w2": numbers(channels, channels, 3, 3, seed=5), "b2": numbers(channels, seed=6),
        "w3": numbers(channels, 10, seed=7),
    }  # fmt: skip
    pads = [kernel // 2] * 4
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", *(["b1"] if bias else [])], ["c1"], pads=pads, **how),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1] * 4),
        *([] if how else [helper.make_node("Add", ["c2", "r0"], ["s"])]),
        helper.make_node("Relu", ["c2" if how else "s"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["y"]),
    ]
    kept = [numpy_helper.from_array(a, name) for name, a in weights.items() if bias or name != "b1"]
    ports = [helper.make_tensor_value_info("x", 1, ["N", 3, 9, 9])], [helper.make_tensor_value_info("y", 1, ["N", 10])]
    graph = helper.make_graph(nodes, "net", *ports, kept)
    made = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(made, folder / "net.onnx")
    np.savez(folder / "d.npz", x=numbers(12, 3, 9, 9, seed=9), labels=np.arange(12) % 10)
    return str(folder / "net.onnx")


def weight_routes(folder: Path, **fields: Any) -> WeightRoutes:
    """Return the routes of weights of the net in this folder, its golden run being kept."""
    how = {"single": True, "trials": 4, "provider": "cpu", "batch": 8, **fields}
    bench = TrialExecutor.open(Campaign(str(folder / "net.onnx"), str(folder / "d.npz"), **how))
    assert bench.golden_in_segments() is not None and bench.weights is not None
    return bench.weights


def opened(found: WeightRoutes, weight: str) -> ConvDelta | None:
    """Return the re-execution behind a fault in a weight."""
    target = next(t for t in found.segmented.segmentation.model.targets if t.id == weight)
    every = (one for route in Route for one in found.opened([target], route))
    return getattr(next(every), "conv_delta", None)


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small convolutions are not worth it; here they are."""
    monkeypatch.setattr(conv_delta, "WORTH", 1)


def alone(folder: Path, one: str, value: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the runtime's result of a convolution."""
    model = onnx.load(folder / "net.onnx")
    node = next(node for node in model.graph.node if node.output[0] == one)
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info(node.input[0], 1, [None] * 4)],
        [helper.make_tensor_value_info(one, 1, None)], [t for t in model.graph.initializer if t.name in node.input],
    )  # fmt: skip
    made = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    return OrtEngine(provider="cpu").prepare(made.SerializeToString()).run({node.input[0]: value})[one]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {}, {"bias": False}, {"channels": 32}, {"channels": 48}, {"strides": [2, 2]}, {"dilations": [2, 2]},
        {"kernel": 1, "channels": 256}, {"kernel": 5},
    ],
    ids=str,
)  # fmt: skip
def test_the_sum_has_the_bits_of_the_convolution(tmp_path: Path, how: Mapping[str, Any]) -> None:
    net(tmp_path, **how)
    found = weight_routes(tmp_path)
    one, golden = opened(found, "w0"), found.segmented.golden
    if one is None:  # the convolution begins a segment
        first = found.segmented.first
        assert isinstance(first, FirstSegments)
        number = found.segmented.segmentation.makers["r0"] + 1
        first.run(number, SampleRows(golden, 0), {"r0": golden.values(0, ["r0"])["r0"] + 1})
        one = first.opened[number]
    assert one is not None and one.conv.output == "c1"
    for k, some in ((0, None), (1, None), (0, (6, 1))):
        rows = SampleRows(golden, k, None if some is None else tuple((k, row, row) for row in some))
        value = np.array(rows.values(["r0"])["r0"])
        count = value.shape[1]
        for channels in ((0,), (count - 1,), (count // 2, count // 2 + 1), (3, 17)):
            faulty = value.copy()
            faulty[:, list(channels)] *= np.float32(-1.5)
            faulty[0, channels[0], 0, 0] = np.inf
            made = one.faulty_entry(rows, {"r0": faulty})
            if len(channels) == 2 and count < 64 and made is None:
                continue  # more than half of its blocks
            if one.block_size == 0:
                pytest.skip("this machine sums in another order")
            assert made is not None
            known = alone(tmp_path, "c1", faulty)
            given = made.values["c1"]
            finite = ~np.isnan(known)  # which NaN it is, nobody says
            assert np.array_equal(np.isnan(given), ~finite) and same_bytes(given[finite], known[finite])


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"bias": False}, {"channels": 48}, {"strides": [2, 2]}], ids=str)
def test_segments_have_the_bits_of_the_golden_run(tmp_path: Path, how: Mapping[str, Any]) -> None:
    file = net(tmp_path, **how)
    for optimization in ("all", "extended", "basic", "off"):
        given: dict[str, Any] = {"single": True, "trials": 4, "provider": "cpu", "optimization": optimization}
        bench = TrialExecutor.open(Campaign(file, str(tmp_path / "d.npz"), batch=8, **given))
        segments = bench.golden_in_segments()
        assert segments is not None and same_bytes(segments.scores, bench.golden_runs.run()[0].scores), optimization
        assert bench.weights is not None and len(bench.weights.segmented.segmentation.segments) > 1


def test_what_is_added_is_summed_first(tmp_path: Path) -> None:
    net(tmp_path)
    found = weight_routes(tmp_path)
    one = opened(found, "w1")
    assert one is not None and one.conv.addend == "r0"
    for k, some in ((0, None), (0, (6, 1)), (1, None)):
        rows = SampleRows(found.segmented.golden, k, None if some is None else tuple((k, row, row) for row in some))
        value = np.array(rows.values(["r1"])["r1"])
        value[:, 5] *= np.float32(-1.5)
        entry = one.faulty_entry(rows, {"r1": value})
        if one.block_size == 0:
            pytest.skip("this machine sums in another order")
        assert entry is not None and entry.exact
        whole = found.segmented.segment_sessions.prepare(
            EntrySession(found.segmented, one_with(found, "r1"), found.segmented.segment_sessions.prepare, {}).part(0)
        )
        known = whole.run({"r1": value, "r0": rows.values(["r0"])["r0"]})
        assert all(same_bytes(array, known[name]) for name, array in entry.run(rows, {}).items())
        assert one.faulty_entry(rows, {"r1": value, "r0": value}) is None, "what is added differs as well"


def test_declared_shapes_do_not_lengthen_the_route(tmp_path: Path) -> None:
    """Behind a slice of a weight the declared number of channels is wrong, so a runtime would fuse less there."""
    file, found = net(tmp_path), list[list[str]]()
    for model in (onnx.load(file), onnx.shape_inference.infer_shapes(onnx.load(file))):
        onnx.save(model, file)
        routes = weight_routes(tmp_path)
        targets = [t for t in routes.segmented.segmentation.model.targets if len(t.shape) == 4]
        found.append([t.id for t in targets if next(routes.opened([t], Route.CHANNEL_DELTA), None) is not None])
    assert onnx.load(file).graph.value_info and found[0] == found[1]


def branches(folder: Path, other: str) -> str:
    """A convolution of an image, and what another operator makes of the same image is added: both differ with it."""
    weights = {
        "w0": numbers(64, 3, 3, 3, seed=1), "w1": numbers(64, 64, 3, 3, seed=3), "w2": numbers(64, 64, 1, 1, seed=5),
        "w3": numbers(64, 10, seed=7),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], pads=[1] * 4),
        *([] if other == "" else [helper.make_node(other, ["r0", *(["w2"] if other == "Conv" else [])], ["c2"])]),
        helper.make_node("Add", ["c1", "c2" if other else "r0"], ["s"]),
        helper.make_node("Relu", ["s"], ["r1"]),
        helper.make_node("GlobalAveragePool", ["r1"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["y"]),
    ]
    kept = [numpy_helper.from_array(a, name) for name, a in weights.items() if name != "w2" or other == "Conv"]
    ports = [helper.make_tensor_value_info("x", 1, ["N", 3, 9, 9])], [helper.make_tensor_value_info("y", 1, ["N", 10])]
    graph = helper.make_graph(nodes, "net", *ports, kept)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), folder / "net.onnx")
    np.savez(folder / "d.npz", x=numbers(12, 3, 9, 9, seed=9), labels=np.arange(12) % 10)
    return str(folder / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("other", ["Conv", "Tanh", ""])
def test_what_is_added_and_differs_itself_is_not_golden(tmp_path: Path, other: str) -> None:
    how: dict[str, Any] = {
        "single": True,
        "trials": 60,
        "provider": "cpu",
        "batch": 8,
        "include": ("w0",),
        "bits": "20-30",
    }
    wanted = Campaign(branches(tmp_path, other), str(tmp_path / "d.npz"), **how)
    found = {r.trial: r.metrics for r in run(wanted, tmp_path / "short.db")}
    plain = {r.trial: r.metrics for r in run(replace(wanted, route="full"), tmp_path / "plain.db")}
    for trial, metrics in found.items():
        assert float(metrics["max_abs"]) == pytest.approx(float(plain[trial]["max_abs"]), rel=1e-3, abs=1e-6), trial


def one_with(found: WeightRoutes, value: str) -> EntrySubgraph:
    """Return the segment that a faulty activation meets."""
    entries = found.segmented.segmentation.activation_entries([value])
    assert entries is not None
    return entries[0]


def test_a_convolution_that_sees_many_channels_runs_as_a_whole(tmp_path: Path) -> None:
    net(tmp_path)
    found = weight_routes(tmp_path)
    one = opened(found, "w1")
    assert one is not None and one.conv.output == "s"
    rows = SampleRows(found.segmented.golden, 0)
    value = rows.values(["r1"])["r1"]
    assert one.faulty_entry(rows, {"r1": value + 1}) is None
    assert one.faulty_entry(rows, {"r1": value}) is None, "nothing differs"
    assert one.faulty_entry(rows, {"r0": value}) is None, "it is not what it takes"
    assert one.faulty_entry(rows, {"r1": value[:, :, 1:]}) is None


def test_sums_that_are_not_golden_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net(tmp_path)
    monkeypatch.setattr(conv_delta, "block_sizes", lambda net, one: (24,))
    found = weight_routes(tmp_path)
    one = opened(found, "w1")
    assert one is not None
    rows = SampleRows(found.segmented.golden, 0)
    value = np.array(rows.values(["r1"])["r1"])
    value[:, 0] += 1
    assert one.faulty_entry(rows, {"r1": value}) is None and one.block_size == 0, "it is not tried again"


def test_without_optimisation_and_with_little_memory_none_is_narrow(tmp_path: Path) -> None:
    net(tmp_path)
    assert opened(weight_routes(tmp_path, optimization="off"), "w1") is None
    how = {"single": True, "trials": 4, "provider": "cpu", "batch": 8}
    bench = TrialExecutor.open(Campaign(str(tmp_path / "net.onnx"), str(tmp_path / "d.npz"), **how), 1 << 16)
    assert bench.golden_in_segments() is not None and bench.weights is not None
    one = opened(bench.weights, "w1")
    rows = SampleRows(bench.weights.segmented.golden, 0)
    value = np.array(rows.values(["r1"])["r1"])
    value[:, 0] += 1
    assert one is not None and one.faulty_entry(rows, {"r1": value}) is None


@pytest.mark.parametrize(
    "change", [{"group": 64, "kernel": 3}, {"channels": 16}, {"kernel": 1, "channels": 24}], ids=str
)
def test_what_has_no_terms(tmp_path: Path, change: dict[str, Any]) -> None:
    if "group" in change:
        model = onnx.load(net(tmp_path))
        [weight] = [t for t in model.graph.initializer if t.name == "w1"]
        weight.CopyFrom(numpy_helper.from_array(numbers(64, 1, 3, 3, seed=3), "w1"))
        next(n for n in model.graph.node if n.output[0] == "c1").attribute.append(helper.make_attribute("group", 64))
        onnx.save(model, tmp_path / "net.onnx")
    else:
        net(tmp_path, **change)
    graph = partition_graph(load(tmp_path / "net.onnx"))
    assert largest_conv_sum(graph, range(len(graph.reads)), {"r0"}) is None


@pytest.mark.slow
def test_campaigns_come_to_the_same_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = net(tmp_path)
    faulty = ConvDelta.faulty_entry
    for target in ("weights", "activations"):
        how: dict[str, Any] = {"single": True, "trials": 60, "provider": "cpu", "batch": 8, "target": target}
        wanted = Campaign(file, str(tmp_path / "d.npz"), **how)
        made: list[bool] = []

        def seen(self: ConvDelta, *given: Any, made: list[bool] = made) -> Any:
            entry = faulty(self, *given)
            made.append(entry is not None)
            return entry

        monkeypatch.setattr(ConvDelta, "faulty_entry", seen)
        found = [(r.trial, r.outcome, r.metrics, r.route) for r in run(wanted, tmp_path / f"{target}.db")]
        assert sum(made) > 20 or target == "activations"
        monkeypatch.setattr(ConvDelta, "faulty_entry", lambda self, *given: None)
        assert found == [(r.trial, r.outcome, r.metrics, r.route) for r in run(wanted, tmp_path / f"{target}2.db")]


@st.composite
def images(draw: st.DrawFn) -> onnx.ModelProto:
    """A network of convolutions, with something added to most of them, and activations."""
    nodes, weights = list[onnx.NodeProto](), {"w": numbers(32, 3, 3, 3, seed=1)}

    def given(kind: str, *taken: str, **how: Any) -> str:
        nodes.append(helper.make_node(kind, taken, [f"v{len(nodes)}"], **how))
        return str(nodes[-1].output[0])

    def convolved(value: str) -> str:
        name = f"w{len(nodes)}"
        weights[name] = numbers(32, 32, 3, 3, seed=len(nodes) + 2)
        return given("Conv", value, name, pads=[1] * 4)

    values = [given("Conv", "x", "w", pads=[1] * 4)]
    for _ in range(draw(st.integers(1, 4))):
        value, made = values[-1], convolved(values[-1])
        other = draw(st.sampled_from(["none", "itself", "earlier", "Tanh", "Conv"]))
        if other != "none":
            beside = {"itself": value, "earlier": draw(st.sampled_from(values))}.get(other)
            beside = beside or (convolved(value) if other == "Conv" else given("Tanh", value))
            made = given("Add", *draw(st.permutations([made, beside])))
        values.append(given("Relu", made) if draw(st.booleans()) else made)
    given("GlobalAveragePool", values[-1])
    nodes.append(helper.make_node("Flatten", [nodes[-1].output[0]], ["y"]))
    ports = [helper.make_tensor_value_info("x", 1, ["N", 3, 6, 6])], [helper.make_tensor_value_info("y", 1, ["N", 32])]
    graph = helper.make_graph(nodes, "net", *ports, [numpy_helper.from_array(a, name) for name, a in weights.items()])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.slow
@settings(max_examples=12 * TIMES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=images(), bit=st.integers(21, 27))  # behind it another order of sums may overflow
def test_networks_with_optimisation_come_to_what_the_whole_comes_to(
    model: onnx.ModelProto, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("net")
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "d.npz", x=numbers(5, 3, 6, 6, seed=9))
    how: dict[str, Any] = {"single": True, "trials": 4, "provider": "cpu", "batch": 5}
    bench = TrialExecutor.open(Campaign(str(folder / "net.onnx"), str(folder / "d.npz"), **how))
    golden = bench.golden_runs.run()[0].scores
    assert bench.weights is not None
    for target in bench.opened.model.targets:
        faults = flips([target], [(target.size // 2, bit)])
        shorter = bench.shorter(PreparedTrial(faults, faulty_targets(faults)))
        if shorter is None:  # it reaches no output
            continue
        reexecution, injected = shorter
        found = stacked([reexecution.outputs(0, injected)])
        whole = stacked(bench.opened.run(bench.opened.faulty_session(faults)))
        near = 1e-5 * max(1.0, float(np.abs(whole).max()), float(np.abs(golden).max()))
        assert np.abs(found - whole).max() <= near, (target.id, reexecution.route)
