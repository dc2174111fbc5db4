"""`onnxfi inspect MODEL`: the targets of faults in a model, stored or computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxfi.cli import options
from onnxfi.cli.options import CUSTOM_OPS, JSON, LINKS, NEURONS, PIPELINE, SELECT, STAGE, selector_of, verb
from onnxfi.cli.terminal import count, print_json, print_line, print_note, table

_OPTIONS = (
    click.option("--target", type=click.Choice(["weights", "activations", "inputs"]), default="weights", show_default=True, help="List weights, activations (what each layer puts out), or the inputs of the graph."),
    *SELECT,
    click.option("--all", is_flag=True, help="With --target activations or inputs: list all of them (default: the outputs of layers)."),
    NEURONS,
    click.option("--data", metavar="DATA", help="With --target activations or inputs: inputs that show shapes which the file leaves open (default: synthetic)."),
)  # fmt: skip


@verb("inspect", "List the targets of faults in MODEL.", PIPELINE, *_OPTIONS, CUSTOM_OPS, STAGE, LINKS, JSON)
def command(model: Path, as_json: bool, allow_links: bool, neurons: Path | None, **flags: Any) -> None:
    """List the targets of faults in MODEL: layers, tensors, operators, number formats, shapes, bits.

    The options of the selection are those of `onnxfi inject`, so that it can be tried first. Integer tensors of shapes
    or indices are left out; --include '=NAME' selects one.

    \b
    onnxfi inspect model.onnx
    onnxfi inspect model.onnx --target activations
    onnxfi inspect model.onnx --target activations --include =dense_1
    """
    if flags["target"] != "weights":
        _inspect_activations(model, flags, neurons, as_json=as_json, allow_links=allow_links)
        return
    options.refuse_flags(("all", "data", "custom_ops"), "without --target activations or inputs")
    opened = options.stage_of(model, {**flags, "allow_links": allow_links})
    from onnxfi.runtime.inject.weights import inspect

    found = inspect(opened, selector_of(flags), neurons=neurons)
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


def _inspect_activations(
    model: Path, flags: dict[str, Any], neurons: Path | None, *, as_json: bool, allow_links: bool
) -> None:
    """List what layers output, or the inputs of the graph."""
    options.refuse_flags(("role",), "with --target activations or inputs, which have none")
    from onnxfi.graph.model.loading import load
    from onnxfi.runtime.inject.inspection import inspect_activations

    opened = load(model, allow_links=allow_links)
    dataset = None if flags["data"] is None else options.data_run_once(flags["data"], opened, flags["custom_ops"])
    arguments = {name: flags[name] for name in ("target", "all", "custom_ops")}
    found = inspect_activations(opened, selector_of(flags), neurons=neurons, data=dataset, **arguments)
    if as_json:
        print_json(found)
        return
    rows = [_activation_row(a) for a in found["activations"]]
    timed = any(row[5] for row in rows)
    columns = ("Layer", "Activation", "Op", "Type", "Shape", *((">Steps",) if timed else ()), ">Elements", ">Bits")
    totals = found["totals"]
    what = "input" if flags["target"] == "inputs" else "activation"
    under = ("", count(totals["activations"], what), *[""] * (len(columns) - 4))
    shown = [row if timed else (*row[:5], *row[6:]) for row in rows]
    table(str(model), columns, shown, footer=(*under, *(_number(totals[key]) for key in ("elements", "bits"))))
    print_line("elements and bits are those of one sample" + (" in one step" if timed else ""))
    if found["unselected"]:
        print_line(f"not selected: {found['unselected']:,}; --all lists them")
    for reason, n in sorted(found["unsupported"].items(), key=lambda item: -item[1]):
        print_line(f"{count(n, what)} cannot have faults: {reason}")
    _neuron_tensors(found["spiking"])
    for text in found["notes"]:
        print_note(text)


def _neuron_tensors(layers: list[dict[str, Any]]) -> None:
    """Print the tensors that hold membrane potentials and spikes."""

    def text(names: list[str]) -> str:
        return " … ".join(names if len(names) < 2 else (names[0], names[-1])) or "-"

    rows = [
        (x["layer"], "?" if x["steps"] is None else x["steps"], text(x["membrane"]), text(x["spike"])) for x in layers
    ]
    if rows:
        table("Neurons", ("Spiking layer", ">Steps", "Membrane potential", "Spikes"), rows)


def _activation_row(a: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of an activation; those of its steps may be empty."""
    from onnxfi.runtime.engine.ports import shape_text

    neurons, steps = a["neurons"], ""
    if neurons is not None and neurons["step"] is not None:
        steps = f"{neurons['step']} of 0 … {neurons['steps'] - 1}"
    elif a["loop"]:
        steps = _number(a["iterations"])
    layer = a["outputs_of"][0]["layer"] if neurons is None else f"{neurons['layer']} ({neurons['role']})"
    shape = a["shape"] and [
        "N" if k == a["batch_axis"] and not isinstance(n, int) else n for k, n in enumerate(a["shape"])
    ]
    numbers = (_number(a[key]) for key in ("elements", "bits"))
    ops = " + ".join(dict.fromkeys(part["op"] for part in a["outputs_of"] if part["op"] != "DequantizeLinear"))
    return (layer, a["target"], ops, a["dtype"], shape_text(shape), steps, *numbers)


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _shared(targets: list[dict[str, Any]]) -> None:
    """Print which weights have several users; the table names the first."""
    uses = {t["target"]: list(dict.fromkeys(f"{u['layer']} ({u['op']})" for u in t["users"])) for t in targets}
    shared = [name for name, users in uses.items() if len(users) > 1]
    if shared:
        users = uses[shared[0]]
        many = f"{len(shared):,} targets have" if len(shared) > 1 else "1 target has"
        more = ", …" if len(users) > 3 else ""
        print_line(f"{many} several users, each of which selects it: {shared[0]} of {', '.join(users[:3])}{more}")


def _spiking(found: dict[str, Any]) -> None:
    """Print the spiking layers and the axes of their time steps."""
    parameters = [
        "threshold",
        "leak",
        *(n for n in ("synaptic", "refractory") if any(row[n] for row in found["layers"])),
    ]
    rows = [
        (
            row["layer"], row["kind"], "?" if row["shape"] is None else "×".join(map(str, row["shape"])),
            "?" if row["neurons"] is None else f"{row['neurons']:,}", "?" if row["steps"] is None else row["steps"],
            *(_range_text(row[name], exposed=row["exposed"]) for name in parameters), row["reset"],
        )
        for row in found["layers"]
    ]  # fmt: skip
    named = (f">{name.capitalize()}" for name in parameters)
    columns = ("Spiking layer", "Kind", "Shape", ">Neurons", ">Steps", *named, "Reset")
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
