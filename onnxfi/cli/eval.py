"""`onnxfi eval MODEL`: metrics of a model on data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxfi.cli import options
from onnxfi.cli.options import CODE, JSON, LINKS, PIPELINE, RUN, verb
from onnxfi.cli.terminal import print_json, print_line, print_note, progress, table


@verb("eval", "Run MODEL on data and print its metrics.", PIPELINE, *RUN, LINKS, CODE, JSON)
def command(model: Path, as_json: bool, allow_links: bool, allow_code: bool, **flags: Any) -> None:
    """Run MODEL on data and print its metrics: top-1 and top-5 with labels, and the share of non-finite outputs.

    Without --data the inputs are synthetic and seeded, which shows only that the model runs. A pipeline of several models
    (docs/reference/pipeline.md) is run as a whole.
    """
    from onnxfi.campaign.spec.pipeline_file import names_pipeline
    from onnxfi.graph.model.loading import load
    from onnxfi.tasks.evaluation import evaluate, evaluate_pipeline

    if names_pipeline(model):
        pipeline, dataset = options.pipeline_of(model, flags, allow_code=allow_code, allow_links=allow_links)
        with progress("running") as on_progress:
            how = options.pipeline_scoring_of(flags)
            found = evaluate_pipeline(pipeline, dataset, **how, progress=on_progress)
        digest, notes = pipeline.digest, tuple(note for one in pipeline.models.values() for note in one.notes)
    else:
        opened = load(model, allow_links=allow_links)
        engine = options.engine_of(flags)
        dataset = options.data_of(flags, opened, engine)
        with progress("running") as on_progress:
            found = evaluate(model, dataset, engine=engine, **options.scoring_of(flags), progress=on_progress)
        digest, notes = opened.digest, opened.notes
    if as_json:
        conditions = {"samples": found.samples, "data": found.data, "output": found.output, "provider": found.provider}
        print_json({"model": str(model), "digest": digest, "golden": found.summary(), **conditions})
    else:
        rows = [(name, found.task.metric(name).text(value)) for name, value in found.metrics.items()]
        table(str(model), ("Metric", ">Value"), rows)
        print_line(found.conditions())
    for text in notes:
        print_note(text)
