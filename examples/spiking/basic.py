# %% [markdown]
# # Faults in the neurons of a spiking network
# Find the neurons of an exported network, give each of them words of its own, and inject faults into some.

# %%
import os
import tempfile
from pathlib import Path

import onnxfi

ROOT = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "models" / "fashion_snn.onnx").exists())
SAMPLES = int(os.environ.get("SAMPLES", "500"))
model = onnxfi.load(ROOT / "models" / "fashion_snn.onnx")
for layer in onnxfi.inspect(model)["spiking"]["layers"]:
    print(f"{layer['layer']}: {layer['neurons']} neurons, {layer['steps']} steps, reset {layer['reset']}")

# %% [markdown]
# The file holds one threshold for a layer. Exposed, it holds one for each neuron, and the spikes as targets.

# %%
exposed = onnxfi.load(onnxfi.expose_neurons(model).data)
print([target.id for target in exposed.targets if target.layer == "lif3"])

# %% [markdown]
# Some faults, one after the other: at a site that is named, or drawn within a layer or over the network.

# %%
chosen = onnxfi.Selector
faults = {
    "nothing": {"count": 0},
    "output neuron 3 is dead": {"sites": ["lif3/spike[3]"], "fault": "dead"},
    "output neuron 3 always spikes": {"sites": ["lif3/spike[3]"], "fault": "saturated"},
    "half the threshold of 100 neurons of lif2": {
        "count": 100,
        "fault": "scale:factor=0.5",
        "selector": chosen(include=("lif2",), role=("threshold",)),
    },
    "200 dead neurons anywhere": {"count": 200, "fault": "dead", "selector": chosen(role=("spike",))},
    "50 synapses at their 99th percentile": {
        "count": 50,
        "fault": "saturated:percentile=99",
        "selector": chosen(role=("weight",)),
    },
    "20 bits of an 8-bit view of the synapses": {
        "count": 20,
        "fault": "flip-quantised:bits=8",
        "selector": chosen(role=("weight",)),
    },
}
engine = onnxfi.OrtEngine(provider="cpu")
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "faulty.onnx"
    ports = engine.prepare(onnxfi.expose_neurons(model).data).inputs
    data = onnxfi.open_data(ROOT / "models" / "fashion_test.npz", ports, limit=SAMPLES)
    for name, how in faults.items():
        onnxfi.inject(exposed, onnxfi.sample(exposed, **how), file)
        found = onnxfi.evaluate(file, data, engine=engine)
        print(f"{name}: top-1 {found.metrics['top1']:.3f}")
        file.unlink()
