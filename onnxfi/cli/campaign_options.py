"""The options of a campaign, and how they become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from onnxfi.cli.options import LINKS, run_options, select_options

if TYPE_CHECKING:
    from onnxfi.campaign.spec import Campaign

F = TypeVar("F", bound=Callable[..., Any])

SOURCE = click.argument("source", metavar="MODEL|SPEC.yaml|PLAN.jsonl", type=click.Path(path_type=Path))

_TRIALS = (
    click.option("--ber", metavar="RATES", help="A sweep: 1e-6, a list 1e-6,1e-5, or decades 1e-7:1e-3."),
    click.option("--repeat", type=int, default=10, show_default=True, help="Trials at each rate of a sweep."),
    click.option("--single", is_flag=True, help="One fault a trial: --trials of them, or as many as --margin asks for."),
    click.option("--trials", type=int, metavar="N", help="With --single: how many."),
    click.option("--margin", type=float, metavar="E", help="With --single: half the width that the interval may have, as 0.01."),
    click.option("--confidence", type=float, default=0.99, show_default=True, help="Of every interval."),
    click.option("--per", type=click.Choice(["network", "layer", "layer-bit", "data-aware"]), default="network", show_default=True, help="What the margin holds for."),
    click.option("--exhaustive", is_flag=True, help="One fault a trial, every site once."),
    click.option("--faults", metavar="FILE", help="Replay a fault list, trial by trial."),
    click.option("--fault", default="flip", show_default=True, metavar="FAULT", help="What happens at a site, as in onnxfi inject."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The seed of every draw."),
)  # fmt: skip
_JUDGE = (
    click.option("--scores", type=click.Choice(["auto", "logits", "probabilities", "counts"]), default="auto", show_default=True, help="What the scored output holds, for score shifts."),
    click.option("--tolerance", type=float, default=0.0, show_default=True, help="An output this near golden's is masked."),
    click.option("--due", default="error,timeout,crash,memory,nonfinite", metavar="CAUSES", help="What counts as DUE, by comma (default: all)."),
)  # fmt: skip


def campaign_options(function: F) -> F:
    """Trials, selectors, data, engine and judgement."""
    for option in reversed((*_TRIALS, *_JUDGE)):
        function = option(function)
    return select_options(run_options(LINKS(function)))


def campaign(source: Path, given: dict[str, Any]) -> Campaign:
    """The campaign that the source and the flags say; flags that are given outdo the spec."""
    from onnxfi.campaign.spec import Campaign, SpecError, load_spec, parse_rates

    ctx = click.get_current_context()
    names = {f.name for f in dataclasses.fields(Campaign)} & set(given)
    said = {n: given[n] for n in names if ctx.get_parameter_source(n) is not ParameterSource.DEFAULT}
    for name, read in (("ber", parse_rates), ("due", lambda text: tuple(text.split(",")))):
        if name in said:
            said[name] = read(said[name])
    if said.get("preprocess") is not None:
        said["preprocess"] = str(said["preprocess"])
    if source.suffix in (".yaml", ".yml"):
        return dataclasses.replace(load_spec(source), **said)
    if source.suffix == ".jsonl":
        return Campaign(**{"model": str(_model_of(source)), "faults": str(source), **said})
    if not any(said.get(way) for way in ("ber", "single", "exhaustive", "faults")):
        raise SpecError(
            "which trials? give --ber RATES, --single with --trials or --margin, --exhaustive, or --faults FILE"
        )
    return Campaign(model=str(source), **said)


def _model_of(plan: Path) -> Path:
    """The model that a plan names: as it was written, or beside the plan."""
    from onnxfi.errors import FaultListError
    from onnxfi.faults.faultlist import FaultList

    named = FaultList.open(plan).header.file
    for place in (Path(named), plan.parent / Path(named).name):
        if named and place.is_file():
            return place
    raise FaultListError(f"{plan} names the model {named!r}, which is not here; use onnxfi run MODEL --faults {plan}")
