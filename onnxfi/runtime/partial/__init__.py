"""Partial execution: a trial runs from golden values, and only what its fault can change.

Start with `golden_cache.py` (golden values between segments) and `segmented_model.py`; `reexecution.py` runs a route.
"""
