"""A campaign in MLflow: its fields as parameters, its rates as metrics with their intervals, its page as an artifact.

    pip install mlflow
    python examples/adapters/mlflow_metrics.py STORE [EXPERIMENT]

A sweep gives each metric once for each rate: the step counts the rates from 0, and the metric `ber` names it.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnxfi


def metrics_of(found: onnxfi.Report) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield a step and its metrics: ``sdc1``, ``sdc1.low``, ``sdc1.high``, …; and ``golden.top1`` at the first."""
    folds = found.by_rate if len(found.by_rate) > 1 else (found.everything,)
    golden = {f"golden.{name}": value for name, value in found.golden["metrics"].items() if value is not None}
    for step, fold in enumerate(folds):
        named = golden if step == 0 else {}
        for rate in fold.rates:
            ends = {"": rate.interval.estimate, ".low": rate.interval.low, ".high": rate.interval.high}
            named |= {f"{rate.name}{end}": value for end, value in ends.items() if not math.isnan(value)}
        yield step, named | {"trials": fold.trials} | ({"ber": float(fold.key)} if len(folds) > 1 else {})


def log_report(found: onnxfi.Report, *, page: bool = True) -> None:
    """Log a report into the active run of MLflow, or a new one."""
    import mlflow

    fields = {name: str(value)[:500] for name, value in found.campaign.items() if value not in (None, "", [], {})}
    mlflow.log_params(fields)
    for step, metrics in metrics_of(found):
        mlflow.log_metrics(metrics, step=step)
    mlflow.log_artifact(str(found.store), "campaign")
    if page:
        with tempfile.TemporaryDirectory() as folder:
            mlflow.log_artifact(str(found.html(Path(folder, "report.html"))), "campaign")


def main(store: str, experiment: str = "onnxfi") -> None:
    import mlflow

    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=Path(store).stem):
        log_report(onnxfi.report(store))


if __name__ == "__main__":
    main(*sys.argv[1:])
