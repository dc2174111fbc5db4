"""`onnxfi check MODEL`: check a model against a resilience budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli.options import CODE, JSON, LINKS, PIPELINE, RUN, STAGE, Duration, given_flags, refuse_flags, verb
from onnxfi.cli.streams import OUTPUT
from onnxfi.cli.terminal import print_json, print_line, table

if TYPE_CHECKING:
    from onnxfi.campaign.gate.check import CheckResult

_PATH = click.Path(path_type=Path)


_OPTIONS = (
    click.option("--budget", required=True, type=_PATH, metavar="FILE", help="Budget: a campaign and limits, in YAML."),
    click.option("--write-budget", is_flag=True, help="Measure MODEL and write FILE, with limits that it meets with a margin."),
    click.option("--force", is_flag=True, help="With --write-budget: overwrite FILE, but keep its campaign and choice of limits."),
    click.option("--baseline", type=_PATH, metavar="STORE|JSON", help="Baseline of limits on changes: a store, or the output of --json."),
    click.option("--junit", type=OUTPUT, metavar="FILE", help="Write JUnit XML, with a test case for each limit."),
    click.option("--markdown", type=OUTPUT, metavar="FILE", help="Write a summary for a pull request."),
    click.option("-o", "--out", type=_PATH, metavar="STORE", help="Store of the trials, to resume a check (default: a temporary store)."),
    click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed that replaces the budget's."),
    click.option("--time", "time_s", type=Duration(), metavar="TIME", help="Time limit, in seconds or as 10m: limits not measured by then are not decided."),
    click.option("--workers", type=click.IntRange(0), metavar="N", help="Worker processes; 0 runs trials in this process (default: one per core)."),
)  # fmt: skip


@verb("check", "Check MODEL against the limits of a budget.", PIPELINE, *_OPTIONS, *RUN, STAGE, LINKS, CODE, JSON)
def command(
    model: Path, budget: Path, write_budget: bool, force: bool, out: Path | None, workers: int | None, as_json: bool,
    allow_code: bool, **flags: Any,
) -> None:  # fmt: skip
    """Run the campaign of a budget on MODEL, and compare the measured rates with each limit.

    Exit code 0: pass. 1: a limit is missed. 3: not decided, as an interval contains a limit, or time ran out.
    2: bad input. Options override the data and the engine of the budget.

    \b
    onnxfi check model.onnx --data images.npz --budget budget.yaml --write-budget
    onnxfi check model.onnx --budget budget.yaml
    onnxfi check model.onnx --budget budget.yaml --junit onnxfi.xml --markdown onnxfi.md

    --write-budget runs 200 trials at one bit error rate on 200 samples. Edit its campaign or limits by hand, and update
    the numbers with --force. A budget (docs/reference/budget.md has all fields and rates):

    \b
    version: 1
    confidence: 0.99
    campaign: {data: images.npz, samples: 200, ber: 1e-5, repeat: 200}
    limits:
    - {rate: top1, golden: true, min: 0.85}
    - {rate: sdc1, max: 0.45}
    - {rate: top1, max_drop: 0.1}
    """
    from onnxfi.campaign.gate import ci_report as summary
    from onnxfi.campaign.gate import write_budget as propose
    from onnxfi.campaign.gate.budget import load_budget
    from onnxfi.campaign.gate.check import check
    from onnxfi.campaign.workers.scheduling import cores

    explicit = given_flags(flags)
    if force and not write_budget:
        raise click.UsageError("--force requires --write-budget")
    if write_budget:
        refuse_flags(("baseline", "time_s"), "with --write-budget")
    named = {name: flags[name] for name in ("junit", "markdown") if flags[name] is not None}
    if len({place.resolve() for place in named.values()}) < len(named):
        raise click.UsageError(f"both outputs are {str(flags['junit'])!r}; name another file")
    inputs = [model, budget, *(flags[name] for name in ("baseline", "data", "labels") if flags[name] is not None)]
    outputs = [(summary.writer(place, inputs), name) for name, place in named.items()]
    fields = _campaign_fields(explicit) | ({"allow_code": True} if allow_code else {})
    n_workers = cores() if workers is None else workers
    if write_budget:
        base = propose.base_budget(model, budget, fields, force=force, allow_code=allow_code)
        written = propose.write_budget(model, base, budget, store=out, workers=n_workers)
        checked, notes = written.checked, [f"wrote {budget}"]
        notes += [
            f"left out, as it would allow everything: {limit.bound} of {limit.what}" for limit in written.left_out
        ]
    else:
        arguments = load_budget(budget, allow_code=allow_code, instead=fields)
        wanted = arguments.with_fields(fields, time_s=flags["time_s"])
        checked, notes = check(model, wanted, baseline=flags["baseline"], store=out, workers=n_workers), []
    for write, name in outputs:
        write(summary.junit(checked) if name == "junit" else summary.markdown(checked))
    _print_result(checked, budget, notes, as_json)
    click.get_current_context().exit(0 if write_budget else checked.exit_code)


def _campaign_fields(explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given options that are fields of a campaign."""
    from onnxfi.campaign.spec.campaign import Campaign
    from onnxfi.campaign.spec.flat_fields import flat_fields

    return {name: explicit[name] for name in flat_fields(Campaign) if name in explicit}


def _print_result(checked: CheckResult, budget: Path, notes: list[str], as_json: bool) -> None:

    if as_json:
        print_json({**checked.document(), "budget": str(budget), "notes": notes})
        return
    rows = [(f.limit.what, f.measured, f.ends, f.limit.allowed, f.verdict) for f in checked.findings]
    title = f"{checked.model} against {budget}: {checked.summary()}"
    table(title, ("Limit", ">Measured", ">Interval", "Allowed", "Verdict"), rows)
    for reason in dict.fromkeys(f.reason for f in checked.findings if f.reason):
        print_line(f"not decided: {reason}")
    print_line(checked.conditions())
    for text in notes:
        print_line(text)
