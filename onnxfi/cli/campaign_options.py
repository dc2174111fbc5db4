"""Options of a campaign, and the campaign that they describe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli.options import CODE, HARDWARE, LINKS, MEMORY, NEURONS, RUN, SELECT, STAGE, given_flags, hardware_fault
from onnxfi.cli.streams import STORE, SourceFile
from onnxfi.cli.terminal import print_note

if TYPE_CHECKING:
    from onnxfi.campaign.spec.campaign import Campaign

SOURCE = click.argument("source", metavar="MODEL|PIPELINE.yaml|SPEC.yaml|PLAN.jsonl", type=SourceFile())
STORE_ARGUMENT = click.argument("store", metavar="STORE", type=STORE)

_TRIALS = (
    click.option("--ber", metavar="RATES", help="Sweep over bit error rates: 1e-6, a list 1e-6,1e-5, or decades 1e-7:1e-3."),
    click.option("--added", type=float, multiple=True, metavar="RATE", help="Rate of the sweep that its store got later, in that order; run sets it where it extends a store. Repeatable."),
    click.option("--per-sample", metavar="RATES", help="Sweep over activations: with this probability one fault (SEU) in each sample."),
    click.option("--voltage", metavar="V,V,…", help="Sweep over voltages of a fault map (--fault-map), as 0.8,0.76,0.72: the cells that fail at one fail at every lower one."),
    click.option("--temperature", metavar="T,T,…", help="Sweep over temperatures of a fault map, as 25,85."),
    click.option("--repeat", type=int, default=10, metavar="N", show_default=True, help="Trials at each rate of a sweep, or of a mix."),
    click.option("--single", is_flag=True, help="One fault per trial: --trials of them, or as many as --margin needs."),
    click.option("--trials", type=int, metavar="N", help="With --single: number of trials."),
    click.option("--margin", type=float, metavar="E", help="With --single: half width of the confidence interval (default: 0.01)."),
    click.option("--confidence", type=float, default=0.99, metavar="C", show_default=True, help="Confidence level of the margin and of every interval."),
    click.option("--per", type=click.Choice(["network", "layer", "layer-bit", "data-aware"]), metavar="STRATA", default="network", show_default=True, help="Strata in which the margin holds: network, layer, layer-bit, or data-aware (layer and bit, sized by how far a flip of the bit changes a weight)."),
    click.option("--adaptive", is_flag=True, help="One fault per trial, drawn in rounds, most where the uncertainty is largest, and stop at the margin."),
    click.option("--relative-margin", type=float, metavar="R", help="With --adaptive: half width as a share of the rate; --margin (then 0.0001 by default) where that is larger."),
    click.option("--rate", default="sdc1", show_default=True, metavar="RATE", help="With --adaptive: rate to estimate: sdc1, any, sdc, due, critical…"),
    click.option("--rank", type=click.Choice(["none", "layer", "tensor", "channel", "bit"]), default="none", show_default=True, metavar="PARTS", help="With --adaptive, or instead of it: rank layers, tensors, channels (along the first axis) or bits by the rate; stop when the first --top are settled, or differ by --margin at most."),
    click.option("--top", type=int, metavar="K", default=5, show_default=True, help="With --rank: how many places of the order are settled."),
    click.option("--method", type=click.Choice(["guaranteed", "asymptotic", "simple"]), metavar="METHOD", default="guaranteed", show_default=True, help="With --adaptive: guaranteed (valid at every stopping time), asymptotic (fewer trials, approximate) or simple (drawn evenly)."),
    click.option("--exhaustive", is_flag=True, help="One fault per trial, every site once."),
    click.option("--outcomes", type=click.Choice(["bits", "class"]), default="bits", show_default=True, metavar="KIND", help="Judge every bit of the outputs, or the class alone, which of many faults in weights is proved without a run; with --exhaustive a table of classes."),
    click.option("--faults", metavar="FILE", help="Replay a fault list, trial by trial."),
    click.option("--mix", multiple=True, metavar="PART", help="Combine draws in each trial, as 'fault: flip, ber: 1e-6, include: conv'. Repeatable."),
    click.option("--fault", default="flip", show_default=True, metavar="FAULT", help="Fault model (flip, stuck-at-0, …), as in onnxfi inject."),
    *HARDWARE,
    click.option("--target", default="weights", show_default=True, metavar="TARGETS", help="Inject into weights, activations (outputs of nodes), inputs, or kv-cache (of --task generation); a list with commas."),
    click.option("--persistence", type=click.Choice(["transient", "from", "permanent"]), default="transient", show_default=True, help="Duration of a fault in an activation: transient (one sample and step), from (from a step on) or permanent (stuck-at)."),
    click.option("--all", is_flag=True, help="Inject into all activations (default: the outputs of layers)."),
    click.option("--expose", is_flag=True, help="Expose the neurons of a spiking network first (onnxfi instrument --target neurons)."),
    NEURONS,
    *MEMORY,
    click.option("--layers", type=click.Choice(["modules", "tensors"]), metavar="KIND", default="modules", show_default=True, help="Layers of the tables: modules of the framework, or single tensors."),
    click.option("--seed", type=int, default=0, metavar="N", show_default=True, help="Seed of every draw."),
)  # fmt: skip
_OUTCOMES = (
    click.option("--scores", type=click.Choice(["auto", "logits", "probabilities", "counts"]), metavar="KIND", default="auto", show_default=True, help="Kind of scores in the output: auto, logits, probabilities or counts."),
    click.option("--tolerance", type=float, default=0.0, metavar="T", show_default=True, help="Outputs within this tolerance of the golden output count as masked."),
    click.option("--due", default="error,timeout,crash,memory,nonfinite", metavar="CAUSES", help="Causes that count as DUE, a list with commas (default: error,timeout,crash,memory,nonfinite)."),
    click.option("--route", type=click.Choice(["auto", "late-start", "early-stop", "full"]), metavar="ROUTE", default="auto", show_default=True, help="auto: run only the part of the model that a fault can reach, and stop where it is masked; late-start: only the first; early-stop: only the second; full: run the whole model."),
)  # fmt: skip


#: The options of a campaign: trials, selection, data, engine and outcomes.
CAMPAIGN = (*_TRIALS, *_OUTCOMES, STAGE, *SELECT, *RUN, LINKS, CODE)


def campaign_of(source: Path, flags: dict[str, Any]) -> Campaign:
    """Return the campaign of the source and the flags; flags override the spec."""
    from onnxfi.campaign.spec.campaign import Campaign
    from onnxfi.campaign.spec.designs import chosen_design
    from onnxfi.campaign.spec.flat_fields import flat_fields
    from onnxfi.campaign.spec.pipeline_file import names_pipeline
    from onnxfi.campaign.spec.spec_file import load_spec, parse_mix_part
    from onnxfi.errors import SpecError
    from onnxfi.runtime.engine.installed_runtime import both_runtimes_warning

    if warning := both_runtimes_warning():
        print_note(warning)
    explicit = given_flags(flags, flat_fields(Campaign).keys() & flags.keys())
    parsers: dict[str, Callable[[Any], Any]] = {
        "target": _split_list,
        "due": _split_list,
        "mix": lambda texts: tuple(map(parse_mix_part, texts)),
        "memory_code": _memory_code,
    }
    if fault := hardware_fault(flags, given="fault" in explicit):
        explicit["fault"] = fault
    explicit |= {name: parse(explicit[name]) for name, parse in parsers.items() if name in explicit}
    if source.suffix.lower() in (".yaml", ".yml") and not names_pipeline(source):
        return load_spec(source, allow_code=flags["allow_code"], instead=explicit).with_fields(**explicit)
    if source.suffix.lower() == ".jsonl":
        if explicit.get("faults"):
            raise click.UsageError(f"{source} is a fault list already; leave --faults out")
        return Campaign(**{"model": _model_of(source), "faults": source, **explicit})
    if chosen_design(explicit) is None:
        raise SpecError(
            "the campaign has no trials; give --ber RATES, --per-sample RATES, --voltage V,V, --single with --trials or --margin, "
            "--adaptive, --exhaustive, --mix PART, or --faults FILE"
        )
    return Campaign(**{"model": source, **explicit})


def _memory_code(text: str) -> str:
    """Return the codes that a flag names, or that the plan in a file has."""
    from onnxfi.errors import SpecError
    from onnxfi.protection.protection_plan import load_protection_plan

    if not text.lower().endswith((".yaml", ".yml")):
        return text
    code = load_protection_plan(text).memory_code
    if code is None:
        raise SpecError(f"the plan {text} has no memory code; leave --memory-code out")
    return code


def _split_list(text: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in text.split(",") if one.strip())


def _model_of(plan: Path) -> Path:
    """Return the model that a plan names: at its recorded path, or beside the plan."""
    from onnxfi.errors import FaultListError
    from onnxfi.faults.faultlist import FaultList

    file = FaultList.open(plan).header.file
    for path in (Path(file), plan.parent / Path(file).name):
        if file and path.is_file():
            return path
    raise FaultListError(f"{plan} names the model {file!r}, which does not exist; use onnxfi run MODEL --faults {plan}")
