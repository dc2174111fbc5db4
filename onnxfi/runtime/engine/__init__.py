"""Engines: `prepare(model)` gives a session, the session's `run(feeds, outputs)` gives arrays.

Start with `protocols.py`; `registry.py` finds an engine by its name.
"""
