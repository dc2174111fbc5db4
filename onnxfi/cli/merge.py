"""`onnxfi merge OUT IN…`: one store from several."""

from __future__ import annotations

from pathlib import Path

import click

from onnxfi.cli.options import JSON


@click.command("merge")
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("stores", metavar="IN…", nargs=-1, required=True, type=click.Path(path_type=Path))
@JSON
def command(out: Path, stores: tuple[Path, ...], as_json: bool) -> None:
    """Put the union of several stores of one campaign into OUT; what is there twice counts once."""
    from onnxfi.campaign.store import merge
    from onnxfi.cli.show import document, say

    results = merge(out, stores)
    if as_json:
        document({"store": str(out), "trials": results})
    else:
        say(f"{out}: {results:,} results of {len(stores)} stores")
