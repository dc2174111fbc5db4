"""The execution of a campaign: the golden run twice, the canary, then every trial without a result.

Start with `runner.py`, then `trial_executor.py`, which runs one trial by the shortest route that gives the full run's
answer (`route_cache.py` keeps what routes share). Trials go to a worker (`worker.py`) in batches (`task_batches.py`):
in this process, in a pool of processes (`process_pool.py`, `scheduling.py`) or on Dask (`dask_cluster.py`).
"""
