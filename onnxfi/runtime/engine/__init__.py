"""Engines: `prepare(model)` gives a session, the session's `run(feeds, outputs)` gives arrays.

Start with `engines.py`.
"""
