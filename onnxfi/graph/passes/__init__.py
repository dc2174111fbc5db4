"""Passes: functions from a model to a model with the same answers until a fault is fed.

Start with `instrument.py`, which inserts the fault operators of `fault_operators.py` behind activations.
"""
