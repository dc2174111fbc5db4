"""Claims of docs/how-to/converters.md: its commands where the frameworks are, its versions everywhere."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from documents import blocks, code, commands, lines_of, read, same, shell, table

ROOT = Path(__file__).parents[2]
PAGE = "docs/how-to/converters.md"
#: Tools whose models are those of a framework; the pages of the others are among those of test_docs.py.
PEERS = ("injecttf2", "nebula", "nn-error-injection", "pytorchfi")
PINS = dict(line.split("==") for line in read("scripts/frameworks.txt").splitlines() if not line.startswith("#"))
PACKAGES = ("torch", "onnxscript", "safetensors", "keras", "tensorflow", "tf2onnx", "sklearn", "skl2onnx")


def test_the_table_of_versions_is_what_is_installed_for_the_tests() -> None:
    pins = {}
    for _, versions, *_, tests in table(read(PAGE), "framework"):
        pins |= dict(re.findall(r"`([\w-]+)` ([\d.]+)", versions))
        assert (ROOT / code(tests)[0]).is_file()
    assert pins == PINS


def test_the_extras_bring_all_that_is_pinned() -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    names = {re.split(r"[<>=; ]", d)[0] for extra in ("torch", "keras", "tensorflow", "sklearn") for d in extras[extra]}
    # snntorch installs without its requirements.
    assert names == (set(PINS) - {"snntorch"}) | {"tensorflow"}


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    """A copy of examples/peers, with the images that it reads and `onnxfi` and `python` that are this environment's."""
    folder = tmp_path / "examples" / "peers"
    shutil.copytree(ROOT / "examples" / "peers", folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "models").mkdir()
    shutil.copy(ROOT / "models" / "fashion_test.npz", tmp_path / "models")
    (folder / "bin").mkdir()
    for name, arguments in (("python", ""), ("onnxfi", "-m onnxfi ")):
        file = folder / "bin" / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        file.chmod(0o755)
    return folder


@pytest.mark.frameworks(*PACKAGES)
def test_the_environment_has_the_pinned_versions() -> None:
    assert {name: metadata.version(name).partition("+")[0] for name in PINS} == PINS


@pytest.mark.frameworks(*PACKAGES)
@pytest.mark.parametrize("page", [PAGE, *(f"docs/how-to/from-{tool}.md" for tool in PEERS)])
def test_console_blocks_print_what_they_show(peers: Path, page: str) -> None:
    ran = list(commands(read(page)))
    assert ran
    for command, shown in ran:
        printed = lines_of(shell(command, peers))
        assert same(lines_of("\n".join(shown)), printed), "\n".join((f"$ {command}", *printed))


@pytest.mark.frameworks(*PACKAGES)
def test_the_readmes_doors_take_a_model_of_a_framework(peers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands and the Python of README.md that convert, on the nets of the examples."""
    monkeypatch.chdir(peers)
    monkeypatch.syspath_prepend(peers)
    monkeypatch.delitem(sys.modules, "nets", raising=False)  # another test may have had one of its own
    nets = importlib.import_module("nets")
    nets.save_test_images(peers / "images.npz")
    (python,) = (block for block in blocks(read("README.md"), "python") if "onnxfi.converters" in block)
    exec(python, {"module": nets.torch_cnn()})
    doors = [line for block in blocks(read("README.md"), "sh") for line in block.splitlines() if "convert " in line]
    assert len(doors) == 2, "the command line, and CI"
    for command in doors:
        named = (
            command.partition("#")[0].replace("nets:make", "nets:torch_cnn").replace("model.keras", "nets:keras_cnn")
        )
        data = "" if "keras" not in named else "--data nets:test_images_channels_last"
        shell(named.replace("--data images.npz", data), peers)
    inject = next(
        line for block in blocks(read("README.md"), "sh") for line in block.splitlines() if "layer1.0" in line
    )
    assert "faulty" in shell(inject.replace("layer1.0.conv1", "conv1"), peers)
