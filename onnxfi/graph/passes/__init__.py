"""Passes: transformations of a model that keep its outputs until a fault is injected.

Start with `instrument.py`, which inserts the fault operators of `fault_operators.py` after activations.
"""
