"""`onnxfi show STORE TRIAL`: everything about one trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnxfi.cli.campaign_options import STORE
from onnxfi.cli.options import JSON, PATH


@click.command("show", short_help="Print everything about one trial; write its faulty model.")
@STORE
@click.argument("trial", type=click.IntRange(1))
@click.option("--export", type=PATH, metavar="FILE", help="Write the trial's faulty model.")
@JSON
def command(store: Path, trial: int, export: Path | None, as_json: bool) -> None:
    """Print what a trial struck, word by word, and what came of it."""
    from onnxfi.campaign.execute.export_trial import export_trial
    from onnxfi.campaign.results.store import Store
    from onnxfi.cli.terminal import document, say

    with Store.open(store) as opened:
        found = opened.trial(trial)
    rows = [json.loads(line) for line in found.pop("lines").splitlines()]
    if export is not None:
        export_trial(store, trial, export)
    if as_json:
        document({**found, "rows": rows, "output": None if export is None else str(export)})
        return
    _print(store, found, rows)
    if export is not None:
        say(f"wrote {export}")


def _place(row: dict[str, Any]) -> str:
    times = "".join(f"@{key}={row[key]}" for key in ("sample", "step", "from") if key in row)
    return f"{row['target']}[{row['index']}]{times}"


def _print(store: Path, found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from onnxfi.cli.terminal import change, count, number, say, table

    done = found["result"]
    cause = f" ({done['cause']})" if done and done["cause"] else ""
    route = f"; route: {done['route']}" if done else ""
    outcome = f"{done['outcome'].upper()}{cause}{route}" if done else "not run yet"
    say(f"trial {found['trial']} of {store}: {count(found['faults'], 'fault')}; {outcome}")
    if faults := [row for row in rows if "target" in row]:
        cells = [
            (
                _place(r), ", ".join(map(str, r["bits"] or ["word"])), r["fault"],
                change(r) if r["before"] else "", "in flight" if r["before"] is None else f"{r['before']} → {r['after']}",
            )
            for r in faults
        ]  # fmt: skip
        table("Faults", ("Place", "Bits", "Fault", "Value", "Word"), cells)
    for row in rows:
        if "sampler" in row and row["n"]:
            table("Recipe", ("Key", "Value"), [(key, value) for key, value in row.items() if key != "before"])
    if done:
        values = [(k, v if isinstance(v, str) else number(v)) for k, v in done["metrics"].items()]
        table("Metrics", ("Metric", ">Value"), values)
    if found["error"]:
        say("the harness failed on it:")
        for line in found["error"].splitlines():
            say("  " + line)
