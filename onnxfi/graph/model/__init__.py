"""Reading an ONNX file: its bytes, its graphs, its stored tensors and their roles.

Start with `loading.py`, which opens a model. `protobuf_scan.py` locates each stored number, `graph_index.py` resolves
the names of all graphs, `targets.py` lists the stored tensors, `tensor_roles.py` distinguishes weights, biases, scales
and zero points.
"""
