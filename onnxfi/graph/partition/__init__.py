"""The part of a graph that a fault can reach, and a model of that part alone.

Start with `subgraph.py` (what lies behind a tensor) and `route.py` (how little has to run again).
"""
