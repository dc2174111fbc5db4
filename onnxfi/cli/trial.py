"""`onnxfi show STORE TRIAL`: everything about one trial."""

from __future__ import annotations

import json
from pathlib import Path

import click

from onnxfi.cli.options import JSON
from onnxfi.cli.report import STORE


@click.command("show")
@STORE
@click.argument("trial", type=click.IntRange(1))
@click.option("--export", type=click.Path(path_type=Path), metavar="FILE", help="Write the trial's faulty model.")
@JSON
def command(store: Path, trial: int, export: Path | None, as_json: bool) -> None:
    """Print what a trial struck, word by word, and what came of it."""
    from onnxfi.campaign.runner import export_trial
    from onnxfi.campaign.store import Store
    from onnxfi.cli.show import change, document, say, table

    with Store.open(store) as opened:
        found = opened.trial(trial)
    rows = [json.loads(line) for line in found["lines"].splitlines()]
    if export is not None:
        export_trial(store, trial, export)
    if as_json:
        document(
            {
                **{k: v for k, v in found.items() if k != "lines"},
                "rows": rows,
                "output": str(export) if export else None,
            }
        )
        return
    done = found["result"]
    say(
        f"trial {trial} of {store}: {found['faults']:,} faults; " + (done["outcome"].upper() if done else "not run yet")
    )
    if rows and "sampler" in rows[0]:
        table("Recipe", ("Key", "Value"), list(rows[0].items()))
    elif rows:
        cells = [
            (
                f"{r['target']}[{r['index']}]",
                r["bits"] or "word",
                r["fault"],
                change(r),
                f"{r['before']} → {r['after']}",
            )
            for r in rows
        ]
        table("Faults", ("Place", "Bits", "Fault", "Value", "Word"), cells)
    if done:
        table(
            "Metrics",
            ("Metric", ">Value"),
            [(k, v if isinstance(v, str) else f"{v:.6g}") for k, v in done["metrics"].items()],
        )
    if found["error"]:
        say("the harness failed on it:")
        for line in found["error"].splitlines():
            say("  " + line)
    if export is not None:
        say(f"wrote {export}")
