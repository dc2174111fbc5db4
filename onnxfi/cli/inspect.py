"""`onnxfi inspect MODEL`: what can be struck."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxfi.cli.options import JSON, LINKS, MODEL, select_options, selector


@click.command("inspect", short_help="List what can be struck in MODEL.")
@MODEL
@select_options
@LINKS
@JSON
def command(model: Path, as_json: bool, allow_links: bool, **given: Any) -> None:
    """List what can be struck in MODEL: layers, targets, operators, number formats, shapes, bits.

    The selectors are those of `onnxfi inject`, so that a selection can be tried before it is used. Integer tensors that
    only carry shapes or indices are counted apart; --include '=NAME' names one that shall be struck all the same.
    """
    from onnxfi.cli.show import count, document, note, say, table
    from onnxfi.graph.model import load
    from onnxfi.runtime.injector import inspect

    found = inspect(load(model, allow_links=allow_links), selector(given))
    if as_json:
        document(found)
        return
    totals = found["totals"]
    rows = [
        (t["layer"], t["target"], t["op"], t["dtype"], "×".join(map(str, t["shape"])) or "scalar", f"{t['elements']:,}", f"{t['bits']:,}")
        for t in found["targets"]
    ]  # fmt: skip
    footer = (
        "",
        count(totals["targets"], "target"),
        "",
        "",
        "",
        f"{totals['elements']:,}",
        f"{totals['bits']:,}",
    )
    columns = ("Layer", "Target", "Op", "Type", "Shape", ">Elements", ">Bits")
    table(str(model), columns, rows, footer=footer)
    opsets = ", ".join(f"{o['domain'] or 'ai.onnx'} {o['version']}" for o in found["opsets"])
    say(f"IR {found['ir']}, opsets {opsets}, made by {found['producer'] or 'unknown'}")
    say(f"sha256 {found['digest']}")
    if found["left_out"]:
        say(
            f"{count(found['left_out'], 'integer tensor')} left out, for shapes or indices only; --include '=NAME' names one"
        )
    for text in found["notes"]:
        note(text)
