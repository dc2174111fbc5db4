"""Bad input: one clear line with a remedy, exit code 2, no traceback, nothing written.

Each case is a whole command and what its one line must say: what was given, and what to do.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

import onnxfi
from onnxfi.cli import main
from onnxfi.cli.commands import COMMANDS, group
from onnxfi.errors import InputError

Run = Callable[..., Any]
HEAD = '<ir_version: 10, opset_import: ["": 21]>'
WEIGHTS = "<float[3,3] w = {1,2,3,4,5,6,7,8,9}, float[3] bias = {1,2,3}>"
GRAPHS = {
    "m": f"g (float[N,3] x) => (float[N,3] y) {WEIGHTS} {{ z = MatMul(x, w) y = Add(z, bias) }}",
    "other": "g (float[N,3] x) => (float[N,3] y) <float[3] w = {1,2,3}> { y = Mul(x, w) }",
    "two": f"g (float[N,3] x) => (float[N,3] a, float[N,3] b) {WEIGHTS} {{ a = MatMul(x, w) b = Add(a, bias) }}",
    "bare": "g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }",
    "text": "g (string[N] x) => (string[N] y) { y = Identity(x) }",
    "list": "g (seq(float[N]) x) => (seq(float[N]) y) { y = Identity(x) }",
    "unknown_op": "g (float[N,3] x) => (float[N,3] y) <float[3] w = {1,2,3}> { y = Nonsense(x, w) }",
    "wrong_types": "g (float[N,3] x) => (float[N,3] y) <double[3] w = {1,2,3}> { y = Add(x, w) }",
    "wrong_shapes": "g (float[N,3] x) => (float[N,3] y) <float[4] w = {1,2,3,4}> { y = Add(x, w) }",
    "square": "g (float[N,N] x) => (float[N,N] y) <float[2,2] w = {1,2,3,4}> { y = MatMul(x, w) }",
}
ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)
DATA: dict[str, dict[str, Any]] = {
    "data": {"x": ROWS, "labels": [0, 1, 2, 0, 1]},
    "fewer_labels": {"x": ROWS, "labels": [0, 1, 2]},
    "larger_labels": {"x": ROWS, "labels": [0, 1, 2, 0, 9]},
    "negative_labels": {"x": ROWS, "labels": [0, 1, 2, 0, -1]},
    "float_labels": {"x": ROWS, "labels": [0.0, 1, 2, 0, 1]},
    "one_hot": {"x": ROWS, "labels": np.eye(4, dtype=np.int64)[[0, 1, 2, 0, 1]]},
    "several": {"x": ROWS, "labels": np.full((5, 2), 2)},
    "wrong_name": {"z": ROWS},
    "extra_name": {"x": ROWS, "z": ROWS},
    "wrong_type": {"x": ROWS.astype(np.float64)},
    "wrong_shape": {"x": np.zeros((5, 4), np.float32)},
    "no_samples": {"x": np.zeros((0, 3), np.float32)},
    "no_arrays": {},
}


def external(folder: Path, name: str, location: str, *, size: int = 36, **more: str) -> None:
    """A model whose weights are said to lie in another file, and that file where it lies in the folder."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    model = parser.parse_model(HEAD + GRAPHS["other"])
    model.graph.initializer[0].CopyFrom(tensor)
    onnx.save(model, folder / name)
    if size >= 0:
        (folder / location).write_bytes(bytes(size))


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that the cases name."""
    folder = tmp_path_factory.mktemp("bad")
    for name, graph in GRAPHS.items():
        onnx.save(parser.parse_model(HEAD + graph), folder / f"{name}.onnx")
    for name, arrays in DATA.items():
        np.savez(folder / f"{name}.npz", **arrays)
    whole = (folder / "m.onnx").read_bytes()
    files: dict[str, bytes | str] = {
        "empty.onnx": b"", "cut.onnx": whole[: len(whole) // 2], "hello.onnx": "hello, world\n",
        "zero.onnx": bytes(100), "random.onnx": np.random.default_rng(0).bytes(4096),
        "no_graph.onnx": onnx.ModelProto(ir_version=8).SerializeToString(),
        "hello.npz": "hello", "cut.npz": (folder / "data.npz").read_bytes()[:300], "hello.jsonl": "hello\n",
        "empty.jsonl": "", "binary.jsonl": bytes(range(256)), "array.jsonl": "[1]\n",
        "feeds.py": "def broken():\n    raise ValueError('no\\ndata today')\n\n\ndef none():\n    return []\n",
        "list.yaml": "- 1\n", "broken.yaml": "a: [1\n", "unknown.yaml": "version: 1\nresise: 3\n",
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "folder.onnx").mkdir()
    (folder / "folder.npz" / "cat").mkdir(parents=True)
    _external_files(folder)
    _fault_lists(folder)
    return folder


def _external_files(folder: Path) -> None:
    external(folder, "missing.onnx", "nowhere.bin", size=-1)
    external(folder, "short.onnx", "short.bin", size=20)
    external(folder, "beyond.onnx", "beyond.bin", offset="36")
    external(folder, "lengths.onnx", "lengths.bin", length="12")
    external(folder, "negative.onnx", "negative.bin", offset="-4")
    external(folder, "absolute.onnx", str(folder / "absolute.bin"))
    external(folder, "dots.onnx", "../dots.bin", size=-1)
    external(folder, "inner_dots.onnx", "folder.onnx/../inner.bin", size=-1)
    external(folder, "unnamed.onnx", "", size=-1)
    external(folder, "directory.onnx", "folder.onnx", size=-1)
    external(folder, "hard.onnx", "hard.bin")
    external(folder, "soft.onnx", "soft.bin", size=-1)
    (folder / "elsewhere.bin").write_bytes(bytes(36))
    os.link(folder / "hard.bin", folder / "hard_link.bin")
    os.symlink("elsewhere.bin", folder / "soft.bin")
    external(folder, "good_external.onnx", "good.bin")


def _fault_lists(folder: Path) -> None:
    model = onnxfi.load(folder / "m.onnx")
    drawn = onnxfi.sample(model, count=3)
    onnxfi.inject(model, drawn, folder / "faulty.onnx", save_faults=folder / "list.jsonl")
    text = (folder / "list.jsonl").read_text()
    header, *lines = text.splitlines()
    fault = json.loads(lines[0])
    changes = {
        "version.jsonl": text.replace('"version": 1', '"version": 7'),
        "format.jsonl": text.replace("onnxfi-fault-list", "shopping-list"),
        "cut.jsonl": text[:-40],
        "no_trial.jsonl": header + "\n",
        "index.jsonl": "\n".join([header, json.dumps(fault | {"index": 99})]),
        "bits.jsonl": "\n".join([header, json.dumps(fault | {"bits": [32]})]),
        "target.jsonl": "\n".join([header, json.dumps(fault | {"target": "v"})]),
        "before.jsonl": "\n".join([header, json.dumps(fault | {"before": "0x00000001"})]),
        "after.jsonl": "\n".join([header, json.dumps(fault | {"after": "0x00000001"})]),
        "unknown.jsonl": text.replace('"fault": "flip"', '"fault": "filp"'),
    }
    for name, content in changes.items():
        (folder / name).write_text(content)


@pytest.fixture
def shared(everything: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All these files, as the current folder: for commands that write nothing."""
    monkeypatch.chdir(everything)
    return everything


@pytest.fixture
def place(everything: Path, here: Path) -> Path:
    """A copy of all these files, as the current folder."""
    shutil.copytree(everything, here, symlinks=True, dirs_exist_ok=True)
    os.unlink(here / "hard_link.bin")
    os.link(here / "hard.bin", here / "hard_link.bin")
    external(here, "absolute.onnx", str(here / "absolute.bin"))
    return here


def contents(folder: Path) -> dict[str, object]:
    """All that a folder holds: what each name is, and the bytes of each file."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes()
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def refused(run: Run, place: Path, words: Iterable[object], says: Iterable[str]) -> str:
    """Run a command that must be refused; its one line."""
    before = contents(place)
    ran = run(*words)
    assert (ran.code, ran.out) == (2, ""), ran
    assert ran.err.startswith("onnxfi: error: ") and ran.err.endswith("\n") and ran.err.count("\n") == 1, ran.err
    assert ran.err[:-1].isprintable()
    assert len(ran.err) < 700, "a line is read, not studied"
    assert contents(place) == before
    for text in says:
        assert text in ran.err, f"{text!r} is not in {ran.err!r}"
    return str(ran.err)


# Models, in every command that opens one

MODELS: dict[str, tuple[str, ...]] = {
    "nothing.onnx": ("'nothing.onnx'", "No such file", "give a readable file"),
    "folder/that/is/not/there.onnx": ("there.onnx", "No such file"),
    "m.onnx/inside.onnx": ("m.onnx/inside.onnx", "Not a directory"),
    "folder.onnx": ("'folder.onnx' is a directory", "give the .onnx file"),
    ".": ("is a directory", "give the .onnx file"),
    "": ("directory", "give"),
    "/dev/null": ("'/dev/null' is not a regular file", "give a file on disk"),
    "empty.onnx": ("empty.onnx", "is empty", "give an ONNX file"),
    "hello.onnx": ("hello.onnx", "not an ONNX model"),
    "zero.onnx": ("zero.onnx", "not an ONNX model"),
    "random.onnx": ("random.onnx", "not an ONNX model"),
    "no_graph.onnx": ("no_graph.onnx", "no graph"),
    "data.npz": ("data.npz", "not an ONNX model"),
    "list.jsonl": ("list.jsonl", "not an ONNX model"),
    "cut.onnx": ("cut.onnx", "cut short"),
    "missing.onnx": ("'nowhere.bin'", "'w'", "is missing", "put it beside the model"),
    "short.onnx": ("'short.bin'", "too short", "0 to 36", "20 bytes", "fetch the file again"),
    "beyond.onnx": ("'beyond.bin'", "too short", "36 to 72", "36 bytes"),
    "lengths.onnx": ("'w' needs 36 bytes", "length 12"),
    "negative.onnx": ("offset '-4'", "damaged"),
    "absolute.onnx": ("absolute.bin", "absolute path", "must lie inside the model's folder"),
    "dots.onnx": ("'../dots.bin'", "'..'", "must lie inside"),
    "inner_dots.onnx": ("'folder.onnx/../inner.bin'", "'..'", "must lie inside"),
    "unnamed.onnx": ("names no file", "damaged"),
    "directory.onnx": ("'folder.onnx'",),
    "soft.onnx": ("'soft.bin'", "symbolic link", "--allow-links"),
    "hard.onnx": ("'hard.bin'", "hard link", "--allow-links"),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["inspect", "inject", "eval"])
@pytest.mark.parametrize("model", MODELS)
def test_a_model_that_is_none(run: Run, shared: Path, verb: str, model: str) -> None:
    words = {"inspect": [], "inject": ["--ber", "1e-3"], "eval": ["--data", "data.npz"]}[verb]
    refused(run, shared, [verb, model, *words], MODELS[model])
    refused(run, shared, [verb, model, *words, "--json"], MODELS[model])


@pytest.mark.parametrize("model", ["soft.onnx", "hard.onnx"])
def test_links_are_followed_where_they_are_allowed(run: Run, place: Path, model: str) -> None:
    assert run("inspect", model, "--allow-links", "--json").json["totals"]["elements"] == 9


def test_a_model_cut_anywhere_is_refused(run: Run, place: Path) -> None:
    whole = (place / "m.onnx").read_bytes()
    opsets = onnx.ModelProto(opset_import=onnx.load("m.onnx").opset_import).SerializeToString()
    assert whole.endswith(opsets)  # without them, at a field's end, no reader can see that something is missing
    for length in range(1, len(whole) - len(opsets), 3):
        (place / "part.onnx").write_bytes(whole[:length])
        refused(run, place, ["inspect", "part.onnx"], ["part.onnx"])


def test_an_unreadable_model(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def closed(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "m.onnx":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    before = contents(place)
    monkeypatch.setattr(Path, "open", closed)
    ran = run("inject", "m.onnx", "--count", 1)
    monkeypatch.undo()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "onnxfi: error: cannot read 'm.onnx': Permission denied; give a readable file\n"
    assert contents(place) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads and writes everything")
@pytest.mark.parametrize("words", [["inspect", "m.onnx"], ["inject", "other.onnx", "--faults", "list.jsonl"]])
def test_files_without_permission(run: Run, place: Path, words: list[str]) -> None:
    for name in ("m.onnx", "list.jsonl"):
        (place / name).chmod(0)
    assert "Permission denied" in run(*words).err


# inject: how much, where, what

INJECT: dict[str, tuple[str, ...]] = {
    "": ("give exactly one of --ber, --count, --site, --faults and --voltage", "given: none", "onnxfi inject --help"),
    "--ber 1e-3 --count 1": ("exactly one of", "given: --ber and --count"),
    "--ber 1e-3 --faults list.jsonl": ("exactly one of", "--ber and --faults"),
    "--count 1 --site w[0]:1": ("exactly one of", "--count and --site"),
    "--ber 1 --count 1 --site w[0]:1 --faults l": ("exactly one of", "--ber and --count and --faults and --site"),
    "--ber=-1e-9": ("-1e-09", "in [0, 1]"),
    "--ber 1.0000001": ("1.0000001", "in [0, 1]"),
    "--ber nan": ("nan", "in [0, 1]"),
    "--ber inf": ("inf", "in [0, 1]"),
    "--ber many": ("'many'", "must be a number", "as 1e-6"),
    "--ber 1e-6,": ("'1e-6,'", "must be a number"),
    "--ber=": ("''", "must be a number"),
    "--count -1": ("-1", "from 0"),
    "--count 1.5": ("'1.5'", "not a valid integer"),
    "--count 385": ("--count 385", "384 sites"),
    "--count 400000000": ("400,000,000", "lower the rate or count"),
    "--count 97 --per-tensor": ("--count 97 per tensor", "96 sites"),
    "--count 2 --include bias --elements 0 --bits 3": ("--count 2", "1 site"),
    "--count 13 --fault zero": ("--count 13", "12 sites"),
    "--per-tensor --ber 0.1": ("--per-tensor requires --count",),
    "--count 1 --include wieght": ("--include 'wieght' matches nothing",),
    "--count 1 --include =bia": ("--include '=bia' matches nothing", "closest: 'bias'"),
    "--count 1 --include Bias": ("--include 'Bias' matches nothing", "closest: 'bias'"),
    "--count 1 --include re:(": ("'re:('", "no regular expression"),
    "--count 1 --op MatMull": ("--op 'MatMull' matches nothing", "closest: 'MatMul'"),
    "--count 1 --dtype float23": ("'float23'", "closest: 'float32'"),
    "--count 1 --dtype int8": ("--dtype 'int8' matches nothing", "float32"),
    "--count 1 --exclude *": ("no tensor matches all selectors", "onnxfi inspect"),
    "--count 1 --include bias --op MatMul": ("no tensor matches all selectors", "though each matches some"),
    "--count 1 --bits 32": ("bit 32 is beyond float32", "0 to 31"),
    "--count 1 --bits 0-40": ("bit 40 is beyond float32", "0 to 31"),
    "--count 1 --bits 22-0": ("'22-0' runs backwards", "write 0-22"),
    "--count 1 --bits expo": ("'expo'", "closest: 'exponent'"),
    "--count 1 --bits ,": ("bits ''", "position"),
    "--count 1 --bits exponent --fault zero": ("--bits", "zero", "whole words", "leave it out"),
    "--count 1 --elements 3": ("'3'", "beyond 'w'", "length 3"),
    "--count 1 --elements a:b": ("'a:b'", "as 0:8"),
    "--count 1 --elements 0,0,0 --include =w": ("has 3 axes, 'w' has 2", "--include"),
    "--count 1 --elements 3:9": ("--elements '3:9' leaves no element of 'w', whose shape is [3, 3]",),
    "--ber 1e-400": ("'1e-400' is so small that it would be taken as 0",),
    "--site w": ("'w'", "NAME[index]:bit"),
    "--site=": ("''", "NAME[index]:bit"),
    "--site w[0]": ("'w[0]' needs a bit for flip", "w[0]:31"),
    "--site w[0]:32": ("bit 32 is beyond float32 of 'w'", "0 to 31"),
    "--site w[9]:1": ("[9] is beyond 'w' of shape 3×3", "below 9"),
    "--site w[0,3]:1": ("[0, 3] is beyond 'w'", "2 indices"),
    "--site w[0,0,0]:1": ("[0, 0, 0] is beyond 'w'",),
    "--site w[-1]:1": ("'w[-1]:1'",),
    "--site bais[0]:1": ("no target 'bais'", "closest: 'bias'"),
    "--site w[0]:1 --site w[0,0]:1": ("'w[0]:1' is named twice",),
    "--site w[0]:1 --fault zero": ("'w[0]:1' names a bit", "whole words", "leave the bit out"),
    "--site w[0]:31 --fault burst:k=2": ("burst", "'w[0]:31'", "beyond the 32 bits"),
    "--site w[0]:1 --exclude w": ("'w[0]:1'", "left out by the other selectors"),
    "--site w[0]:1 --bits 3": ("'w[0]:1'", "left out by the other selectors"),
    "--site w[0]@step=3:1": ("'w[0]@step=3:1'", "leave them out"),
    "--count 1 --fault filp": ("unknown fault 'filp'", "closest: 'flip'"),
    "--count 1 --fault=": ("unknown fault ''", "known: "),
    "--count 1 --fault burst:n=3": ("'burst' takes k", "'n=3'"),
    "--count 1 --fault flip:k=3": ("'flip' takes no parameters", "'k=3'"),
    "--count 1 --fault burst:k=x": ("k='x' is not a whole number",),
    "--count 1 --fault burst:k=0": ("k=0 is out of range", "from 1"),
    "--count 1 --fault burst:k=33": ("burst:k=33", "float32"),
    "--count 1 --fault set-word:word=0x100000000": ("0x100000000", "32 bits of float32"),
    "--count 1 --fault noise:sigma=-1": ("sigma=-1", "from 0"),
    "--count 1 --seed -1": ("--seed", "-1", "0<=x"),
    "--count 1 --seed 18446744073709551616": ("--seed", "18446744073709551616", "<=18446744073709551615"),
    "--count 1 --seed one": ("--seed", "'one' is not a valid integer"),
    # fault lists
    "--faults nothing.jsonl": ("no fault list 'nothing.jsonl'", "--save-faults"),
    "--faults folder.onnx": ("'folder.onnx'", "--save-faults"),
    "--faults hello.jsonl": ("hello.jsonl", "fault list", "--save-faults"),
    "--faults empty.jsonl": ("empty.jsonl", "fault list", "--save-faults"),
    "--faults binary.jsonl": ("binary.jsonl is not a fault list",),
    "--faults array.jsonl": ("array.jsonl", "fault list"),
    "--faults m.onnx": ("m.onnx is not a fault list",),
    "--faults format.jsonl": ("format.jsonl is not a fault list", "--save-faults"),
    "--faults version.jsonl": ("version.jsonl has version 7", "reads version 1"),
    "--faults cut.jsonl": ("cut.jsonl, line 4",),
    "--faults no_trial.jsonl": ("no_trial.jsonl holds no trial",),
    "--faults index.jsonl": ("index.jsonl, line 2", "99"),
    "--faults bits.jsonl": ("bits.jsonl, line 2", "32"),
    "--faults target.jsonl": ("target.jsonl, line 2", "'v'"),
    "--faults before.jsonl": ("before.jsonl: ", "the list records 0x1", "by hand"),
    "--faults after.jsonl": ("after.jsonl: ", "the list records 0x1", "by hand"),
    "--faults unknown.jsonl": ("unknown.jsonl", "'filp'", "closest: 'flip'"),
    "--faults list.jsonl --undo": ("belongs to the faulty model", "this is the original", "leave --undo out"),
    "--faults list.jsonl --seed 1": ("--seed has no effect with --faults", "leave it out"),
    "--faults list.jsonl --fault zero": ("--fault has no effect with --faults",),
    "--faults list.jsonl --include w": ("--include has no effect with --faults",),
    "--faults list.jsonl --bits 3": ("--bits has no effect with --faults",),
    "--faults list.jsonl --undo --data data.npz": ("--undo takes neither --data", "onnxfi eval"),
    "--faults list.jsonl --undo --save-faults l": ("--undo takes neither", "--save-faults"),
    "--undo --count 1": ("--undo requires --faults",),
    # outputs
    "--count 1 -o m.onnx": ("'m.onnx' is the input itself", "-o"),
    "--count 1 -o ./folder.onnx/../m.onnx": ("is the input itself", "-o"),
    "--count 1 -o folder.onnx": ("'folder.onnx' is a directory", "give a file name"),
    "--count 1 -o .": ("'.' is a directory", "give a file name"),
    "--count 1 -o=": ("is a directory", "give a file name"),
    "--count 1 -o nowhere/f.onnx": ("no folder 'nowhere'", "'f.onnx'", "make it first"),
    "--count 1 -o m.onnx/f.onnx": ("no folder 'm.onnx'",),
    "--count 1 --save-faults nowhere/l.jsonl": ("no folder 'nowhere'", "'l.jsonl'", "make it first"),
    "--count 1 --save-faults m.onnx": ("'m.onnx' is the input itself",),
    "--count 1 --save-faults folder.onnx": ("'folder.onnx' is a directory",),
    "--count 1 -o f.onnx --save-faults f.onnx": ("cannot both be 'f.onnx'", "name another"),
    "--count 1 -o f.onnx --save-faults folder.onnx/../f.onnx": ("cannot both be",),
    "--count 1 --save-faults m.faulty.onnx": ("cannot both be 'm.faulty.onnx'",),
    "--faults list.jsonl -o list.jsonl": ("'list.jsonl'", "--faults", "choose another name"),
    "--faults list.jsonl --save-faults ./list.jsonl": ("'list.jsonl'", "--faults", "choose another name"),
    "--count 1 --data data.npz -o data.npz": ("'data.npz'", "--data", "choose another name"),
    f"--count 1 -o {'n' * 300}": ("File name too long",),
    # what runs, without anything to run
    "--count 1 --provider cpu": ("--provider has no effect without --data",),
    "--count 1 --samples 3": ("--samples has no effect without --data",),
    "--count 1 --preprocess list.yaml": ("--preprocess has no effect without --data",),
    # the command line itself
    "--count 1 --brr 1": ("No such option '--brr'", "--ber", "onnxfi inject --help"),
    "--count": ("--count", "requires an argument"),
    "--count 1 other.onnx": ("unexpected extra argument", "other.onnx"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("flags", INJECT)
def test_inject(run: Run, shared: Path, flags: str) -> None:
    words = [w for word in flags.split() for w in (["-o", ""] if word == "-o=" else [word])]
    refused(run, shared, ["inject", "m.onnx", *words], INJECT[flags])
    refused(run, shared, ["inject", "m.onnx", "--json", *words], INJECT[flags])


OTHER_MODELS: dict[str, tuple[str, ...]] = {
    "inject bare.onnx --count 1": ("no tensor that faults can be injected into",),
    "inject other.onnx --faults list.jsonl": ("list.jsonl belongs to the model", "this one is"),
    "inject faulty.onnx --faults list.jsonl": ("this is the faulty model that the list made", "--undo restores"),
    "inject other.onnx --faults list.jsonl --undo": ("list.jsonl belongs to the faulty model", "this one is"),
    "inject good_external.onnx --count 1 -o good.bin": ("'good.bin' is the input itself", "-o"),
    "inject good_external.onnx --count 1 -o good_external.onnx": ("is the input itself", "-o"),
    "inject good_external.onnx --count 1 -o f.onnx --save-faults f.onnx.data": ("cannot both be 'f.onnx.data'",),
    "inject two.onnx --count 1 --data data.npz": ("several outputs", "--output", "'a'", "'b'"),
    "inspect m.onnx --bits 32": ("bit 32 is beyond float32", "0 to 31"),
    "inspect m.onnx --include wieght": ("--include 'wieght' matches nothing",),
    "inspect m.onnx --seed 3": ("No such option '--seed'", "onnxfi inspect --help"),
    "inspect": ("Missing argument 'MODEL|PIPELINE.yaml'", "onnxfi inspect --help"),
    "injekt m.onnx": ("no command 'injekt'", "closest: 'inject'"),
    "--jsn": ("No such option '--jsn'", "onnxfi --help"),
    "m.onnx": ("no command 'm.onnx'", "known: "),
}


@pytest.mark.parametrize("line", OTHER_MODELS)
def test_other_commands(run: Run, shared: Path, line: str) -> None:
    refused(run, shared, line.split(), OTHER_MODELS[line])


# What runs, in inject and in eval

RUNS: dict[str, tuple[str, ...]] = {
    "m.onnx --data nothing.npz": ("no data at 'nothing.npz'", "give an .npz archive, a folder of images"),
    "m.onnx --data hello.npz": ("'hello.npz' is not a readable .npz archive", "np.savez"),
    "m.onnx --data cut.npz": ("'cut.npz' is not a readable .npz archive",),
    "m.onnx --data folder.npz": ("folder.npz", "preprocess"),
    "m.onnx --data wrong_name.npz": ("'wrong_name.npz': 'z' is not an input", "input 'x' (float32 [N,3])", "name it so"),
    "m.onnx --data extra_name.npz": ("'extra_name.npz': 'z' is not an input", "leave it out"),
    "m.onnx --data no_arrays.npz": ("'no_arrays.npz'", "input 'x' (float32 [N,3]) has no array"),
    "m.onnx --data wrong_type.npz": ("'wrong_type.npz': 'x' is float64", "data['x'].astype('float32')"),
    "m.onnx --data wrong_shape.npz": ("'wrong_shape.npz': 'x' has shape [5,4]", "'x' (float32 [N,3])"),
    "m.onnx --data no_samples.npz": ("'no_samples.npz'", "no samples"),
    "m.onnx --data fewer_labels.npz": ("'fewer_labels.npz': 3 labels for 5 samples",),
    "m.onnx --data larger_labels.npz": ("labels go from 0 to 9", "3 classes, counted from 0"),
    "m.onnx --data negative_labels.npz": ("a label is -1", "from 0"),
    "m.onnx --data float_labels.npz": ("labels are float64", "classes are integers", "astype('int64')"),
    "m.onnx --data one_hot.npz": ("one-hot rows of 4 classes", "output 'y' scores 3"),
    "m.onnx --data several.npz": ("labels are int64 [5,2]", "classes are integers, one per sample"),
    "m.onnx --data data.npz --labels gone.json": ("no labels at 'gone.json'", "COCO"),
    "m.onnx --data data.npz --labels gone": ("no array 'gone' of labels, and no such file",),
    "m.onnx --data feeds:nothing": ("'feeds:nothing' failed", "nothing"),
    "m.onnx --data nowhere:feeds": ("'nowhere:feeds' failed", "No module named 'nowhere'"),
    "m.onnx --data feeds:broken": ("'feeds:broken' failed", "ValueError: no data today"),
    "m.onnx --data feeds:none": ("'feeds:none' gave no batches",),
    "m.onnx --data synthetic --preprocess list.yaml": ("preprocessing is for a folder of images",),
    "m.onnx --data folder.npz --preprocess list.yaml": ("'list.yaml' holds no fields", "it takes version"),
    "m.onnx --data folder.npz --preprocess broken.yaml": ("'broken.yaml' is not a readable YAML",),
    "m.onnx --data folder.npz --preprocess unknown.yaml": ("unknown field 'resise'", "closest: 'resize'"),
    "m.onnx --data folder.npz --preprocess nothing.yaml": ("'nothing.yaml'", "an example"),
    "m.onnx --data data.npz --samples 0": ("--samples", "0 is not in the range x>=1"),
    "m.onnx --data data.npz --batch 0": ("--batch", "0 is not in the range x>=1"),
    "m.onnx --data data.npz --output z": ("no output 'z'", "'y'"),
    "m.onnx --data data.npz --provider nonsense": ("no provider 'nonsense'", "known: "),
    "m.onnx --data data.npz --provider cud": ("no provider 'cud'", "closest: 'cuda'"),
    "m.onnx --data data.npz --provider coreml": ("'coreml'", "which has "),
    "m.onnx --data data.npz --provider cpu --provider-option x=1": ("'cpu' takes no options",),
    "m.onnx --data data.npz --provider cuda --provider-option x": ("--provider-option", "KEY=VALUE, got 'x'"),
    "m.onnx --data data.npz --optimization most": ("'most'", "'all'"),
    "m.onnx --data data.npz --threads 0": ("--threads", "1<=x<=1024"),
    "m.onnx --data data.npz --threads 100000": ("--threads", "100000", "1<=x<=1024"),
    "m.onnx --data data.npz --custom-ops nothing.so": ("no library of custom operators at 'nothing.so'",),
    "m.onnx --data data.npz --custom-ops hello.npz": ("custom operators 'hello.npz' do not load",),
    "unknown_op.onnx --data data.npz": ("refuses the model", "No Op registered for Nonsense"),
    "wrong_types.onnx --data data.npz": ("refuses the model", "bound to different types"),
    "wrong_shapes.onnx --data data.npz": ("ONNX Runtime",),
    "square.onnx --data synthetic": ("ONNX Runtime", "these are synthetic inputs, give real ones with --data"),
    "text.onnx --data synthetic": ("takes text, which is not made up", "give data"),
    "list.onnx --data synthetic": ("'x' is a seq(tensor(float))", "only models fed with tensors"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["inject", "eval"])
@pytest.mark.parametrize("line", RUNS)
def test_runs(run: Run, shared: Path, verb: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("feeds", "nowhere"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    words = line.split() + (["--count", "0"] if verb == "inject" else [])
    if words[0] in ("text.onnx", "list.onnx") and verb == "inject":
        pytest.skip("the model has no targets")
    says = RUNS[line]
    refused(run, shared, [verb, *words], says)
    refused(run, shared, [verb, *words, "--json"], says)


def test_a_provider_without_its_device(run: Run, shared: Path) -> None:
    from onnxfi.runtime.engine.cuda import no_cuda

    if not no_cuda():
        pytest.skip("there is a CUDA device")
    for provider in ("cuda", "tensorrt", "CUDAExecutionProvider"):
        says = [f"provider '{provider}' "]
        refused(run, shared, ["inject", "m.onnx", "--count", 1, "--data", "data.npz", "--provider", provider], says)


def test_the_output_is_checked_before_anything_runs(run: Run, shared: Path) -> None:
    """The golden run may take an hour; that a folder does not exist is said before."""
    words = ["inject", "unknown_op.onnx", "--count", 1, "--data", "data.npz"]
    refused(run, shared, [*words, "-o", "nowhere/f.onnx"], ["no folder 'nowhere'"])
    refused(run, shared, [*words, "--save-faults", "nowhere/l.jsonl"], ["no folder 'nowhere'"])


def test_a_log_level_that_is_none(run: Run, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXFI_LOG_LEVEL", "loud")
    refused(run, shared, ["inspect", "m.onnx"], ["ONNXFI_LOG_LEVEL='LOUD'", "use DEBUG, INFO, WARNING or ERROR"])
    monkeypatch.setenv("ONNXFI_LOG_LEVEL", "")
    assert run("inspect", "m.onnx").code == 0


# Places that cannot be written


def test_a_full_disk_is_known_beforehand(run: Run, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(shared)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    refused(run, shared, ["inject", "m.onnx", "--count", 1], ["disk is full", "10 are free"])


def test_a_fault_list_asks_for_no_room_for_a_model(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage, lists = shutil.disk_usage(place), place / "lists"
    lists.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda at: usage._replace(free=10) if Path(at).name == "lists" else usage)
    run("inject", "m.onnx", "--count", 1, "-o", "room.onnx", "--save-faults", lists / "f.jsonl")
    assert (lists / "f.jsonl").exists()


def test_a_folder_that_cannot_be_written(run: Run, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    refused(run, shared, ["inject", "m.onnx", "--count", 1], ["the folder '.' cannot be written", "-o"])


def command(words: Iterable[object], **options: Any) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    line = [sys.executable, "-m", "onnxfi", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(("limit", "flags"), [(1000, []), (4000, ["--save-faults", "l.jsonl"])])
def test_a_disk_that_fills_up_while_writing_keeps_no_half_file(place: Path, limit: int, flags: list[str]) -> None:
    """The largest file that a process may write stands for the disk: the model is larger, then its fault list is."""
    weights = np.zeros(900, np.float32)
    model = parser.parse_model(HEAD + "g (float[N,900] x) => (float[N,900] y) { y = Add(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    onnx.save(model, place / "large.onnx")
    before = contents(place)
    ran = command(
        ["inject", "large.onnx", "--count", 900, *flags],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},  # which Python would cut off as well, and not notice
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("onnxfi: error: cannot write ") and "nothing was written" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert contents(place) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["inspect", "nothing.onnx"], "cannot read 'nothing.onnx'"),
        (["inject", "m.onnx", "--ber", "2"], "in [0, 1]"),
        (["inject", "m.onnx", "--count", "1", "--data", "wrong_type.npz"], "astype('float32')"),
        (["eval", "unknown_op.onnx"], "refuses the model"),
        (["nonsense"], "no command 'nonsense'"),
    ],
)
def test_real_processes(place: Path, words: list[str], says: str) -> None:
    before = contents(place)
    ran = command(words)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("onnxfi: error: ") and says in ran.stderr and ran.stderr.count("\n") == 1
    assert contents(place) == before


def test_an_interrupt_leaves_no_half_file(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxfi.graph.write.sequential_file import SequentialFile

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = contents(place)
    monkeypatch.setattr(SequentialFile, "write", interrupted)
    monkeypatch.setattr(sys, "argv", ["onnxfi", "inject", "m.onnx", "--count", "1", "--save-faults", "l.jsonl"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    assert capsys.readouterr() == ("", "onnxfi: interrupted; no partial file is left\n")
    assert contents(place) == before


LOADING = """
import importlib.machinery as m, os, signal, sys
load = m.ExtensionFileLoader.exec_module
def exec_module(self, module):
    if module.__name__.endswith("onnxruntime_pybind11_state"):
        try:
            os.kill(os.getpid(), signal.{name})
        except KeyboardInterrupt:
            if "{kind}" == "ImportError":
                raise ImportError("initialization failed")
    load(self, module)
m.ExtensionFileLoader.exec_module = exec_module
from onnxfi.cli import main
sys.argv = ["onnxfi", "eval", "m.onnx"]
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("SIGINT", "ImportError"), ("SIGTERM", "ImportError"), ("SIGINT", "lost")])
def test_a_stop_while_a_native_module_loads_is_a_stop(place: Path, name: str, kind: str) -> None:
    program = LOADING.format(name=name, kind=kind)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (130, "onnxfi: interrupted; no partial file is left\n")


def test_a_stop_in_a_finaliser_is_a_stop_and_nothing_else_is_printed(place: Path) -> None:
    program = (
        "import os, signal, sys\nfrom onnxfi.graph.model import loading\nload = loading.load\n"
        "class Stops:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGINT)\n        [0 for _ in range(1000)]\n"
        "def late(*a, **k):\n    [Stops()].clear()\n    import time\n    time.sleep(60)\n"
        "loading.load = late\nfrom onnxfi.cli import main\nsys.argv = ['onnxfi', 'inspect', 'm.onnx']\nmain()"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (130, "onnxfi: interrupted; no partial file is left\n")


def test_a_stop_that_passes_text_that_is_executed_has_its_exit_code(place: Path) -> None:
    program = (
        "import os, signal, sys\nfrom onnxfi.graph.model import loading\n"
        "loading.load = lambda *a, **k: exec('import os, signal; os.kill(os.getpid(), signal.SIGTERM)')\n"
        "from onnxfi.cli import main\nsys.argv = ['onnxfi', 'inspect', 'm.onnx']\nmain()"
    )
    (place / "early.py").write_text(program)
    ran = subprocess.run([sys.executable, "-m", "early"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (130, "onnxfi: interrupted; no partial file is left\n")


def test_a_stop_while_the_interpreter_ends_says_nothing(place: Path) -> None:
    program = (
        "import atexit, os, signal, sys\nfrom onnxfi.cli import main\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\nsys.argv = ['onnxfi', 'inspect', 'm.onnx', '--json']\nmain()"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (-signal.SIGINT, "")
    assert json.loads(ran.stdout)


CLOSED = (
    "import os, sys; [os.close(int(n)) for n in sys.argv[1]]; os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)


@pytest.mark.parametrize("closed", ["2", "012", *(pytest.param(some, marks=pytest.mark.slow) for some in ("1", "12"))])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["inspect", "m.onnx"], 0),
        (["inspect", "none.onnx"], 2),
        (["inspect", "--nothing"], 2),
        (["inject", "m.onnx", "--count", "1", "--json"], 0),
    ],
)
def test_streams_that_are_closed_change_no_exit_code(place: Path, closed: str, words: list[str], code: int) -> None:
    command = [sys.executable, "-c", CLOSED, closed, "-m", "onnxfi", *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == code
    assert "Traceback" not in ran.stdout + ran.stderr
    if code == 2 and "2" not in closed:
        assert ran.stderr.startswith("onnxfi: error: ") and ran.stderr.count("\n") == 1


def test_a_reader_who_goes_away_ends_it_without_a_word(place: Path) -> None:
    for words, code in ((["inspect", "m.onnx", "--json"], 141), (["inspect", "none.onnx"], 2)):
        read, write = os.pipe()
        os.close(read)
        ran = subprocess.run([sys.executable, "-m", "onnxfi", *words], stdout=write, stderr=write, check=False)
        os.close(write)
        assert ran.returncode == code, words


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(some, marks=pytest.mark.slow) for some in ("SIGHUP", "SIGINT"))]
)
def test_a_kill_leaves_no_half_file(place: Path, name: str) -> None:
    """The process ends itself in the middle of writing, as a scheduler or a closed terminal would end it."""
    program = f"""
import os, signal, sys
from onnxfi.cli import main
from onnxfi.graph.write.sequential_file import SequentialFile
put = SequentialFile.write
def half(*given):
    put(*given)
    os.kill(os.getpid(), signal.{name})
SequentialFile.write = half
sys.argv = ["onnxfi", "inject", "m.onnx", "--count", "1", "--save-faults", "l.jsonl"]
main()
"""
    before = contents(place)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "onnxfi: interrupted; no partial file is left\n")
    assert contents(place) == before


#: The way in which each verb meets a file that has code run, and the flag that names something else.
STRANGERS = (
    "run c.yaml --workers 0",
    "plan c.yaml",
    "plan c.yaml --print-spec",
    "check m.onnx --budget b.yaml --workers 0",
    "check m.onnx --budget b.yaml --write-budget --force --workers 0",
)


@pytest.mark.slow
@pytest.mark.parametrize("words", STRANGERS)
def test_a_file_of_a_stranger_has_no_code_run_unless_that_is_allowed(
    words: str, run: Run, models: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("ONNXFI_CACHE", "off")
    shutil.copy(models / "fashion_cnn.onnx", here / "m.onnx")
    name = f"strange_{STRANGERS.index(words)}"
    (here / f"{name}.py").write_text(
        "import numpy as np; open('ran', 'w').close()\n"
        "def data(): return {'image': np.zeros((4, 1, 28, 28), np.float32), 'labels': np.arange(4)}\n"
    )
    (here / "c.yaml").write_text(f"model: m.onnx\nsingle: true\ntrials: 2\ndata: {name}:data\n")
    fields = f"{{single: true, trials: 2, data: '{name}:data'}}"
    (here / "b.yaml").write_text(f"version: 1\ncampaign: {fields}\nlimits: [{{rate: due, max: 1.0}}]\n")
    there = sorted(here.iterdir())
    refused = run(*words.split())
    assert (refused.code, refused.out) == (2, "")
    assert f"data has code run that this file names ('{name}:data')" in refused.err
    assert refused.err.count("\n") == 1
    assert sorted(here.iterdir()) == there
    assert "has code run" not in run(*words.split(), "--data", "synthetic").err
    assert not (here / "ran").exists()
    (here / "m.onnxfi.db").unlink(missing_ok=True)
    assert "has code run" not in run(*words.split(), "--allow-code").err
    assert (here / "ran").exists() or words.endswith("spec")


@pytest.mark.parametrize(
    "flag", ["--memory", "--worker-memory", "--shard", "--seed", "--trials", "--elements", "--bits"]
)
@pytest.mark.parametrize("digits", [400, 5000])
def test_numbers_of_any_length_on_the_command_line(flag: str, digits: int, run: Run, models: Path) -> None:
    number = "9" * digits + ("GB" if flag.endswith("memory") else "/1" if flag == "--shard" else "")
    ran = run("run", models / "fashion_cnn.onnx", "--single", "--workers", 0, flag, number)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert len(ran.err) < 800


def test_too_little_address_space_is_refused_before_libraries_are_loaded(models: Path) -> None:
    """numpy's BLAS ends the process with 1, which would say that a check failed, or waits for ever."""
    room = 100 << 20
    code = f"import resource as r; r.setrlimit(r.RLIMIT_AS, ({room}, {room})); from onnxfi.cli import main; main()"
    words = [sys.executable, "-c", code, "inspect", models / "fashion_cnn.onnx"]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        "onnxfi: error: the address space is limited to 100 MiB (ulimit -v); onnxfi needs 256 MiB or more; raise the limit\n"
    )


def test_memory_that_is_not_there_is_one_line(run: Run, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **more: object) -> None:
        raise MemoryError("Unable to allocate 16.0 GiB")

    monkeypatch.setattr("onnxfi.runtime.inject.weights.inspect", full)
    ran = run("inspect", models / "fashion_cnn.onnx")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("onnxfi: error: not enough memory (Unable to allocate 16.0 GiB)")


ONE_MODEL: dict[str, tuple[str, ...]] = {
    "assess": (), "attack": ("--data", "data.npz"), "census": (), "diff": ("m.onnx",), "manifest": (),
    "instrument": ("-o", "out.onnx"), "quantize": ("--mode", "dynamic", "-o", "out.onnx"),
    "rowhammer": ("templates.json",), "verify": ("manifest.json",),
}  # fmt: skip


def test_a_pipeline_where_one_model_is_taken_is_called_one(everything: Path, run: Run, here: Path) -> None:
    """Every verb whose MODEL is no pipeline says so of both forms; so does what Python calls."""
    context = click.Context(group)
    commands = {verb: group.get_command(context, verb) for verb in COMMANDS}
    verbs = {verb for verb, one in commands.items() if one and any(p.metavar == "MODEL" for p in one.params)}
    assert verbs == set(ONE_MODEL)
    shutil.copy(everything / "m.onnx", here)
    shutil.copy(everything / "data.npz", here)
    Path("pipeline.yaml").write_text("version: 1\nstages:\n- {name: net, model: m.onnx, inputs: {x: data.x}}\n")
    Path("manifest.json").write_text("{}")
    Path("templates.json").write_text("{}")
    before = sorted(here.iterdir())
    for source in ("pipeline.yaml", "own.pipelines:cascade"):
        said = (
            f"'{source}' names a pipeline, and one model is taken here; give the .onnx file of one of its stages, or "
        )
        for verb, more in ONE_MODEL.items():
            ran = run(verb, source, *more)
            assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), verb
            assert said in ran.err, verb
        ran = run("attack", "m.onnx", "--data", "data.npz", "--also", source)
        assert ran.code == 2 and said in ran.err
        for call in (onnxfi.assess, onnxfi.census, onnxfi.manifest, onnxfi.load):
            with pytest.raises(InputError, match="names a pipeline, and one model is taken here"):
                call(source)
        for two in (onnxfi.attack, onnxfi.diff):
            with pytest.raises(InputError, match="names a pipeline, and one model is taken here"):
                two(source, "data.npz")
        with pytest.raises(InputError, match="names a pipeline, and one model is taken here"):
            onnxfi.quantize(source, "dynamic", "out.onnx")
    assert sorted(here.iterdir()) == before
    assert "cannot read 'none.yaml'" in run("census", "none.yaml").err
