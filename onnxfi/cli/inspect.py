"""`onnxfi inspect MODEL`: the targets of faults in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxfi.cli.options import JSON, LINKS, MODEL, NEURONS, GroupedCommand, select_options, selector_of


@click.command("inspect", cls=GroupedCommand, short_help="List the targets of faults in MODEL.")
@MODEL
@select_options
@NEURONS
@LINKS
@JSON
def command(model: Path, as_json: bool, allow_links: bool, neurons: Path | None, **flags: Any) -> None:
    """List the targets of faults in MODEL: layers, tensors, operators, number formats, shapes, bits.

    The options of the selection are those of `onnxfi inject`, so that it can be tried first. Integer tensors of shapes
    or indices are left out; --include '=NAME' selects one.
    """
    from onnxfi.cli.terminal import count, print_json, print_line, print_note, table
    from onnxfi.graph.model.loading import load
    from onnxfi.runtime.inject.weights import inspect

    found = inspect(load(model, allow_links=allow_links), selector_of(flags), neurons=neurons)
    if as_json:
        print_json(found)
        return
    totals = found["totals"]
    quantised = any(t["quantised"] for t in found["targets"])
    rows = [
        (t["layer"], t["target"], t["op"], *((t["role"],) if quantised else ()), t["dtype"], *(_scheme(t["quantised"]) if quantised else ()), "×".join(map(str, t["shape"])) or "scalar", f"{t['elements']:,}", f"{t['bits']:,}")
        for t in found["targets"]
    ]  # fmt: skip
    columns = ("Layer", "Target", "Op", *(("Role",) if quantised else ()), "Type", *(("Scheme", "Scale", "Axis") if quantised else ()), "Shape", ">Elements", ">Bits")  # fmt: skip
    under = ("", count(totals["targets"], "target"), *[""] * (len(columns) - 4))
    table(str(model), columns, rows, footer=(*under, f"{totals['elements']:,}", f"{totals['bits']:,}"))
    if found["spiking"]["layers"]:
        _spiking(found["spiking"])
    opsets = ", ".join(f"{o['domain'] or 'ai.onnx'} {o['version']}" for o in found["opsets"])
    print_line(f"IR {found['ir']}, opsets {opsets}, made by {found['producer'] or 'unknown'}")
    print_line(f"sha256 {found['digest']}")
    if found["left_out"]:
        print_line(
            f"{count(found['left_out'], 'integer tensor')} left out: only shapes or indices; --include '=NAME' selects one"
        )
    _shared(found["targets"])
    for text in found["notes"]:
        print_note(text)


def _shared(targets: list[dict[str, Any]]) -> None:
    """Print which weights have several users; the table names the first."""
    from onnxfi.cli.terminal import print_line

    uses = {t["target"]: list(dict.fromkeys(f"{u['layer']} ({u['op']})" for u in t["users"])) for t in targets}
    shared = [name for name, users in uses.items() if len(users) > 1]
    if shared:
        users = uses[shared[0]]
        many = f"{len(shared):,} targets have" if len(shared) > 1 else "1 target has"
        more = ", …" if len(users) > 3 else ""
        print_line(f"{many} several users, each of which selects it: {shared[0]} of {', '.join(users[:3])}{more}")


def _spiking(found: dict[str, Any]) -> None:
    """Print the spiking layers and the axes of their time steps."""
    from onnxfi.cli.terminal import print_line, table

    rows = [
        (
            row["layer"], row["kind"], "?" if row["shape"] is None else "×".join(map(str, row["shape"])),
            "?" if row["neurons"] is None else f"{row['neurons']:,}", "?" if row["steps"] is None else row["steps"],
            *(_range_text(row[name], exposed=row["exposed"]) for name in ("threshold", "leak")), row["reset"],
        )
        for row in found["layers"]
    ]  # fmt: skip
    columns = ("Spiking layer", "Kind", "Shape", ">Neurons", ">Steps", ">Threshold", ">Leak", "Reset")
    table("Neurons" + (", exposed" if found["layers"][0]["exposed"] else ""), columns, rows)
    for axis in found["time_axes"]:
        print_line(f"time is axis {axis['axis']} of {axis['tensor']} ({axis['role']})")


def _range_text(values: list[float] | None, *, exposed: bool) -> str:
    if values is None:
        return "per neuron" if exposed else "-"
    low, high = values
    return f"{low:.4g}" if low == high else f"{low:.4g} … {high:.4g}"


def _scheme(quantised: dict[str, Any] | None) -> tuple[str, str, str]:
    """Return scheme, scale and axis of a target as texts."""
    if quantised is None:
        return "", "", ""
    low, high = quantised["scale"] or (None, None)
    scale = "at run time" if low is None else f"{low:.4g}" if low == high else f"{low:.4g} … {high:.4g}"
    axis = "" if quantised["axis"] is None else str(quantised["axis"])
    return quantised["scheme"], scale, f"blocks of {quantised['block']}" if quantised["block"] else axis
