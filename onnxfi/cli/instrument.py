"""`onnxfi instrument MODEL`: write an armed model, golden until faults are fed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli import options
from onnxfi.cli.options import CUSTOM_OPS, JSON, LINKS, MODEL, NEURONS, PATH, select_options

if TYPE_CHECKING:
    from onnxfi.graph.model.loading import Model
    from onnxfi.runtime.inject.activations import Instrumented

_MEANING = {
    "site": "whose: the number in the table",
    "element": "which element of a sample, flat and row-major",
    "keep": "the faulty word is (word & keep) ^ flip: -1 keeps every bit",
    "flip": "as keep: 1 << 30 flips bit 30",
    "first": "the first iteration of the loop that is struck",
    "last": "the last one",
    "scale": "the faulty number is number * scale + shift, rounded into its format",
    "shift": "as scale: -0.0 shifts nothing, not even -0",
}


def flow_options(function: Any) -> Any:
    """What the verbs on values in flight share."""
    for option in (
        click.option("--body", type=click.Choice(["auto", "native", "portable"]), default="auto", show_default=True, help="How words are struck: native needs opset 26, portable runs from opset 11 on."),
        click.option("--opset", metavar="N", default="auto", show_default=True, help="Raise the model to opset N, keep its own, or auto: its own from 11 on, else 13."),
        click.option("--all", is_flag=True, help="Every value that can be struck, shapes and indices too (default: the outputs of layers)."),
    ):  # fmt: skip
        function = option(function)
    return function


def opset(given: dict[str, Any]) -> int | str:
    """`--opset` as a number or a word."""
    text: str = given["opset"]
    return int(text) if text.isdecimal() and len(text) < 9 else text


@click.command("instrument", short_help="Write a model that waits for its faults.")
@MODEL
@click.option(
    "--target",
    type=click.Choice(["activations", "neurons"]),
    default="activations",
    show_default=True,
    help="What is to be struck: values in flight, which are fed, or the neurons of a spiking network, which get stored words of their own.",
)
@NEURONS
@select_options
@flow_options
@click.option(
    "--values",
    is_flag=True,
    help="Faults are fed as scale and shift of a number (float64), rather than as masks of a word.",
)
@click.option(
    "--data", metavar="DATA", help="Inputs on which a raise of the opset must change no output (default: made-up ones)."
)
@CUSTOM_OPS
@click.option(
    "-o",
    "--out",
    type=PATH,
    metavar="OUT",
    help="The armed model (default: MODEL-stem.armed.onnx in this folder; of neurons MODEL-stem.exposed.onnx).",
)
@LINKS
@JSON
def command(model: Path, as_json: bool, allow_links: bool, **given: Any) -> None:
    """Put a fault operator behind values in flight of MODEL, and write the armed model.

    The result is plain ONNX. It gives the golden outputs until its new inputs are fed; those have defaults, so that
    whoever runs the model need not know them.

    \b
    onnxfi instrument model.onnx
    onnxfi instrument model.onnx --include layer1 -o armed.onnx
    onnxfi instrument model.onnx --all --body native
    onnxfi instrument model.onnx --values
    onnxfi instrument snn.onnx --target neurons
    """
    if given["target"] == "neurons":
        _neurons(model, given, as_json=as_json, allow_links=allow_links)
        return
    options.refuse(("neurons",), "without --target neurons")
    for name in ("bits", "elements"):
        if given[name]:
            raise click.UsageError(f"--{name} says nothing here, as faults are chosen when they are fed; leave it out")
    from onnxfi.cli.terminal import document, note
    from onnxfi.graph.model.loading import load
    from onnxfi.runtime.data.sources import open_data
    from onnxfi.runtime.engine.dry_run import dry_run
    from onnxfi.runtime.engine.engines import OrtEngine
    from onnxfi.runtime.inject.activations import instrument

    out = given["out"] or Path(f"{model.stem}.armed.onnx")
    opened = load(model, allow_links=allow_links)
    fed = None
    if given["data"] is not None:
        engine = OrtEngine(provider="cpu", custom_ops=given["custom_ops"])
        dry_run(engine, opened.path or b"")
        fed = open_data(given["data"], engine.prepare(opened.path or b"").inputs)
    asked = {name: given[name] for name in ("all", "body", "values", "custom_ops")}
    done = instrument(opened, options.selector(given), out, opset=opset(given), data=fed, **asked)
    done = replace(done, notes=(*done.notes, *fusions(opened, done.data, len(done.armed.sites), given["custom_ops"])))
    if as_json:
        document(_document(str(model), done))
    else:
        _print(done)
    for text in (*opened.notes, *done.notes):
        note(text)


def fusions(model: Model, made: bytes, sites: int, custom_ops: tuple[str, ...]) -> tuple[str, ...]:
    """What is said of fusions that the runtime loses; nothing of models with external data, which are not loaded."""
    from onnxfi.graph.model.loading import parse
    from onnxfi.runtime.engine.fusions import fusions_note

    if model.external or not sites:
        return ()
    return fusions_note(parse(model).SerializeToString(), made, sites, custom_ops)


def _neurons(model: Path, given: dict[str, Any], *, as_json: bool, allow_links: bool) -> None:
    """Expose the neurons of a spiking network."""
    options.refuse(
        (*options.SELECTORS, "all", "opset", "body", "values", "data", "custom_ops"),
        "with --target neurons, which exposes all of them",
    )
    from onnxfi.cli.terminal import document, note, say, table
    from onnxfi.graph.model.loading import load
    from onnxfi.graph.model.neuron_table import read_neuron_table as exposed
    from onnxfi.runtime.inject.neurons import expose_neurons

    out = given["out"] or Path(f"{model.stem}.exposed.onnx")
    opened = load(model, allow_links=allow_links)
    done = expose_neurons(opened, out, neurons=given["neurons"])
    rows = exposed(done.proto)
    if as_json:
        document({"model": str(model), "output": str(out), "layers": rows, "notes": list(opened.notes)})
        return
    shown = [
        (row["layer"], "×".join(map(str, row["shape"])), row["steps"] or "?", ", ".join(row["words"].values()))
        for row in rows
    ]
    table(
        "Neurons with words of their own", ("Spiking layer", "Shape", ">Steps", "Targets, an element a neuron"), shown
    )
    say(
        f"wrote {out}; strike it as any model: onnxfi run {out} --include {rows[0]['words']['spike']} --fault dead --exhaustive …"
    )
    for text in (*opened.notes, *done.spiking.notes):
        note(text)


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
    from onnxfi.cli.terminal import count, say, table
    from onnxfi.runtime.engine.model_io import shape_text

    sites = done.armed.sites
    if not sites:
        say(f"nothing to arm: the model has no layer whose output can be struck; wrote an unchanged copy, {done.out}")
    else:
        rows = [
            (
                row["site"],
                row["target"],
                row["op"],
                row["layer"],
                row["dtype"],
                shape_text(row["shape"]),
                row["loop"] or "",
            )
            for row in _rows(done)
        ]
        table(f"{count(len(sites), 'site')} armed", (">Site", "Tensor", "Op", "Layer", "Dtype", "Shape", "Loop"), rows)
        axes = {"site": "[F]", "first": "[F]", "last": "[F]"}
        inputs = [
            (n, f"{'float64' if key in ('scale', 'shift') else 'int64'} {axes.get(key, '[S,F]')}", _MEANING[key])
            for n in done.armed.inputs
            for key in [n.rpartition(".")[2]]
        ]
        table(
            "To strike, feed all of these: F faults, each a column; S is 1 (every sample alike) or the batch size, a row a sample",
            ("Input", "Type", "Meaning"),
            inputs,
        )
        say("the file holds the table of its sites in its metadata, as " + done.armed.prefix + ".sites")
        say(f"wrote {done.out}")
    for why, many in sorted(done.left_out.items(), key=lambda item: -item[1]):
        say(f"{count(many, 'value')} out of reach: {why}")
