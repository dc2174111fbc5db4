"""The ONNX file: its structure, a copy with other words, passes over the graph, and parts of it that run alone.

Read the folders in this order:

- `model/`: reading a file: bytes, stored tensors, layers, roles
- `write/`: a faulty copy, byte for byte the same elsewhere
- `dataflow/`: computed tensors: activations, types, shapes, the axis of the samples, random operators
- `passes/`: models to models: fault operators, neuron exposure, folding
- `partition/`: which part of the graph a fault can reach, and a model of that part alone
- `spiking/`: spiking layers found in the graph
"""
