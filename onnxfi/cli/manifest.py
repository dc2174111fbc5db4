"""`onnxfi manifest MODEL`: write a hash for each tensor."""

from __future__ import annotations

from pathlib import Path

import click

from onnxfi.cli.options import JSON, LINKS, MODEL, verb
from onnxfi.cli.streams import OUTPUT
from onnxfi.cli.terminal import count, print_json, print_line

_OPTIONS = (
    click.option("-o", "--out", type=OUTPUT, metavar="FILE", help="Manifest to write (default: MODEL.manifest.json in this folder)."),
    click.option("--workers", type=click.IntRange(1), metavar="N", help="Threads that read and hash (default: one a processor)."),
)  # fmt: skip


@verb("manifest", "Write a hash for each tensor of MODEL.", MODEL, *_OPTIONS, LINKS, JSON)
def command(model: Path, out: Path | None, workers: int | None, allow_links: bool, as_json: bool) -> None:
    """Write a manifest of MODEL: a hash for each tensor, for the structure, and for the whole file.

    onnxfi verify finds by it which tensors have changed, without the original at hand.

    \b
    onnxfi manifest model.onnx
    onnxfi verify model.onnx model.onnx.manifest.json
    """
    from onnxfi.analysis.manifest import manifest
    from onnxfi.graph.model.loading import load
    from onnxfi.graph.write.output_file import check_output_files

    file = out or Path(f"{model.name}.manifest.json")
    opened = load(model, allow_links=allow_links)
    check_output_files(opened, [file], copy=False)
    found = manifest(opened, workers=workers)
    found.write(file)
    if as_json:
        print_json({"manifest": str(file), "digest": found.digest, "tensors": len(found.tensors)})
    else:
        print_line(f"wrote {file}: {count(len(found.tensors), 'tensor')}, sha256 {found.digest}")
