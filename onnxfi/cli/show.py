"""`onnxfi show STORE TRIAL`: one trial with its faults and its outcome."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnxfi.cli.campaign_options import STORE_ARGUMENT
from onnxfi.cli.options import JSON, verb
from onnxfi.cli.streams import OUTPUT
from onnxfi.cli.terminal import count, number, print_json, print_line, table, value_change

_OPTIONS = (
    click.argument("trial", type=click.IntRange(1)),
    click.option("--export", type=OUTPUT, metavar="FILE", help="Write the faulty model of the trial."),
)  # fmt: skip


@verb(
    "show", "Show the faults and the outcome of one trial, or export its faulty model.", STORE_ARGUMENT, *_OPTIONS, JSON
)
def command(store: Path, trial: int, export: Path | None, as_json: bool) -> None:
    """Show the faults of one trial, word by word, and its outcome."""
    from onnxfi.campaign.execute.export_trial import export_trial
    from onnxfi.campaign.results.store import Store

    with Store.open(store) as opened:
        found = opened.trial(trial)
    rows = [json.loads(line) for line in found.pop("lines").splitlines()]
    if export is not None:
        export_trial(store, trial, export)
    if as_json:
        print_json({**found, "rows": rows, "output": None if export is None else str(export)})
        return
    _print(store, found, rows)
    if export is not None:
        print_line(f"wrote {export}")


def _site(row: dict[str, Any]) -> str:
    scope = "".join(f"@{key}={row[key]}" for key in ("sample", "step", "from") if key in row)
    return f"{row['target']}[{row['index']}]{scope}"


def _print(store: Path, found: dict[str, Any], rows: list[dict[str, Any]]) -> None:

    result = found["result"]
    cause = f" ({result['cause']})" if result and result["cause"] else ""
    route = f"; route: {result['route']}" if result else ""
    outcome = f"{result['outcome'].upper()}{cause}{route}" if result else "not run yet"
    print_line(f"trial {found['trial']} of {store}: {count(found['faults'], 'fault')}; {outcome}")
    if faults := [row for row in rows if "target" in row]:
        cells = [
            (
                _site(r), ", ".join(map(str, r["bits"] or ["word"])), r["fault"],
                value_change(r) if r["before"] else "", "activation" if r["before"] is None else f"{r['before']} → {r['after']}",
            )
            for r in faults
        ]  # fmt: skip
        table("Faults", ("Site", "Bits", "Fault", "Value", "Word"), cells)
    for row in rows:
        if "sampler" in row and row["n"]:
            table("Recipe", ("Key", "Value"), [(key, value) for key, value in row.items() if key != "before"])
    if result and result["words"]:
        words = [(_site(r), value_change(r), f"{r['before']} → {r['after']}") for r in result["words"]]
        table("Words as they were injected", ("Site", "Value", "Word"), words)
    if result:
        values = [(k, v if isinstance(v, str) else number(v)) for k, v in result["metrics"].items()]
        table("Metrics", ("Metric", ">Value"), values)
    if found["error"]:
        print_line("the harness failed on this trial:")
        for line in found["error"].splitlines():
            print_line("  " + line)
