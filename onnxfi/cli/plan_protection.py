"""`onnxfi plan-protection STORE --budget …`: which layers get which protection, within a budget."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxfi.cli.options import CODE, JSON, PATH, verb
from onnxfi.cli.streams import OUTPUT, STORE
from onnxfi.cli.terminal import print_json, print_line, print_note, table

if TYPE_CHECKING:
    from onnxfi.analysis.planner.plan_protection import PlannedPart, PlannedProtection


_OPTIONS = (
    click.argument("stores", nargs=-1, required=True, type=STORE, metavar="STORE…"),
    click.option("--budget", required=True, metavar="LIMITS", help="What may be spent: bytes=64KiB,macs=5%, or one of them; % are shares of the model's bytes and operations."),
    click.option("--with", "protections", multiple=True, metavar="WHAT", help="Protection or memory code to choose from (default: all that fit the faults): parity, secded, tmr, tmr:top=2, mset, cep, clip-weights, checksum; of activations duplicate, triplicate, checksum; with --data range:clip, range:zero, range:average and nan-filter. Repeatable."),
    click.option("--data", type=PATH, metavar="FILE", help="Calibration data for ranges of activations."),
    click.option("--rate", metavar="RATE", help="Rate to reduce (default: that of the task, SDC-1 for classification)."),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="Layers that get no protection, as quantisers that cannot be changed. Repeatable."),
    click.option("--workers", type=int, default=0, show_default=True, metavar="N", help="Processes that run trials."),
    click.option("-o", "--out", type=OUTPUT, metavar="FILE", help="Plan to write (YAML)."),
)  # fmt: skip


@verb("plan-protection", "Plan which layers get which protection in a budget.", *_OPTIONS, CODE, JSON)
def command(
    stores: tuple[Path, ...], budget: str, protections: tuple[str, ...], data: Path | None, rate: str | None, exclude: tuple[str, ...], workers: int,
    out: Path | None, allow_code: bool, as_json: bool,
) -> None:  # fmt: skip
    """Plan which layers get which protection or memory code, so that least damage remains within a budget.

    STORE is a campaign of single bit faults in weights or activations (onnxfi run --rank layer, or --single). One half of
    its trials chooses the plan; the other half is run again on the planned protection and gives the forecast. Two stores,
    one for weights and one for activations, make a joint plan: both count by their bits in memory.

    \b
    onnxfi run cnn.onnx --data test.npz --rank layer -o ranked.db
    onnxfi plan-protection ranked.db --budget bytes=2%,macs=5% -o plan.yaml
    onnxfi plan-protection weights.db activations.db --budget bytes=2%,macs=20% -o plan.yaml
    onnxfi protect cnn.onnx --plan plan.yaml -o protected.onnx
    onnxfi run protected.onnx --data test.npz --memory-code plan.yaml --single --trials 4000
    """  # fmt: skip
    from onnxfi.analysis.planner.plan_protection import plan_protection

    found = plan_protection(
        stores, budget, protections, data=data, rate=rate, exclude=exclude, out=out, workers=workers, allow_code=allow_code
    )  # fmt: skip
    if as_json:
        print_json(found.document())
        return
    _print(found, out)
    for note in found.notes:
        print_note(note)


def _print(found: PlannedProtection, out: Path | None) -> None:

    rows = [_row(part) for part in sorted(found.parts, key=lambda part: -part.before)]
    table(
        f"{found.label} of one fault in {found.kind}, by layer",
        ("Layer", ">Bits", ">Before (%)", "Protection", ">After (%)", ">Bytes", ">Macs"),
        rows,
    )
    spent = [
        f"{cost:,.0f} {name}" + ("" if limit == float("inf") else f" of {limit:,.0f}")
        for cost, limit, name in zip(found.costs, found.budget, ("bytes", "macs"), strict=True)
    ]
    print_line(f"cost: {', '.join(spent)}")
    choice = found.choice
    if choice.exact:
        print_line("no other choice of these protections leaves less on the choosing half")
    else:
        print_line(
            f"chosen greedily: {100 * choice.remaining:.4g} % remain on the choosing half, no choice can leave less than "
            f"{100 * choice.bound:.4g} %"
        )
    texts = [_interval(i) for i in (found.unprotected, found.forecast)]
    print_line(f"unprotected: {texts[0]}")
    print_line(f"forecast:    {texts[1]}, {100 * found.forecast.confidence:.4g} %, from {found.trials:,} trials")
    if out is not None:
        print_line(f"wrote {out}")
        quoted = shlex.quote(str(out))
        if found.plan.graph:
            print_line(f"next: onnxfi protect MODEL --plan {quoted} -o protected.onnx")
        if found.plan.memory:
            print_line(f"next: onnxfi run MODEL --memory-code {quoted} --single --trials 4000")


def _row(part: PlannedPart) -> tuple[str, ...]:
    option = part.protection
    costs = ("", "") if option is None else tuple(f"{cost:,.0f}" for cost in option.costs)
    name = "-" if option is None else option.protection
    return part.part, f"{part.bits:,}", f"{100 * part.before:.3g}", name, f"{100 * part.after:.3g}", *costs


def _interval(i: object) -> str:
    from onnxfi.statistics.intervals import Interval

    assert isinstance(i, Interval)
    return f"{100 * i.estimate:.3g} % [{100 * i.low:.3g}, {100 * i.high:.3g}]"
