"""Plans of protections as files: written and read back, what is no plan, and what protect makes of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxfi.errors import InputError, SpecError
from onnxfi.graph.model.loading import load
from onnxfi.protection.protect import protect
from onnxfi.protection.protection_plan import (
    GraphEntry,
    MemoryEntry,
    ProtectionPlan,
    load_protection_plan,
    write_protection_plan,
)

CNN = Path(__file__).parents[2] / "models/fashion_cnn.onnx"


def test_a_plan_comes_back_with_names_that_mean_something_to_yaml(tmp_path: Path) -> None:
    odd = ("a: b", "no", "x,y;z@w", "ä\n", "#1")
    plan = ProtectionPlan(
        "a" * 64, (GraphEntry("clip-weights", odd),), (MemoryEntry("secded:bits=32", odd),), {"cost": {"bytes": 3}}
    )
    write_protection_plan(plan, tmp_path / "p.yaml")
    read = load_protection_plan(tmp_path / "p.yaml")
    assert read == plan and read.remarks == plan.remarks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds no fields; it takes version"),
        ("version: 1", "model is missing"),
        ("version: 2\nmodel: x\ngraph: []\nmemory: []", "version 2; this onnxfi reads version 1"),
        ("version: 1\nmodel: x\ngraph: []\nmemory: []", "it takes the SHA-256"),
        ("version: 1\nmodel: M\ngraph: []\nmemory: []\nnew: 1", "unknown field 'new'"),
        ("version: 1\nmodel: M\ngraph: []\nmemory: []", "protects nothing"),
        ("version: 1\nmodel: M\ngraph: [{protection: foo, include: ['=a']}]\nmemory: []", "unknown protection 'foo'"),
        ("version: 1\nmodel: M\ngraph: [{protection: checksum, include: [a]}]\nmemory: []", "takes exact names"),
        ("version: 1\nmodel: M\ngraph: []\nmemory: [{code: ham, tensors: [a]}]", "unknown memory code 'ham'"),
        ("version: 1\nmodel: M\ngraph: []\nmemory: [{code: tmr}]", r"memory\[0\]: tensors is missing"),
        (
            "version: 1\nmodel: M\ngraph: []\nmemory: [{code: tmr, tensors: []}]",
            r"tensors is \[\]; it takes a list of names",
        ),
        ("version: 1\nmodel: M\ngraph: []\nmemory: [{code: tmr, tensors: [3]}]", "takes a list of names, each a text"),
    ],
)
def test_what_is_no_plan(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text.replace("model: M", f"model: {'a' * 64}"))
    with pytest.raises(SpecError, match=message):
        load_protection_plan(tmp_path / "p.yaml")


def test_protect_takes_a_plan(tmp_path: Path) -> None:
    model, out = load(CNN), tmp_path / "p.onnx"
    plan = ProtectionPlan(
        model.digest, (GraphEntry("checksum", ("logits",)), GraphEntry("clip-weights", ("conv1.weight", "fc1.weight"))),
        (MemoryEntry("secded", ("fc2.weight",)),),
    )  # fmt: skip
    done = protect(model, (), out, plan=plan)
    assert done.tensors == {"checksum": ("logits",), "clip-weights": ("conv1.weight", "fc1.weight")}
    assert not done.fault_free.changed and any("--memory-code" in note for note in done.notes)


def test_a_plan_that_does_not_fit_writes_nothing(tmp_path: Path) -> None:
    model, out = load(CNN), tmp_path / "p.onnx"
    clip, memory = (GraphEntry("clip-weights", ("fc1.weight",)),), (MemoryEntry("tmr", ("fc1.weight",)),)
    for plan, protections, message in (
        (ProtectionPlan("a" * 64, clip), (), "the plan is for the model aaaaaaaaaaaa"),
        (ProtectionPlan(model.digest, (), memory), (), "protects in memory alone"),
        (ProtectionPlan(model.digest, clip), ("nan-filter",), "leave out --with"),
        (
            ProtectionPlan(model.digest, (GraphEntry("clip-weights", ("gone",)),)),
            (),
            "matches no weight of this model",
        ),
    ):
        with pytest.raises(InputError, match=message):
            protect(model, protections, out, plan=plan)
    assert not out.exists()
