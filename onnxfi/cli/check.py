"""`onnxfi check MODEL`: is the model as resilient as its budget demands?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from onnxfi.cli.options import CODE, JSON, LINKS, MODEL, run_options, stack

if TYPE_CHECKING:
    from onnxfi.campaign.gate.check import Checked

_PATH = click.Path(path_type=Path)


_OPTIONS = (
    click.option("--budget", required=True, type=_PATH, metavar="FILE", help="The budget: a campaign and limits, in YAML."),
    click.option("--write-budget", is_flag=True, help="Measure MODEL and write FILE: limits that it meets with room to spare."),
    click.option("--force", is_flag=True, help="With --write-budget: overwrite FILE; its campaign and choice of limits stay."),
    click.option("--baseline", type=_PATH, metavar="STORE|JSON", help="What limits on changes compare with: a store, or what --json printed."),
    click.option("--junit", type=_PATH, metavar="FILE", help="Write JUnit XML: a test case for each limit."),
    click.option("--markdown", type=_PATH, metavar="FILE", help="Write a summary for a pull request."),
    click.option("-o", "--out", type=_PATH, metavar="STORE", help="Keep every trial there, and go on where a check was (default: a temporary store)."),
    click.option("--seed", type=click.IntRange(0), metavar="N", help="Another seed than the budget's."),
    click.option("--time", "time_s", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="A time box: what has not been measured by then is not decided."),
    click.option("--workers", type=click.IntRange(0), metavar="N", help="Workers, in processes of their own; 0 runs trials in this one (default: the cores)."),
)  # fmt: skip


@click.command("check", short_help="Hold MODEL against the limits of a budget.")
@MODEL
@stack(_OPTIONS)
@run_options
@LINKS
@CODE
@JSON
def command(
    model: Path, budget: Path, write_budget: bool, force: bool, out: Path | None, workers: int | None, as_json: bool,
    allow_code: bool,     **given: Any,
) -> None:  # fmt: skip
    """Run the campaign that a budget names on MODEL, and compare what it measures with each limit.

    Exit code 0: pass. 1: a limit is missed. 3: not decided, as an interval lies across a limit, or time ran out.
    2: bad input. Data and engine are the budget's; options given here outdo them.

    \b
    onnxfi check model.onnx --data images.npz --budget budget.yaml --write-budget
    onnxfi check model.onnx --budget budget.yaml
    onnxfi check model.onnx --budget budget.yaml --junit onnxfi.xml --markdown onnxfi.md

    --write-budget takes 200 trials at one bit error rate on 200 samples. Change its campaign or limits by hand, and write
    the numbers anew with --force. A budget (docs/reference/budget.md has all fields and rates):

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

    ctx = click.get_current_context()
    said = {n: v for n, v in given.items() if ctx.get_parameter_source(n) is not ParameterSource.DEFAULT}
    _refuse(write_budget, force, said)
    named = {name: given[name] for name in ("junit", "markdown") if given[name] is not None}
    if len({place.resolve() for place in named.values()}) < len(named):
        raise click.UsageError(f"both outputs are {str(given['junit'])!r}; name another file")
    inputs = [model, budget, *(given[name] for name in ("baseline", "data") if given[name] is not None)]
    outputs = [(summary.writer(place, inputs), name) for name, place in named.items()]
    fields = _campaign_fields(said)
    crew = os.cpu_count() or 1 if workers is None else workers
    if write_budget:
        base = propose.base_budget(model, budget, fields, force=force, allow_code=allow_code)
        written = propose.write_budget(model, base, budget, store=out, workers=crew)
        checked, notes = written.checked, [f"wrote {budget}"]
        notes += [f"left out, as it would allow everything: {limit}" for limit in written.left_out]
    else:
        asked = load_budget(budget, allow_code=allow_code, instead=fields)
        wanted = asked.outdo(fields, time_s=given["time_s"])
        checked, notes = check(model, wanted, baseline=given["baseline"], store=out, workers=crew), []
    for write, name in outputs:
        write(summary.junit(checked) if name == "junit" else summary.markdown(checked))
    _tell(checked, budget, notes, as_json)
    ctx.exit(0 if write_budget else checked.exit_code)


def _refuse(write_budget: bool, force: bool, said: Mapping[str, Any]) -> None:
    if force and not write_budget:
        raise click.UsageError("--force goes with --write-budget")
    for name in ("baseline", "time_s"):
        if write_budget and name in said:
            flag = {"time_s": "time"}.get(name, name)
            raise click.UsageError(f"--{flag} says nothing with --write-budget; leave it out")


def _campaign_fields(said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a campaign among the options that were given."""
    from dataclasses import fields

    from onnxfi.campaign.spec.campaign import Campaign

    return {f.name: said[f.name] for f in fields(Campaign) if f.name in said}


def _tell(checked: Checked, budget: Path, notes: list[str], as_json: bool) -> None:
    from onnxfi.cli.terminal import document, say, table

    if as_json:
        document({**checked.document(), "budget": str(budget), "notes": notes})
        return
    rows = [(f.limit.what, f.measured, f.ends, f.limit.allowed, f.verdict) for f in checked.findings]
    title = f"{checked.model} against {budget}: {checked.summary()}"
    table(title, ("Limit", ">Measured", ">Interval", "Allowed", "Verdict"), rows)
    for reason in dict.fromkeys(f.reason for f in checked.findings if f.reason):
        say(f"not decided: {reason}")
    say(checked.conditions())
    for text in notes:
        say(text)
