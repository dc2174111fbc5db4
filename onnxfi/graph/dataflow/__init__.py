"""Computed tensors: activations as targets, inferred types and shapes, sample axes, random operators.

Start with `activation_targets.py`. `sample_axis.py` and `sample_layout.py` find the samples of a batch in each tensor,
`isolation.py` calls onnx and runtimes in a copy of the process.
"""
