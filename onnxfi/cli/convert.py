"""`onnxfi convert SOURCE`: a model of a training framework becomes an ONNX file that gives the same answers."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli.options import JSON

if TYPE_CHECKING:
    from onnxfi.converters import Converted
    from onnxfi.errors import ConversionError


@click.command("convert", short_help="Turn a model of PyTorch, Keras, TensorFlow or scikit-learn into ONNX.")
@click.argument("source", metavar="SOURCE")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="OUT", help="The model that is written."
)
@click.option(
    "--from", "framework", metavar="FRAMEWORK", help="torch, keras, tensorflow or sklearn (default: told by SOURCE)."
)
@click.option(
    "--factory",
    metavar="MODULE:FUNCTION",
    help="What makes the module for the weights in SOURCE, a PyTorch checkpoint.",
)
@click.option(
    "--input-shape",
    multiple=True,
    metavar="SHAPE",
    help="An input, as N,1,28,28 or N,16:int64; a letter may vary. Repeatable, in the model's order.",
)
@click.option(
    "--opset", type=int, metavar="N", help="The opset to write (default: 18, or what the exporter settles on below it)."
)
@click.option("--data", metavar="DATA", help="Samples to compare the two models on, as for eval (default: made up).")
@click.option("--samples", type=int, default=8, show_default=True, metavar="N", help="How many samples to compare on.")
@click.option(
    "--tolerance",
    type=float,
    default=1e-4,
    show_default=True,
    metavar="T",
    help="The largest difference allowed, relative to an output's largest value.",
)
@JSON
def command(source: str, out: Path, framework: str | None, factory: str | None, as_json: bool, **given: Any) -> None:
    """Convert SOURCE to ONNX, and compare both on samples: beyond the tolerance nothing is written.

    SOURCE is module:factory (a function of yours that gives the model), a PyTorch checkpoint with --factory, a .keras or
    .h5 file, or the folder of a SavedModel. Layers keep the names that they have there. No file is opened in a way that
    runs what is in it; a factory is your own code, and is run.

    \b
    onnxfi convert nets:make --input-shape N,1,28,28 -o cnn.onnx
    onnxfi convert cnn.pt --factory nets:make --input-shape N,1,28,28 -o cnn.onnx
    onnxfi convert cnn.keras --data images.npz -o cnn.onnx
    """
    from onnxfi.cli.terminal import document, note
    from onnxfi.converters import convert
    from onnxfi.errors import ConversionError

    if factory is not None:
        framework, given["factory"] = framework or "torch", factory
        if framework != "torch":
            raise click.UsageError(
                f"--factory is for PyTorch checkpoints; give module:factory as SOURCE for {framework}"
            )
    try:
        with _silenced():
            done = convert(source, out, framework=framework, **given)
    except ConversionError as error:
        _frame(error)
        raise
    if as_json:
        document(_document(done))
    else:
        _print(done)
        for text in done.notes:
            note(text)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keep away what frameworks write to standard output and error past Python; shown where the log level is DEBUG."""
    if os.environ.get("ONNXFI_LOG_LEVEL", "").upper() == "DEBUG":
        yield
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(nowhere)


def _frame(error: ConversionError) -> None:
    """The framework's or the factory's own words, framed, before our line."""
    from onnxfi.graph.model.byte_source import printable

    lines = [printable(line) for line in error.details.splitlines()]
    if len(lines) < 2:
        return
    shown = lines if len(lines) <= 24 else [*lines[:12], "…", *lines[-11:]]
    click.echo("\n".join(["╭─", *(f"│ {line}" for line in shown), "╰─"]), err=True)


def _document(done: Converted) -> dict[str, Any]:
    def ports(given: Any) -> list[dict[str, Any]]:
        return [{"name": p.name, "dtype": p.dtype, "shape": None if p.shape is None else list(p.shape)} for p in given]

    return {
        "source": done.source, "framework": done.framework, "version": done.version, "opset": done.opset,
        "inputs": ports(done.inputs), "outputs": ports(done.outputs), "layers": list(done.layers), "words": done.words,
        "data": done.data, "samples": done.samples, "largest_difference": done.largest, "relative_difference": done.relative,
        "at_output": done.output, "tolerance": done.tolerance, "size_bytes": done.size_bytes,
        "output": str(done.out), "output_digest": done.digest, "notes": list(done.notes),
    }  # fmt: skip


def _print(done: Converted) -> None:
    from onnxfi.cli.terminal import count, say

    say(f"{done.source}: {done.framework} {done.version}, opset {done.opset}")
    say(f"inputs {', '.join(map(str, done.inputs))}; outputs {', '.join(map(str, done.outputs))}")
    shown = ", ".join(done.layers[:12]) + (f" and {len(done.layers) - 12} more" if len(done.layers) > 12 else "")
    say(f"{count(done.words, 'stored number')} in {count(len(done.layers), 'layer')}: {shown}")
    say(
        f"largest difference from {done.framework}: {done.largest:.2g}, relative {done.relative:.2g} "
        f"(tolerance {done.tolerance:g}), on {done.data}"
    )
    say(f"wrote {done.out}, sha256 {done.digest}")
