"""The results of a campaign: one SQLite file with checksums, and the union of several.

Start with `store.py`; the format is a document of its own.
"""
