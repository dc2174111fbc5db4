"""`onnxfi instrument MODEL`: write an armed model, fault-free until faults are fed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli import options
from onnxfi.cli.options import CUSTOM_OPS, JSON, LINKS, MODEL, NEURONS, SELECT, verb
from onnxfi.cli.streams import OUTPUT
from onnxfi.cli.terminal import count, print_json, print_line, print_note, table

if TYPE_CHECKING:
    from onnxfi.graph.model.loading import Model
    from onnxfi.runtime.inject.activations import Instrumented

_INPUT_HELP = {
    "site": "the number of the tensor in the table",
    "element": "the element of a sample, flat and row-major",
    "keep": "the faulty word is (word & keep) ^ flip: -1 keeps every bit",
    "flip": "as keep: 1 << 30 flips bit 30",
    "first": "first faulty iteration of the loop",
    "last": "last faulty iteration",
    "scale": "the faulty number is number * scale + shift, rounded to its format",
    "shift": "as scale: -0.0 changes nothing, not even -0",
}


#: Options that the commands on activations share.
ACTIVATION_OPTIONS = (
    click.option("--all", is_flag=True, help="Select all activations, also shapes and indices (default: the outputs of layers)."),
    click.option("--opset", metavar="N", default="auto", show_default=True, help="Raise the model to opset N, keep its own, or auto: its own from 11 on, else 13."),
    click.option("--body", type=click.Choice(["auto", "native", "portable"]), default="auto", show_default=True, help="Bit operations of the fault operators: native needs opset 26, portable opset 11."),
)  # fmt: skip


def opset_of(flags: dict[str, Any]) -> int | str:
    """Return `--opset` as a number or a word."""
    text: str = flags["opset"]
    return int(text) if text.isdecimal() and len(text) < 9 else text


_OPTIONS = (
    click.option("--target", type=click.Choice(["activations", "neurons"]), default="activations", show_default=True, help="Arm activations, whose faults are fed as inputs, or expose the neurons of a spiking network as stored words."),
    NEURONS,
    click.option("--reads", is_flag=True, help="With --target neurons: each time step reads parameters and synapses through an activation of its own, for faults of one step."),
    *SELECT,
    *ACTIVATION_OPTIONS,
    click.option("--values", is_flag=True, help="Feed faults as scale and shift of a number (float64) instead of masks of a word."),
    click.option("--data", metavar="DATA", help="Inputs on which a raised opset must not change any output (default: synthetic)."),
    CUSTOM_OPS,
    click.option("-o", "--out", type=OUTPUT, metavar="OUT", help="Model to write (default: MODEL-stem.armed.onnx in this folder; of neurons MODEL-stem.exposed.onnx)."),
)  # fmt: skip


@verb("instrument", "Write a model with inputs for faults.", MODEL, *_OPTIONS, LINKS, JSON)
def command(model: Path, as_json: bool, allow_links: bool, **flags: Any) -> None:
    """Insert a fault operator after activations of MODEL, and write the armed model.

    The result is plain ONNX. Its outputs are the golden outputs until its new inputs are fed; these have defaults, so
    that the model runs without them.

    \b
    onnxfi instrument model.onnx
    onnxfi instrument model.onnx --include layer1 -o armed.onnx
    onnxfi instrument model.onnx --all --body native
    onnxfi instrument model.onnx --values
    onnxfi instrument snn.onnx --target neurons
    onnxfi instrument snn.onnx --target neurons --reads
    """
    if flags["target"] == "neurons":
        _instrument_neurons(model, flags, as_json=as_json, allow_links=allow_links)
        return
    options.refuse_flags(("neurons", "reads"), "without --target neurons")
    for name in ("bits", "elements"):
        if flags[name]:
            raise click.UsageError(f"--{name} has no effect, as faults are chosen when they are fed; leave it out")
    from onnxfi.graph.model.loading import load
    from onnxfi.runtime.inject.activations import instrument

    out = flags["out"] or Path(f"{model.stem}.armed.onnx")
    opened = load(model, allow_links=allow_links)
    dataset = None if flags["data"] is None else options.data_run_once(flags["data"], opened, flags["custom_ops"])
    arguments = {name: flags[name] for name in ("all", "body", "values", "custom_ops")}
    done = instrument(opened, options.selector_of(flags), out, opset=opset_of(flags), data=dataset, **arguments)
    done = replace(
        done, notes=(*done.notes, *lost_fusions(opened, done.data, len(done.armed.sites), flags["custom_ops"]))
    )
    if as_json:
        print_json(_document(str(model), done))
    else:
        _print(done)
    for text in (*opened.notes, *done.notes):
        print_note(text)


def lost_fusions(model: Model, instrumented: bytes, sites: int, custom_ops: tuple[str, ...]) -> tuple[str, ...]:
    """Return notes on fusions that the runtime no longer applies; none for models with external data."""
    from onnxfi.graph.model.loading import parse
    from onnxfi.runtime.inject.lost_fusions import fusions_note

    if model.external or not sites:
        return ()
    return fusions_note(parse(model).SerializeToString(), instrumented, sites, custom_ops)


def _instrument_neurons(model: Path, flags: dict[str, Any], *, as_json: bool, allow_links: bool) -> None:
    """Expose the neurons of a spiking network and write the model."""
    options.refuse_flags(
        (*options.SELECTION, "all", "opset", "body", "values", "data", "custom_ops"),
        "with --target neurons, which exposes all neurons",
    )
    from onnxfi.graph.model.loading import load
    from onnxfi.graph.model.neuron_table import read_neuron_table, step_reads
    from onnxfi.runtime.inject.neurons import expose_neurons

    out = flags["out"] or Path(f"{model.stem}.exposed.onnx")
    opened = load(model, allow_links=allow_links)
    done = expose_neurons(opened, out, neurons=flags["neurons"], reads=flags["reads"])
    rows = read_neuron_table(done.proto)
    if as_json:
        read = {name: list(steps) for name, steps in step_reads(done.proto).items()}
        print_json(
            {"model": str(model), "output": str(out), "layers": rows, "reads": read, "notes": list(opened.notes)}
        )
        return
    shown = [
        (row["layer"], "×".join(map(str, row["shape"])), row["steps"] or "?", ", ".join(row["words"].values()))
        for row in rows
    ]
    table("Exposed neurons", ("Spiking layer", "Shape", ">Steps", "Targets, one element per neuron"), shown)
    if several := step_reads(done.proto):
        cells = [(name, len(steps), steps[-1]) for name, steps in several.items()]
        table("What the steps read", ("Stored tensor", ">Activations", "The last of them"), cells)
    print_line(
        f"wrote {out}; inject faults into it as into any model: onnxfi run {out} --include {rows[0]['words']['spike']} --fault dead --exhaustive …"
    )
    for text in (*opened.notes, *done.spiking.notes):
        print_note(text)


def _rows(done: Instrumented) -> list[dict[str, Any]]:
    return [
        {
            "site": number, "target": a.target.id, "layer": a.target.layer, "op": a.target.op, "dtype": a.target.dtype,
            "shape": None if a.dims is None else list(a.dims), "batch_axis": a.axis, "loop": a.loop or None,
        }
        for number, a in enumerate(done.armed.sites)
    ]  # fmt: skip


def _document(model: str, done: Instrumented) -> dict[str, Any]:
    return {
        "model": model, "output": str(done.out), "sites": _rows(done), "inputs": list(done.armed.inputs),
        "left_out": dict(done.left_out), "notes": list(done.notes),
    }  # fmt: skip


def _print(done: Instrumented) -> None:
    from onnxfi.runtime.engine.ports import shape_text

    sites = done.armed.sites
    if not sites:
        print_line(
            f"nothing to arm: the model has no layer output to inject faults into; wrote an unchanged copy, {done.out}"
        )
    else:
        rows = [
            (
                *(row[key] for key in ("site", "target", "op", "layer", "dtype")),
                shape_text(row["shape"]),
                row["loop"] or "",
            )
            for row in _rows(done)
        ]
        table(f"{count(len(sites), 'site')} armed", (">Site", "Tensor", "Op", "Layer", "Dtype", "Shape", "Loop"), rows)
        axes = {"site": "[F]", "first": "[F]", "last": "[F]"}
        inputs = [
            (n, f"{'float64' if key in ('scale', 'shift') else 'int64'} {axes.get(key, '[S,F]')}", _INPUT_HELP[key])
            for n in done.armed.inputs
            for key in [n.rpartition(".")[2]]
        ]
        table(
            "Inputs of faults, to be fed together: F faults, one column each; S is 1 (the same in every sample) or the batch size",
            ("Input", "Type", "Meaning"),
            inputs,
        )
        print_line(f"the metadata of the file hold the table of sites as {done.armed.prefix}.sites")
        print_line(f"wrote {done.out}")
    for reason, n in sorted(done.left_out.items(), key=lambda item: -item[1]):
        print_line(f"{count(n, 'activation')} left out: {reason}")
