"""Effects of a fault on the runtime itself: refusals, hangs, memory, death. The campaign goes on, and counts each once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from tiny_campaigns import HEAD, chance, ran, save, tables

from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run import runner
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.workers.worker import THIS_WORKER
from onnxfi.errors import CampaignError, InputError

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to a limit of its memory")


MASKED, SDC = ("masked", None), ("sdc", None)


def campaign(model: str = "g.onnx", **fields: Any) -> Campaign:
    return Campaign(**{"model": model, "data": "d.npz", "provider": "cpu", "exhaustive": True, **fields})


def by_site(store: Path) -> dict[tuple[int, int], tuple[str, str | None]]:
    """Outcome and cause by element and bit; every trial that is planned has one result, and no result is alone."""
    found = {}
    with Store.open(store) as opened:
        assert opened.count("results") == opened.count("plan") and opened.count("errors") == 0
        for row in opened.rows():
            line = json.loads(opened.trial(row.trial)["lines"])
            found[line["index"], line["bits"][0]] = (row.outcome, row.cause)
        assert len(found) == opened.count("plan")
    return found


RESHAPE = """net (float[N,4] x) => (float[N,3] y)
    <int64[2] shape = {-1, 4}, float[4,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}>
    { a = Reshape(x, shape) y = MatMul(a, w) }"""


def test_a_faulty_shape_that_the_runtime_refuses(here: Path) -> None:
    save(here, RESHAPE)
    ran(campaign(include="=shape", elements="1:2"), here / "s.db", workers=1)
    assert by_site(here / "s.db") == {(1, bit): MASKED if bit == 2 else ("due", "error") for bit in range(64)}, (
        "a dimension of 0 stands for that of the input, which is 4"
    )


GROWS = """net (float[N,4] x) => (float[N,4] y)
    <int64[1] size = {4}>
    { zeros = ConstantOfShape(size) none = ReduceSum<keepdims = 0>(zeros) y = Add(x, none) }"""


@pytest.mark.slow
@linux
def test_a_faulty_shape_that_asks_for_100_gigabytes(here: Path) -> None:
    """2³⁵ numbers are 137 GB, more than this machine has; 2²⁷ are half a gigabyte, more than the worker may take."""
    save(here, GROWS)
    fields = {"include": "=size", "bits": "0,10,27,35"}
    ran(campaign(**fields), here / "s.db", workers=2, worker_memory_bytes=1 << 29)
    memory = ("due", "memory")
    assert by_site(here / "s.db") == {(0, 0): MASKED, (0, 10): MASKED, (0, 27): memory, (0, 35): memory}
    with Store.open(here / "s.db") as opened:
        assert opened.get("memory_bytes") == 1 << 29
        [row] = [row for row in opened.rows() if row.bit == 27]
        assert row.metrics["due_samples"] == 1.0
    ran(campaign(**{**fields, "bits": "27"}), here / "enough.db", workers=1, timeout_s=200.0)
    assert by_site(here / "enough.db") == {(0, 27): MASKED}, "the default limit lets it be"


COUNTS = """net (float[N,4] x) => (float[N,4] y)
    <int64 trips = {2}, bool go = {1}>
    { y = Loop(trips, go, x) <body = once (int64 i, bool on, float[N,4] a) => (bool still, float[N,4] b)
        <float one = {1}> { still = Identity(on) b = Add(a, one) }> }"""


@pytest.mark.slow
def test_a_loop_whose_trips_never_end(here: Path) -> None:
    save(here, COUNTS)
    ran(campaign(include="=trips", bits="0,2,40,63"), here / "s.db", workers=2, timeout_s=2.0)
    found = by_site(here / "s.db")
    assert found == {(0, 0): SDC, (0, 2): SDC, (0, 40): ("due", "timeout"), (0, 63): SDC}
    with Store.open(here / "s.db") as opened:
        assert opened.get("timeout_s") == 2.0


WAITS = """net (float[N,4] x) => (float[N,4] y)
    <bool go = {0}, float[4] w = {1,2,3,4}>
    { z = Mul(x, w)
      y = Loop(, go, z) <body = once (int64 i, bool on, float[N,4] a) => (bool still, float[N,4] b)
        { still = Identity(on) b = Identity(a) }> }"""


@pytest.mark.slow
def test_a_loop_whose_condition_never_fails_and_a_canary_that_meets_it(here: Path) -> None:
    save(here, WAITS)
    ran(campaign(include="=go"), here / "s.db", workers=1, timeout_s=2.0)
    assert by_site(here / "s.db") == {(0, 0): ("due", "timeout")}
    with Store.open(here / "s.db") as opened:
        assert opened.get("canary")["seen"] == "go", "what does not come back is seen"


# Limits


def test_limits_are_kept_and_can_be_changed(here: Path) -> None:
    wanted = campaign("m.onnx", exhaustive=False, single=True, trials=4)

    def kept() -> tuple[Any, Any]:
        with Store.open(here / "s.db") as opened:
            return opened.get("timeout_s"), opened.get("memory_bytes")

    ran(wanted, here / "s.db", workers=0)
    seconds, size = kept()
    assert seconds == 10.0 and (size is None or size > 1 << 28)
    run(wanted, here / "s.db", workers=1, timeout_s=7.5).close()
    assert kept() == (7.5, size)
    run(wanted, here / "s.db", workers=1).close()
    assert kept() == (7.5, size), "the same command goes on with the same limits"


@pytest.mark.slow
@linux
def test_a_limit_below_what_the_model_needs_is_refused(here: Path) -> None:
    whole = campaign("m.onnx", exhaustive=False, single=True, trials=4)
    with pytest.raises(CampaignError, match=r"a worker may take 20 MB of memory, which is less than the model itself"):
        ran(whole, here / "s.db", workers=1, worker_memory_bytes=20_000_000)
    with Store.open(here / "s.db") as opened:
        assert opened.count("results") == 0
    ran(whole, here / "s.db", workers=1, worker_memory_bytes=1 << 30)
    ran(whole, here / "whole.db")
    assert tables(here / "s.db")["results"] == tables(here / "whole.db")["results"]


@pytest.mark.slow
def test_with_a_limit_of_memory_workers_open_nothing_before_it_holds(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[object] = []
    begin = runner.started_pool
    monkeypatch.setattr(
        runner,
        "started_pool",
        lambda size, task, *given, **how: (tasks.append(task), begin(size, task, *given, **how))[1],
    )
    ran(
        campaign("m.onnx", exhaustive=False, single=True, trials=4),
        here / "given.db",
        workers=1,
        worker_memory_bytes=1 << 30,
    )
    ran(campaign("m.onnx", exhaustive=False, single=True, trials=4), here / "usual.db", workers=1)
    assert tasks == [int, THIS_WORKER.open_early]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"workers": 0, "timeout_s": 5.0}, "require local worker processes"),
        ({"workers": 0, "worker_memory_bytes": 1 << 30}, "require local worker processes"),
        ({"workers": 1, "timeout_s": 0.0}, "timeout 0 is out of range; give seconds above 0"),
        ({"workers": 1, "timeout_s": float("nan")}, "timeout nan is out of range"),
        ({"workers": 1, "timeout_s": 1e-9}, "timeout 1e-09 s is less than the golden run takes"),
        ({"workers": 1, "worker_memory_bytes": -1}, "memory of -1 bytes is out of range"),
    ],
)
def test_limits_that_cannot_be(here: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(campaign("m.onnx"), here / "s.db", **how)


RESHAPING = {
    "scales of a Resize": """g (float[N,2,4,4] x) => (float[N,2] y) <float[4] s = {1,1,2,2}> {
        a = Relu(x) u = Resize<mode="nearest">(a, , s) p = GlobalAveragePool(u) y = Flatten(p) }""",
    "the end of a Range": """g (float[N,2,4,4] x) => (float[N,M] y) <float zero = {0}, float s = {4}, float one = {1}> {
        a = Relu(x) r = Range(zero, s, one) b = Mul(a, r) p = ReduceMean(b) q = Add(b, p) y = Flatten(q) }""",
    "what is counted": """g (float[N,2,4,4] x) => (float[N,M] y) <float s = {0.5}, int64[2] axes = {2,3}> {
        b = Greater(x, s) n = NonZero(b) c = Shape(n) f = Cast<to=1>(c) t = ReduceSum(f) m = Mul(x, t) q = Flatten(m)
        y = Relu(q) }""",
    "rows that are kept": """g (float[N,2,4,4] x) => (float[M,16] y) <float s = {0.1}, int64[2] rows = {-1,16}> {
        f = Reshape(x, rows) m = ReduceMean<keepdims=0>(f, last) k = Greater(m, s) c = Compress<axis=0>(f, k)
        y = Relu(c) }""",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("graph", RESHAPING.values(), ids=RESHAPING)
def test_a_fault_that_changes_shapes_has_the_outcome_of_the_whole_by_every_route(here: Path, graph: str) -> None:
    model = parser.parse_model(HEAD + graph)
    if "last" in graph:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "last"))
    onnx.save(model, here / "g.onnx")
    np.savez(here / "d.npz", x=chance(6, 2, 4, 4))
    found = {}
    for route in ("full", "auto", "late-start", "early-stop"):
        asked = campaign(exhaustive=True, include="=s", bits="20-24,31", route=route, batch=3)
        done = sorted(run(asked, here / f"{route}.db", workers=0), key=lambda r: r.trial)
        found[route] = [(r.trial, r.outcome, r.cause, r.error) for r in done]
    assert all(each == found["full"] for each in found.values())
    assert {outcome for _, outcome, *_ in found["full"]} - {"masked"}


FLOWING = {
    "target of a reshape": """{ c = Mul(back, one) f = Reshape(x, c) g = Flatten(f) y = Abs(g) }""",
    "end of a slice": """{ c = Abs(end) f = Slice(x, zero, c, end2) g = Flatten(f) y = Abs(g) }""",
    "count of a top-k": """{ c = Abs(end) f, i = TopK(x, c) g = Flatten(f) y = Abs(g) }""",
    "repeats of a tile": """{ c = Abs(times) f = Tile(x, c) g = Flatten(f) y = Abs(g) }""",
    "scales of a resize": """{ c = Abs(scales) u = Resize<mode="nearest">(x, , c) r = Relu(u) y = Flatten(r) }""",
}  # fmt: skip
STORED = """<int64[4] back = {-1,2,4,4}, int64[1] end = {2}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] end2 = {2},
    int64[4] times = {1,1,1,2}, float[4] scales = {1,1,2,2}>"""


@pytest.mark.slow
@pytest.mark.parametrize("graph", FLOWING.values(), ids=FLOWING)
def test_a_computed_shape_that_changes_has_an_outcome_by_every_route(here: Path, graph: str) -> None:
    save(here, f"g (float[N,2,4,4] x) => (float[N,M] y) {STORED} {graph}")
    np.savez(here / "d.npz", x=chance(6, 2, 4, 4))
    bits = "21-24" if "Resize" in graph else "0-2,62-63"
    found = {}
    for route in ("full", "auto", "late-start", "early-stop"):
        asked = campaign(include="=c", bits=bits, route=route, batch=3, target="activations", persistence="permanent")
        done = sorted(run(asked, here / f"{route}.db", workers=0), key=lambda r: r.trial)
        found[route] = [(r.trial, r.outcome, r.cause, r.error) for r in done]
    assert all(each == found["full"] for each in found.values())
    assert all(error is None for *_, error in found["full"])
