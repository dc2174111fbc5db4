"""`onnxfi inject MODEL --target activations|inputs`: write a model with faults in what it computes or is fed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli import options
from onnxfi.cli.instrument import lost_fusions, opset_of
from onnxfi.cli.terminal import count, print_comparison, print_json, print_line, print_note, progress, table

if TYPE_CHECKING:
    from onnxfi.graph.passes.instrument import ActivationFault
    from onnxfi.runtime.inject.activations import ActivationInjection
    from onnxfi.tasks.evaluation import Evaluation

_MOST_LISTED = 10_000


def inject_activations(model: Path, flags: dict[str, Any], *, as_json: bool, allow_links: bool) -> None:
    """Draw faults in activations or inputs, insert them into the model, and compare golden and faulty outputs where there is data."""
    from onnxfi.errors import EngineError
    from onnxfi.graph.model.loading import load
    from onnxfi.graph.write.output_file import check_output_files
    from onnxfi.runtime.inject.activations import inject_activations
    from onnxfi.tasks.evaluation import evaluate

    _refuse(model, flags)
    out = flags["out"] or Path(f"{model.stem}.faulty.onnx")
    opened = load(model, allow_links=allow_links)
    check_output_files(opened, [out])
    golden = faulty = dataset = None
    failed = ""
    if flags["data"] is not None:
        engine = options.engine_of(flags)
        dataset = options.data_of(flags, opened, engine)
        with progress("golden run") as on_progress:
            golden = evaluate(model, dataset, engine=engine, **options.scoring_of(flags), progress=on_progress)
    rates = {name: rate_of(flags, name) for name in ("ber", "per_sample")}
    batch = 1 if dataset is None else dataset.layout.fixed or min(flags["batch"], dataset.samples)
    if dataset is not None and flags["per_sample"] is not None and dataset.samples % batch:
        raise click.UsageError(
            f"{dataset.samples:,} samples are not a multiple of the batch size {batch}; give another --samples or --batch"
        )
    names = (
        "count", "per_tensor", "sites", "voltage", "temperature", "fault", "target", "seed", "all", "inline", "body",
        "custom_ops",
    )  # fmt: skip
    arguments = {name: flags[name] for name in names}
    arguments |= {
        "selector": options.selector_of(flags),
        "opset": opset_of(flags),
        "data": dataset,
        "batch": batch,
        **rates,
    }
    done = inject_activations(opened, out, **arguments)
    faulty_tensors = {(s.activation.path, s.activation.name) for s in done.inserted}
    done = replace(
        done, notes=(*done.notes, *lost_fusions(opened, done.data, len(faulty_tensors), flags["custom_ops"]))
    )
    if golden is not None and dataset is not None:
        try:
            with progress("faulty run") as on_progress:
                faulty = evaluate(
                    out, dataset, golden=golden, engine=engine, **options.scoring_of(flags), progress=on_progress
                )
        except EngineError as error:
            failed = str(error)
    if as_json:
        print_json(_document(str(model), opened.digest, done, golden, faulty, failed))
    else:
        _print(str(model), flags["target"], done, golden, faulty, failed)
    for text in (*opened.notes, *done.notes):
        print_note(text)


def _refuse(model: Path, flags: dict[str, Any]) -> None:
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


def rate_of(flags: dict[str, Any], name: str) -> float | None:
    """Return the rate that a flag gives, None if it gives none."""
    from onnxfi.numbers import number

    text = flags[name]
    try:
        return None if text is None else number(text)
    except ValueError:
        raise click.UsageError(
            f"--{name.replace('_', '-')} must be a number from 0 to 1, as 1e-6, got {text!r}"
        ) from None


def _row(fault: ActivationFault) -> dict[str, Any]:
    from onnxfi.faults.sites import LAST_STEP

    a, mask = fault.activation, fault.mask
    row: dict[str, Any] = {"target": a.target.id, "index": fault.element, "sample": fault.sample}
    row["steps"] = None if (fault.first, fault.last) == (0, LAST_STEP) else [fault.first, fault.last]
    row |= {"keep": hex(mask.keep), "flip": hex(mask.flip)} if mask else {"scale": fault.scale, "shift": fault.shift}
    return row


def _document(
    model: str, digest: str, done: ActivationInjection, golden: Any, faulty: Any, failed: str
) -> dict[str, Any]:
    from onnxfi.graph.model.loading import load

    assert done.out is not None
    values: dict[str, Any] = {
        "model": model, "digest": digest, "faulty_digest": load(done.out, allow_links=True).digest,
        "output": str(done.out), "seed": done.draw.seed, "population": done.population, "unit": done.space.unit,
        "population_bits": done.space.bits, "expected": done.draw.expected_count(done.space), "drawn": done.faults.events,
        "faults": [_row(s) for s in done.inserted[:_MOST_LISTED]], "faults_total": len(done.inserted),
        "notes": list(done.notes),
    }  # fmt: skip
    return values | output_metrics(golden, faulty, failed)


def output_metrics(golden: Evaluation | None, faulty: Evaluation | None, failed: str) -> dict[str, Any]:
    """Return the metrics of both models and their conditions, as JSON keys; none where nothing was run."""
    if golden is None:
        return {}
    conditions = {"samples": golden.samples, "data": golden.data, "scored": golden.output, "provider": golden.provider}
    return {"golden": golden.summary(), "faulty": faulty.summary() if faulty else {"error": failed}, **conditions}


def _print(model: str, target: str, done: ActivationInjection, golden: Any, faulty: Any, failed: str) -> None:
    from onnxfi.graph.passes.fault_inputs import site_text

    draw, unit = done.draw, done.space.unit
    rate = {
        "ber": f"at a rate of {draw.rate:g} per {unit} of a sample", "per-sample": f"at a rate of {draw.rate:g} per sample",
    }.get(draw.kind, f"{draw.kind} {draw.n:,}")  # fmt: skip
    print_line(f"{model}: {target}, {rate}, seed {draw.seed}")
    print_line(f"population {count(done.population, unit)} per sample, drawn {done.faults.events:,}")
    rows = [(site_text(s), s.activation.target.dtype, _effect(s)) for s in done.inserted[:10]]
    table("Faults" + (" (the first 10)" if len(done.inserted) > 10 else ""), ("Site", "Dtype", "Becomes"), rows)
    if golden is not None and faulty is not None:
        print_comparison(golden, faulty)
    if failed:
        print_line(f"the faulty model does not run: {failed}")
    print_line(f"wrote {done.out}")


def _effect(fault: ActivationFault) -> str:
    if fault.mask is None:
        return f"number * {fault.scale:g} + {fault.shift:g}"
    return f"(word & {fault.mask.keep:#x}) ^ {fault.mask.flip:#x}"
