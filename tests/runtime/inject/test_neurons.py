"""The verb that exposes neurons: the same outputs, a file or none, and mappings that are read or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from spiking_graphs import scanned
from spiking_networks import random_network, run_network

from onnxfi.errors import InputError, ModelError, OutputError
from onnxfi.graph.model.loading import Model, load
from onnxfi.runtime.inject.neurons import (
    describe_neurons,
    expose_neurons,
    operators,
    read_mapping,
    with_exposed_neurons,
)

IMAGE = np.random.default_rng(4).random((2, 1, 8, 8)).astype(np.float32)


@pytest.fixture
def model() -> Model:
    return load(scanned(random_network(2), 5, (1, 8, 8)))


def test_outputs_stay_and_every_neuron_is_a_target(model: Model, tmp_path: Path) -> None:
    done = expose_neurons(model, tmp_path / "exposed.onnx")
    assert done.out == tmp_path / "exposed.onnx" and load(done.out).digest == load(done.data).digest
    before, after = (run_network(data, IMAGE) for data in (model.proto.SerializeToString(), done.data))
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    spikes = {t.id: t.shape for t in load(done.data).targets if t.role == "spike"}
    assert spikes == {"lif1/spike": (4, 4, 4), "lif2/spike": (3,)}


def test_without_a_place_nothing_is_written(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert expose_neurons(model).out is None and not list(tmp_path.iterdir())
    with pytest.raises(OutputError):
        expose_neurons(model, tmp_path / "none" / "exposed.onnx")


def test_neurons_are_exposed_once(model: Model) -> None:
    exposed = with_exposed_neurons(model)
    assert with_exposed_neurons(exposed) is exposed
    with pytest.raises(ModelError, match="has its neurons exposed already; inject into it as it is"):
        expose_neurons(exposed)
    with pytest.raises(ModelError):
        expose_neurons(load("models/fashion_cnn.onnx"))


def test_neurons_are_described_before_and_after(model: Model) -> None:
    before, after = (describe_neurons(one)["layers"] for one in (model, with_exposed_neurons(model)))
    same = ("layer", "kind", "shape", "steps", "reset", "loop", "neurons")
    assert [[row[key] for key in same] for row in before] == [[row[key] for key in same] for row in after]
    assert [row["exposed"] for row in (*before, *after)] == [False, False, True, True]
    assert [row["neurons"] for row in before] == [64, 3] and before[0]["threshold"] == [1.0, 1.0]
    assert describe_neurons(load("models/fashion_cnn.onnx")) == {"layers": [], "time_axes": [], "notes": []}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a", "holds no fields; it takes version, layers"),
        ("version: 1", "layers is missing"),
        ("layers: {}", "layers is {}; it takes a list"),
        ("layers: []", r"layers is \[\]; it takes a list"),
        ("layers: [{}]\nother: 1", "unknown field 'other'"),
        ("version: 2\nlayers: [{}]", "version 2; this onnxfi reads version 1"),
    ],
)
def test_mappings_of_another_form_are_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "n.yaml").write_text(text)
    with pytest.raises(InputError, match=says):
        read_mapping(tmp_path / "n.yaml")


def test_a_mapping_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "n.yaml").write_text("version: 1\nlayers:\n  - name: lif1\n    spike: [s]\n")
    [layer] = read_mapping(tmp_path / "n.yaml")
    assert layer.values == {"name": "lif1", "spike": ["s"]}


def test_operators_are_those_of_every_graph(model: Model) -> None:
    assert "Scan" in operators(model.proto) and {"Greater", "GreaterOrEqual", "Less"} & operators(model.proto)
