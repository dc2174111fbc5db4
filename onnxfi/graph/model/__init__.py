"""Reading an ONNX file without changing it: bytes, structure, stored tensors and what each is for.

Start with `loading.py`. `protobuf_scan.py` finds where each stored number lies, `targets.py` lists the stored tensors,
`tensor_roles.py` says which are weights, biases, scales or zero points.
"""
