"""`onnxfi inspect`, and what all commands share: help, tables, names from strangers, standard output."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxfi.cli import options
from onnxfi.cli.commands import COMMANDS, group
from onnxfi.cli.inject import command as inject_command
from onnxfi.faults.registry import fault_models

Run = Callable[..., Any]
MATMUL = "g (float[N,3] x) => (float[N,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,9}> { y = MatMul(x, w) }"
EVIL = "\x1b[31mred\x1b]0;title\x07:x:[bold]\u202eevil\x9b2J\n"


def command(*words: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own."""
    line = [sys.executable, "-m", "onnxfi", *map(str, words)]
    return subprocess.run(line, stdin=subprocess.DEVNULL, check=False, **options)  # type: ignore[call-overload]


# What inspect says


def test_a_shipped_model_has_the_targets_that_onnx_reads(run: Run, models: Path) -> None:
    path = models / "fashion_cnn.onnx"
    found = run("inspect", path, "--json").json
    stored = {t.name: t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert {t["target"]: t["shape"] for t in found["targets"]} == {n: list(t.dims) for n, t in stored.items()}
    assert found["totals"]["elements"] == sum(numpy_helper.to_array(t).size for t in stored.values()) == 105_866
    assert found["totals"]["bits"] == 32 * 105_866
    assert found["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [t["layer"] for t in found["targets"][::2]] == ["conv1", "conv2", "fc1", "fc2"]


@pytest.mark.parametrize("name", ["fashion_cnn", "fashion_attention", "fashion_gru"])
def test_the_table_says_what_the_document_says(run: Run, models: Path, name: str) -> None:
    found = run("inspect", models / f"{name}.onnx", "--json").json
    ran = run("inspect", models / f"{name}.onnx")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    for target in found["targets"]:
        cells = [target[key] for key in ("layer", "target", "op", "dtype")]
        cells += ["×".join(map(str, target["shape"])) or "scalar", f"{target['elements']:,}", f"{target['bits']:,}"]
        assert any(line.split() == " ".join(cells).split() for line in lines), cells
    assert f"{found['totals']['bits']:,}" in ran.out
    assert found["digest"] in ran.out


@pytest.mark.parametrize(
    ("flags", "targets", "bits"),
    [
        (["--include", "conv1"], ["conv1.weight", "conv1.bias"], 160 * 32),
        (["--include", "=conv1.bias"], ["conv1.bias"], 16 * 32),
        (["--op", "Gemm", "--exclude", "bias"], ["fc1.weight", "fc2.weight"], (100_352 + 640) * 32),
        (["--include", "re:^fc2", "--bits", "exponent"], ["fc2.weight", "fc2.bias"], 650 * 8),
        (["--include", "conv1.weight", "--elements", "0:2,:,1,1", "--bits", "sign"], ["conv1.weight"], 2),
    ],
)
def test_a_selection_can_be_tried(run: Run, models: Path, flags: list[str], targets: list[str], bits: int) -> None:
    found = run("inspect", models / "fashion_cnn.onnx", *flags, "--json").json
    assert [t["target"] for t in found["targets"]] == targets
    assert found["totals"]["bits"] == sum(t["bits"] for t in found["targets"]) == bits
    faulty = run("inject", models / "fashion_cnn.onnx", *flags, "--count", 1, "--json").json
    assert faulty["population"] == bits


def test_shapes_and_indices_are_left_out_unless_named(run: Run, save: Callable[..., str]) -> None:
    graph = """g (float[N,3] x) => (float[N,3] y) <int64[2] to = {-1, 3}, float[1] w = {2.0}>
        { z = Reshape(x, to) y = Mul(z, w) }"""
    name = save("m.onnx", graph)
    assert run("inspect", name, "--json").json["left_out"] == 1
    assert "1 integer tensor left out" in run("inspect", name).out
    named = run("inspect", name, "--include", "=to", "--json").json
    assert [t["target"] for t in named["targets"]] == ["to"]
    assert named["left_out"] == 0


def test_a_model_without_weights_can_be_inspected(run: Run, save: Callable[..., str]) -> None:
    found = run("inspect", save("m.onnx", "g (float[N] x) => (float[N] y) { y = Relu(x) }"), "--json").json
    assert found["totals"] == {"targets": 0, "elements": 0, "bits": 0}
    assert "0 targets" in run("inspect", "m.onnx").out


def test_notes_are_in_the_document_and_on_standard_error(run: Run, save: Callable[..., str]) -> None:
    model = onnx.load(save("m.onnx", MATMUL))
    model.opset_import.add(domain="", version=20)
    onnx.save(model, "two.onnx")
    assert run("inspect", "two.onnx", "--json").json["notes"] == ["the default opset is imported 2 times: 21, 20"]
    for words in (["inspect", "two.onnx"], ["inject", "two.onnx", "--count", 1], ["eval", "two.onnx"]):
        ran = run(*words)
        assert (ran.code, ran.err) == (0, "onnxfi: the default opset is imported 2 times: 21, 20\n")


@pytest.mark.fetched
@pytest.mark.parametrize("name", ["ddddocr_int8", "magika", "rapidocr_cls", "silero_vad"])
def test_fetched_models_are_inspected_with_their_whole_names(run: Run, fetched: Path, name: str) -> None:
    path = fetched / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no {path.name}; python scripts/fetch_models.py brings it")
    found = run("inspect", path, "--json").json
    out = run("inspect", path).out
    assert found["totals"]["targets"] == len(found["targets"]) > 10
    assert found["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(t["target"] in out for t in found["targets"])  # no name is folded in a log


# Help


def test_help_imports_no_library_that_takes_long() -> None:
    """Each `--help` in a fresh interpreter; what is slow is imported where a command needs it."""
    program = """
import sys
from onnxfi.cli import main
for words in ([], ["--help"], ["--version"], *([verb, "--help"] for verb in {verbs}), ["inject"], ["inject", "m"]):
    sys.argv = ["onnxfi", *words]
    try:
        main()
    except SystemExit:
        pass
    heavy = {{"numpy", "onnx", "onnxruntime", "rich", "scipy", "yaml", "google"}} & set(sys.modules)
    assert not heavy, (words, heavy)
"""
    line = [sys.executable, "-c", program.format(verbs=list(COMMANDS))]
    ran = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Usage: onnxfi") >= 5


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_without_a_command_there_is_help(run: Run, words: list[str]) -> None:
    ran = run(*words)
    assert (ran.code, ran.err) == (0, "")
    assert all(re.search(rf"^  {verb} +\w.*\w\.$", ran.out, re.M) for verb in ("inspect", "inject", "eval"))


@pytest.mark.parametrize("verb", ["inspect", "inject", "eval"])
def test_each_command_has_help_for_each_option(run: Run, verb: str) -> None:
    ran = run(verb, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "INTEGER RANGE" not in ran.out
    assert all(len(line) <= 90 for line in ran.out.splitlines())


def test_the_help_names_every_fault(run: Run) -> None:
    shown = re.sub(r"(?<=-)\s+", "", run("inject", "--help").out)  # lines break behind hyphens too
    own = [model.name for model in fault_models().values() if model.__module__.startswith("onnxfi.")]
    assert len(own) >= 13
    assert [name for name in own if not re.search(rf"\b{name}\b", shown)] == []


def test_the_version_is_that_of_the_package(run: Run) -> None:
    from importlib.metadata import version

    assert run("--version").out == f"onnxfi, version {version('onnxfi')}\n"


def test_each_flag_bears_the_name_of_its_parameter() -> None:
    assert {p.name for p in inject_command.params} >= {*options.SELECTION, *options.RUN_PARAMETERS}
    for parameter in inject_command.params:
        if parameter.param_type_name == "option":
            allowed = {str(parameter.name), str(parameter.name).removesuffix("s"), "json"}
            assert max(parameter.opts, key=len)[2:].replace("-", "_") in allowed


# Names from strangers


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


# Tables, on terminals and elsewhere


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


@needs_pty
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_numbers_and_headers_are_never_folded_on_a_terminal(long_names: str, columns: int) -> None:
    shown = re.sub(r"\x1b\[[\d;]*m", "", on_terminal(["inspect", long_names], columns))
    lines = shown.splitlines()
    heads = ["Layer", "Target", "Op", "Type", "Shape", "Elements", "Bits"]
    assert any(line.split() == heads for line in lines)
    row = next(line for line in lines if "MatMul" in line and "float32" in line)
    assert [*row.split()[-3:]] == ["1000×1000", "1,000,000", "32,000,000"]
    assert max(map(len, lines)) <= max(columns, 100)
    head = next(line for line in lines if "Target" in line)
    left, right = head.index("Target"), head.index("Op")
    below = lines[lines.index(row) :]
    cells = [line[left:right].strip() for line in below[: below.index(next(k for k in below if not k.strip()))]]
    assert "".join(cells) == LONG  # folded inside its column, and whole when the lines are joined
    assert len(cells) == 1 or columns < 200


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


@needs_pty
def test_progress_bars_appear_on_a_terminal_only(here: Path, models: Path) -> None:
    """The clock runs a thousand times as fast, so that all takes longer than a second."""
    (here / "sitecustomize.py").write_text(
        "import time\nclock = time.monotonic\ntime.monotonic = lambda: clock() * 1000\n"
    )
    words = ["eval", str(models / "fashion_cnn.onnx"), "--data", str(models / "fashion_test.npz"), "--samples", "300"]
    shown = on_terminal(words, 100, PYTHONPATH=str(here))
    assert "running" in shown and "━" in shown and "%" in shown
    env = {**os.environ, "PYTHONPATH": str(here)}
    assert command(*words, capture_output=True, env=env).stderr == b""
    assert "running" not in on_terminal(words, 100)  # nothing for what takes less than a second


# Standard output


def test_an_alphabet_without_arrows_is_no_error(models: Path, here: Path) -> None:
    for encoding in ("ascii", "cp1252"):
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        words = ("inject", models / "fashion_cnn.onnx", "--site", "conv1.weight[0]:31")
        ran = command(*words, capture_output=True, env=env, cwd=here)
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert b"conv1.weight[0]:31" in ran.stdout
    assert b" \\u2192 " in ran.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_full_disk_behind_standard_output_is_one_line(models: Path, flags: list[str]) -> None:
    with open("/dev/full", "w") as full:
        ran = command("inspect", models / "fashion_cnn.onnx", *flags, stdout=full, stderr=subprocess.PIPE)
    assert ran.returncode == 2
    assert (
        ran.stderr.startswith(b"onnxfi: error: cannot use standard output: No space left")
        and ran.stderr.count(b"\n") == 1
    )


def test_a_reader_that_goes_away_is_no_failed_check(models: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = command("inspect", models / "fashion_cnn.onnx", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_the_log_level_shows_where_an_error_was_found(here: Path) -> None:
    ran = command("inspect", "no.onnx", capture_output=True, cwd=here, env={**os.environ, "ONNXFI_LOG_LEVEL": "debug"})
    assert ran.returncode == 2
    assert b"Traceback" in ran.stderr and ran.stderr.splitlines()[-1].startswith(b"onnxfi: error: ")


def test_the_log_level_shows_what_was_opened(models: Path, here: Path) -> None:
    ran = command(
        "inspect",
        models / "fashion_cnn.onnx",
        capture_output=True,
        cwd=here,
        env={**os.environ, "ONNXFI_LOG_LEVEL": "info"},
    )
    assert ran.returncode == 0 and b"fashion_cnn.onnx: 9 targets, 1 files" in ran.stderr


# Spiking networks


def test_neurons_are_listed_with_their_parameters(run: Run, models: Path) -> None:
    found = run("inspect", models / "fashion_snn.onnx", "--json").json["spiking"]
    assert [(row["layer"], row["neurons"], row["steps"]) for row in found["layers"]] == [
        ("lif1", 1568, 8),
        ("lif2", 784, 8),
        ("lif3", 10, 8),
    ]
    ran = run("inspect", models / "fashion_snn_scan.onnx")
    assert (ran.code, ran.err) == (0, "")
    assert [line.split() for line in ran.out.splitlines() if line.strip().startswith("lif3  ")][-1] == (
        ["lif3", "integrate-and-fire", "10", "10", "8", "1", "0.9", "subtract"]
    )
    assert "time is axis 0 of spikes (inside)" in ran.out


def test_neurons_get_words_of_their_own(run: Run, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "snn.onnx"
    ran = run("instrument", models / "fashion_snn.onnx", "--target", "neurons", "-o", out)
    assert (ran.code, ran.err) == (0, "")
    assert "lif3/threshold, lif3/leak, lif3/reset, lif3/spike" in ran.out
    found = run("inspect", out, "--role", "spike", "--json").json
    assert [(t["target"], t["role"], t["elements"]) for t in found["targets"]][-1] == ("lif3/spike", "spike", 10)
    assert all(row["exposed"] for row in found["spiking"]["layers"])
    faulty = run("inject", out, "--site", "lif3/spike[3]", "--fault", "saturated", "-o", tmp_path / "f.onnx", "--json")
    assert faulty.json["faults"][0]["after_value"] == 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["instrument", "{cnn}", "--target", "neurons"], "has no spiking layer: no graph has"),
        (
            ["instrument", "{snn}", "--target", "neurons", "--include", "x"],
            "--include has no effect with --target neurons",
        ),
        (["instrument", "{snn}", "--neurons", "none.yaml"], "--neurons has no effect without --target neurons"),
        (["inspect", "{snn}", "--neurons", "none.yaml"], "cannot read 'none.yaml'"),
        (["inspect", "{snn}", "--neurons", "{map}"], "names the spike 'spikes', which is not in this model"),
    ],
)
def test_flags_without_effect_on_neurons_are_refused(
    run: Run, models: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "map.yaml").write_text("layers: [{name: a, spike: spikes}]")
    places = {"cnn": models / "fashion_cnn.onnx", "snn": models / "fashion_snn.onnx", "map": tmp_path / "map.yaml"}
    ran = run(*(word.format(**places) for word in words))
    assert ran.code == 2
    assert message in " ".join(ran.err.split())
    assert [file.name for file in tmp_path.iterdir()] == ["map.yaml"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_option_once_in_a_group(run: Run, name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    text = re.split(r"^(?=\w+:$)", run(name, "--help").out, maxsplit=1, flags=re.M)[1]
    for option in (o for o in command.params if isinstance(o, click.Option)):
        assert len(re.findall(rf"^  (?:-\w, )?{option.opts[-1]}\b(?!-)", text, re.M)) == 1, option.name
    if name == "run":
        titles = ["Trials", "Faults", "Selection", "Data", "Outcomes", "Engine", "Execution", "Options"]
        assert re.findall(r"^(\w+):$", text, re.M) == titles


# Activations


def test_the_table_of_activations_says_what_the_document_says(run: Run, models: Path) -> None:
    for words in (["fashion_cnn.onnx"], ["fashion_snn_scan.onnx", "--all"], ["fashion_cnn.onnx", "--target", "inputs"]):
        flags = ["--target", "activations", *words[1:]]
        found = run("inspect", models / words[0], *flags, "--json").json
        ran = run("inspect", models / words[0], *flags)
        assert (ran.code, ran.err) == (0, "")
        for row in found["activations"]:
            line = next(line for line in ran.out.splitlines() if f" {row['target']} " in line)
            assert line.split()[-2:] == [f"{row['elements']:,}", f"{row['bits']:,}"] and row["dtype"] in line
        for layer in found["spiking"]:
            assert any(
                line.split()[:1] == [layer["layer"]] and layer["spike"][0] in line for line in ran.out.splitlines()
            )
        assert ("not selected: 7" in ran.out) == (words == ["fashion_cnn.onnx"])


@pytest.mark.parametrize(
    ("flags", "texts"),
    {
        "--all": ("--all has no effect without --target activations or inputs",),
        "--data synthetic": ("--data has no effect",),
        "--target activations --role bias": ("--role has no effect", "which have none"),
        "--target activations --include nothing": ("'nothing' matches no activation",),
        "--target activations --data gone.npz": ("gone.npz",),
        "--target outputs": ("outputs", "inputs"),
    }.items(),
)
def test_wrong_flags_for_activations_are_refused(run: Run, models: Path, flags: str, texts: tuple[str, ...]) -> None:
    ran = run("inspect", models / "fashion_cnn.onnx", *flags.split())
    assert ran.code == 2 and ran.out == ""
    for text in texts:
        assert text in ran.err


def test_a_model_comes_from_standard_input(here: Path) -> None:
    model = (Path(__file__).parents[2] / "models" / "fashion_cnn.onnx").read_bytes()
    command = [sys.executable, "-m", "onnxfi"]
    piped = subprocess.run([*command, "inspect", "-", "--json"], input=model, capture_output=True, check=False)
    assert piped.returncode == 0 and json.loads(piped.stdout)["totals"]["bits"] == 3_387_712
    made = subprocess.run([*command, "inject", "-", "--count", "1"], input=model, capture_output=True, check=False)
    assert made.returncode == 0 and [path.name for path in here.glob("*.onnx")] == ["stdin.faulty.onnx"]
    damaged = subprocess.run([*command, "inspect", "-"], input=b"no model", capture_output=True, check=False)
    assert damaged.returncode == 2 and damaged.stderr.count(b"\n") == 1
