"""Proofs of outcomes: bounds of a faulty output that prove its class, without running the model.

Start with `propagation.py`: from the bounds of a faulty tensor to those of the scores, and to the classes that are
certain. `operators.py` has a rule for each operator, `bounds.py` the bound on what a runtime's float32 may do.
"""
