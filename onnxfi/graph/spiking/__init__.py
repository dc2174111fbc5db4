"""Spiking layers: detection of neurons by the pattern of their equations, their steps and time axes.

Start with `detect_neurons.py`; `undetected_neurons.py` reads the tensors of neurons that no pattern finds.
"""
