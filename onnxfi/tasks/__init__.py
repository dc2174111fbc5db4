"""Tasks: what the answers of a network mean, how two answers are compared, and the metrics of a run.

Start with `task.py`, the protocol of a task, and `answers.py` (golden and faulty outputs); `outcomes.py` judges one
trial. The room `kinds/` has a module for each task that is built in.
"""
