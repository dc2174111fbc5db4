"""Statistics: confidence intervals, sample sizes and adaptive estimation. Numbers in, numbers out.

Start with `intervals.py`; the formulas and their sources are in the documentation of each function.
"""
