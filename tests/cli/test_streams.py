"""`-`: what comes from standard input is read as a file of that name is, and what goes to standard output is that file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_campaigns import mlp, ran, samples

from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.cli.streams import from_stdin
from onnxfi.graph.model.loading import load
from onnxfi.runtime.inject.weights import inject, sample

#: Files that a command reads, by the command in which `IN` stands for one.
READ = {
    "eval": ("m.onnx", ("eval", "IN", "--data", "d.npz")),
    "compare": ("m.onnx", ("compare", "IN", "n.onnx", "--data", "d.npz", "--ber", "1e-3", "--repeat", "2", "--workers", "0")),
    "report": ("s.db", ("report", "IN")),
    "report of two": ("s.db", ("report", "t.db", "IN")),
    "show": ("s.db", ("show", "IN", "1")),
    "verify": ("man.json", ("verify", "m.onnx", "IN")),
    "diff": ("f.onnx", ("diff", "m.onnx", "IN")),
    "inject --faults": ("l.jsonl", ("inject", "m.onnx", "--faults", "IN", "-o", "g.onnx")),
    "census": ("m.onnx", ("census", "IN")),
}  # fmt: skip
#: Files that a command writes, by the command in which `OUT` stands for one.
WRITTEN = {
    "report --html": ("report", "s.db", "--html", "OUT"),
    "census --csv": ("census", "m.onnx", "--csv", "OUT"),
    "diff --save-faults": ("diff", "m.onnx", "f.onnx", "--save-faults", "OUT"),
    "inject --save-faults": ("inject", "m.onnx", "--count", "1", "-o", "g.onnx", "--save-faults", "OUT"),
    "plan": ("plan", "m.onnx", "--data", "d.npz", "--single", "--trials", "3", "-o", "OUT"),
    "check --markdown": ("check", "m.onnx", "--budget", "b.yaml", "--workers", "0", "--markdown", "OUT"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, data, a fault list, a manifest, a budget and two stores."""
    folder = tmp_path_factory.mktemp("streams")
    model, data = mlp(folder), samples(folder)
    mlp(folder, name="n.onnx", seed=9)
    held = load(model)
    inject(held, sample(held, count=1), folder / "f.onnx", save_faults=folder / "l.jsonl")
    for name in ("s.db", "t.db"):
        ran(Campaign(model, data, single=True, trials=3), folder / name)
    (folder / "b.yaml").write_text(
        "version: 1\ncampaign: {data: d.npz, single: true, trials: 3}\nlimits:\n- {rate: sdc, max: 0.0001}\n"
    )
    called(folder, "manifest", "m.onnx", "-o", "man.json")
    return folder


def called(folder: Path, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", "onnxfi", *words]
    return subprocess.run(line, cwd=folder, input=given, capture_output=True, check=False)


def test_a_scratch_file_is_known_in_any_folder() -> None:
    here = Path("/tmp/of a person/onnxfi-0123456789abcdef")
    assert from_stdin(here / "stdin.onnx") and from_stdin(here / "stdin.yaml")
    assert not from_stdin(here / "stdout") and not from_stdin(here.parent / "stdin.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", READ)
def test_what_comes_from_standard_input_is_read_as_its_file(place: Path, kind: str) -> None:
    file, words = READ[kind]
    before = set(place.iterdir())
    piped = called(place, *("-" if word == "IN" else word for word in words), given=(place / file).read_bytes())
    named = called(place, *(file if word == "IN" else word for word in words))
    assert piped.returncode == named.returncode in (0, 1), piped.stderr
    lines, others = (found.stdout.decode().splitlines() for found in (piped, named))
    differ = [one for one, other in zip(lines, others, strict=True) if one.split() != other.split()]
    assert all("standard input" in one or "stdin" in one for one in differ) and len(differ) <= 3
    assert b"onnxfi-" not in piped.stdout + piped.stderr, "no name of a scratch file"
    assert set(place.iterdir()) - before <= {place / "g.onnx"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITTEN)
def test_what_goes_to_standard_output_is_the_file(place: Path, kind: str) -> None:
    before = set(place.iterdir())
    piped = called(place, *("-" if word == "OUT" else word for word in WRITTEN[kind]))
    named = called(place, *("out" if word == "OUT" else word for word in WRITTEN[kind]))
    assert piped.returncode == named.returncode in (0, 1), piped.stderr
    assert piped.stdout == (place / "out").read_bytes() != b"" and b"onnxfi-" not in piped.stderr
    (place / "out").unlink()
    assert set(place.iterdir()) - before <= {place / "g.onnx"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compare", "-", "-", "--data", "d.npz", "--ber", "1e-3"), b"standard input is one file; name the others"),
        (("inject", "m.onnx", "--count", "1", "--save-faults", "-", "-o", "-"), b"standard output is one file"),
    ],
)
def test_a_stream_is_one_file(place: Path, words: tuple[str, ...], message: bytes) -> None:
    found = called(place, *words, given=(place / "m.onnx").read_bytes())
    assert found.returncode == 2 and message in found.stderr and found.stdout == b"" and found.stderr.count(b"\n") == 1
