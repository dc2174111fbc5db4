"""The part of a graph that a fault can reach, and a model of that part alone.

Start with `route.py`, which decides how much of a model a trial executes. `subgraph.py` holds the graph,
`cut_points.py` and `segments.py` split it into segments, and `subgraph_model.py` writes a part of it as a model.
"""
