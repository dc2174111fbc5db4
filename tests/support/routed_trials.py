"""Small networks whose trials run by the shortest route, and what such a trial gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper
from tiny_campaigns import chance

from onnxfi.campaign.execute.trial_executor import PreparedTrial, TrialExecutor
from onnxfi.campaign.execute.weight_routes import faulty_targets
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.faults.space import Target
from onnxfi.faults.trials import Faults
from onnxfi.runtime.data.sample_outputs import stacked

#: Samples of these networks.
SAMPLES = 5


def bench_of(model: onnx.ModelProto, folder: Path, **more: Any) -> TrialExecutor:
    """Open a campaign on a model that takes [N, 16, 4, 4]."""
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "x.npz", x=chance(more.get("samples", SAMPLES), 16, 4, 4, seed=7))
    given = {"single": True, "trials": 1, "batch": 2, "optimization": "off", **more}
    return TrialExecutor.open(Campaign(str(folder / "net.onnx"), str(folder / "x.npz"), **given))


def routed(bench: TrialExecutor, faults: Faults) -> tuple[str, np.ndarray | None]:
    """Return the route of a trial and its scores; none where that is the whole model."""
    assert bench.weights is not None
    found = bench.shorter(PreparedTrial(faults, faulty_targets(faults)))
    if found is None:
        return "full", None
    reexecution, injected = found
    batches = bench.weights.segmented.golden.batches()
    return reexecution.route, stacked([reexecution.outputs(k, injected) for k, _ in batches])


def injectable(bench: TrialExecutor) -> list[Target]:
    """Return the weights that faults can be injected into."""
    return [t for t in bench.opened.model.targets if t.size and not t.structural]


def vectors(folder: Path, *nodes: str, **stored: np.ndarray) -> TrialExecutor:
    """A network over vectors of 8, whose stored tensors lie in one file of external data where they have an offset."""
    graph = f"<ir_version: 10, opset_import: ['': 21]> g (float[N,8] x) => (float[N,8] y) {{ {' '.join(nodes)} }}"
    model = onnx.parser.parse_model(graph.replace("'", '"'))
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    np.savez(folder / "x.npz", x=chance(SAMPLES, 8, seed=7))
    onnx.save(model, folder / "net.onnx")
    files = (str(folder / "net.onnx"), str(folder / "x.npz"))
    return TrialExecutor.open(Campaign(*files, single=True, trials=1, batch=2, optimization="off"))
