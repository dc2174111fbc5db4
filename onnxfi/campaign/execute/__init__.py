"""The execution of a campaign: the golden run twice, the canary, then every trial without a result.

Start with `runner.py`, then `trial_executor.py`, which runs one trial by the shortest route that gives the full run's
answer: `weight_routes.py` and `activation_routes.py` hold the executors, `route_cache.py` the sessions that they share.
"""
