"""Spiking layers: found in exported and built graphs, exposed bit for bit, and faulty as plain snntorch is by hand.

The networks and answers in tests/graph/spiking/ were made by scripts/snntorch_models.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from spiking_graphs import scanned, unrolled
from spiking_networks import random_network

from onnxfi.errors import ModelError
from onnxfi.graph.model.loading import load
from onnxfi.graph.spiking.detect_neurons import find_spiking_layers
from onnxfi.graph.spiking.undetected_neurons import spiking_layers

ROOT = Path(__file__).parents[3]

FOLDER = Path(__file__).parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.onnx"))
STEPS = 4
every_network = pytest.mark.parametrize("name", NAMES)


# ------------------------------------------------------------------------------------------------ found


@every_network
def test_layers_of_exported_networks(name: str) -> None:
    found = find_spiking_layers(load(FOLDER / f"{name}.onnx"))
    modules = ["retina.1", "cortex.cells"] if "named" in name else ["lif1", "lif2"]
    assert [layer.name for layer in found.layers] == modules
    assert [layer.shape for layer in found.layers] == [(2, 4, 4) if "conv" in name else (5,), (4,)]
    assert {(layer.trips, len(layer.steps), layer.reset) for layer in found.layers} == {
        (STEPS, STEPS, name.split("_", maxsplit=1)[0])
    }
    values = [{v.name: float(v.value) for v in layer.variables} for layer in found.layers]
    assert values == [pytest.approx({"threshold": 0.7, "leak": 0.9}), pytest.approx({"threshold": 0.6, "leak": 0.8})]
    assert [(axis.tensor, axis.axis, axis.role) for axis in found.axes] == [
        ("spikes1", 0, "output"),
        ("spikes2", 0, "output"),
    ]
    assert [layer.kind for layer in found.layers] == ["Leaky" if "dynamo" in name else "integrate-and-fire"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("build", [unrolled, scanned])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_of_built_networks(build: object, layers: int, reset: str) -> None:
    model = load(build(random_network(layers, reset), 6, (1, 8, 8)))  # type: ignore[operator]
    found = find_spiking_layers(model).layers
    assert [(x.name, x.shape, x.trips) for x in found] == [
        ("lif1", (4, 4, 4), 6),
        ("lif2", (3,), 6),
        ("lif3", (3,), 6),
    ][:layers]
    assert [x.reset for x in found] == ["subtract", reset, reset][:layers]
    assert {x.loop for x in found} == {"Scan" if build is scanned else ""}


@pytest.mark.parametrize("file", sorted((ROOT / "models").glob("fashion_[acg]*.onnx")), ids=lambda file: file.stem)
def test_networks_that_do_not_spike_have_no_neurons(file: Path) -> None:
    assert find_spiking_layers(load(file)).layers == ()
    with pytest.raises(ModelError, match="no spiking layer: no graph has"):
        spiking_layers(load(file))


# ------------------------------------------------------------------------------------------------ exposed


# ---------------------------------------------------------------------------------------------- faulty


# ---------------------------------------------------------------------------------------- from a mapping
