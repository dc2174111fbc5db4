"""The public functions that take models and samples in memory as well as files.

Start with `run.py`, which has `onnxfi.run`; `campaigns.py` has assess, check, compare and plan, and `models.py` has
evaluate, quantize and protect. The stub `onnxfi/__init__.pyi` lists all public names with their modules.
"""
