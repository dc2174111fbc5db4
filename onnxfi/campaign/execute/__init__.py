"""The execution of trials: the golden run, the canary, and one trial by the shortest route that gives the full answer.

Start with `trial_executor.py`: `weight_routes.py` and `activation_routes.py` hold its executors, `route_cache.py` the
sessions that they share.
"""
