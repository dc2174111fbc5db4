"""ONNX files: reading, faulty copies, graph passes, partial models and spiking neurons.

Read the folders in this order:

- `model/`: reading a file: bytes, graphs (`GraphIndex`), stored tensors, layers, roles
- `write/`: a faulty copy, byte for byte the same elsewhere; output files
- `dataflow/`: computed tensors: activations, types, shapes, sample axes, random operators
- `passes/`: transformations of models: fault operators, neuron exposure, folding
- `partition/`: which part of the graph a fault can reach, and a model of that part alone
- `spiking/`: finding spiking neurons in the graph
- `protection/`: passes that hold, filter, compare or check numbers
"""
