"""`onnxfi plan MODEL`: which trials a campaign has, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli.campaign_options import SOURCE, campaign, campaign_options
from onnxfi.cli.options import JSON, PATH

if TYPE_CHECKING:
    from onnxfi.campaign.report.cost_estimate import Cost


@click.command("plan", short_help="Say which trials a campaign on MODEL has, and what they cost.")
@SOURCE
@campaign_options
@click.option("-o", "--out", type=PATH, metavar="PLAN.jsonl", help="Write every trial as a fault list.")
@click.option(
    "--times",
    type=PATH,
    metavar="STORE",
    help="Reckon the cost from the times of the trials in this store, a small campaign on the same model.",
)
@click.option("--print-spec", is_flag=True, help="Print the campaign as a YAML spec instead.")
@JSON
def command(source: Path, out: Path | None, times: Path | None, print_spec: bool, as_json: bool, **given: Any) -> None:
    """Say how many trials a campaign has and what they cost, and write them as a fault list.

    With --data, golden is run for the estimate of the cost; with --times, trials that were run already say it.

    \b
    onnxfi plan model.onnx --single --margin 0.01 --confidence 0.99
    onnxfi plan model.onnx --ber 1e-7:1e-3 -o plan.jsonl
    onnxfi plan model.onnx --data images.npz --ber 1e-7:1e-3 --print-spec > campaign.yaml
    onnxfi plan model.onnx --single --trials 1000000 --times small.onnxfi.db
    """
    from onnxfi.campaign.execute.runner import plan, planned
    from onnxfi.campaign.plan.plan import write_plan
    from onnxfi.campaign.report.cost_estimate import recorded
    from onnxfi.campaign.spec import spec_file
    from onnxfi.cli.run import duration
    from onnxfi.cli.terminal import document, progress, say
    from onnxfi.graph.write.output_file import check_output_files

    wanted = campaign(source, given)
    if print_spec:
        if out is not None or times is not None or as_json:
            raise click.UsageError("--print-spec goes with none of --out, --times and --json")
        click.echo(spec_file.print_spec(wanted), nl=False)
        return
    if out is not None:  # said before anything is run
        check_output_files(None, [out])
    cost, trial_s = None, None
    if times is None:
        made, trial_s = plan(wanted)
    else:
        made = planned(wanted)
        cost = recorded(times, made.model.digest, wanted.confidence)
        trial_s = cost.seconds.estimate
    if out is not None:
        with progress("planning") as tell:
            write_plan(made, out, progress=tell)
    if as_json:
        strata = [{**g.told(), "population": g.population, "trials": g.trials} for g in made.groups]
        rounds = None
        if wanted.adaptive:
            rounds = {
                "rate": wanted.rate, "method": wanted.method, "margin": wanted.margin,
                "relative_margin": wanted.relative_margin, "fewest": made.fewest, "fixed_size": made.fixed_size,
            }  # fmt: skip
        document({
            "model": wanted.model, "digest": made.model.digest, "way": wanted.way,
            "trials": None if wanted.adaptive else len(made), "adaptive": rounds,
            "population": made.header.population, "unit": made.header.unit, "confidence": wanted.confidence,
            "margin": wanted.margin if made.margin is None else made.margin, "strata": strata,
            "output": None if out is None else str(out), "trial_s": trial_s,
            "times": None if cost is None else cost.row(),
        })  # fmt: skip
        return
    for line in made.describe():
        say(line)
    if trial_s is None:
        say("with --data one trial is timed, and says what all of them cost")
    else:
        told = f"one trial takes about {trial_s:.2g} s" if cost is None else _told(cost)
        most, which = (made.fewest, "the fewest") if wanted.adaptive else (len(made), "all of them some")
        say(f"{told}, {which} {duration(most * trial_s)} on one core")
    if out is not None:
        say(f"wrote {out}")


def _told(cost: Cost) -> str:
    from onnxfi.cli.terminal import count

    i, of = cost.seconds, f"{count(cost.trials, 'trial')} of {cost.store} on {count(cost.samples, 'sample')}"
    return f"{of} took {i.estimate:.3g} s each [{max(0.0, i.low):.3g}, {i.high:.3g}]"
