"""`onnxfi quantize MODEL`: convert a float model to integers or narrower floats."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli import options
from onnxfi.cli.options import JSON, LINKS, MODEL, RUN, verb
from onnxfi.cli.streams import OUTPUT
from onnxfi.cli.terminal import count, number, print_json, print_line, print_note, table

if TYPE_CHECKING:
    from onnxfi.runtime.quantize.quantize import Quantised
    from onnxfi.tasks.evaluation import Evaluation

_OPTIONS = (
    click.option("--mode", required=True, metavar="MODE", help="Mode: static, dynamic, weight-only, fp16 or bf16; int8 is dynamic with --per-channel, int4 weight-only."),
    click.option("--format", default="", metavar="FORMAT", help="Format: qdq or qoperator (default: static qdq, weight-only qoperator)."),
    click.option("--weights", default="", metavar="TYPE", help="Type of weights: int8, uint8, int4 or uint4 (default: weight-only int4, else int8)."),
    click.option("--activations", default="", metavar="TYPE", help="Type of activations, static: uint8, int8, uint16 or int16 (default on x86: uint8)."),
    click.option("--per-channel", is_flag=True, help="Use a scale for each output channel of a weight."),
    click.option("--calibration", default="", metavar="METHOD", help="Calibration method, static: minmax, entropy or percentile (default: minmax)."),
    click.option("--calibration-samples", type=int, default=200, show_default=True, metavar="N", help="Calibrate on the first N samples, static."),
    click.option("--block", type=int, default=32, show_default=True, metavar="N", help="Elements that share a scale, weight-only."),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave these nodes, layers or weights in float. Repeatable."),
    click.option("--opset", type=int, metavar="N", help="Raise the model's opset first."),
    *RUN,
    click.option("-o", "--out", type=OUTPUT, required=True, metavar="OUT", help="Model to write."),
)  # fmt: skip


@verb("quantize", "Quantise MODEL with ONNX Runtime and compare it with the original.", MODEL, *_OPTIONS, LINKS, JSON)
def command(model: Path, mode: str, out: Path, as_json: bool, allow_links: bool, **flags: Any) -> None:
    """Quantise MODEL, and print its size and, with labelled data, its accuracy before and after.

    Inputs and outputs stay float32, so that all versions use the same data. Static mode calibrates on --data.

    \b
    onnxfi quantize cnn.onnx --mode static --per-channel --data images.npz -o cnn_int8.onnx
    onnxfi quantize gpt.onnx --mode int4 -o gpt_int4.onnx
    """
    from onnxfi.graph.model.loading import load
    from onnxfi.runtime.quantize.quantize import quantize
    from onnxfi.runtime.quantize.recipe import QuantisationRecipe

    if flags["data"] is None:
        options.refuse_flags(options.RUN_PARAMETERS, "without --data, as nothing is run")
    if mode != "static":
        options.refuse_flags(("calibration_samples",), f"in mode {mode}")
    recipe = QuantisationRecipe(mode, **{field.name: flags[field.name] for field in fields(QuantisationRecipe)[1:]})
    opened = load(model, allow_links=allow_links)
    data = evaluated = golden = after = None
    if flags["data"] is not None:
        data, evaluated = options.evaluator(model, opened, flags)
        golden = evaluated(None, None, None)
    done = quantize(opened, recipe, out, data=data)
    if evaluated is not None:
        after = evaluated(out, golden, None)
    if as_json:
        print_json(_document(str(model), opened.digest, done, golden, after))
    else:
        _print(str(model), done, golden, after)
        for text in done.notes:
            print_note(text)


def _document(
    model: str, digest: str, done: Quantised, golden: Evaluation | None, after: Evaluation | None
) -> dict[str, Any]:
    r = done.recipe
    values: dict[str, Any] = {
        "model": model, "digest": digest, "output": str(done.out), "output_digest": done.digest, "mode": r.mode,
        "format": r.format or None, "weights": r.weights or None, "activations": r.activations or None, "per_channel": r.per_channel,
        "calibration": r.calibration or None, "size_before_bytes": done.size_before_bytes, "size_after_bytes": done.size_after_bytes,
        "quantised": [{"op": op, "tensors": n} for op, n in done.layers.items()], "left_in_float": [{"node": node, "op": op} for node, op in done.left], "excluded": list(done.excluded),
        "words": done.words, "clipped": done.clipped, "flushed": done.flushed, "relative_error": done.relative_error, "notes": list(done.notes),
    }  # fmt: skip
    if golden is not None and after is not None:
        values |= {"before": golden.summary(), "after": after.summary()}
    return values


def _print(model: str, done: Quantised, golden: Evaluation | None, after: Evaluation | None) -> None:

    r = done.recipe
    words = [r.mode, r.format, r.weights and f"{r.weights} weights", r.activations and f"{r.activations} activations"]
    words += [
        "per channel" if r.per_channel else "",
        f"{r.calibration} on {min(r.calibration_samples, golden.samples):,} samples"
        if r.calibration and golden
        else "",
    ]
    print_line(f"{model}: {', '.join(word for word in words if word)}")
    tensors = ", ".join(f"{op} {n}" for op, n in done.layers.items())
    print_line(f"quantised weights: {tensors}")
    if done.excluded:
        print_line(f"left in float by --exclude: {', '.join(done.excluded)}")
    if done.left:
        named = ", ".join(f"{node} ({op})" for node, op in done.left[:12]) + (
            f" and {len(done.left) - 12} more" if len(done.left) > 12 else ""
        )
        print_line(f"left in float, since this mode cannot quantise it: {named}")
    print_line(
        f"of {count(done.words, 'stored number')} {done.clipped:,} were clipped and {done.flushed:,} flushed to zero"
    )
    if done.relative_error is not None:
        print_line(f"outputs differ from the float model's by {done.relative_error:.2%} (relative L2)")
    rows: list[tuple[str, ...]] = [("size, bytes", f"{done.size_before_bytes:,}", f"{done.size_after_bytes:,}")]
    if golden is not None and after is not None:
        rows += [
            (
                name,
                *(number(found.metrics.get(name), share=golden.task.metric(name).share) for found in (golden, after)),
            )
            for name in after.metrics
        ]
    table("Before and after", ("Metric", ">Before", ">After"), rows)
    if after is not None:
        print_line(after.conditions())
    print_line(f"wrote {done.out}, sha256 {done.digest}")
