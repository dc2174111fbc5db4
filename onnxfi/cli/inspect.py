"""`onnxfi inspect MODEL`: what can be struck."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxfi.cli.options import JSON, LINKS, MODEL, NEURONS, select_options, selector


@click.command("inspect", short_help="List what can be struck in MODEL.")
@MODEL
@select_options
@NEURONS
@LINKS
@JSON
def command(model: Path, as_json: bool, allow_links: bool, neurons: Path | None, **given: Any) -> None:
    """List what can be struck in MODEL: layers, targets, operators, number formats, shapes, bits.

    The selectors are those of `onnxfi inject`, so that a selection can be tried before it is used. Integer tensors that
    only carry shapes or indices are counted apart; --include '=NAME' names one that shall be struck all the same.
    """
    from onnxfi.cli.terminal import count, document, note, say, table
    from onnxfi.graph.model.loading import load
    from onnxfi.runtime.inject.weights import inspect

    found = inspect(load(model, allow_links=allow_links), selector(given), neurons=neurons)
    if as_json:
        document(found)
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
    say(f"IR {found['ir']}, opsets {opsets}, made by {found['producer'] or 'unknown'}")
    say(f"sha256 {found['digest']}")
    if found["left_out"]:
        say(
            f"{count(found['left_out'], 'integer tensor')} left out, for shapes or indices only; --include '=NAME' names one"
        )
    _shared(found["targets"])
    for text in found["notes"]:
        note(text)


def _shared(targets: list[dict[str, Any]]) -> None:
    """Say which weights several layers or operators use: the table names the first."""
    from onnxfi.cli.terminal import say

    uses = {t["target"]: list(dict.fromkeys(f"{u['layer']} ({u['op']})" for u in t["users"])) for t in targets}
    shared = [name for name, users in uses.items() if len(users) > 1]
    if shared:
        users = uses[shared[0]]
        many = f"{len(shared):,} targets have" if len(shared) > 1 else "1 target has"
        more = ", …" if len(users) > 3 else ""
        say(f"{many} several users, each of which selects it: {shared[0]} of {', '.join(users[:3])}{more}")


def _spiking(found: dict[str, Any]) -> None:
    """The spiking layers, and the axes that count their steps."""
    from onnxfi.cli.terminal import say, table

    rows = [
        (
            row["layer"], row["kind"], "?" if row["shape"] is None else "×".join(map(str, row["shape"])),
            "?" if row["neurons"] is None else f"{row['neurons']:,}", "?" if row["steps"] is None else row["steps"],
            *(_ends(row[name], exposed=row["exposed"]) for name in ("threshold", "leak")), row["reset"],
        )
        for row in found["layers"]
    ]  # fmt: skip
    columns = ("Spiking layer", "Kind", "Shape", ">Neurons", ">Steps", ">Threshold", ">Leak", "Reset")
    table("Neurons" + (", exposed" if found["layers"][0]["exposed"] else ""), columns, rows)
    for axis in found["time_axes"]:
        say(f"time is axis {axis['axis']} of {axis['tensor']} ({axis['role']})")


def _ends(values: list[float] | None, *, exposed: bool) -> str:
    if values is None:
        return "per neuron" if exposed else "-"
    low, high = values
    return f"{low:.4g}" if low == high else f"{low:.4g} … {high:.4g}"


def _scheme(quantised: dict[str, Any] | None) -> tuple[str, str, str]:
    """Scheme, scale and axis of a target, as the table shows them."""
    if quantised is None:
        return "", "", ""
    low, high = quantised["scale"] or (None, None)
    scale = "at run time" if low is None else f"{low:.4g}" if low == high else f"{low:.4g} … {high:.4g}"
    axis = "" if quantised["axis"] is None else str(quantised["axis"])
    return quantised["scheme"], scale, f"blocks of {quantised['block']}" if quantised["block"] else axis
