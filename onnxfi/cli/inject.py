"""`onnxfi inject MODEL`: write a faulty model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli import options
from onnxfi.cli.instrument import ACTIVATION_OPTIONS
from onnxfi.cli.options import CODE, JSON, LINKS, PIPELINE, RUN, SELECT, STAGE, verb
from onnxfi.cli.streams import LIST, OUTPUT
from onnxfi.cli.terminal import (
    count,
    print_comparison,
    print_json,
    print_line,
    print_note,
    progress,
    table,
    value_change,
)

if TYPE_CHECKING:
    from onnxfi.graph.model.loading import Model
    from onnxfi.runtime.inject.weights import Injection, Sample
    from onnxfi.tasks.evaluation import Evaluation

#: Number of faults listed in the JSON document; the others are counted.
_MAX_LISTED = 10_000


_OPTIONS = (
    click.option("--ber", metavar="P", help="Inject a fault at each site with probability P (bit error rate), as 1e-6."),
    click.option("--count", type=int, metavar="N", help="Inject faults at N different sites."),
    click.option("--per-sample", metavar="P", help="With --target activations or inputs: one fault (SEU) in each sample of a batch with probability P."),
    click.option("--voltage", type=float, metavar="V", help="With --fault-map: the cells that fail at this voltage."),
    click.option("--temperature", type=float, metavar="T", help="With --fault-map: the cells that fail at this temperature."),
    click.option("--per-tensor", is_flag=True, help="With --count: N sites in each tensor."),
    click.option("--site", "sites", multiple=True, metavar="SITE", help="Inject a fault at this site: conv1.weight[3,0,1,2]:30. Repeatable."),
    click.option("--faults", type=LIST, metavar="FILE", help="Replay a fault list."),
    click.option("--undo", is_flag=True, help="With --faults: restore the original from the faulty MODEL."),
    click.option("--fault", default="flip", show_default=True, metavar="FAULT", help="Fault model: flip (SEU), burst:k=3, flip-mask:word=0x3, stuck-at-0, stuck-at-1, set-word:word=0x0, random-word, zero, sign-flip, set:value=nan, scale:factor=2, random-scale:low=0.5,high=1.5, add:value=0.1, noise:sigma=0.1, dead, saturated:percentile=99, flip-quantised:bits=8, time-constant:factor=2, random-time-constant:low=0.5,high=2, cluster:rows=2,cols=2, asymmetric-flip:up=1,down=0.1, stuck-pixel:value=1, stuck-line:value=0, salt-pepper:low=0,high=1, pixel-flip:bits=8, intermittent:on=0.1,off=0.5, pattern:file=PATTERN.json, distribution:file=TABLE.json."),
    *options.HARDWARE,
    *SELECT,
    click.option("--target", type=click.Choice(["weights", "activations", "inputs"]), default="weights", show_default=True, help="Inject into weights, activations or the inputs of the graph (site NAME[i]@sample=k@step=t:30)."),
    *ACTIVATION_OPTIONS,
    click.option("--inline", is_flag=True, help="With --target activations or inputs: write no model-local functions."),
    click.option("--seed", type=click.IntRange(0, (1 << 64) - 1), default=0, metavar="N", show_default="0", help="Seed of every draw."),
    click.option("-o", "--out", type=OUTPUT, metavar="OUT", help="Faulty model to write (default: MODEL-stem.faulty.onnx in this folder)."),
    click.option("--save-faults", type=OUTPUT, metavar="FILE", help="Write the fault list."),
)  # fmt: skip


@verb(
    "inject",
    "Inject faults into MODEL and write the faulty model.",
    PIPELINE,
    *_OPTIONS,
    *RUN,
    STAGE,
    LINKS,
    CODE,
    JSON,
)
def command(model: Path, as_json: bool, **flags: Any) -> None:
    """Inject faults into MODEL and write the faulty model; with --data, run both and compare their metrics.

    Exactly one of --ber, --count, --site, --faults, --per-sample, --voltage and --temperature chooses the faulty sites.

    \b
    onnxfi inject model.onnx --ber 1e-6
    onnxfi inject model.onnx --count 1 --include conv1 --bits exponent --data images.npz
    onnxfi inject model.onnx --ber 1e-6 --save-faults faults.jsonl
    onnxfi inject model.faulty.onnx --faults faults.jsonl --undo -o restored.onnx
    onnxfi inject model.onnx --target activations --site 'relu[7]@sample=0:30'
    onnxfi inject pipeline.yaml --stage reader --ber 1e-6 --data images.npz
    """
    explicit = bool(options.given_flags(flags, ("fault",)))
    flags["fault"] = options.hardware_fault(flags, given=explicit) or flags["fault"]
    _check_flags(flags)
    if flags["target"] != "weights":
        from onnxfi.cli.inject_activations import inject_activations

        inject_activations(model, flags, as_json=as_json, allow_links=flags["allow_links"])
        return
    options.refuse_flags(("all", "inline", "opset", "body"), "without --target activations or inputs")
    from onnxfi.errors import EngineError
    from onnxfi.graph.write.output_file import check_output_files
    from onnxfi.runtime.inject.weights import inject, undo

    out = flags["out"] or Path(f"{model.stem}.{'restored' if flags['undo'] else 'faulty'}.onnx")
    _check_outputs(flags, (out, flags["save_faults"]))
    opened = options.stage_of(model, flags)
    golden = faulty = None
    failed = ""
    if flags["undo"]:
        from onnxfi.faults.faultlist import FaultList

        with progress("writing") as on_progress:
            done = undo(opened, FaultList.open(flags["faults"]), out, progress=on_progress)
    else:
        drawn = _draw_faults(opened, flags)
        if flags["data"] is not None:  # the golden run comes first: its errors are reported before anything is written
            check_output_files(opened, [out])
            if flags["save_faults"]:
                check_output_files(opened, [flags["save_faults"]], copy=False)
            evaluated = options.evaluator(model, opened, flags)
            with progress("golden run") as on_progress:
                golden = evaluated(None, None, on_progress)
        with progress("writing") as on_progress:
            done = inject(opened, drawn, out, save_faults=flags["save_faults"], progress=on_progress)
        if golden is not None:
            try:
                with progress("faulty run") as on_progress:
                    faulty = evaluated(out, golden, on_progress)
            except EngineError as error:  # a result, not bad input: faults may leave a model that does not run
                failed = str(error)
    if as_json:
        print_json(_document(str(model), done, golden, faulty, failed))
    else:
        _print(str(model), done, golden, faulty, failed, restored=flags["undo"])
    for text in opened.notes:
        print_note(text)


def _check_flags(flags: dict[str, Any]) -> None:
    names = ("ber", "count", "faults", "per_sample", "voltage", "temperature")
    modes = [name for name in names if flags[name] is not None] + ["site"] * bool(flags["sites"])
    if len(modes) != 1:
        text = " and ".join("--" + mode.replace("_", "-") for mode in modes) or "none"
        raise click.UsageError(f"give exactly one of --ber, --count, --site, --faults and --voltage; given: {text}")
    for flag, needs in (("per_tensor", "count"), ("undo", "faults")):
        if flags[flag] and flags[needs] is None:
            raise click.UsageError(f"--{flag.replace('_', '-')} requires --{needs}")
    if flags["undo"] and (flags["data"] is not None or flags["save_faults"]):
        raise click.UsageError("--undo takes neither --data nor --save-faults; run onnxfi eval on the restored model")
    if flags["faults"] is not None:
        options.refuse_flags(("fault", "seed", *options.SELECTION), "with --faults, whose list holds it")
    if flags["per_sample"] is not None and (flags["target"] == "weights" or flags["data"] is None):
        raise click.UsageError("--per-sample requires --target activations or inputs, and --data")
    if flags["data"] is None:
        activations = flags["target"] != "weights"  # which may need a run to know shapes
        options.refuse_flags(
            [n for n in options.RUN_PARAMETERS if not activations or n != "custom_ops"],
            "without --data, as nothing is run",
        )


def _check_outputs(flags: dict[str, Any], outputs: Iterable[Path | None]) -> None:
    """Refuse to overwrite an input file; the model itself is checked where it is written."""
    from onnxfi.errors import OutputError

    for flag in ("faults", "data", "labels", "preprocess"):
        for file in outputs:
            if file and flags[flag] and os.path.realpath(file) == os.path.realpath(flags[flag]):
                raise OutputError(f"{str(file)!r} is both the input of --{flag} and an output; choose another name")


def _draw_faults(model: Model, flags: dict[str, Any]) -> Sample:
    from onnxfi.cli.inject_activations import rate_of
    from onnxfi.faults.faultlist import FaultList
    from onnxfi.runtime.inject.weights import replay, sample

    if flags["faults"] is not None:
        return replay(model, FaultList.open(flags["faults"]))
    names = ("count", "per_tensor", "sites", "voltage", "temperature", "fault", "seed")
    return sample(
        model, ber=rate_of(flags, "ber"), selector=options.selector_of(flags), **{name: flags[name] for name in names}
    )


def _document(
    model: str, done: Injection, golden: Evaluation | None, faulty: Evaluation | None, failed: str
) -> dict[str, Any]:
    from onnxfi.cli.inject_activations import output_metrics
    from onnxfi.faults.faultlist import fault_row

    drawn, header = done.sample, done.sample.header
    values: dict[str, Any] = {
        "model": model, "digest": done.digest, "faulty_digest": done.faulty_digest, "output": str(done.out),
        "fault": header.fault, "seed": header.sampler.seed, "population": header.population, "unit": header.unit,
        "population_bits": drawn.population_bits, "expected": drawn.expected, "drawn": drawn.drawn,
        "faults": [fault_row(drawn.trial, fault) for fault in drawn.faults[:_MAX_LISTED]], "faults_total": len(drawn.faults),
        "resized": done.resized,
    }  # fmt: skip
    return values | output_metrics(golden, faulty, failed)


def _print(
    model: str, done: Injection, golden: Evaluation | None, faulty: Evaluation | None, failed: str, *, restored: bool
) -> None:
    from onnxfi.faults.faultlist import fault_row
    from onnxfi.faults.trials import CONDITION_SAMPLERS

    drawn, header = done.sample, done.sample.header
    if restored:
        print_line(f"removed {count(drawn.drawn, 'fault')}; wrote {done.out}, sha256 {done.faulty_digest}")
        return
    sampler = header.sampler
    rate = (
        f"{sampler.kind} {sampler.rate:g}"
        if sampler.kind in CONDITION_SAMPLERS
        else (
            f"at a rate of {sampler.rate:g} per {header.unit}"
            if sampler.kind == "ber"
            else f"{sampler.kind} {sampler.n:,}"
        )
    )
    print_line(f"{model}: {header.fault}, {rate}, seed {sampler.seed}")
    spread = f", in {count(drawn.faults.word_count, 'word')}" if drawn.faults.word_count != drawn.drawn else ""
    print_line(
        f"population {count(header.population, header.unit)}, expected {drawn.expected:,.2f} faults, drawn {drawn.drawn:,}{spread}"
    )
    rows = [
        (layer, r["targets"], f"{r['population']:,}", f"{r['faults']:,}", f"{r['changed']:,}")
        for layer, r in drawn.by_layer().items()
        if r["faults"]
    ]
    if rows:
        table("By layer", ("Layer", ">Targets", f">{header.unit.capitalize()}s", ">Faults", ">Words changed"), rows)
    largest = [
        (f.site, f.fault, value_change(fault_row(drawn.trial, f)), f"{f.before:#x} → {f.after:#x}")
        for f in drawn.largest()
    ]
    if largest:
        table("Largest changes", ("Site", "Fault", "Value", "Word"), largest)
    if golden is not None and faulty is not None:
        print_comparison(golden, faulty)
    if failed:
        print_line(f"the faulty model does not run: {failed}")
    if done.resized:
        print_line("some stored numbers changed their length, so the protobuf messages around them were rewritten")
    print_line(f"wrote {done.out}, sha256 {done.faulty_digest}")
