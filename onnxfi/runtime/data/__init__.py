"""Data: samples and labels from archives, image folders and functions, cut into batches; outputs by sample.

Start with `sources.py`.
"""
