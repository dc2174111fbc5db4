"""`onnxfi verify MODEL MANIFEST`: find the tensors that have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxfi.cli.options import JSON, LINKS, MODEL, SELECT, SELECTION, refuse_flags, selector_of, verb
from onnxfi.cli.streams import InputFile
from onnxfi.cli.terminal import count, print_json, print_line, table

_OPTIONS = (
    click.argument("manifest_file", metavar="MANIFEST", type=InputFile(".json")),
    *SELECT,
    click.option("--workers", type=click.IntRange(1), metavar="N", help="Threads that read and hash (default: one a processor)."),
)  # fmt: skip


@verb("verify", "Compare MODEL with its manifest, tensor by tensor.", MODEL, *_OPTIONS, LINKS, JSON)
def command(
    model: Path, manifest_file: Path, workers: int | None, allow_links: bool, as_json: bool, **flags: Any
) -> None:
    """Compare MODEL with its manifest, and name the tensors that differ. Exit code 1: the model is not whole.

    \b
    onnxfi verify model.onnx model.onnx.manifest.json
    onnxfi verify model.onnx model.onnx.manifest.json --include 'layers.0.*'
    """
    from onnxfi.analysis.manifest import verify
    from onnxfi.graph.model.loading import load

    refuse_flags(("bits", "elements"), "as whole tensors are hashed")
    selector = selector_of(flags) if any(flags[name] for name in SELECTION) else None
    found = verify(load(model, allow_links=allow_links), manifest_file, selector=selector, workers=workers)
    if as_json:
        print_json(found.document())
    else:
        if found.changed:
            rows = [(name, ", ".join(f"{a:,}-{b:,}" for a, b in ranges)) for name, ranges in found.changed.items()]
            table("Changed tensors", ("Tensor", "Bytes of the tensor"), rows)
        for name in found.missing:
            print_line(f"missing, or of another format or shape: {name}")
        for name in found.added:
            print_line(f"not in the manifest: {name}")
        if not found.structure:
            print_line("the structure differs: operators, attributes, names or shapes")
        state = "whole" if found.whole else "not whole"
        same = (
            ""
            if found.same_bytes is not False or not found.whole
            else "; the file stores the same numbers in another way"
        )
        print_line(f"{model}: {state}, {count(found.tensors, 'tensor')} compared{same}")
    if not found.whole:
        raise SystemExit(1)
