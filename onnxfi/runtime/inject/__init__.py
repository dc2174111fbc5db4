"""The verbs that inject: faults in weights, in activations and in neurons.

Start with `weights.py` (sample, inject, replay, undo); `activations.py` has instrument and inject_activations.
"""
