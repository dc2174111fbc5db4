"""`onnxfi merge OUT IN…`: one store from several."""

from __future__ import annotations

from pathlib import Path

import click

from onnxfi.cli.options import JSON, PATH


@click.command("merge", short_help="Put several stores of one campaign together.")
@click.argument("out", type=PATH)
@click.argument("stores", metavar="IN…", nargs=-1, required=True, type=PATH)
@JSON
def command(out: Path, stores: tuple[Path, ...], as_json: bool) -> None:
    """Put the union of several stores of one campaign into OUT; what is there twice counts once.

    An OUT that is there already keeps what it has.
    """
    from onnxfi.campaign.results.merge import merge
    from onnxfi.campaign.results.store import Store
    from onnxfi.cli.terminal import count, document, say

    results = merge(out, stores)
    with Store.open(out) as opened:
        planned = opened.count("plan")
    if as_json:
        document({"store": str(out), "trials": results, "planned": planned, "merged": len(stores)})
    else:
        say(f"{out}: {results:,} of {planned:,} trials, from {count(len(stores), 'store')}")
