"""Campaigns in one call: models and samples in memory give what files give, and what is interrupted is kept."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from small_pipelines import cascade
from tiny_campaigns import mlp, samples

import onnxfi
from onnxfi.campaign.report.report import report
from onnxfi.campaign.run import runner
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import DESIGNS
from onnxfi.campaign.spec.flat_fields import flat_fields
from onnxfi.campaign.spec.settings import DataSettings, EngineSettings, Scoring
from onnxfi.cli.commands import COMMANDS, group
from onnxfi.converters import convert
from onnxfi.converters.torch import convert as convert_torch
from onnxfi.errors import DataError, InputError, ModelError, SpecError
from onnxfi.faults.models import Flip
from onnxfi.faults.space import Selector
from onnxfi.tasks.kinds.classification import CLASSIFICATION
from onnxfi.tasks.task import Metric


def outcomes(found: onnxfi.Report) -> list[tuple[Any, ...]]:
    return [(row["trial"], row["outcome"], row["top1"]) for row in found.details()]


@pytest.fixture
def here(here: Path) -> Path:
    """The empty folder, with m.onnx and d.npz."""
    mlp(here)
    samples(here)
    return here


@pytest.fixture
def arrays(here: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load("d.npz") as archive:
        return dict(archive)


class Dataset:
    """A dataset as PyTorch has it: a length, and a sample with its label by number."""

    def __init__(self, x: Any, labels: Any) -> None:
        self.x, self.labels = x, labels

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> tuple[Any, Any]:
        return self.x[k], self.labels[k]


@pytest.mark.slow
def test_models_and_samples_in_memory_give_what_files_give(here: Path, arrays: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"ber": 1e-2, "repeat": 3, "provider": "cpu"}
    found = outcomes(onnxfi.run("m.onnx", "d.npz", "files.db", **fields))
    assert len(found) == 3
    (name,) = set(arrays) - {"labels"}
    x, labels = arrays[name], arrays["labels"]
    batches = [(x[:4], labels[:4]), (x[4:], labels[4:])]
    models = (onnx.load("m.onnx"), Path("m.onnx").read_bytes(), onnxfi.load("m.onnx"), Path("m.onnx"), "m.onnx")
    forms = (
        arrays,
        (x, labels),
        batches,
        Dataset(x, labels),
        [({name: one}, label) for one, label in zip(x, labels, strict=True)],
    )
    for model, data in zip(models, forms, strict=True):
        assert outcomes(onnxfi.run(model, data, **fields)) == found


def test_a_pipeline_takes_samples_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = cascade(tmp_path)
    with np.load("d.npz") as archive:
        arrays = dict(archive)
    how: dict[str, Any] = {"stage": "reader", "ber": 1e-2, "repeat": 2, "provider": "cpu", "allow_code": True}
    found = [onnxfi.run(file, data, **how) for data in ("d.npz", arrays, (arrays["x"], arrays["labels"]))]
    seen = [[(row["outcome"], row["top1"]) for row in one.details()] for one in found]
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 2


def test_a_store_is_resumed_and_extended_from_memory(here: Path, arrays: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"single": True, "provider": "cpu", "store": "s.db"}
    first = outcomes(onnxfi.run(onnx.load("m.onnx"), arrays, trials=3, **fields))
    seen: list[int] = []
    more = onnxfi.run(
        onnx.load("m.onnx"), arrays, trials=5, on_result=lambda result: seen.append(result.trial), **fields
    )
    assert outcomes(more)[:3] == first and len(seen) == 2
    assert {path.name for path in here.glob("s.db*")} == {"s.db", "s.db.onnx", "s.db.data.npz"}


def test_without_a_store_nothing_is_left(here: Path, arrays: dict[str, Any]) -> None:
    before = set(here.iterdir())
    found = onnxfi.run("m.onnx", arrays, single=True, trials=2, provider="cpu")
    file = found.store
    assert file.is_file() and set(here.iterdir()) == before
    del found
    assert not file.parent.exists()


def test_values_of_code_are_taken_by_their_names(here: Path) -> None:
    by_value = Campaign("m.onnx", fault=Flip(), single=True, trials=2)
    assert by_value == Campaign("m.onnx", fault="flip", single=True, trials=2)

    assert by_value == Campaign("m.onnx", fault=Flip, single=True, trials=2)
    own = Campaign("m.onnx", single=True, trials=2, task=CLASSIFICATION)
    assert own.scoring.task == "classification"

    class Local:
        """A metric that no other process can import."""

    with pytest.raises(SpecError, match=r"metric: .*Local is defined in the running program; put it into a module"):
        Campaign("m.onnx", single=True, trials=2, metric=[Local])
    with pytest.raises(SpecError, match=r"metric: mine is defined in the running program"):
        Campaign("m.onnx", single=True, trials=2, metric=Metric("mine", lambda pair: 0.0))
    with pytest.raises(
        SpecError, match=r"fault: Lost has no name that workers and a resumed campaign know it by; offer"
    ):
        Campaign("m.onnx", single=True, trials=2, fault=type("Lost", (Flip,), {"name": "lost"}))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"data": 5.0}, DataError, "'x' is float64, input 'x'"),
        ({"data": iter(())}, DataError, "has no samples"),
        ({"data": object()}, DataError, "object is no data; give arrays by the name of the input"),
        ({"data": [("a", 1, 2, 3)]}, DataError, "an item of the data has 4 values"),
        ({"beer": 1e-3}, SpecError, "unknown field 'beer'; closest: 'ber'"),
        ({"model": 3}, ModelError, "int is not a model; give a path"),
        ({"model": "none.onnx"}, ModelError, "cannot read 'none.onnx'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    here: Path, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = set(here.iterdir())
    fields: dict[str, Any] = {"model": "m.onnx", "data": "d.npz", "ber": 1e-2, "provider": "cpu", **given}
    with pytest.raises(error, match=message) as found:
        onnxfi.run(fields.pop("model"), fields.pop("data"), **fields)
    assert isinstance(found.value, InputError) and "\n" not in str(found.value) and set(here.iterdir()) == before


def test_a_campaign_brings_its_own_fields(here: Path) -> None:
    campaign = Campaign("m.onnx", "d.npz", single=True, trials=2, provider="cpu")
    assert outcomes(onnxfi.run(campaign)) == outcomes(onnxfi.run(campaign, store="s.db"))
    with pytest.raises(SpecError, match="the campaign has its ber already"):
        onnxfi.run(campaign, ber=1e-3)


def test_the_stop_button_of_a_notebook_keeps_what_there_is(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(result: onnxfi.Result) -> None:
        if result.trial == 2:
            raise KeyboardInterrupt

    fields: dict[str, Any] = {"single": True, "trials": 40, "provider": "cpu", "store": "s.db", "on_result": stop}
    with pytest.raises(KeyboardInterrupt):
        onnxfi.run("m.onnx", "d.npz", **fields)
    kept = report("s.db").everything.trials
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    with pytest.warns(UserWarning, match=r"interrupted after \d+ of 40 trials; run it again with the same store"):
        found = onnxfi.run("m.onnx", "d.npz", fresh=True, progress=False, **fields)
    assert 2 <= kept < 40 and 2 <= found.everything.trials < 40


def test_nothing_finished_is_an_interrupt_in_a_notebook_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr(runner, "run_in_process", interrupted)
    with pytest.raises(KeyboardInterrupt):
        onnxfi.run("m.onnx", "d.npz", single=True, trials=2, provider="cpu", progress=False)


def test_the_version_is_that_of_the_package() -> None:
    assert onnxfi.__version__.count(".") == 2


#: Flags that are short for a `fault`.
HARDWARE = {"fault_map", "memory_layout", "array"}
#: The functions of each verb, and its flags that are no parameters there: the answer is a value, which has them as methods
#: or fields, or the value or the function that is given says them (the file of a stage, the target of an instrumented model).
TWINS: dict[str, tuple[tuple[Callable[..., Any], ...], set[str]]] = {
    "convert": ((convert, convert_torch), set()),  # of all frameworks it takes the most
    "inspect": ((onnxfi.inspect, onnxfi.inspect_activations, onnxfi.load), {"stage"}),
    "inject": (
        (
            onnxfi.sample,
            onnxfi.inject,
            onnxfi.inject_activations,
            onnxfi.replay,
            onnxfi.undo,
            onnxfi.evaluate,
            onnxfi.load,
        ),
        {"undo", "stage", *HARDWARE},
    ),
    "eval": ((onnxfi.evaluate,), set()),
    "instrument": ((onnxfi.instrument, onnxfi.expose_neurons, onnxfi.load), {"target"}),
    "quantize": ((onnxfi.quantize, onnxfi.QuantisationRecipe, onnxfi.evaluate), set()),
    "protect": ((onnxfi.protect, onnxfi.evaluate), set()),
    "compare": ((onnxfi.compare,), {"out", "html", "figure_folder", "paired", "allow_calibration_data"}),
    "assess": ((onnxfi.assess,), set()),
    "attack": ((onnxfi.attack,), set()),
    "census": ((onnxfi.census, onnxfi.load), {"csv_file"}),
    "fit": ((onnxfi.fit,), set()),
    "plan-protection": ((onnxfi.plan_protection,), set()),
    "plan": ((onnxfi.plan,), {"source", "out", "print_spec", "times", "environment", *HARDWARE}),
    "run": (
        (onnxfi.run, onnxfi.exhaustive_outcomes),
        {"source", "memory", "memory_device", "worker_memory", "scheduler", "local_cluster", *HARDWARE},
    ),
    "report": (
        (onnxfi.report,),
        {
            "stores",
            "html",
            "csv_folder",
            "csv_by_model",
            "figure_folder",
            "latex_folder",
            "answers",
            "kinds",
            "spread",
            "sort",
            "evidence",
            "environment",
            "detectors",
            "allow_code",
            "output_folder",
            "top",
            "elements",
        },
    ),
    "merge": ((onnxfi.merge,), set()),
    "manifest": ((onnxfi.manifest, onnxfi.load), {"out"}),
    "verify": ((onnxfi.verify, onnxfi.load), {"manifest_file"}),
    "diff": ((onnxfi.diff, onnxfi.load), {"other", "save_faults", "repair"}),
    "rowhammer": ((onnxfi.rowhammer, onnxfi.load), {"save_faults"}),
    "check": ((onnxfi.check,), {"out", "junit", "markdown", "write_budget", "force", "time_s"}),
}
#: Verbs about the program itself, and the one that prints a row of `Report.details`.
WITHOUT = {"show", "demo", "doctor", "completion", "help"}


def test_every_verb_has_its_twin_and_flags_have_the_names_of_parameters() -> None:
    assert set(TWINS) | WITHOUT == set(COMMANDS)
    context = click.Context(group)
    names = {kind: set(flat_fields(kind)) for kind in (Campaign, DataSettings, EngineSettings, Scoring)}
    selection = {field.name for field in dataclasses.fields(Selector)}
    designs = {field.name for kind in DESIGNS for field in dataclasses.fields(kind)}
    model_verb = names[DataSettings] | names[EngineSettings]
    taken: dict[Any, set[str]] = {
        onnxfi.evaluate: model_verb | names[Scoring],
        onnxfi.quantize: model_verb,
        onnxfi.protect: model_verb | selection,
    }
    for verb, (functions, otherwise) in TWINS.items():
        command = group.get_command(context, verb)
        assert command is not None
        known = set[str]()
        for function in functions:
            parameters = inspect.signature(function).parameters
            known |= set(parameters)
            for one in (one.name for one in parameters.values() if one.kind is one.VAR_KEYWORD):
                own = {
                    "options": set(),
                    "selection": selection,
                    "fields": taken.get(function, names[Campaign] | designs),
                }
                known |= own[one]
        assert {param.name for param in command.params} - known - {"as_json"} == otherwise, verb


def test_limits_and_shards_may_be_text(here: Path) -> None:
    given: dict[str, Any] = {"single": True, "trials": "4", "store": here / "s.db", "kept_bytes": "1000000"}
    found = onnxfi.run(here / "m.onnx", here / "d.npz", shard=("1", "2"), **given)
    assert found.everything.trials == 2
    for name in ("kept_bytes", "workers", "worker_memory_bytes"):
        with pytest.raises(InputError, match=f"{name} must be a whole number; given 'much'"):
            onnxfi.run(here / "m.onnx", here / "d.npz", **given | {name: "much"})


def test_an_opset_may_be_text(here: Path) -> None:
    made = onnxfi.instrument(here / "m.onnx", out=here / "i.onnx", opset="21")
    assert made is not None and (here / "i.onnx").exists()
    with pytest.raises(InputError, match="opset must be a whole number; given 'new'"):
        onnxfi.instrument(here / "m.onnx", opset="new")
    assert onnxfi.protect(here / "m.onnx", "nan-filter", here / "p.onnx", data=here / "d.npz", opset="21")
    with pytest.raises(InputError, match="opset must be a whole number; given 'new'"):
        onnxfi.protect(here / "m.onnx", "nan-filter", here / "q.onnx", opset="new")
