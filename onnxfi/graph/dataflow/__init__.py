"""Facts on computed tensors: activations as targets, types and shapes, the axis of the samples, random operators.

Start with `activation_targets.py`.
"""
