"""`onnxfi plan MODEL`: the trials of a campaign and their cost, before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli.campaign_options import CAMPAIGN, SOURCE, campaign_of
from onnxfi.cli.options import JSON, PATH, verb
from onnxfi.cli.streams import OUTPUT
from onnxfi.cli.terminal import count, print_json, print_line, progress

if TYPE_CHECKING:
    from onnxfi.campaign.plan.plan import Plan
    from onnxfi.campaign.results.trial_cost import Cost


_OPTIONS = (
    click.option("-o", "--out", type=OUTPUT, metavar="PLAN.jsonl", help="Write all trials as a fault list."),
    click.option("--times", type=PATH, metavar="STORE", help="Estimate the cost from the trials in this store, of a small campaign on the same model."),
    click.option("--environment", type=PATH, metavar="FILE", help="With --single --trials: draw sites by their exposure in this environment (YAML): bits by upset rate and time in memory."),
    click.option("--print-spec", is_flag=True, help="Print the campaign as a YAML spec instead."),
)  # fmt: skip


@verb("plan", "Print the number of trials of a campaign on MODEL and their cost.", SOURCE, *CAMPAIGN, *_OPTIONS, JSON)
def command(
    source: Path, out: Path | None, times: Path | None, environment: Path | None, print_spec: bool, as_json: bool, **flags: Any
) -> None:  # fmt: skip
    """Print the number of trials of a campaign and their cost, and write them as a fault list.

    With --data the golden run is timed to estimate the cost; with --times, the trials of a store are.

    \b
    onnxfi plan model.onnx --single --margin 0.01 --confidence 0.99
    onnxfi plan model.onnx --ber 1e-7:1e-3 -o plan.jsonl
    onnxfi plan model.onnx --data images.npz --ber 1e-7:1e-3 --print-spec > campaign.yaml
    onnxfi plan model.onnx --single --trials 1000000 --times small.onnxfi.db
    onnxfi plan model.onnx --single --trials 1000 --environment environment.yaml -o exposed.jsonl
    """
    from onnxfi.campaign.plan.plan import write_plan
    from onnxfi.campaign.results.trial_cost import recorded
    from onnxfi.campaign.run.runner import plan, planned
    from onnxfi.campaign.spec import spec_file
    from onnxfi.cli.run import duration
    from onnxfi.graph.write.output_file import check_output_files

    campaign = campaign_of(source, flags)
    if print_spec:
        if environment is not None:
            raise click.UsageError("--environment makes a fault list; write it with --out instead of --print-spec")
        if out is not None or times is not None or as_json:
            raise click.UsageError("--print-spec cannot be combined with --out, --times or --json")
        click.echo(spec_file.print_spec(campaign), nl=False)
        return
    if out is not None:  # refused before anything is run
        check_output_files(None, [out])
    cost, trial_s = None, None
    if environment is not None:
        from onnxfi.analysis.environment import load_environment
        from onnxfi.analysis.exposure import plan_by_exposure

        if times is not None:
            raise click.UsageError("--times has no effect with --environment; leave it out")
        made = plan_by_exposure(campaign, load_environment(environment))
    elif times is None:
        made, trial_s = plan(campaign)
    else:
        made = planned(campaign)
        cost = recorded(times, made.model.digest, campaign.confidence)
        trial_s = cost.seconds.estimate
    if out is not None:
        with progress("planning") as on_progress:
            write_plan(made, out, progress=on_progress)
    if as_json:
        print_json(_document(made, cost, trial_s, out))
        return
    for line in made.describe():
        print_line(line)
    if trial_s is None:
        print_line("with --data one trial is timed, and the cost of all is estimated")
    else:
        measured = f"one trial takes about {trial_s:.2g} s" if cost is None else _cost_text(cost)
        trials, which = len(made), "all trials"
        if campaign.adaptive is not None:
            trials, which = made.fewest(campaign.adaptive), "the minimum of trials"
        print_line(f"{measured}, {which} about {duration(trials * trial_s)} on one core")
    if out is not None:
        print_line(f"wrote {out}")


def _document(plan: Plan, cost: Cost | None, trial_s: float | None, out: Path | None) -> dict[str, Any]:
    from onnxfi.campaign.spec.designs import AdaptiveFaults, SingleFaults

    campaign, adaptive, margin = plan.campaign, None, plan.margin
    match design := campaign.design:
        case AdaptiveFaults():
            margin = design.margin
            adaptive = {
                "rate": design.rate, "method": design.method, "margin": margin,
                "relative_margin": design.relative_margin, "min_trials": plan.fewest(design),
                "fixed_size": plan.fixed_size(design),
            }  # fmt: skip
        case SingleFaults() if margin is None:
            margin = design.margin
    return {
        "model": campaign.model, "digest": plan.model.digest, "sampling": design.key,
        "trials": None if adaptive else len(plan), "adaptive": adaptive,
        "population": plan.header.population, "unit": plan.header.unit, "confidence": campaign.confidence,
        "margin": margin,
        "strata": [{**s.row(), "population": s.population, "trials": s.trials} for s in plan.strata],
        "output": None if out is None else str(out), "trial_s": trial_s, "times": None if cost is None else cost.row(),
    }  # fmt: skip


def _cost_text(cost: Cost) -> str:

    i, of = cost.seconds, f"{count(cost.trials, 'trial')} of {cost.store} on {count(cost.samples, 'sample')}"
    return f"{of} took {i.estimate:.3g} s each [{max(0.0, i.low):.3g}, {i.high:.3g}]"
