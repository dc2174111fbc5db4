"""An objective for Optuna: the protection that keeps most of a model's answers under faults, at the least cost.

    pip install optuna
    python examples/adapters/optuna_objective.py [MODEL CALIBRATION DATA [TRIALS]]

Each trial of Optuna protects the model, runs a campaign on the same faults, and gives two numbers: the metric of the
task under faults, to maximise, and the nodes that the protection adds, to minimise.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxfi

SHIPPED = Path(__file__).parents[2] / "models"


def objective(model: str, calibration: Any, data: Any, **campaign: Any) -> Callable[[Any], tuple[float, float]]:
    """Return a function of Optuna's trial; `campaign` has the fields of a campaign, as ``ber=1e-5, repeat=20``."""

    def measured(trial: Any) -> tuple[float, float]:
        chosen = ["nan-filter"] if trial.suggest_categorical("nan_filter", [False, True]) else []
        action = trial.suggest_categorical("range", ["none", "clip", "zero"])
        chosen += [] if action == "none" else [f"range:{action}"]
        with tempfile.TemporaryDirectory() as folder:
            candidate, nodes = Path(model), 0
            if chosen:
                made = onnxfi.protect(model, chosen, Path(folder, "protected.onnx"), data=calibration)
                candidate, nodes = made.out, made.nodes_after - made.nodes_before
            found = onnxfi.run(candidate, data, Path(folder, "s.db"), progress=False, **campaign)
            headline = found.task.accuracy or found.task.metric(found.task.headline)
            rate = found.everything.rate(headline.name)
            trial.set_user_attr("interval", [rate.low, rate.high])
            return rate.estimate, float(nodes)

    return measured


def main(model: str, calibration: str, data: str, trials: str = "6") -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective(model, calibration, data, ber=1e-5, repeat=10, samples=100), n_trials=int(trials))
    for best in study.best_trials:
        low, high = best.user_attrs["interval"]
        print(f"{best.values[0]:.1%} [{low:.1%}, {high:.1%}] with {best.values[1]:.0f} nodes more: {best.params}")


if __name__ == "__main__":
    images = str(SHIPPED / "fashion_test.npz")
    given = sys.argv[1:] or [str(SHIPPED / "fashion_cnn.onnx"), images, images]
    main(*given)
