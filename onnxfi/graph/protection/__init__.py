"""Protections as model passes: plain ONNX operators that hold, filter, compare or check computed and stored numbers.

Start with `range_restriction.py`; `placement.py` says which activations are restricted by default.
"""
