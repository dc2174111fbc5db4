"""`onnxfi eval MODEL`: metrics of a model on data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxfi.cli import options
from onnxfi.cli.options import JSON, LINKS, MODEL, GroupedCommand, run_options


@click.command("eval", cls=GroupedCommand, short_help="Run MODEL on data and print its metrics.")
@MODEL
@run_options
@LINKS
@JSON
def command(model: Path, as_json: bool, allow_links: bool, **flags: Any) -> None:
    """Run MODEL on data and print its metrics: top-1 and top-5 with labels, and the share of non-finite outputs.

    Without --data the inputs are synthetic and seeded, which shows only that the model runs.
    """
    from onnxfi.cli.terminal import number, print_json, print_line, print_note, progress, table
    from onnxfi.graph.model.loading import load
    from onnxfi.tasks.evaluation import evaluate

    opened = load(model, allow_links=allow_links)
    engine = options.engine_of(flags)
    dataset = options.data_of(flags, opened, engine)
    with progress("running") as on_progress:
        found = evaluate(model, dataset, engine=engine, **options.scoring_of(flags), progress=on_progress)
    if as_json:
        conditions = {"samples": found.samples, "data": found.data, "output": found.output, "provider": found.provider}
        print_json({"model": str(model), "digest": opened.digest, "golden": found.summary(), **conditions})
    else:
        rows = [(name, number(value, share=found.task.metric(name).share)) for name, value in found.metrics.items()]
        table(str(model), ("Metric", ">Value"), rows)
        print_line(found.conditions())
    for text in opened.notes:
        print_note(text)
