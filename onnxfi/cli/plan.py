"""`onnxfi plan MODEL`: which trials a campaign has, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxfi.cli.campaign_options import SOURCE, campaign, campaign_options
from onnxfi.cli.options import JSON


@click.command("plan")
@SOURCE
@campaign_options
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="PLAN.jsonl", help="Write every trial as a fault list."
)
@click.option("--print-spec", is_flag=True, help="Print the campaign as a YAML spec instead.")
@JSON
def command(source: Path, out: Path | None, print_spec: bool, as_json: bool, **given: Any) -> None:
    """Say how many trials a campaign has and what they cost, and write them as a fault list.

    With --data, golden is run once for the estimate of the cost.
    """
    from onnxfi.campaign import spec
    from onnxfi.campaign.plan import write_plan
    from onnxfi.campaign.runner import plan
    from onnxfi.cli.show import document, progress, say

    wanted = campaign(source, given)
    if print_spec:
        click.echo(spec.print_spec(wanted), nl=False)
        return
    made, golden_s = plan(wanted)
    if out is not None:
        with progress("planning") as tell:
            write_plan(made, out, progress=tell)
    if as_json:
        strata = [{"label": g.label, "population": g.population, "trials": g.trials} for g in made.groups]
        document({
            "model": wanted.model, "digest": made.model.digest, "way": wanted.way, "trials": len(made),
            "population": made.header.population, "unit": made.header.unit, "confidence": wanted.confidence,
            "margin": made.margin, "strata": strata, "output": None if out is None else str(out), "golden_s": golden_s,
        })  # fmt: skip
        return
    for line in made.describe():
        say(line)
    if golden_s is not None:
        say(
            f"one golden run takes {golden_s:.2f} s, so all trials some {len(made) * golden_s * 1.3:,.0f} s of one core"
        )
    if out is not None:
        say(f"wrote {out}")
