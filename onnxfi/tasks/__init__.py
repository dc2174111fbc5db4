"""Tasks: what the answers of a network mean, how two answers are compared, and the metrics of a run.

Start with `comparison.py` (golden and faulty outputs) and `metrics.py`; `outcomes.py` judges one trial.
"""
