"""`onnxfi inject MODEL`: write a faulty model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli import options
from onnxfi.cli.instrument import flow_options
from onnxfi.cli.options import JSON, LINKS, MODEL, PATH, run_options, select_options

if TYPE_CHECKING:
    from onnxfi.graph.model.loading import Model
    from onnxfi.runtime.inject.weights import Injection, Sample
    from onnxfi.tasks.evaluation import Evaluation

#: Faults listed in the JSON document; the rest is counted.
_MOST_LISTED = 10_000


@click.command("inject", short_help="Strike stored words of MODEL and write the faulty model.")
@MODEL
@click.option("--ber", metavar="P", help="Strike each site with probability P, as 1e-6.")
@click.option("--count", type=int, metavar="N", help="Strike N different sites.")
@click.option(
    "--per-sample", metavar="P", help="With --target activations: with probability P one site in each row of --batch."
)
@click.option("--per-tensor", is_flag=True, help="With --count: N sites in each tensor.")
@click.option(
    "--site",
    "sites",
    multiple=True,
    metavar="SITE",
    help="Strike this site: conv1.weight[3,0,1,2]:30. Repeatable.",
)
@click.option("--faults", type=PATH, metavar="FILE", help="Replay a fault list.")
@click.option("--undo", is_flag=True, help="With --faults: restore the original from the faulty MODEL.")
@click.option(
    "--fault",
    default="flip",
    show_default=True,
    metavar="FAULT",
    help="What happens at a site: flip, burst:k=3, stuck-at-0, stuck-at-1, set-word:word=0x0, random-word, zero, sign-flip, set:value=nan, scale:factor=2, add:value=0.1, noise:sigma=0.1, dead, saturated:percentile=99, flip-quantised:bits=8, pattern:file=PATTERN.json.",
)
@select_options
@click.option(
    "--target",
    type=click.Choice(["weights", "activations"]),
    default="weights",
    show_default=True,
    help="What is struck: stored words, or values in flight (NAME[i]@sample=k@step=t:30).",
)
@flow_options
@click.option("--inline", is_flag=True, help="With --target activations: write no model-local functions.")
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 64) - 1),
    default=0,
    metavar="N",
    show_default="0",
    help="The seed of every draw.",
)
@click.option(
    "-o",
    "--out",
    type=PATH,
    metavar="OUT",
    help="The faulty model (default: MODEL-stem.faulty.onnx in this folder).",
)
@click.option("--save-faults", type=PATH, metavar="FILE", help="Write the fault list.")
@run_options
@LINKS
@JSON
def command(model: Path, as_json: bool, allow_links: bool, **given: Any) -> None:
    """Strike stored words of MODEL and write the faulty model; with --data, run both and show golden against faulty.

    Exactly one of --ber, --count, --site and --faults says how much is struck.

    \b
    onnxfi inject model.onnx --ber 1e-6
    onnxfi inject model.onnx --count 1 --include conv1 --bits exponent --data images.npz
    onnxfi inject model.onnx --ber 1e-6 --save-faults faults.jsonl
    onnxfi inject model.faulty.onnx --faults faults.jsonl --undo -o restored.onnx
    onnxfi inject model.onnx --target activations --site 'relu[7]@sample=0:30'
    """
    _check(given)
    if given["target"] == "activations":
        from onnxfi.cli.inject_activations import inject_activations

        inject_activations(model, given, as_json=as_json, allow_links=allow_links)
        return
    options.refuse(("all", "inline", "opset", "body"), "without --target activations")
    from onnxfi.cli.terminal import document, note, progress
    from onnxfi.errors import EngineError
    from onnxfi.graph.model.loading import load
    from onnxfi.graph.write.output_file import check_output_files
    from onnxfi.runtime.inject.weights import inject, undo
    from onnxfi.tasks.evaluation import evaluate

    out = given["out"] or Path(f"{model.stem}.{'restored' if given['undo'] else 'faulty'}.onnx")
    _spare(given, (out, given["save_faults"]))
    opened = load(model, allow_links=allow_links)
    golden = faulty = None
    failed = ""
    if given["undo"]:
        from onnxfi.faults.faultlist import FaultList

        with progress("writing") as tell:
            done = undo(opened, FaultList.open(given["faults"]), out, progress=tell)
    else:
        drawn = _drawn(opened, given)
        if given["data"] is not None:  # golden comes first: what does not run or fit is said before anything is written
            check_output_files(opened, [out])
            if given["save_faults"]:
                check_output_files(opened, [given["save_faults"]], copy=False)
            how = options.engine(given)
            fed = options.data(given, opened, how)
            with progress("golden") as tell:
                golden = evaluate(model, fed, engine=how, **options.scored(given), progress=tell)
        with progress("writing") as tell:
            done = inject(opened, drawn, out, save_faults=given["save_faults"], progress=tell)
        if golden is not None:
            try:
                with progress("faulty") as tell:
                    faulty = evaluate(out, fed, golden=golden, engine=how, **options.scored(given), progress=tell)
            except EngineError as error:  # an answer, and no bad input: faults may leave a model that does not run
                failed = str(error)
    if as_json:
        document(_document(str(model), done, golden, faulty, failed))
    else:
        _print(str(model), done, golden, faulty, failed, undone=given["undo"])
    for text in opened.notes:
        note(text)


def _check(given: dict[str, Any]) -> None:
    names = ("ber", "count", "faults", "per_sample")
    ways = [name for name in names if given[name] is not None] + ["site"] * bool(given["sites"])
    if len(ways) != 1:
        what = " and ".join("--" + way.replace("_", "-") for way in ways) or "none"
        raise click.UsageError(f"exactly one of --ber, --count, --site and --faults is needed; given: {what}")
    for flag, needs in (("per_tensor", "count"), ("undo", "faults")):
        if given[flag] and given[needs] is None:
            raise click.UsageError(f"--{flag.replace('_', '-')} goes with --{needs}")
    if given["undo"] and (given["data"] is not None or given["save_faults"]):
        raise click.UsageError("--undo takes neither --data nor --save-faults; run onnxfi eval on the restored model")
    if given["faults"] is not None:
        options.refuse(("fault", "seed", *options.SELECTORS), "beside --faults, whose list says it")
    if given["per_sample"] is not None and (given["target"] != "activations" or given["data"] is None):
        raise click.UsageError("--per-sample goes with --target activations and --data, whose samples it strikes")
    if given["data"] is None:
        flies = given["target"] == "activations"  # whose shapes a run may have to tell
        options.refuse(
            [n for n in options.RUNNING if not flies or n != "custom_ops"], "without --data, as nothing is run"
        )


def _spare(given: dict[str, Any], outputs: Iterable[Path | None]) -> None:
    """Refuse an output that would replace what is read; that it is not the model itself is checked where it is written."""
    from onnxfi.errors import OutputError

    for flag in ("faults", "data", "preprocess"):
        for file in outputs:
            if file and given[flag] and os.path.realpath(file) == os.path.realpath(given[flag]):
                raise OutputError(
                    f"{str(file)!r} is given to be read by --{flag} and to be written; choose another name"
                )


def _drawn(model: Model, given: dict[str, Any]) -> Sample:
    from onnxfi.faults.faultlist import FaultList
    from onnxfi.runtime.inject.weights import replay, sample

    if given["faults"] is not None:
        return replay(model, FaultList.open(given["faults"]))
    ber = None
    if given["ber"] is not None:
        try:
            ber = float(given["ber"])
        except ValueError:
            raise click.UsageError(f"--ber {given['ber']!r} is no number; give one from 0 to 1, as 1e-6") from None
    names = ("count", "per_tensor", "sites", "fault", "seed")
    return sample(model, ber=ber, selector=options.selector(given), **{name: given[name] for name in names})


def _document(
    model: str, done: Injection, golden: Evaluation | None, faulty: Evaluation | None, failed: str
) -> dict[str, Any]:
    from onnxfi.cli.inject_activations import answers
    from onnxfi.faults.faultlist import fault_row

    drawn, header = done.sample, done.sample.header
    values: dict[str, Any] = {
        "model": model, "digest": done.digest, "faulty_digest": done.faulty_digest, "output": str(done.out),
        "fault": header.fault, "seed": header.sampler.seed, "population": header.population, "unit": header.unit,
        "population_bits": drawn.population_bits, "expected": drawn.expected, "drawn": drawn.drawn,
        "faults": [fault_row(drawn.trial, fault) for fault in drawn.faults[:_MOST_LISTED]], "faults_total": len(drawn.faults),
        "resized": done.resized,
    }  # fmt: skip
    return values | answers(golden, faulty, failed)


def _print(
    model: str, done: Injection, golden: Evaluation | None, faulty: Evaluation | None, failed: str, *, undone: bool
) -> None:
    from onnxfi.cli.terminal import change, count, number, say, table
    from onnxfi.faults.faultlist import fault_row

    drawn, header = done.sample, done.sample.header
    if undone:
        say(f"undid {count(drawn.drawn, 'fault')}; wrote {done.out}, sha256 {done.faulty_digest}")
        return
    how = header.sampler
    rate = f"at a rate of {how.rate:g} per {header.unit}" if how.kind == "ber" else f"{how.kind} {how.n:,}"
    say(f"{model}: {header.fault}, {rate}, seed {how.seed}")
    spread = f", in {count(drawn.faults.word_count, 'word')}" if drawn.faults.word_count != drawn.drawn else ""
    say(
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
        (f.site, f.fault, change(fault_row(drawn.trial, f)), f"{f.before:#x} → {f.after:#x}") for f in drawn.largest()
    ]
    if largest:
        table("Largest changes", ("Site", "Fault", "Value", "Word"), largest)
    if golden is not None and faulty is not None:
        values = [
            (
                name,
                *(number(found.metrics.get(name), share=golden.task.metric(name).share) for found in (golden, faulty)),
            )
            for name in faulty.metrics
        ]
        table("Golden against faulty", ("Metric", ">Golden", ">Faulty"), values)
        say(faulty.conditions())
    if failed:
        say(f"the faulty model does not run, the golden one does: {failed}")
    if done.resized:
        say("some numbers changed their length in the file, so the messages around them were written anew")
    say(f"wrote {done.out}, sha256 {done.faulty_digest}")
