"""Code that a file names: run only where that is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxfi.campaign.gate.budget import load_budget
from onnxfi.campaign.spec.spec_file import load_spec
from onnxfi.errors import SpecError

#: Contents of a file that have code of its author run, and whether naming something else by a flag is enough.
CODE = {
    "data: own.module:function": "data",
    "data: own:function\nsamples: 3": "data",
    "custom_ops: [ops.so]": "custom_ops",
    "provider: tensorrt\nprovider_option: [device_id=0, trt_extra_plugin_lib_paths=own.so]": "provider_option",
    "provider: cuda\nprovider_option: gpu_external_alloc=1": "provider_option",
    "provider: qnn\nprovider_option: x=/tmp/own.so": "provider_option",
}


@pytest.mark.parametrize("text", CODE)
def test_a_file_has_code_run_only_where_that_is_allowed(text: str, tmp_path: Path) -> None:
    (tmp_path / "ops.so").touch()
    text = text.replace("ops.so", str(tmp_path / "ops.so"))
    name = next(name for said, name in CODE.items() if said.split("[")[0] == text.split("[")[0])
    file = tmp_path / "c.yaml"
    file.write_text(f"model: m.onnx\nber: 1e-6\n{text}\n")
    wrong = rf"c.yaml, line \d, column \d+: {name} has code run that this file names .* add --allow-code"
    with pytest.raises(SpecError, match=wrong):
        load_spec(file)
    with pytest.raises(SpecError, match=wrong):
        load_spec(file, instead=["model", "seed"])
    assert load_spec(file, allow_code=True) == load_spec(file, instead=[name])
    budget = tmp_path / "b.yaml"
    inner = text.replace("\n", "\n  ")
    budget.write_text(f"version: 1\ncampaign:\n  ber: 1e-6\n  {inner}\n")
    with pytest.raises(SpecError, match=wrong.replace("c.yaml", "b.yaml")):
        load_budget(budget)
    assert load_budget(budget, allow_code=True) == load_budget(budget, instead=[name])


def test_options_and_data_that_run_nothing_are_not_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: m.onnx\nber: 1e-6\ndata: a/b.npz\nprovider: cuda\nprovider_option: device_id=1\n")
    assert load_spec(file).engine.provider_option == ("device_id=1",)
