"""Campaigns on a stage of a pipeline, against an oracle that runs everything anew for each trial."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from small_pipelines import CASCADE, cascade
from tiny_campaigns import ran, tables

from onnxfi.campaign.execute.export_trial import export_trial
from onnxfi.campaign.report.report import report
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError, SpecError
from onnxfi.runtime.engine.onnx_runtime import OrtSession


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cascade(tmp_path)
    return tmp_path


def campaign(stage: str | None = "finder", **fields: Any) -> Campaign:
    way = {} if {"ber", "single", "per_sample"} & set(fields) else {"single": True, "trials": 8, "bits": "22-31"}
    given = {"model": "pipeline.yaml", "data": "d.npz", "provider": "cpu", "allow_code": True, **way, **fields}
    return Campaign(stage=stage, **given)


def host() -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(Path("host.py").read_text(), found)
    return found


def session(name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(name, options, providers=["CPUExecutionProvider"])


def scores(faulty: dict[str, str]) -> Iterator[np.ndarray]:
    """Run all of the pipeline with onnxruntime alone; the faulty stage on the rows of all samples, others by sample."""
    sessions = {stage: session(faulty.get(stage, f"{stage}.onnx")) for stage in ("finder", "reader")}
    functions, x = host(), np.load("d.npz")["x"]
    heat = sessions["finder"].run(None, {"x": x})[0]
    if "finder" not in faulty:
        heat = np.concatenate([sessions["finder"].run(None, {"x": x[k : k + 1]})[0] for k in range(len(x))])
    with np.errstate(all="ignore"):
        crops = [functions["crops"](x[k : k + 1], heat[k : k + 1])["crop"] for k in range(len(x))]
        if "reader" in faulty:
            every = sessions["reader"].run(None, {"crop": np.concatenate(crops)})[0]
            read = np.split(every, np.cumsum([len(c) for c in crops])[:-1])
        else:
            empty = np.zeros((0, 5), np.float32)
            read = [sessions["reader"].run(None, {"crop": c})[0] if len(c) else empty for c in crops]
        yield from (functions["join"](one)["scores"][0] for one in read)


@pytest.mark.parametrize("route", ["auto", "full"])
@pytest.mark.parametrize("stage", ["finder", "reader"])
def test_each_trial_is_what_running_everything_gives(here: Path, stage: str, route: str) -> None:
    store = here / "s.db"
    results = ran(campaign(stage, route=route), store)
    labels = np.load("d.npz")["labels"]
    golden = np.array([*scores({stage: f"{stage}.onnx"})])
    seen = set()
    for result in results:
        export_trial(store, result.trial, here / "faulty.onnx")
        found = np.array([*scores({stage: "faulty.onnx"})])
        differ = (found.view(np.uint32) != golden.view(np.uint32)).any(axis=1)
        due = differ & ~np.isfinite(found).all(axis=1)
        outcome = "due" if due.any() else "sdc" if differ.any() else "masked"
        assert (result.outcome, result.error) == (outcome, None)
        assert result.metrics["sdc_samples"] == (differ & ~due).mean()
        top = np.where(np.isnan(found).any(axis=1), -1, found.argmax(axis=1))
        assert result.metrics["top1"] == (top == labels).mean()
        assert result.metrics["sdc1"] == ((top != golden.argmax(axis=1)) & ~due).mean()
        seen.add(outcome)
    assert "sdc" in seen


@pytest.mark.slow
def test_routes_workers_and_shards_agree(here: Path) -> None:
    plain = [row[:3] for row in tables_of(here / "a.db", campaign("finder", ber=(1e-3, 1e-2), repeat=8))]
    for name, how, fields in (("b.db", {"workers": 1}, {}), ("c.db", {}, {"route": "full"})):
        found = tables_of(here / name, campaign("finder", ber=(1e-3, 1e-2), repeat=8, **fields), **how)
        assert [row[:3] for row in found] == plain


def tables_of(store: Path, given: Campaign, **how: Any) -> list[Any]:
    ran(given, store, **how)
    return tables(store)["results"]


@pytest.mark.parametrize("stage", ["finder", pytest.param("reader", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "fields", [{"per_sample": 0.5, "repeat": 6}, {"single": True, "trials": 12}, {"ber": 1e-2, "repeat": 3}]
)
def test_activations_of_a_stage(here: Path, stage: str, fields: dict[str, Any]) -> None:
    found = {}
    for route in ("auto", "full"):
        results = ran(campaign(stage, target="activations", all=True, route=route, **fields), here / f"{route}.db")
        assert not [r.error for r in results if r.error]
        found[route] = [(r.outcome, r.metrics["sdc_samples"], r.metrics["top1"]) for r in results]
    assert found["auto"] == found["full"] and len({outcome for outcome, _, _ in found["full"]}) >= 1
    if "single" in fields:  # judged on the sample to which the faulty row belongs
        assert {share for _, share, _ in found["full"]} <= {0.0, 1.0}


def test_golden_outputs_are_reused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later stage runs for a sample whose inputs differ in a bit, and for no other."""
    fed: list[tuple[str, int]] = []
    before = OrtSession.run

    def counted(self: OrtSession, feeds: Any, outputs: Any = None) -> Any:
        fed.append((next(iter(feeds)), len(next(iter(feeds.values())))))
        return before(self, feeds, outputs)

    monkeypatch.setattr(OrtSession, "run", counted)
    running = run(campaign("finder", route="full", trials=20), here / "s.db")
    import host as functions  # of the pipeline's folder

    fed.clear()
    functions.calls.update(crops=0, join=0)
    results = [*running]
    masked = sum(r.metrics["masked_samples"] == 1 for r in results)
    assert sum(name == "x" for name, _ in fed) == 20  # the faulty stage, all samples together
    assert masked
    # The crops run where the heat differs; what is behind them where a crop does.
    assert functions.calls["join"] <= functions.calls["crops"] < 20 * 10
    reads = sum(name == "crop" for name, _ in fed)
    assert reads <= functions.calls["join"] and functions.calls["join"] == round(
        sum(moved(here, r.trial) for r in results)
    )


def moved(here: Path, trial: int) -> int:
    """Count the samples that have other crops in a trial."""
    export_trial(here / "s.db", trial, here / "f.onnx")
    functions, x, found = host(), np.load("d.npz")["x"], []
    for name in ("finder.onnx", "f.onnx"):
        heat = session(name).run(None, {"x": x})[0]
        found.append([functions["crops"](x[k : k + 1], heat[k : k + 1])["crop"].tobytes() for k in range(len(x))])
    return sum(one != other for one, other in zip(*found, strict=True))


def test_a_store_holds_the_pipeline_and_the_stage(here: Path) -> None:
    ran(campaign("reader", trials=2), here / "s.db")
    with Store.open(here / "s.db") as store:
        identity, spec, golden = (store.get(name) for name in ("identity", "spec", "golden"))
    assert identity["stage"] == "reader" and len(identity["pipeline"]) == 64
    assert "stage: reader" in spec and "allow_code" not in spec
    assert golden["samples"] == 10 and "stage 'reader' of a pipeline on 10 labelled samples" in golden["data"]
    for stage, text, says in (("finder", CASCADE, "model"), ("reader", CASCADE.replace("join", "pool", 1), "pipeline")):
        Path("pipeline.yaml").write_text(text.replace("pool", "joined"))
        with pytest.raises(InputError, match=says):
            ran(campaign(stage, trials=2), here / "s.db")


def test_a_later_stage_that_fails_is_a_detected_error(here: Path) -> None:
    Path("pipeline.yaml").write_text(CASCADE.replace("host:join", "host:fails"))
    for k, route in enumerate(("auto", "full")):
        given = campaign("reader", route=route, fault="set:value=nan", bits="", trials=6)
        results = ran(given, here / f"{k}.db")
        assert {(r.outcome, r.cause, r.error) for r in results} == {("due", "error", None)}
        assert {r.metrics["top1"] for r in results} == {0.0}


def test_rows_whose_sample_nothing_says_are_refused(here: Path) -> None:
    """A model that gives another number of rows runs one row at a time."""
    from small_pipelines import model
    from tiny_campaigns import chance

    model(
        here,
        "m (float[N,6] x) => (float[K,3] kept) { s = ReduceSum<keepdims = 0>(x, a) z = Greater(s, t) kept0 = Compress<axis = 0>(x, z) "
        "kept = MatMul(kept0, w) }",
        "keeps.onnx",
        w=chance(6, 3), t=np.array(2, np.float32),
    )  # fmt: skip
    import onnx
    from onnx import numpy_helper

    proto = onnx.load("keeps.onnx")
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1]), "a"))
    onnx.save(proto, "keeps.onnx")
    text = """stages:
- {name: keeps, model: keeps.onnx, inputs: {x: data.x}}
- {name: reader, model: reader.onnx, inputs: {crop: keeps.kept}}
- {name: join, function: "host:join", inputs: {scores: reader.scores}}
"""
    Path("pipeline.yaml").write_text(text)
    with pytest.raises(InputError, match=r"gave \d rows of 'kept' for the 10 that it was fed.* batch: 1"):
        ran(campaign("keeps"), here / "s.db")
    for k, (fields, new) in enumerate((({"batch": 1}, ""), ({}, ", batch: 1"))):
        Path("pipeline.yaml").write_text(text.replace("{x: data.x}", "{x: data.x}" + new))
        for route in ("auto", "full"):
            results = ran(campaign("keeps", route=route, **fields), here / f"{k}{route}.db")
            assert not [r.error for r in results if r.error]
    rows = [
        [(r[0], r[1]) for r in tables(here / f"{name}.db")["results"]] for name in ("0auto", "0full", "1auto", "1full")
    ]
    assert rows[0] == rows[1] == rows[2] == rows[3]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"stage": "readerr"}, "there is no stage 'readerr'; closest: 'reader'"),
        ({"stage": "join"}, "no faults go into stage 'join'"),
        ({"stage": None}, "name it with --stage: finder, reader"),
        ({"time_axis": 1, "output": "scores"}, "time_axis has no meaning in a pipeline"),
        ({"batch_axis": 1}, "batch_axis has no meaning in a pipeline"),
        ({"model": "reader.onnx"}, "'reader.onnx' is no pipeline; leave stage out"),
        ({"output": "scoress"}, "closest: 'scores'"),
        ({"allow_code": False}, "--allow-code"),
    ],
)
def test_what_does_not_fit_a_campaign_is_refused(here: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        ran(campaign(**{"stage": "reader", "trials": 2, "single": True, **fields}), here / "s.db")
    assert says in str(error.value) and not (here / "s.db").exists()


def test_no_file_allows_its_own_code(here: Path) -> None:
    from onnxfi.campaign.spec.spec_file import load_spec, print_spec

    Path("campaign.yaml").write_text("model: pipeline.yaml\nstage: reader\nsingle: true\ntrials: 2\nallow_code: true\n")
    with pytest.raises(SpecError, match="unknown field 'allow_code'"):
        load_spec("campaign.yaml")
    Path("campaign.yaml").write_text("model: pipeline.yaml\nstage: reader\nsingle: true\ntrials: 2\n")
    assert not load_spec("campaign.yaml").allow_code
    found = load_spec("campaign.yaml", allow_code=True)
    assert found.allow_code and "allow_code" not in print_spec(found)


def test_adaptive_campaigns_stop_at_their_margin(here: Path) -> None:
    given = Campaign("pipeline.yaml", "d.npz", stage="finder", provider="cpu", allow_code=True, adaptive=True, rate="sdc1",
                     margin=0.2, confidence=0.9)  # fmt: skip
    results = ran(given, here / "s.db")
    assert results and not [r.error for r in results if r.error]
    assert report(here / "s.db").task.name == "classification"


def test_one_stage_of_a_function_pipeline(here: Path) -> None:
    Path("own_pipe.py").write_text(
        "import host\nfrom onnxfi import Pipeline, Stage\n"
        "def whole():\n"
        "    return Pipeline([\n"
        "        Stage('finder', model='finder.onnx', inputs={'x': 'data.x'}),\n"
        "        Stage('crops', function=host.crops, inputs={'x': 'data.x', 'heat': 'finder.heat'}),\n"
        "        Stage('reader', model='reader.onnx', inputs={'crop': 'crops.crop'}),\n"
        "        Stage('join', function=host.join, inputs={'scores': 'reader.scores'}),\n"
        "    ])\n"
    )
    one = ran(campaign("reader", model="own_pipe:whole"), here / "a.db")
    other = ran(campaign("reader"), here / "b.db")
    assert {r.trial: r.metrics for r in one} == {r.trial: r.metrics for r in other}
    assert json.dumps(one[0].metrics)
