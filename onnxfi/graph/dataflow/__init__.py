"""Computed tensors: activations as targets, inferred types and shapes, sample axes, random operators.

Start with `activation_targets.py`. `batch_layout.py` finds the inputs that hold samples, and
`sample_placement.py` the axis of the samples in every other tensor.
"""
