"""Writing files: faulty copies of a model, atomic output files, scratch folders.

Start with `faulty_copy.py`.
"""
