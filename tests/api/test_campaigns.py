"""Assessments, checks, comparisons and plans in memory give what files give; so do the verbs that take one model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from tiny_campaigns import mlp, samples

import onnxfi
from onnxfi.errors import SpecError

ROOT = Path(__file__).parents[2]
CPU: dict[str, Any] = {"provider": "cpu"}


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    """A folder with m.onnx and d.npz, and both in memory."""
    monkeypatch.chdir(tmp_path)
    mlp(tmp_path)
    samples(tmp_path)
    with np.load("d.npz") as archive:
        return onnx.load("m.onnx"), dict(archive)


def rates(found: onnxfi.Report) -> list[Any]:
    return [(fold.key, fold.trials, [(rate.name, rate.interval) for rate in fold.rates]) for fold in found.by_rate]


def test_a_comparison_in_memory_is_that_of_files(held: Any) -> None:
    proto, arrays = held
    Path("n.onnx").write_bytes(Path("m.onnx").read_bytes())
    how = {"ber": np.array([1e-2, 1e-1]), "repeat": 2, **CPU}
    files = onnxfi.compare(["m.onnx", "n.onnx"], "d.npz", "stores", **how)
    found = onnxfi.compare({"first": proto, "second": proto.SerializeToString()}, arrays, **how)
    assert [rates(v.found) for v in found.versions] == [rates(v.found) for v in files.versions]
    assert [Path(v.model).stem for v in found.versions] == ["first", "second"]
    folder = Path(found.versions[0].model).parent
    assert folder.is_dir() and len(list(Path("stores").iterdir())) == 2
    del found
    assert not folder.exists()
    with pytest.raises(SpecError, match="the campaign has its ber already"):
        onnxfi.compare(["m.onnx", "n.onnx"], onnxfi.Campaign(model="", ber=1e-2), ber=1e-3)


def test_a_check_in_memory_is_that_of_files(held: Any) -> None:
    proto, arrays = held
    limits = [{"rate": "top1", "golden": True, "min": 0.0}, {"rate": "due", "max": 1}]
    campaign = {"data": "d.npz", "ber": [1e-2], "repeat": 2, **CPU}
    Path("b.yaml").write_text(yaml.safe_dump({"version": 1, "campaign": campaign, "limits": limits}))
    before = sorted(Path().iterdir())
    files = onnxfi.check("m.onnx", "b.yaml")
    found = onnxfi.check(proto, onnxfi.load_budget("b.yaml"), arrays)
    assert [f.interval for f in found.findings] == [f.interval for f in files.findings] and len(found.findings) == 2
    assert sorted(Path().iterdir()) == before, "nothing is left"
    onnxfi.check(proto, "b.yaml", arrays, store="s.db", repeat=1)
    assert Path("s.db").is_file() and Path("s.db.onnx").is_file()


def test_an_assessment_in_memory_keeps_what_it_was_given(held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proto, arrays = held
    given: dict[str, Any] = {}

    def on_files(model: str, data: str, **how: Any) -> None:
        given.update(how, model=onnx.load(model), data=dict(np.load(data)))

    monkeypatch.setattr("onnxfi.analysis.assess.assess", on_files)
    onnxfi.assess(proto, arrays, time_s=3, environment=ROOT / "examples" / "environment.yaml", out="a", **CPU)
    assert given["model"] == proto and all(np.array_equal(given["data"][name], arrays[name]) for name in arrays)
    assert given["environment"].memories and (given["out"], given["time_s"]) == (Path("a"), 3)


def test_a_plan_needs_no_campaign(held: Any) -> None:
    proto, arrays = held
    made, golden_s = onnxfi.plan(proto, arrays, single=True, trials=7, **CPU)
    assert len(made) == len(onnxfi.plan(onnxfi.Campaign("m.onnx", single=True, trials=7))[0]) == 7
    assert golden_s is not None and Path(made.model.path or "").is_file()


VERBS: dict[str, Callable[[Any, Any], Any]] = {
    "protect": lambda model, data: onnxfi.protect(model, "range:clip", "out.onnx", data=data).digest,
    "quantize": lambda model, data: onnxfi.quantize(model, "fp16", "out.onnx", data=data).out.read_bytes(),
    "instrument": lambda model, data: onnxfi.instrument(model, data=data).armed.inputs,
    "inspect_activations": lambda model, data: onnxfi.inspect_activations(model, data=data)["activations"],
    "evaluate": lambda model, data: onnxfi.evaluate(model, data).metrics,
    "inspect": lambda model, data: onnxfi.inspect(model)["totals"],
    "census": lambda model, data: onnxfi.census(model).whole,
    "manifest": lambda model, data: onnxfi.manifest(model).tensors,
    "sample": lambda model, data: onnxfi.sample(model, ber=np.float64(1e-2)).drawn,
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_models_and_data_of_every_form(held: Any, verb: str) -> None:
    proto, arrays = held
    inputs = {name: array for name, array in arrays.items() if name != "labels"}
    (x,) = inputs.values()
    models = ("m.onnx", Path("m.onnx"), proto, proto.SerializeToString(), onnxfi.load("m.onnx"))
    forms = ("d.npz", arrays, (x, arrays["labels"]), [(x, arrays["labels"])], arrays)
    found = [VERBS[verb](model, data) for model, data in zip(models, forms, strict=True)]
    assert all(one == found[0] for one in found[1:])


def test_answers_are_short_where_they_are_shown(held: Any) -> None:
    proto, arrays = held
    campaign, limit = onnxfi.Campaign("m.onnx", "d.npz", ber=1e-2, repeat=2, **CPU), onnxfi.BudgetLimit("due", max=1)
    drawn = onnxfi.sample(proto, count=20)
    answers = (
        onnxfi.load(proto), drawn, onnxfi.inject(proto, drawn), onnxfi.census(proto), onnxfi.manifest(proto),
        onnxfi.diff(proto, onnxfi.inject(proto, drawn).data), onnxfi.evaluate(proto, arrays),
        onnxfi.run(proto, arrays, single=True, trials=2, **CPU), onnxfi.plan(proto, single=True, trials=2)[0],
        campaign, onnxfi.check("m.onnx", onnxfi.Budget(campaign, (limit,))),
        onnxfi.compare({"a": proto, "b": proto}, campaign),
    )  # fmt: skip
    assert not [text[:60] for answer in answers if len(text := repr(answer)) > 1200]
