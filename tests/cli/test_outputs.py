"""Every flag that writes takes a file or a folder; what is a pipe, a device or a link to one stays what it is."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_campaigns import mlp, ran, samples

from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.weights import inject, sample

Run = Callable[..., Any]
CAMPAIGN = ("--data", "d.npz", "--single", "--trials", 3, "--workers", 0)
BUDGET = "version: 1\ncampaign: {data: d.npz, single: true, trials: 3}\nlimits:\n- {rate: sdc, max: 0.99}\n"
CHECK = ("check", "m.onnx", "--budget", "b.yaml", "--workers", 0)

FILES: dict[str, tuple[Any, ...]] = {
    "inject -o": ("inject", "m.onnx", "--count", 1, "-o"),
    "inject --save-faults": ("inject", "m.onnx", "--count", 1, "-o", "out.onnx", "--save-faults"),
    "inject activations -o": ("inject", "m.onnx", "--target", "activations", "--count", 1, "--data", "d.npz", "-o"),
    "inject --undo -o": ("inject", "f.onnx", "--faults", "l.jsonl", "--undo", "-o"),
    "instrument -o": ("instrument", "m.onnx", "--all", "-o"),
    "quantize -o": ("quantize", "m.onnx", "--mode", "bf16", "-o"),
    "plan -o": ("plan", "m.onnx", "--data", "d.npz", "--single", "--trials", 3, "-o"),
    "run -o": ("run", "m.onnx", *CAMPAIGN, "-o"),
    "run --fresh -o": ("run", "m.onnx", *CAMPAIGN, "--fresh", "-o"),
    "merge": ("merge", "OUT", "s.db"),
    "show --export": ("show", "s.db", 1, "--export"),
    "check -o": (*CHECK, "-o"),
    "check --junit": (*CHECK, "--junit"),
    "check --markdown": (*CHECK, "--markdown"),
    "check --write-budget": ("check", "m.onnx", "--data", "d.npz", "--workers", 0, "--write-budget", "--budget"),
    "report --html": ("report", "s.db", "--html"),
}
#: Stores and budgets need a name; every other file goes to standard output as well.
NAMED = {"run -o", "run --fresh -o", "merge", "check -o", "check --write-budget"}
FOLDERS: dict[str, tuple[Any, ...]] = {
    "report --csv": ("report", "s.db", "--csv"),
    "report of two --csv": ("report", "s.db", "t.db", "--csv"),
    "report --figures": ("report", "s.db", "--figures"),
    "compare -o": ("compare", "m.onnx", "n.onnx", "--data", "d.npz", "--ber", "1e-3", "--workers", 1, "-o"),
    "compare --figures": ("compare", "m.onnx", "n.onnx", "--data", "d.npz", "--ber", "1e-3", "--workers", 1, "--figures"),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, data, a list, a budget and stores, and with what is no place to write."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes with names here")
    place = tmp_path_factory.mktemp("outputs")
    model, data = mlp(place), samples(place)
    mlp(place, name="n.onnx", seed=9)
    (place / "b.yaml").write_text(BUDGET)
    held = load(model)
    inject(held, sample(held, count=1), place / "f.onnx", save_faults=place / "l.jsonl")
    for name in ("s.db", "t.db"):
        ran(Campaign(model, data, single=True, trials=3), place / name)
    os.mkfifo(place / "pipe")
    (place / "link").symlink_to("pipe")
    (place / "folder").mkdir()
    return place


@pytest.fixture
def place(made: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the current folder."""
    monkeypatch.chdir(made)
    return made


def contents(place: Path) -> dict[str, Any]:
    return {p.name: p.lstat().st_mtime_ns if p.name == "folder" else p.lstat().st_mode for p in place.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_a_file_goes_to_no_pipe_link_folder_or_dash(run: Run, place: Path, kind: str) -> None:
    before = contents(place)
    for where, message in (
        ("pipe", "is a device or pipe; give the name of a file"),
        ("link", "is a device or pipe; give the name of a file"),
        ("folder", "is a directory; give a file name"),
        (".", "is a directory; give a file name"),
        *([("-", "cannot be '-'")] if kind in NAMED else []),
        ("none/x", "no folder 'none' to write 'x' into; make it first"),
    ):
        words = [where if word == "OUT" else word for word in FILES[kind]]
        done = run(*words, *[where] * ("OUT" not in FILES[kind]))
        assert (done.code, done.out) == (2, ""), (where, done)
        assert message in done.err and done.err.startswith("onnxfi: error: ") and done.err.count("\n") == 1, done.err
        assert contents(place) == before, "nothing is written"
    assert stat.S_ISFIFO(Path("pipe").lstat().st_mode) and Path("link").is_symlink()


@pytest.mark.slow
@pytest.mark.parametrize("words", [("inject", "m.onnx", "--count", "1"), ("manifest", "m.onnx")])
def test_a_model_goes_to_standard_output(place: Path, words: tuple[str, ...]) -> None:
    before = contents(place)
    line = [sys.executable, "-m", "onnxfi", *words, "-o"]
    done = subprocess.run([*line, "-"], capture_output=True, stdin=subprocess.DEVNULL, check=True)
    assert contents(place) == before and b"m.onnx" in done.stderr + done.stdout
    subprocess.run([*line, "written"], capture_output=True, stdin=subprocess.DEVNULL, check=True)
    assert done.stdout == Path("written").read_bytes()
    Path("written").unlink()
    piped = subprocess.run(
        [sys.executable, "-m", "onnxfi", "inspect", "-"], input=done.stdout, capture_output=True, check=False
    )
    assert (piped.returncode == 0) == (words[0] == "inject")


@pytest.mark.parametrize("kind", FOLDERS)
def test_files_go_into_no_pipe_link_file_or_dash(run: Run, place: Path, kind: str) -> None:
    before = contents(place)
    for where, message in (
        ("pipe", "is not a folder"),
        ("link", "is not a folder"),
        ("b.yaml", "is not a folder"),
        ("-", "an output folder cannot be '-'"),
    ):
        done = run(*FOLDERS[kind], where)
        assert (done.code, done.out) == (2, ""), (where, done)
        assert message in done.err and done.err.count("\n") == 1, done.err
        assert contents(place) == before, "nothing is written"


def test_stores_that_are_none_are_named_so(run: Run, place: Path) -> None:
    for where, message in (
        ("pipe", "'pipe' is a device or pipe, no store"),
        ("/dev/null", "'/dev/null' is a device or pipe, no store"),
        ("folder", "'folder' is a folder, no store"),
        ("none.db", "no store 'none.db'; onnxfi run makes one"),
    ):
        for words in (("report", where), ("show", where, 1), ("merge", "out.db", where)):
            done = run(*words)
            assert (done.code, done.out) == (2, "") and message in done.err and done.err.count("\n") == 1, done
    assert not Path("out.db").exists()
