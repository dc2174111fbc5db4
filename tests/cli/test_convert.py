"""onnxfi convert: what it prints of a conversion, and refusals in one line, with the framework's own text framed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from campaign_commands import checked

from onnxfi.converters.conversion import Converted
from onnxfi.runtime.engine.ports import Port

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["m.keras", "--from", "keraz"], "no framework 'keraz'; closest: 'keras'"),
        (["m.onnx"], "'m.onnx' is an ONNX file already; run onnxfi inspect on it"),
        (["m.pkl"], "'m.pkl' is a pickle, which runs code when it is loaded; give module:factory"),
        (["m.mat"], "cannot tell the framework of 'm.mat'; give module:factory, a SavedModel folder or a file ending in .pt"),
        (["."], "the folder '.' is not a SavedModel: it has no saved_model.pb"),
        (["nowhere:make"], "no module 'nowhere' in the current folder or installed; run onnxfi in the folder of nowhere.py"),
        (["framework_models:rises"], "module 'framework_models' has no 'rises'; closest: 'raises'"),
        (["framework_models:three"], "a builtins.int is not a model of torch, keras, tensorflow, sklearn"),
        (["framework_models:NUMBER"], "a builtins.int is not a model of torch, keras, tensorflow, sklearn"),
        (["m.h5", "--factory", "a:b", "--from", "keras"], "--factory is for PyTorch checkpoints"),
    ],
)  # fmt: skip
def test_bad_sources(run: Run, here: Path, words: list[str], message: str) -> None:
    code, out, err = run("convert", *words, "-o", "out.onnx")
    assert (code, out) == (2, "") and err.startswith("onnxfi: error: ") and message in err and err.count("\n") == 1
    assert not list(here.iterdir())


def test_a_factory_that_raises_shows_its_own_traceback_framed(run: Run, here: Path) -> None:
    code, out, err = run("convert", "framework_models:raises", "-o", "out.onnx")
    assert (code, out) == (2, "")
    *frame, last = err.splitlines()
    assert frame[0] == "╭─" and frame[-1] == "╰─" and all(line.startswith("│ ") for line in frame[1:-1])
    assert "KeyError: 'weights'" in frame[-2] and any('return missing["weights"]' in line for line in frame)
    assert not any("sources.py" in line for line in frame), "our own frames say nothing"
    assert (
        last
        == "onnxfi: error: the factory 'framework_models:raises' raised KeyError: 'weights'; call it in Python first"
    )


def converted(out: Path) -> Converted:
    """A conversion as a converter returns it."""
    return Converted(
        framework="torch", version="2.9", source="Net", out=out, digest="ab" * 32, size_bytes=1234, opset=18,
        inputs=(Port("x", "float32", ("N", 4)),), outputs=(Port("y", "float32", ("N", 3)),),
        data="8 synthetic samples", samples=8, largest=1.5e-7, relative=2e-7, output="y", tolerance=1e-4,
        layers=tuple(f"layer{k}" for k in range(14)), words=35, notes=("a remark",),
    )  # fmt: skip


def test_a_conversion_is_a_document_and_some_lines(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def convert(source: str, out: Path, **options: Any) -> Converted:
        asked.append({"source": source, **options})
        os.write(1, b"native chatter\n")
        return converted(out)

    monkeypatch.setattr("onnxfi.converters.convert", convert)
    words = ("convert", "nets:make", "--input-shape", "N,4", "--samples", 5, "-o", "net.onnx")
    document = checked(run(*words, "--json"), "convert")
    assert document["relative_difference"] == 2e-7 and document["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["N", 4]}
    ]
    code, out, err = run(*words)
    assert code == 0 and "layer11 and 2 more" in out and "relative 2e-07 (tolerance 0.0001)" in out
    assert "wrote net.onnx" in out and "a remark" in err
    assert asked[1] == asked[0] and (asked[0]["samples"], asked[0]["input_shape"], asked[0]["tolerance"]) == (
        5,
        ("N,4",),
        1e-4,
    )


def test_a_factory_of_a_checkpoint_is_for_torch(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frameworks: list[str | None] = []
    monkeypatch.setattr(
        "onnxfi.converters.convert",
        lambda source, out, framework, **options: frameworks.append(framework) or converted(out),
    )
    assert run("convert", "w.pt", "--factory", "nets:make", "-o", "net.onnx").code == 0 and frameworks == ["torch"]
