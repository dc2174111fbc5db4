"""`onnxfi merge OUT IN…`: merge stores of one campaign."""

from __future__ import annotations

from pathlib import Path

import click

from onnxfi.cli.options import JSON, PATH, verb
from onnxfi.cli.streams import STORE
from onnxfi.cli.terminal import count, print_json, print_line

_OPTIONS = (
    click.argument("out", type=PATH),
    click.argument("stores", metavar="IN…", nargs=-1, required=True, type=STORE),
)  # fmt: skip


@verb("merge", "Merge several stores of one campaign.", *_OPTIONS, JSON)
def command(out: Path, stores: tuple[Path, ...], as_json: bool) -> None:
    """Merge several stores of one campaign into OUT; a trial that is in several counts once.

    An existing OUT keeps its trials.
    """
    from onnxfi.campaign.results.merge import merge
    from onnxfi.campaign.results.store import Store

    results = merge(out, stores)
    with Store.open(out) as opened:
        planned = opened.count("plan")
    if as_json:
        print_json({"store": str(out), "trials": results, "planned": planned, "merged": len(stores)})
    else:
        print_line(f"{out}: {results:,} of {planned:,} trials, from {count(len(stores), 'store')}")
