"""`onnxfi protect MODEL`: put protections into a model's graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli import options
from onnxfi.cli.options import CODE, JSON, LINKS, PATH, PIPELINE, RUN, verb
from onnxfi.cli.streams import OUTPUT
from onnxfi.cli.terminal import count, print_json, print_line, print_note, table

if TYPE_CHECKING:
    from onnxfi.protection.protect import Protected

_WITHOUT_EFFECT = ("output", "task", "metric", "time_axis")


_OPTIONS = (
    click.option("--with", "protections", multiple=True, metavar="WHAT", help="Protection: range:clip, range:zero, range:average, range:tuned, nan-filter, duplicate, triplicate, checksum or clip-weights, with parameters as range:clip:percentile=99.9,per=channel. Repeatable."),
    click.option("--include", multiple=True, metavar="PATTERN", help="Protect these activations, nodes or layers instead of the default ones. Repeatable."),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave these activations, nodes or layers unprotected. Repeatable."),
    click.option("--op", multiple=True, metavar="PATTERN", help="Protect the outputs of these operators instead of the default ones. Repeatable."),
    click.option("--stage", metavar="NAME", help="Stage of a pipeline whose model is protected."),
    click.option("--plan", type=PATH, metavar="FILE", help="Plan of onnxfi plan-protection, instead of --with."),
    click.option("--opset", type=int, metavar="N", help="Raise the model's opset first."),
    *RUN,
    click.option("-o", "--out", type=OUTPUT, required=True, metavar="OUT", help="Model to write."),
)  # fmt: skip


@verb("protect", "Put protections into MODEL, in plain ONNX operators.", PIPELINE, *_OPTIONS, LINKS, CODE, JSON)
def command(
    model: Path, protections: tuple[str, ...], plan: Path | None, out: Path, as_json: bool, **flags: Any
) -> None:
    """Write MODEL with protections in its graph, and compare its fault-free outputs with the original's.

    Ranges of activations are taken from --data, which must not be what the model is scored on later. The result is
    plain ONNX that any runtime loads. onnxfi compare A B --paired says what the protection gains and costs. Of a
    pipeline (docs/reference/pipeline.md) the model of one stage is protected, calibrated on what the stages in front of
    it give; name the written file in the pipeline in its place.

    \b
    onnxfi protect cnn.onnx --data calibration.npz --with range:clip --with nan-filter -o protected.onnx
    onnxfi protect cnn.onnx --data calibration.npz --with range:zero:per=channel -o protected.onnx
    onnxfi protect pipeline.yaml --stage reader --data pages.npz --with range:clip -o reader.onnx
    onnxfi protect cnn.onnx --plan plan.yaml -o protected.onnx
    """  # fmt: skip
    from onnxfi.faults.space import Selector
    from onnxfi.protection.protect import protect
    from onnxfi.protection.protection_plan import load_protection_plan

    options.refuse_flags(_WITHOUT_EFFECT, "as nothing is scored here")
    if not protections and plan is None:
        raise click.UsageError("nothing says what to protect with; give --with WHAT, as range:clip, or --plan FILE")
    planned = None if plan is None else load_protection_plan(plan)
    opened, engine = options.stage_of(model, flags), options.engine_of(flags)
    dataset = options.calibration_of(model, opened, flags, engine)
    selector = Selector(**{name: flags[name] for name in ("include", "exclude", "op")})
    done = protect(
        opened, protections, out, selector=selector, data=dataset, engine=engine, batch=flags["batch"],
        opset=flags["opset"], plan=planned,
    )  # fmt: skip
    if as_json:
        print_json(_document(str(model), opened.digest, done, None if dataset is None else dataset.description))
    else:
        _print(str(model), done, None if dataset is None else dataset.description)
        for text in (*opened.notes, *done.notes):
            print_note(text)


def _document(model: str, digest: str, done: Protected, data: str | None) -> dict[str, Any]:
    from onnxfi.faults.trials import json_value

    fault_free = done.fault_free
    return {
        "model": model, "digest": digest, "output": str(done.out), "output_digest": done.digest, "calibration": data,
        "protections": [{"protection": text, "tensors": list(tensors)} for text, tensors in done.tensors.items()],
        "fault_free": {"samples": fault_free.samples, "changed": fault_free.changed, "largest": json_value(fault_free.largest), "rounding": fault_free.rounding},
        "nodes_before": done.nodes_before, "nodes_after": done.nodes_after,
        "size_before_bytes": done.size_before_bytes, "size_after_bytes": done.size_after_bytes,
        "notes": list(done.notes),
    }  # fmt: skip


def _print(model: str, done: Protected, data: str | None) -> None:

    rows = [
        (text, count(len(tensors), "tensor"), ", ".join(tensors[:6]) + (", …" if len(tensors) > 6 else ""))
        for text, tensors in done.tensors.items()
    ]
    table(f"{model}, protected", ("Protection", ">Covers", "Tensors"), rows)
    table(
        "Before and after",
        ("Cost", ">Before", ">After"),
        [
            ("nodes", f"{done.nodes_before:,}", f"{done.nodes_after:,}"),
            ("size, bytes", f"{done.size_before_bytes:,}", f"{done.size_after_bytes:,}"),
        ],
    )
    if data is not None:
        print_line(f"calibrated on {data}")
    print_line(str(done.fault_free))
    print_line(f"wrote {done.out}, sha256 {done.digest}")
