"""`onnxfi inject MODEL --target activations`: write a model that has faults in its values in flight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli import options
from onnxfi.cli.instrument import fusions, opset

if TYPE_CHECKING:
    from onnxfi.graph.passes.instrument import ActivationFault
    from onnxfi.runtime.inject.activations import ActivationInjection
    from onnxfi.tasks.evaluation import Evaluation

_MOST_LISTED = 10_000


def inject_activations(model: Path, given: dict[str, Any], *, as_json: bool, allow_links: bool) -> None:
    """Draw or name faults, bake them, and show golden against faulty where there is data."""
    from onnxfi.cli.terminal import document, note, progress
    from onnxfi.errors import EngineError
    from onnxfi.graph.model.loading import load
    from onnxfi.graph.write.output_file import check_output_files
    from onnxfi.runtime.inject.activations import inject_activations
    from onnxfi.tasks.evaluation import evaluate

    for name in ("faults", "save_faults"):
        if given[name] is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} is for stored words; leave it out with activations")
    out = given["out"] or Path(f"{model.stem}.faulty.onnx")
    opened = load(model, allow_links=allow_links)
    check_output_files(opened, [out])
    golden = faulty = fed = None
    failed = ""
    if given["data"] is not None:
        how = options.engine(given)
        fed = options.data(given, opened, how)
        with progress("golden") as tell:
            golden = evaluate(model, fed, engine=how, **options.scored(given), progress=tell)
    rates = {name: None if given[name] is None else _rate(name, given[name]) for name in ("ber", "per_sample")}
    batch = 1 if fed is None else fed.layout.fixed or min(given["batch"], fed.samples)
    if fed is not None and given["per_sample"] is not None and fed.samples % batch:
        raise click.UsageError(
            f"{fed.samples:,} samples are no whole batches of {batch}; give another --samples or --batch"
        )
    names = ("count", "per_tensor", "sites", "fault", "seed", "all", "inline", "body", "custom_ops")
    asked = {name: given[name] for name in names}
    asked |= {"selector": options.selector(given), "opset": opset(given), "data": fed, "batch": batch, **rates}
    done = inject_activations(opened, out, **asked)
    struck = {(s.activation.path, s.activation.name) for s in done.inserted}
    done = replace(done, notes=(*done.notes, *fusions(opened, done.data, len(struck), given["custom_ops"])))
    if golden is not None and fed is not None:
        try:
            with progress("faulty") as tell:
                faulty = evaluate(out, fed, golden=golden, engine=how, **options.scored(given), progress=tell)
        except EngineError as error:
            failed = str(error)
    if as_json:
        document(_document(str(model), opened.digest, done, golden, faulty, failed))
    else:
        _print(str(model), done, golden, faulty, failed)
    for text in (*opened.notes, *done.notes):
        note(text)


def _rate(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(
            f"--{name.replace('_', '-')} {text!r} is no number; give one from 0 to 1, as 1e-6"
        ) from None


def _row(strike: ActivationFault) -> dict[str, Any]:
    from onnxfi.faults.sites import LAST_STEP

    a, mask = strike.activation, strike.mask
    row: dict[str, Any] = {"target": a.target.id, "index": strike.element, "sample": strike.sample}
    row["steps"] = None if (strike.first, strike.last) == (0, LAST_STEP) else [strike.first, strike.last]
    row |= {"keep": hex(mask.keep), "flip": hex(mask.flip)} if mask else {"scale": strike.scale, "shift": strike.shift}
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
    return values | answers(golden, faulty, failed)


def answers(golden: Evaluation | None, faulty: Evaluation | None, failed: str) -> dict[str, Any]:
    """What both models answered, and the conditions: keys of the document, none where nothing was run."""
    if golden is None:
        return {}
    conditions = {"samples": golden.samples, "data": golden.data, "scored": golden.output, "provider": golden.provider}
    return {"golden": golden.summary(), "faulty": faulty.summary() if faulty else {"error": failed}, **conditions}


def _print(model: str, done: ActivationInjection, golden: Any, faulty: Any, failed: str) -> None:
    from onnxfi.cli.terminal import count, number, say, table
    from onnxfi.graph.passes.fault_inputs import site_text

    how, unit = done.draw, done.space.unit
    rate = {
        "ber": f"at a rate of {how.rate:g} per {unit} of a sample", "per-sample": f"at a rate of {how.rate:g} per sample",
    }.get(how.kind, f"{how.kind} {how.n:,}")  # fmt: skip
    say(f"{model}: values in flight, {rate}, seed {how.seed}")
    say(f"population {count(done.population, unit)} a sample, drawn {done.faults.events:,}")
    rows = [(site_text(s), s.activation.target.dtype, _what(s)) for s in done.inserted[:10]]
    table("Faults" + (" (the first 10)" if len(done.inserted) > 10 else ""), ("Site", "Dtype", "Becomes"), rows)
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
    say(f"wrote {done.out}")


def _what(strike: ActivationFault) -> str:
    if strike.mask is None:
        return f"number * {strike.scale:g} + {strike.shift:g}"
    return f"(word & {strike.mask.keep:#x}) ^ {strike.mask.flip:#x}"
