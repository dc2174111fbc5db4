"""Pipelines as files: read safely, each field checked with line and column, and paths inside the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_pipelines import CASCADE, cascade

from onnxfi.campaign.spec.pipeline_file import load_pipeline, names_pipeline
from onnxfi.errors import InputError, SpecError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path.parent / f"{tmp_path.name}-beside.onnx").write_bytes(b"no model of this pipeline")
    return cascade(tmp_path)


def test_a_file_is_the_pipeline_that_it_says(file: Path) -> None:
    found = load_pipeline(file)
    assert [stage.name for stage in found.order] == ["finder", "crops", "reader", "join"]
    assert found.answer == ("join",) and found.faults == ("finder", "reader") and found.folder == str(file.parent)
    assert [str(source) for source in found.by_name["crops"].sources] == ["data.x", "finder.heat"]


def test_every_field_is_read(file: Path) -> None:
    file.write_text(
        """
data: {page: "uint8 [N,4]"}
answer: [net.y, net.z]
faults: net
stages:
- name: net
  model: finder.onnx
  inputs: {x: data.page, state: 0, rate: 1.5, on: true}
  batch: 3
  loop: {axis: 1, over: [x], carry: {state: next}}
"""
    )
    found = load_pipeline(file)
    stage = found.by_name["net"]
    assert stage.numbers == {"state": 0, "rate": 1.5, "on": True} and stage.batch == 3
    assert stage.loop is not None and (stage.loop.axis, stage.loop.over, stage.loop.carry) == (
        1,
        ("x",),
        {"state": "next"},
    )
    assert found.answer == ("net.y", "net.z") and found.faults == ("net",)
    assert [str(port) for port in found.ports()] == ["'page' (uint8 [N,4])"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("version: 1", "version: 2", "line 1, column 10: version 2 of a pipeline; this onnxfi reads version 1"),
        ("version: 1", "version_: 1", "line 1, column 1: unknown field 'version_' of a pipeline; closest: 'version'"),
        ("{x: data.x}", "{x: dat.x}", "line 3, column 50: there is no stage 'dat'"),
        ("crops.crop", "crop.crop", "line 5, column 53: there is no stage 'crop'; closest: 'crops'"),
        ("{x: data.x}", "{x: join.scores}", "column 3: stages feed each other in a circle"),
        ("{x: data.x}", "{x: }", "column 49: input 'x' has no source"),
        ("{x: data.x}", "{x: [1]}", "column 50: x takes a plain value"),
        ("model: finder.onnx", "model: ../x.onnx", "lies outside of the folder of the pipeline; put it there, or below"),
        ("model: finder.onnx", "model: /etc/passwd", "lies outside of the folder"),
        ("model: finder.onnx", "model: linked.onnx", "lies outside of the folder"),
        ("model: finder.onnx", "model: finderr.onnx", "line 3, column 25: there is no file 'finderr.onnx'"),
        ("name: finder", "name: data", "line 3, column 10: 'data' is not a name of a stage"),
        ("name: finder, ", "", "line 3, column 3: a stage has a name"),
        ("name: join", "name: reader", "2 stages are named 'reader'"),
        ("model: finder.onnx, ", "", "line 3, column 3: stage 'finder' has neither of model and function"),
        ("model: finder.onnx", "model: finder.onnx, model: finder.onnx", "model is given twice"),
        ("model: finder.onnx", "batch: 1.5, model: finder.onnx", "batch must be a whole number"),
        ("model: finder.onnx", "loop: {axis: 1}, model: finder.onnx", "a loop has axis, over and carry; add over"),
        ("model: finder.onnx", "model_: finder.onnx", "unknown field 'model_' of a stage; closest: 'model'"),
        ("stages:", "answer: joinn\nstages:", "line 2, column 9: there is no stage 'joinn'; closest: 'join'"),
        ("stages:", "faults: join\nstages:", "line 2, column 9: stage 'join' is host code"),
        ("stages:", "data: {x: float}\nstages:", "is no type and shape; write them as uint8 [N,H,W,3]"),
        ("stages:", "stage:", "unknown field 'stage' of a pipeline"),
        (CASCADE, "version: 1\nstages: {a: 1}", "line 2, column 9: stages are a list"),
        (CASCADE, "version: 1", "a pipeline has stages"),
        (CASCADE, "stages: !!python/object:os.system {}", "stages are a list"),
        (CASCADE, "- 1", "holds no pipeline"),
        (CASCADE, "\x00", "not a readable YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_refused(file: Path, old: str, new: str, says: str) -> None:
    (file.parent / "linked.onnx").symlink_to(f"../{file.parent.name}-beside.onnx")
    assert old in CASCADE
    file.write_text(CASCADE.replace(old, new, 1))
    with pytest.raises(SpecError) as error:
        load_pipeline(file)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_function_returns_a_pipeline(file: Path) -> None:
    Path("own_pipes.py").write_text(
        "from onnxfi import Pipeline, Stage\n"
        "def one():\n    return Pipeline([Stage('net', model='finder.onnx', inputs={'x': 'data.x'})])\n"
        "whole = one()\n"
        "def other():\n    return 5\n"
        "def fails():\n    return 1 // 0\n"
    )
    assert load_pipeline("own_pipes:one").answer == load_pipeline("own_pipes:whole").answer == ("net",)
    for name, says in (
        ("other", "returned a int"),
        ("fails", "ZeroDivisionError"),
        ("onee", "has no 'onee'; closest: 'one'"),
    ):
        with pytest.raises(InputError, match=says):
            load_pipeline(f"own_pipes:{name}")
    with pytest.raises(InputError, match="cannot be loaded: ModuleNotFoundError"):
        load_pipeline("no_such_module:one")


def test_a_pipeline_is_no_model_and_no_campaign_(file: Path) -> None:
    Path("campaign.yaml").write_text("model: finder.onnx\nber: 1e-6\n")
    found = {name: names_pipeline(name) for name in ("pipeline.yaml", "campaign.yaml", "finder.onnx", "no.yaml", "a:b")}
    assert found == {"pipeline.yaml": True, "campaign.yaml": False, "finder.onnx": False, "no.yaml": False, "a:b": True}
    Path("list.yaml").write_text("- model: finder.onnx\n")
    with pytest.raises(SpecError, match=r"list.yaml holds no campaign; a campaign maps .* \(docs/reference/spec.md\)"):
        names_pipeline("list.yaml")
