"""Partial execution: a trial runs from golden activations, and only what its fault can reach.

Start with `segmented_model.py`, through which all trials run; `golden_cache.py` keeps golden activations between its
segments, and `reexecution.py` runs one route.
"""
