"""Injection of faults into weights, activations and neurons.

Start with `weights.py` (sample, inject, replay, undo); `activations.py` has instrument and inject_activations.
"""
