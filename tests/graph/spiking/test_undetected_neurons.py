"""Mappings of neurons that no pattern finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from spiking_networks import run_network

from onnxfi.errors import InputError, ModelError
from onnxfi.graph.model.loading import load
from onnxfi.graph.spiking.detect_neurons import find_spiking_layers
from onnxfi.runtime.inject.neurons import describe_neurons, expose_neurons, read_mapping
from onnxfi.runtime.inject.weights import inject, sample


def adaptive() -> onnx.ModelProto:
    """Neurons whose threshold is computed: no pattern finds them."""
    steps = "".join(
        f"""l{t} = Mul(leak, m{t - 1})  i{t} = Add(l{t}, x)  h{t} = Mul(hold, s{t - 1})  m{t} = Sub(i{t}, h{t})
        b{t} = Add(limit, r{t - 1})  p{t} = Greater(m{t}, b{t})  s{t} = Cast<to = 1>(p{t})  r{t} = Add(r{t - 1}, s{t})\n"""
        for t in (1, 2, 3)
    )
    return onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 20]> g (float[N,3] x) => (float[N,3] r3)
      <float leak = {{0.5}}, float limit = {{0.3}}, float hold = {{0.25}}> {{
        m0 = Sub(x, x)  s0 = Sub(x, x)  r0 = Sub(x, x) {steps} }}""")


MAPPING = """version: 1
layers:
  - name: cells
    membrane: [m1, m2, m3]
    spike: [s1, s2, s3]
    threshold: limit
    leak: leak
    refractory: hold
    reset: subtract
"""


def test_a_mapping_describes_other_neurons(tmp_path: Path) -> None:
    model = load(adaptive())
    assert find_spiking_layers(model).layers == ()
    (file := tmp_path / "cells.yaml").write_text(MAPPING)
    (row,) = describe_neurons(model, file)["layers"]
    assert (row["layer"], row["kind"], row["neurons"], row["steps"], row["refractory"]) == (
        "cells",
        "mapped",
        3,
        3,
        [0.25, 0.25],
    )
    data = expose_neurons(model, neurons=file).data
    exposed = load(data)
    words = ["cells/threshold", "cells/leak", "cells/refractory", "cells/spike"]
    assert [t.id for t in exposed.targets if "/" in t.id] == words
    x = np.array([[0.7, 0.8, 0.5], [0.2, 1.4, 0.1]], np.float32)
    golden = run_network(model.source.data or b"", x)["r3"]
    assert np.array_equal(run_network(data, x)["r3"], golden)
    injected = inject(exposed, sample(exposed, sites=["cells/refractory[1]"], fault="scale:factor=-8")).data or b""
    assert np.array_equal(run_network(injected, x)["r3"][:, [0, 2]], golden[:, [0, 2]])
    assert not np.array_equal(run_network(injected, x)["r3"], golden)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers: [{name: a, spike: [s1, s9]}]", "spike names 's9', which is not in this model"),
        (
            "layers: [{name: a, spike: s1, threshold: limits}]",
            "threshold 'limits', which is not a stored tensor.*limit",
        ),
        ("layers: [{name: a, spike: s1, treshold: limit}]", "unknown field 'treshold'.*threshold"),
        ("layers: [{spike: s1}]", "name is missing"),
        ("layers: [{name: a, spike: [s1, s2], membrane: m1}]", "1 membranes and 2 spikes"),
        ("layers: [{name: a, spike: s1, reset: never}]", "unknown reset 'never'"),
        ("layers: []", "it takes a list"),
        ("{", "is not a readable YAML file"),
        ("version: 2\nlayers: [{name: a}]", "version 2"),
    ],
)
def test_mappings_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    (file := tmp_path / "cells.yaml").write_text(text)
    with pytest.raises((InputError, ModelError), match=message):
        expose_neurons(load(adaptive()), neurons=file)


def test_a_mapping_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read '.*none.yaml'"):
        read_mapping(tmp_path / "none.yaml")
