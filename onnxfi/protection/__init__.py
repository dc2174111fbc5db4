"""Protections of a deployed model: what is put into its graph, and codes over its memory.

Start with `protect.py`, the verb; `protections.py` has all that `--with` takes, `calibration.py` finds the ranges of
activations. The passes themselves are in `graph/protection/`.
"""
