"""`onnxfi convert SOURCE`: convert a model of a training framework to an ONNX file with the same outputs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli.options import JSON, verb
from onnxfi.cli.streams import OUTPUT
from onnxfi.cli.terminal import count, print_json, print_line, print_note

if TYPE_CHECKING:
    from onnxfi.converters import Converted
    from onnxfi.errors import ConversionError


_OPTIONS = (
    click.argument("source", metavar="SOURCE"),
    click.option("-o", "--out", type=OUTPUT, required=True, metavar="OUT", help="ONNX file to write."),
    click.option("--from", "framework", metavar="FRAMEWORK", help="Framework: torch, keras, tensorflow or sklearn (default: inferred from SOURCE)."),
    click.option("--factory", metavar="MODULE:FUNCTION", help="Function that returns the module for the weights in SOURCE, a PyTorch checkpoint."),
    click.option("--input-shape", multiple=True, metavar="SHAPE", help="Shape of an input, as N,1,28,28 or N,16:int64; a letter may vary. Repeatable, in the order of the model's inputs."),
    click.option("--opset", type=int, metavar="N", help="Opset of the file (default: 18, or lower where the exporter needs it)."),
    click.option("--data", metavar="DATA", help="Samples for the comparison, as for eval (default: synthetic)."),
    click.option("--samples", type=int, default=8, show_default=True, metavar="N", help="Number of samples for the comparison."),
    click.option("--tolerance", type=float, default=1e-4, show_default=True, metavar="T", help="Largest allowed difference, relative to the largest value of an output."),
)  # fmt: skip


@verb("convert", "Convert a model of PyTorch, Keras, TensorFlow or scikit-learn to ONNX.", *_OPTIONS, JSON)
def command(source: str, out: Path, framework: str | None, factory: str | None, as_json: bool, **flags: Any) -> None:
    """Convert SOURCE to ONNX, and compare the outputs of both on samples; beyond the tolerance nothing is written.

    SOURCE is module:factory (a function of yours that returns the model), a PyTorch checkpoint with --factory, a .keras
    or .h5 file, or the folder of a SavedModel. Layers keep their names. Loading a file never runs code in it; a factory
    is your own code, and is run.

    \b
    onnxfi convert nets:make --input-shape N,1,28,28 -o cnn.onnx
    onnxfi convert cnn.pt --factory nets:make --input-shape N,1,28,28 -o cnn.onnx
    onnxfi convert cnn.keras --data images.npz -o cnn.onnx
    """
    from onnxfi.converters import convert
    from onnxfi.errors import ConversionError

    if factory is not None:
        framework, flags["factory"] = framework or "torch", factory
        if framework != "torch":
            raise click.UsageError(
                f"--factory is for PyTorch checkpoints; give module:factory as SOURCE for {framework}"
            )
    try:
        with _muted():
            done = convert(source, out, framework=framework, **flags)
    except ConversionError as error:
        _print_details(error)
        raise
    if as_json:
        print_json(_document(done))
    else:
        _print(done)
        for text in done.notes:
            print_note(text)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Discard what native code of frameworks writes to standard output and error, unless the log level is DEBUG."""
    if os.environ.get("ONNXFI_LOG_LEVEL", "").upper() == "DEBUG":
        yield
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    originals = [os.dup(number) for number in (1, 2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(null, number)
        yield
    finally:
        for number, original in zip((1, 2), originals, strict=True):
            os.dup2(original, number)
            os.close(original)
        os.close(null)


def _print_details(error: ConversionError) -> None:
    """Print the error text of the framework or factory in a frame."""
    from onnxfi.graph.model.byte_source import printable

    lines = [printable(line) for line in error.details.splitlines()]
    if len(lines) < 2:
        return
    shown = lines if len(lines) <= 24 else [*lines[:12], "…", *lines[-11:]]
    click.echo("\n".join(["╭─", *(f"│ {line}" for line in shown), "╰─"]), err=True)


def _document(done: Converted) -> dict[str, Any]:
    def rows(ports: Any) -> list[dict[str, Any]]:
        return [{"name": p.name, "dtype": p.dtype, "shape": None if p.shape is None else list(p.shape)} for p in ports]

    return {
        "source": done.source, "framework": done.framework, "version": done.version, "opset": done.opset,
        "inputs": rows(done.inputs), "outputs": rows(done.outputs), "layers": list(done.layers), "words": done.words,
        "data": done.data, "samples": done.samples, "largest_difference": done.largest, "relative_difference": done.relative,
        "at_output": done.output, "tolerance": done.tolerance, "size_bytes": done.size_bytes,
        "output": str(done.out), "output_digest": done.digest, "notes": list(done.notes),
    }  # fmt: skip


def _print(done: Converted) -> None:

    print_line(f"{done.source}: {done.framework} {done.version}, opset {done.opset}")
    print_line(f"inputs {', '.join(map(str, done.inputs))}; outputs {', '.join(map(str, done.outputs))}")
    shown = ", ".join(done.layers[:12]) + (f" and {len(done.layers) - 12} more" if len(done.layers) > 12 else "")
    print_line(f"{count(done.words, 'stored number')} in {count(len(done.layers), 'layer')}: {shown}")
    print_line(
        f"largest difference from {done.framework}: {done.largest:.2g}, relative {done.relative:.2g} "
        f"(tolerance {done.tolerance:g}), on {done.data}"
    )
    print_line(f"wrote {done.out}, sha256 {done.digest}")
