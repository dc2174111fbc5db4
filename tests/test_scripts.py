"""Scripts, models and what is said of them belong together."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from event_files import aedat, labels, nmnist, packet

import onnxfi

ROOT = Path(__file__).parents[1]
SHELL = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]
MODELS = ROOT / "models"
FILES = sorted(
    path for path in MODELS.iterdir() if path.suffix in (".onnx", ".npz", ".json", ".txt", ".jsonl", ".yaml")
)


def named(path: Path) -> str:
    return path.name


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("script", SHELL, ids=named)
def test_shell_scripts_can_be_read_and_run(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert script.read_text(encoding="utf-8").startswith("#!") or script.name == "venv.sh", "it is only sourced"
    if os.name == "posix":
        assert os.access(script, os.X_OK), f"chmod +x {script.name}"


def test_scripts_that_documents_and_scripts_name_exist() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *MODELS.glob("*.md"), *SHELL]
    named_in = {page: re.findall(r"(?:scripts|examples)/[\w/]+\.(?:sh|py)", page.read_text("utf-8")) for page in pages}
    assert not [(page.name, name) for page, names in named_in.items() for name in names if not (ROOT / name).is_file()]
    assert any(named_in.values())


def test_a_script_that_is_asked_for_help_does_nothing_else() -> None:
    for script in (ROOT / "scripts").rglob("*.py"):
        text = script.read_text(encoding="utf-8")
        assert '__name__ == "__main__"' not in text or ".parse_args(" in text, script.name


def test_ci_runs_the_readmes_commands() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in ("bash scripts/demo.sh", "bash scripts/test.sh"):
        assert f"$ {command}\n" in (ROOT / "README.md").read_text(encoding="utf-8")
        assert f"\n{command}\n" in ci
    for more in ("slow", "frameworks"):
        assert f"\nbash scripts/test.sh {more}\n" in ci, "what the core leaves out"


def test_checksums_are_those_of_the_files() -> None:
    lines = (MODELS / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert listed == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=named)
def test_every_file_is_on_a_card_with_its_checksum(file: Path) -> None:
    """Its own card, or that of the model whose name it begins with."""
    named_so = [card for card in MODELS.glob("*.md") if file.stem.startswith(card.stem)]
    place = max(named_so, key=lambda card: len(card.stem))
    card = place.read_text(encoding="utf-8")
    assert f"`{hashlib.sha256(file.read_bytes()).hexdigest()}`" in card
    assert re.search(r"\b[Ll]icence\b", card)
    assert re.search(r"python scripts/\w+\.py", card), "the command that makes it"
    assert f"]({place.stem}.md)" in (MODELS / "README.md").read_text(encoding="utf-8")


def bench(name: str, *arguments: str, check: bool = True) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "bench" / name), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=check, cwd=ROOT).stdout


def set_up(*arguments: object) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "setup_events.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_archives_of_nmnist_become_folders_that_are_read(tmp_path: Path) -> None:
    inner = tmp_path / "Test.zip"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("Test/7/00001.bin", nmnist([(12_000, 3, 2, 1)]))
        archive.writestr("../Test/8/00001.bin/../../../../hostile", b"x")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(inner, "Test.zip")
        archive.writestr("set/Train/3/00002.bin", nmnist([(0, 1, 1, 0)]))
    command = ("nmnist", "--archive", tmp_path / "all.zip", "--dir", tmp_path / "here" / "n")
    assert "2 recordings" in set_up(*command)
    written = sorted(str(f.relative_to(tmp_path / "here")) for f in (tmp_path / "here").rglob("*") if f.is_file())
    assert written == ["n/test/7/00001.bin", "n/test/events.yaml", "n/train/3/00002.bin", "n/train/events.yaml"]
    assert "--force" in set_up(*command)
    assert "2 recordings" in set_up(*command, "--force")
    out = tmp_path / "test.npz"
    assert "[30, 1, 2, 17, 17]" in set_up("frames", tmp_path / "here/n/test", "--size", 17, 17, "-o", out)
    with np.load(out) as arrays:
        assert (np.argwhere(arrays["events"]).tolist(), arrays["labels"].tolist()) == ([[1, 0, 1, 1, 1]], [7])


def test_archives_of_gestures_are_sorted_by_their_lists(tmp_path: Path) -> None:
    contents = {f"user0{k}_led.aedat": aedat(packet([(9, 1, 1, 1)])) for k in (1, 2)}
    contents |= {f"user0{k}_led_labels.csv": labels([(k, 0, 10)]).encode() for k in (1, 2)}
    contents |= {"trials_to_train.txt": b"user01_led.aedat\n", "trials_to_test.txt": b"user02_led.aedat\n"}
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
        for name, content in {**contents, "../user03_x.aedat/../y": b""}.items():
            member = tarfile.TarInfo(f"DvsGesture/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("DvsGesture/user04_led.aedat")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    said = set_up("gesture", "--archive", tmp_path / "all.tar.gz", "--dir", tmp_path / "g")
    assert "2 recordings" in said
    assert sorted(f.name for f in (tmp_path / "g" / "test").iterdir()) == [
        "events.yaml", "user02_led.aedat", "user02_led_labels.csv",
    ]  # fmt: skip
    (tmp_path / "none.zip").write_bytes(b"PK")
    assert "cannot be unpacked" in set_up("nmnist", "--archive", tmp_path / "none.zip", "--dir", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_benchmark_draws_what_it_says() -> None:
    assert "--rounds" in bench("inject.py", "--help")
    drawn = json.loads(bench("inject.py", "--task", "draw-traced"))
    assert (drawn["sites"], drawn["drawn"]) == (240_000_000_000, 240_084)
    assert drawn["peak_bytes"] < 64 << 20, "memory for the population, not for the faults"


def test_quantised_models_keep_their_bytes_without_faults_and_their_integer_kernels_when_armed() -> None:
    rows = json.loads(
        bench("quantised.py", "--rounds", "1", "--batch", "8", "--json", check=False)
    )  # times may be anything
    assert [Path(row["model"]).stem for row in rows] == ["fashion_cnn_int8_qdq", "fashion_cnn_int8_qoperator"]
    for row in rows:
        assert row["identical"] and row["armed_kernels"] == row["kernels"] == 4


def benchmark(monkeypatch: pytest.MonkeyPatch, root: Path) -> Any:
    """The script that compares a benchmark with another commit, for a repository at `root`."""
    spec = importlib.util.spec_from_file_location("against", ROOT / "scripts" / "bench" / "against.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", root)
    return module


def test_numbers_of_benchmarks_are_compared_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    script = benchmark(monkeypatch, ROOT)
    before = [script.figures(f"resnet18: {n} ms\nresnet18: 1,000 trials\nv1.2 int8 {n}e-3") for n in (10, 30, 20)]
    now = [script.figures(f"resnet18:  {n} ms\nresnet18: 1,000 trials") for n in (5, 6, 50)]
    assert before[0] == {("resnet18: # ms", 1, 0): 10, ("resnet18: # trials", 1, 0): 1000, ("v1.2 int8 #", 1, 0): 0.01}
    assert list(script.medians(before, now)) == [(("resnet18: # ms", 1, 0), 20, 6)]


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_a_benchmark_runs_against_another_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each version imports its own package, and the temporary worktree is removed."""
    (tmp_path / "onnxfi").mkdir()
    package, file = tmp_path / "onnxfi" / "__init__.py", tmp_path / "bench.py"
    package.write_text("MS = 4\n")
    file.write_text("import sys, onnxfi\nprint(sys.argv[1], onnxfi.MS, 'ms')\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    package.write_text("MS = 10\n")
    monkeypatch.setattr(sys, "argv", ["against.py", "HEAD", "--rounds", "1", str(file), "trial"])
    benchmark(monkeypatch, tmp_path).main()
    assert capsys.readouterr().out.splitlines()[1].split() == ["4", "10", "2.50", "trial", "#", "ms", "[1]"]
    listed = subprocess.run([*git, "worktree", "list"], check=True, capture_output=True, text=True)
    assert len(listed.stdout.splitlines()) == 1


def test_the_network_on_events_is_as_accurate_on_the_shipped_recordings_as_its_card_says() -> None:
    engine = onnxfi.OrtEngine(provider="cpu")
    data = onnxfi.open_data(MODELS / "events_test", engine.prepare(MODELS / "events_snn.onnx").inputs)
    found = onnxfi.evaluate(MODELS / "events_snn.onnx", data, engine=engine)
    card = (MODELS / "events_snn.md").read_text(encoding="utf-8")
    assert found.samples == 150 and f"**{100 * found.metrics['top1']:.2f} %** of the 150 shipped" in card
