"""The terminal: tables that are not folded, colours and bars where there is one, and names that are harmless."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxfi.cli.terminal import cut_apart

Run = Callable[..., Any]
MATMUL = "g (float[N,3] x) => (float[N,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,9}> { y = MatMul(x, w) }"
EVIL = "\x1b[31mred\x1b]0;title\x07:x:[bold]\u202eevil\x9b2J\n"


def command(*words: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own."""
    line = [sys.executable, "-m", "onnxfi", *map(str, words)]
    return subprocess.run(line, stdin=subprocess.DEVNULL, check=False, **options)  # type: ignore[call-overload]


def evil(path: Path) -> None:
    """A model whose names try to steer the terminal, and to be taken for markup."""
    model = onnx.load(path)
    model.graph.initializer[0].name = model.graph.node[0].input[1] = EVIL
    model.graph.node[0].name = "\x1b[2J[red]conv\\"
    model.producer_name = "\x1b]8;;http://example.com\x07x"
    onnx.save(model, path)


@pytest.mark.parametrize(
    "words",
    [["inspect"], ["inject", "--count", "3"], ["eval"], ["inspect", "--json"], ["inject", "--count=3", "--json"]],
)
def test_names_are_shown_harmless(run: Run, save: Callable[..., str], here: Path, words: list[str]) -> None:
    evil(here / save("m.onnx", MATMUL))
    ran = run(*words, "m.onnx")
    assert ran.code == 0
    shown = ran.out + ran.err
    assert not [c for c in shown if c != "\n" and not c.isprintable()]
    if "eval" not in words:
        assert "[bold]" in shown and ":x:" in shown  # neither markup nor an emoji
    if "--count" in words or words == ["inspect"]:
        assert "[red]conv\\" in shown


def test_a_message_shows_names_harmless(run: Run, save: Callable[..., str], here: Path) -> None:
    evil(here / save("m.onnx", MATMUL))
    ran = run("inject", "m.onnx", "--count", 1, "--include", "\x1b[31mno")
    assert ran.code == 2
    assert ran.err.startswith("onnxfi: error: --include '\\x1b[31mno'") and ran.err.count("\n") == 1
    assert not [c for c in ran.err[:-1] if not c.isprintable()]


def test_a_file_name_that_is_no_text_is_shown(run: Run, models: Path, here: Path) -> None:
    name = os.fsdecode(b"m\xff\x1b.onnx")
    try:
        (here / name).write_bytes((models / "fashion_gru.onnx").read_bytes())
    except OSError:
        pytest.skip("this file system takes only text as names")
    for words in (["inspect", name], ["inspect", name, "--json"], ["inject", name, "--count", 1]):
        ran = run(*words)
        assert (ran.code, ran.err) == (0, "")
        assert "\\udcff" in ran.out and "\x1b" not in ran.out


@pytest.mark.parametrize("width", [16, 20, 34, 50])
def test_names_that_begin_and_end_alike_stay_different(width: int) -> None:
    parts = [(k, j, q) for k in (1, 11) for j in (0, 1) for q in ("query", "key")]
    names = [f"model.backbone.encoder.stages.{k}.blocks.{j}.attention.self.{q}_projection.weight" for k, j, q in parts]
    cut = cut_apart([*names, "model.head.weight", "conv1"], width)
    assert len(set(cut)) == len(cut) and max(map(len, cut)) <= width and cut[-1] == "conv1"


def on_terminal(words: list[str], columns: int, **env: str) -> str:
    """Return the text that a command shows on a terminal of so many columns, as the bytes that reach it."""
    import fcntl
    import pty
    import termios

    env = {**os.environ, "TERM": "xterm-256color", **env}
    env.pop("COLUMNS", None)
    terminal, end = pty.openpty()  # no fork of this process, which may have threads
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    line = [sys.executable, "-m", "onnxfi", *words]
    child = subprocess.Popen(line, stdin=end, stdout=end, stderr=end, env=env, start_new_session=True)
    os.close(end)
    parts = []
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(terminal)
    assert child.wait() == 0
    return b"".join(parts).decode()


needs_pty = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no pseudo-terminals")
LONG = "encoder.layers.10.self_attention.query.weight"


@pytest.fixture
def long_names(save: Callable[..., str], here: Path) -> str:
    """A model whose names and numbers need more than a narrow terminal has."""
    weights = np.zeros((1000, 1000), np.float32)
    model = onnx.load(save("m.onnx", MATMUL))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, LONG))
    model.graph.node[0].input[1] = LONG
    model.graph.node[0].name = "/encoder/layers.10/self_attention/query/MatMul"
    onnx.save(model, here / "m.onnx")
    return "m.onnx"


@pytest.mark.slow
@needs_pty
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_tables_fit_the_terminal_and_say_what_is_left_out(long_names: str, columns: int) -> None:
    shown = re.sub(r"\x1b\[[\d;]*m", "", on_terminal(["inspect", long_names], columns))
    lines = shown.splitlines()
    heads = ["Layer", "Target", "Op", "Type", "Shape", "Elements", "Bits"]
    head = next(line.split() for line in lines if line.split()[:2] == heads[:2])
    row = lines[next(k for k, line in enumerate(lines) if line.split()[:2] == heads[:2]) + 2]
    assert len(row) <= columns and head == heads[: len(head)] and len(head) > 1
    cells = re.split(r" {3,}", row.strip())
    assert cells[2:] == ["MatMul", "float32", "1000×1000", "1,000,000", "32,000,000"][: len(head) - 2]
    name = cells[1]
    if columns == 200:
        assert name == LONG and head == heads
    else:
        start, cut, end = name.partition("…")
        assert cut and LONG.startswith(start) and LONG.endswith(end) and len(name) >= 16
    left_out = [line for line in lines if line.startswith("left out: ")]
    assert bool(left_out) == (head != heads)
    if left_out:
        assert left_out[0].split(";")[0] == f"left out: {', '.join(heads[len(head) :])}"


def test_elsewhere_nothing_is_cut(run: Run, long_names: str) -> None:
    assert LONG in run("inspect", long_names).out


@needs_pty
def test_no_color_means_no_colour(long_names: str) -> None:
    coloured = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")
    assert not coloured.search(on_terminal(["inspect", long_names], 80, NO_COLOR="1"))


def test_nothing_is_folded_where_there_is_no_terminal(run: Run, long_names: str) -> None:
    out = run("inspect", long_names).out
    assert "\x1b" not in out
    row = next(line for line in out.splitlines() if LONG in line)
    assert row.split()[-1] == "32,000,000"


def test_a_terminal_width_in_the_environment_does_not_fold_a_log(
    run: Run, long_names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert LONG in run("inspect", long_names).out


@pytest.mark.slow
@needs_pty
def test_progress_bars_appear_on_a_terminal_only(here: Path, models: Path) -> None:
    """Timers go off at once, or not at all: as for tasks that take long, and for those that do not."""

    def timers(seconds: float) -> None:
        (here / "sitecustomize.py").write_text(
            "import threading\nclass Timer(threading.Timer):\n    def __init__(self, interval, function):\n"
            f"        super().__init__({seconds}, function)\nthreading.Timer = Timer\n"
        )

    words = ["eval", str(models / "fashion_cnn.onnx"), "--data", str(models / "fashion_test.npz"), "--samples", "300"]
    timers(0)
    shown = on_terminal(words, 100, PYTHONPATH=str(here))
    assert "running" in shown and "━" in shown and "%" in shown
    env = {**os.environ, "PYTHONPATH": str(here)}
    assert command(*words, capture_output=True, env=env).stderr == b""
    timers(3600)
    assert "running" not in on_terminal(words, 100, PYTHONPATH=str(here))


def test_an_alphabet_without_arrows_is_no_error(models: Path, here: Path) -> None:
    for encoding in ("ascii", "cp1252"):
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        words = ("inject", models / "fashion_cnn.onnx", "--site", "conv1.weight[0]:31")
        ran = command(*words, capture_output=True, env=env, cwd=here)
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert b"conv1.weight[0]:31" in ran.stdout
    assert b" \\u2192 " in ran.stdout
