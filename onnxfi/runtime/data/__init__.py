"""Data: samples and labels from archives, image folders and functions, cut into batches; outputs by sample.

Start with `open_data.py`. `dry_run.py` runs a first sample in a copy of the process, so that a crash is reported.
"""
