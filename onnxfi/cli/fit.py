"""`onnxfi fit STORE… --environment FILE`: upsets of a network's memories that damage answers, in 10^9 hours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxfi.cli.options import JSON, PATH, verb
from onnxfi.cli.streams import STORE
from onnxfi.cli.terminal import cut_front, print_json, print_line, table

if TYPE_CHECKING:
    from onnxfi.analysis.fit import FitBudget, FitPart, Range

_LONGEST_NAME = 18


_OPTIONS = (
    click.argument("stores", metavar="STORE…", nargs=-1, required=True, type=STORE),
    click.option("--environment", required=True, type=PATH, metavar="FILE", help="Environment: memories, upset rates and mission, in YAML."),
    click.option("--rate", metavar="RATE", help="Rate that says what damage is (default: that of the task, SDC-1 for classification)."),
    click.option("--confidence", type=float, metavar="C", help="Joint confidence of all intervals (default: the campaign's)."),
)  # fmt: skip


@verb("fit", "Compute the FIT of a network from its campaigns.", *_OPTIONS, JSON)
def command(
    stores: tuple[Path, ...], environment: Path, rate: str | None, confidence: float | None, as_json: bool
) -> None:  # fmt: skip
    """Compute the FIT of a network: upsets of its memories that damage answers, in 10^9 hours.

    STORE is a campaign of single bit faults in weights (onnxfi run --rank layer, or --single); a second one may have them
    in activations. The vulnerability of each layer and its interval come from there, all else from the environment.

    \b
    onnxfi run model.onnx --data images.npz --rank layer -o ranked.db
    onnxfi fit ranked.db --environment environment.yaml
    """
    from onnxfi.analysis.environment import load_environment
    from onnxfi.analysis.fit import fit

    if confidence is not None and not 0 < confidence < 1:
        raise click.UsageError(f"--confidence {confidence:g} is out of range; give a share between 0 and 1, as 0.99")
    budget = fit(stores, load_environment(environment), rate=rate, confidence=confidence)
    if as_json:
        print_json(budget.document())
    else:
        print_fit(budget)


def print_fit(budget: FitBudget) -> None:
    """Print a FIT budget: by part, in all, and what a mission brings."""
    several = len({part.memory for part in budget.parts}) > 1
    rows = [_row(part, several) for part in sorted(budget.parts, key=lambda part: -part.fit[2])]
    title = f"FIT by {budget.label}, intervals that hold together at {100 * budget.confidence:.4g} %"
    table(title, ("Layer", *(("Memory",) if several else ()), ">Bits", ">PVF (%)", ">FIT"), rows)
    units = ", ".join(dict.fromkeys(f"{memory.name}: {memory.unit}" for memory in budget.environment.memories))
    print_line(
        f"raw upsets {_fit_text(budget.raw)} FIT, altitude factor {budget.environment.altitude_factor:g} in them"
    )
    print_line(f"  ({units})")
    print_line(f"damaging and undetected: {_fit_text(budget.fit)} FIT, upsets in 10^9 hours")
    low, high = budget.fit[0], budget.fit[2]
    if high > 0:
        longest = "" if low <= 0 else f", at most {1e9 / low:,.0f}"
        print_line(f"one in {1e9 / high:,.0f} hours or more{longest}")
    outside = [part.part.layer for part in budget.parts if part.memory is None]
    if outside:
        print_line(f"in no memory of the environment, and not counted: {', '.join(outside[:5])}")
    _print_mission(budget)


def _print_mission(budget: FitBudget) -> None:

    mission = budget.mission()
    if mission is None:
        return
    print_line(f"mission of {mission.hours:,.0f} h: {mission.upsets:.3g} undetected upsets of weights expected; none at all with {100 * mission.untouched:.3g} %")  # fmt: skip
    print_line(
        f"at a random moment: none {100 * mission.none:.8g} %, one {100 * mission.one:.3g} %, more {100 * mission.more:.3g} %"
    )
    if mission.accuracy is not None:
        low, high = mission.accuracy
        print_line(
            f"expected accuracy {100 * low:.2f} % to {100 * high:.2f} %, golden {100 * (mission.golden or 0):.2f} %"
        )
        if mission.more > 0.01:
            print_line("  two upsets or more count from 0 to golden: measure a sweep (--ber), or repair more often")


def _row(part: FitPart, several: bool) -> tuple[str, ...]:

    i, name = part.part.pvf, part.part.layer
    middle = "-" if math.isnan(i.estimate) else f"{100 * i.estimate:.2f}"
    pvf = f"{middle} [{100 * i.low:.2f}, {100 * i.high:.2f}]"
    memory = (part.memory.name if part.memory else "-",) if several else ()
    return cut_front(name, _LONGEST_NAME), *memory, f"{part.part.bits:,}", pvf, _fit_text(part.fit)


def _fit_text(ends: Range) -> str:
    """Return a range of FIT as text.

    >>> _fit_text((0.0, 1.5, 3200.0)), _fit_text((2.0, 2.0, 2.0)), _fit_text((0.0, math.nan, 12.0))
    ('1.5 [0, 3,200]', '2', '- [0, 12]')
    """
    low, middle, high = ("-" if math.isnan(x) else f"{x:,.0f}" if x >= 1000 else f"{x:.3g}" for x in ends)
    return middle if low == middle == high else f"{middle} [{low}, {high}]"
