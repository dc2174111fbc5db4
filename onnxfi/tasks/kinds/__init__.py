"""The tasks that are built in, a module for each; `onnxfi/tasks/registry.py` finds them by name.

A module declares one `Task`, or a function of options that returns one, and holds the formulas of its metrics. The
protocol that it follows is `onnxfi/tasks/task.py`; start with `deviation.py`, the shortest.
"""
