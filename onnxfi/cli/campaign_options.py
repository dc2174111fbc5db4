"""The options of a campaign, and how they become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from onnxfi.cli.options import CODE, LINKS, NEURONS, PATH, run_options, select_options

if TYPE_CHECKING:
    from onnxfi.campaign.spec.campaign import Campaign

F = TypeVar("F", bound=Callable[..., Any])

SOURCE = click.argument("source", metavar="MODEL|SPEC.yaml|PLAN.jsonl", type=PATH)
STORE = click.argument("store", metavar="STORE", type=PATH)

_TRIALS = (
    click.option("--ber", metavar="RATES", help="A sweep: 1e-6, a list 1e-6,1e-5, or decades 1e-7:1e-3."),
    click.option("--per-sample", metavar="RATES", help="A sweep over values in flight: with this probability one site in each sample."),
    click.option("--repeat", type=int, default=10, metavar="N", show_default=True, help="Trials at each rate of a sweep, or of a mix."),
    click.option("--single", is_flag=True, help="One fault a trial: --trials of them, or as many as --margin asks for."),
    click.option("--trials", type=int, metavar="N", help="With --single: how many."),
    click.option("--margin", type=float, metavar="E", help="With --single: half the width that the interval may have (default: 0.01)."),
    click.option("--confidence", type=float, default=0.99, metavar="C", show_default=True, help="Of the margin, and of every interval."),
    click.option("--per", type=click.Choice(["network", "layer", "layer-bit", "data-aware"]), metavar="STRATA", default="network", show_default=True, help="What the margin holds for: network, layer, layer-bit, or data-aware (layer and bit, sized by how far a bit moves a weight)."),
    click.option("--adaptive", is_flag=True, help="With --single: draw in rounds, where faults tell most, and stop when the interval is narrow enough."),
    click.option("--relative-margin", type=float, metavar="R", help="With --adaptive: half the width may be this share of the rate, or --margin (then 0.0001) where that is more."),
    click.option("--rate", default="sdc1", show_default=True, metavar="RATE", help="With --adaptive: the rate that is measured: sdc1, any, sdc, due, critical…"),
    click.option("--method", type=click.Choice(["guaranteed", "asymptotic", "simple"]), metavar="METHOD", default="guaranteed", show_default=True, help="With --adaptive: guaranteed (holds whenever one looks), asymptotic (fewer trials, no proof) or simple (drawn evenly)."),
    click.option("--exhaustive", is_flag=True, help="One fault a trial, every site once."),
    click.option("--faults", metavar="FILE", help="Replay a fault list, trial by trial."),
    click.option("--mix", multiple=True, metavar="PART", help="Several draws in each trial: 'fault: flip, ber: 1e-6, include: conv'. Repeatable."),
    click.option("--fault", default="flip", show_default=True, metavar="FAULT", help="What happens at a site, as in onnxfi inject."),
    click.option("--target", default="weights", show_default=True, metavar="WHAT", help="What is struck, by comma: weights (stored words), activations (what nodes put out), inputs."),
    click.option("--persistence", type=click.Choice(["transient", "from", "permanent"]), default="transient", show_default=True, help="How long a fault in flight is there: one sample and step, every sample from a step on, or always."),
    click.option("--all", is_flag=True, help="Every value in flight that can be struck (default: the outputs of layers)."),
    click.option("--expose", is_flag=True, help="Give each neuron of a spiking network words of its own first (onnxfi instrument --target neurons)."),
    NEURONS,
    click.option("--layers", type=click.Choice(["modules", "tensors"]), metavar="KIND", default="modules", show_default=True, help="What tables call a layer: modules of the framework, or tensors, each for itself."),
    click.option("--seed", type=int, default=0, metavar="N", show_default=True, help="The seed of every draw."),
)  # fmt: skip
_JUDGE = (
    click.option("--scores", type=click.Choice(["auto", "logits", "probabilities", "counts"]), metavar="KIND", default="auto", show_default=True, help="What the scored output holds, for score shifts: auto, logits, probabilities or counts."),
    click.option("--tolerance", type=float, default=0.0, metavar="T", show_default=True, help="An output this near golden's is masked."),
    click.option("--due", default="error,timeout,crash,memory,nonfinite", metavar="CAUSES", help="What counts as DUE, by comma (default: error,timeout,crash,memory,nonfinite)."),
    click.option("--route", type=click.Choice(["auto", "late-start", "early-stop", "full"]), metavar="ROUTE", default="auto", show_default=True, help="auto executes only what a fault can reach, and stops where the fault is masked; late-start does the first alone, early-stop the second; full executes the whole model each time."),
)  # fmt: skip


def campaign_options(function: F) -> F:
    """Trials, selectors, data, engine and judgement."""
    function = select_options(run_options(LINKS(CODE(function))))
    for option in reversed((*_TRIALS, *_JUDGE)):
        function = option(function)
    return function


def campaign(source: Path, given: dict[str, Any]) -> Campaign:
    """The campaign that the source and the flags say; flags that are given outdo the spec."""
    from onnxfi.campaign.spec.campaign import WAYS, Campaign, outdo
    from onnxfi.campaign.spec.field_types import parse_rates
    from onnxfi.campaign.spec.spec_file import load_spec, parse_part
    from onnxfi.cli.terminal import note
    from onnxfi.errors import SpecError
    from onnxfi.runtime.engine.engines import both_runtimes_warning

    if warning := both_runtimes_warning():
        note(warning)
    ctx = click.get_current_context()
    names = {f.name for f in dataclasses.fields(Campaign)} & set(given)
    said = {n: given[n] for n in names if ctx.get_parameter_source(n) is not ParameterSource.DEFAULT}
    readers: dict[str, Callable[[Any], Any]] = {
        "ber": parse_rates,
        "per_sample": lambda text: parse_rates(text, "per_sample"),
        "target": _listed,
        "due": _listed,
        "mix": lambda texts: tuple(map(parse_part, texts)),
    }
    said |= {name: read(said[name]) for name, read in readers.items() if name in said}
    if source.suffix.lower() in (".yaml", ".yml"):
        return outdo(load_spec(source, allow_code=given["allow_code"], instead=said), said)
    if source.suffix.lower() == ".jsonl":
        if said.get("faults"):
            raise click.UsageError(f"{source} is a fault list itself; leave --faults out")
        return Campaign(**{"model": _model_of(source), "faults": source, **said})
    if not any(said.get(way) for way in WAYS):
        raise SpecError(
            "which trials? give --ber RATES, --per-sample RATES, --single with --trials or --margin, --exhaustive, "
            "--mix PART, or --faults FILE"
        )
    return Campaign(**{"model": source, **said})


def _listed(text: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in text.split(",") if one.strip())


def _model_of(plan: Path) -> Path:
    """The model that a plan names: as it was written, or beside the plan."""
    from onnxfi.errors import FaultListError
    from onnxfi.faults.faultlist import FaultList

    named = FaultList.open(plan).header.file
    for place in (Path(named), plan.parent / Path(named).name):
        if named and place.is_file():
            return place
    raise FaultListError(f"{plan} names the model {named!r}, which is not here; use onnxfi run MODEL --faults {plan}")
