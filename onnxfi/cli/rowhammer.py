"""`onnxfi rowhammer MODEL TEMPLATES`: which flips of a memory hit which weights."""

from __future__ import annotations

from pathlib import Path

import click

from onnxfi.cli.options import JSON, LINKS, MODEL, PATH, verb
from onnxfi.cli.streams import OUTPUT, InputFile
from onnxfi.cli.terminal import count, print_json, print_line, table, value_change

_OPTIONS = (
    click.argument("templates", metavar="TEMPLATES.json", type=InputFile(".json")),
    click.option("--memory-layout", type=PATH, metavar="LAYOUT.json", help="Where the files lie in memory (default: any page may)."),
    click.option("--save-faults", type=OUTPUT, metavar="FILE", help="Write the flips as a fault list, each a trial."),
)  # fmt: skip


@verb("rowhammer", "Print which Rowhammer flips hit which weights of MODEL.", MODEL, *_OPTIONS, LINKS, JSON)
def command(
    model: Path, templates: Path, memory_layout: Path | None, save_faults: Path | None, allow_links: bool, as_json: bool
) -> None:
    """Match the flips that a memory is known to have (page offset, bit, direction) against the stored bits of MODEL.

    \b
    onnxfi rowhammer model.onnx templates.json --save-faults flips.jsonl
    onnxfi run model.onnx --data images.npz --faults flips.jsonl
    """
    from onnxfi.attacks.rowhammer import rowhammer
    from onnxfi.faults.faultlist import fault_row
    from onnxfi.graph.model.loading import load
    from onnxfi.graph.write.output_file import check_output_files

    opened = load(model, allow_links=allow_links)
    if save_faults is not None:
        check_output_files(opened, [save_faults], copy=False)
    found = rowhammer(opened, templates, memory_layout)
    if save_faults is not None and len(found):
        found.write(save_faults)
    if as_json:
        matches = [*found.rows()]
        print_json({"templates": len(found.templates), "candidates": found.candidates, "matches": matches})
        return
    largest = [(k, found.faults[k]) for k in found.largest()]
    rows = [
        (found.template[k], found.page[k], fault.site, fault.fault, value_change(fault_row(k + 1, fault)))
        for k, fault in largest
    ]
    if rows:
        table("Largest changes", (">Template", ">Page", "Site", "Fault", "Value"), rows)
    used = len(set(found.template.tolist()))
    print_line(
        f"{count(len(found.templates), 'template')}, {used:,} of which flip weights: {count(len(found), 'flip')} of "
        f"{count(found.candidates, 'bit')} under them"
    )
    if save_faults is not None and len(found):
        print_line(f"wrote {save_faults}")
    elif save_faults is not None:
        print_line(f"no flip, so {save_faults} is not written")
