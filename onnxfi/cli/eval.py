"""`onnxfi eval MODEL`: how well a model answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxfi.cli import options
from onnxfi.cli.options import JSON, LINKS, MODEL, run_options


@click.command("eval", short_help="Run MODEL on data and print its metrics.")
@MODEL
@run_options
@LINKS
@JSON
def command(model: Path, as_json: bool, allow_links: bool, **given: Any) -> None:
    """Run MODEL on data and print its metrics: top-1 and top-5 with labels, the share of non-finite answers always.

    Without --data it runs on seeded synthetic inputs, which only shows that it runs.
    """
    from onnxfi.cli.terminal import document, note, number, progress, say, table
    from onnxfi.graph.model.loading import load
    from onnxfi.tasks.evaluation import evaluate

    opened = load(model, allow_links=allow_links)
    how = options.engine(given)
    fed = options.data(given, opened, how)
    with progress("running") as tell:
        found = evaluate(model, fed, engine=how, **options.scored(given), progress=tell)
    if as_json:
        conditions = {"samples": found.samples, "data": found.data, "output": found.output, "provider": found.provider}
        document({"model": str(model), "digest": opened.digest, "golden": found.summary(), **conditions})
    else:
        rows = [(name, number(value, share=found.task.metric(name).share)) for name, value in found.metrics.items()]
        table(str(model), ("Metric", ">Value"), rows)
        say(found.conditions())
    for text in opened.notes:
        note(text)
