"""`onnxfi inject MODEL`: write a faulty model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli import options
from onnxfi.cli.instrument import ACTIVATION_OPTIONS, lost_fusions, opset_of
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
    from onnxfi.graph.passes.instrument import ActivationFault
    from onnxfi.runtime.data.open_data import Data
    from onnxfi.runtime.inject.activations import ActivationInjection
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


@verb("inject", "Inject faults into MODEL and write the faulty model.", PIPELINE, *_OPTIONS, *RUN, STAGE, LINKS, CODE, JSON)  # fmt: skip
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
    computed = flags["target"] != "weights"
    if computed:
        _refuse_stored(model, flags)
    else:
        options.refuse_flags(("all", "inline", "opset", "body"), "without --target activations or inputs")
    out = flags["out"] or Path(f"{model.stem}.{'restored' if flags['undo'] else 'faulty'}.onnx")
    _check_outputs(flags, (out, flags["save_faults"]))
    opened = options.stage_of(model, flags)
    drawn = None if computed or flags["undo"] else _draw_faults(opened, flags)
    runs = _Runs.begin(model, opened, out, flags)
    done: Any = _inject_activations(opened, runs.data, out, flags) if computed else _inject(opened, drawn, out, flags)
    runs.run(out)
    if as_json:
        values = _activations_document(opened, done) if computed else _document(done)
        print_json({"model": str(model), **values, **runs.document()})
    elif computed:
        _print_activations(str(model), flags["target"], done, runs)
    else:
        _print(str(model), done, runs, restored=flags["undo"])
    for text in (*opened.notes, *(done.notes if computed else ())):
        print_note(text)


@dataclass
class _Runs:
    """Runs of a model without and with faults on the data; none without --data."""

    evaluated: Callable[..., Evaluation] | None = None
    data: Data | None = None
    golden: Evaluation | None = None
    faulty: Evaluation | None = None
    failed: str = ""

    @classmethod
    def begin(cls, model: Path, opened: Model, out: Path, flags: dict[str, Any]) -> _Runs:
        """Run the model without faults where there is data: its errors are reported before anything is written."""
        from onnxfi.graph.write.output_file import check_output_files

        check_output_files(opened, [out])
        if flags["data"] is None:
            return cls()
        if flags["save_faults"]:
            check_output_files(opened, [flags["save_faults"]], copy=False)
        data, evaluated = options.evaluator(model, opened, flags)
        with progress("golden run") as on_progress:
            return cls(evaluated, data, evaluated(None, None, on_progress))

    def run(self, out: Path) -> None:
        """Run the faulty model; one that does not run is a result, not bad input, since faults may leave such."""
        from onnxfi.errors import EngineError

        if self.evaluated is None:
            return
        try:
            with progress("faulty run") as on_progress:
                self.faulty = self.evaluated(out, self.golden, on_progress)
        except EngineError as error:
            self.failed = str(error)

    def document(self) -> dict[str, Any]:
        """Return the metrics of both models and their conditions, as JSON keys; none where nothing was run."""
        one = self.golden
        if one is None:
            return {}
        conditions = {"samples": one.samples, "data": one.data, "scored": one.output, "provider": one.provider}
        faulty = self.faulty.summary() if self.faulty else {"error": self.failed}
        return {"golden": one.summary(), "faulty": faulty, **conditions}

    def show(self) -> None:
        """Print the metrics side by side."""
        if self.golden is not None and self.faulty is not None:
            print_comparison(self.golden, self.faulty)
        if self.failed:
            print_line(f"the faulty model does not run: {self.failed}")


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
    from onnxfi.faults.faultlist import FaultList
    from onnxfi.runtime.inject.weights import replay, sample

    if flags["faults"] is not None:
        return replay(model, FaultList.open(flags["faults"]))
    names = ("count", "per_tensor", "sites", "voltage", "temperature", "fault", "seed")
    return sample(
        model, ber=_rate_of(flags, "ber"), selector=options.selector_of(flags), **{name: flags[name] for name in names}
    )


def _inject(model: Model, drawn: Sample | None, out: Path, flags: dict[str, Any]) -> Injection:
    """Write the model with faults in its weights, or without those that a list names."""
    from onnxfi.faults.faultlist import FaultList
    from onnxfi.runtime.inject.weights import inject, undo

    with progress("writing") as on_progress:
        if drawn is None:
            return undo(model, FaultList.open(flags["faults"]), out, progress=on_progress)
        return inject(model, drawn, out, save_faults=flags["save_faults"], progress=on_progress)


def _inject_activations(model: Model, data: Data | None, out: Path, flags: dict[str, Any]) -> ActivationInjection:
    """Draw faults in activations or inputs, and write the model that has them."""
    from onnxfi.runtime.inject.activations import inject_activations

    batch = 1 if data is None else data.layout.fixed or min(flags["batch"], data.samples)
    if data is not None and flags["per_sample"] is not None and data.samples % batch:
        raise click.UsageError(
            f"{data.samples:,} samples are not a multiple of the batch size {batch}; give another --samples or --batch"
        )
    names = (
        "count", "per_tensor", "sites", "voltage", "temperature", "fault", "target", "seed", "all", "inline", "body",
        "custom_ops",
    )  # fmt: skip
    done = inject_activations(
        model, out, **{name: flags[name] for name in names}, selector=options.selector_of(flags),
        opset=opset_of(flags), data=data, batch=batch, ber=_rate_of(flags, "ber"),
        per_sample=_rate_of(flags, "per_sample"),
    )  # fmt: skip
    faulty = {(s.activation.path, s.activation.name) for s in done.inserted}
    return replace(done, notes=(*done.notes, *lost_fusions(model, done.data, len(faulty), flags["custom_ops"])))


def _refuse_stored(model: Path, flags: dict[str, Any]) -> None:
    """Refuse what is for faults in weights alone."""
    from onnxfi.campaign.spec.pipeline_file import names_pipeline

    target = flags["target"]
    for name in ("faults", "save_faults"):
        if flags[name] is not None:
            raise click.UsageError(
                f"--{name.replace('_', '-')} is for faults in weights; leave it out with --target {target}"
            )
    if names_pipeline(model):
        raise click.UsageError(
            f"inject --target {target} takes a model alone; name that of the stage, or inject into {target} of a "
            f"pipeline with onnxfi run --stage"
        )


def _rate_of(flags: dict[str, Any], name: str) -> float | None:
    """Return the rate that a flag gives, None if it gives none."""
    from onnxfi.numbers import number

    text = flags[name]
    try:
        return None if text is None else number(text)
    except ValueError:
        raise click.UsageError(
            f"--{name.replace('_', '-')} must be a number from 0 to 1, as 1e-6, got {text!r}"
        ) from None


def _document(done: Injection) -> dict[str, Any]:
    from onnxfi.faults.faultlist import fault_row

    drawn, header = done.sample, done.sample.header
    return {
        "digest": done.digest, "faulty_digest": done.faulty_digest, "output": str(done.out),
        "fault": header.fault, "seed": header.sampler.seed, "population": header.population, "unit": header.unit,
        "population_bits": drawn.population_bits, "expected": drawn.expected, "drawn": drawn.drawn,
        "faults": [fault_row(drawn.trial, fault) for fault in drawn.faults[:_MAX_LISTED]], "faults_total": len(drawn.faults),
        "resized": done.resized,
    }  # fmt: skip


def _print(model: str, done: Injection, runs: _Runs, *, restored: bool) -> None:
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
    runs.show()
    if done.resized:
        print_line("some stored numbers changed their length, so the protobuf messages around them were rewritten")
    print_line(f"wrote {done.out}, sha256 {done.faulty_digest}")


def _activations_document(model: Model, done: ActivationInjection) -> dict[str, Any]:
    from onnxfi.graph.model.loading import load

    assert done.out is not None
    return {
        "digest": model.digest, "faulty_digest": load(done.out, allow_links=True).digest,
        "output": str(done.out), "seed": done.draw.seed, "population": done.population, "unit": done.space.unit,
        "population_bits": done.space.bits, "expected": done.draw.expected_count(done.space), "drawn": done.faults.events,
        "faults": [_activation_row(s) for s in done.inserted[:_MAX_LISTED]], "faults_total": len(done.inserted),
        "notes": list(done.notes),
    }  # fmt: skip


def _activation_row(fault: ActivationFault) -> dict[str, Any]:
    from onnxfi.faults.sites import LAST_STEP

    a, mask = fault.activation, fault.mask
    row: dict[str, Any] = {"target": a.target.id, "index": fault.element, "sample": fault.sample}
    row["steps"] = None if (fault.first, fault.last) == (0, LAST_STEP) else [fault.first, fault.last]
    row |= {"keep": hex(mask.keep), "flip": hex(mask.flip)} if mask else {"scale": fault.scale, "shift": fault.shift}
    return row


def _print_activations(model: str, target: str, done: ActivationInjection, runs: _Runs) -> None:
    from onnxfi.graph.passes.fault_inputs import site_text

    draw, unit = done.draw, done.space.unit
    rate = {
        "ber": f"at a rate of {draw.rate:g} per {unit} of a sample", "per-sample": f"at a rate of {draw.rate:g} per sample",
    }.get(draw.kind, f"{draw.kind} {draw.n:,}")  # fmt: skip
    print_line(f"{model}: {target}, {rate}, seed {draw.seed}")
    print_line(f"population {count(done.population, unit)} per sample, drawn {done.faults.events:,}")
    rows = [(site_text(s), s.activation.target.dtype, _effect(s)) for s in done.inserted[:10]]
    table("Faults" + (" (the first 10)" if len(done.inserted) > 10 else ""), ("Site", "Dtype", "Becomes"), rows)
    runs.show()
    print_line(f"wrote {done.out}")


def _effect(fault: ActivationFault) -> str:
    if fault.mask is None:
        return f"number * {fault.scale:g} + {fault.shift:g}"
    return f"(word & {fault.mask.keep:#x}) ^ {fault.mask.flip:#x}"
