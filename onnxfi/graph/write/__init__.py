"""Writing: a faulty copy of a model, drafts that become files only when they are complete, scratch folders.

Start with `faulty_copy.py`.
"""
