"""Workers: trials in processes of this machine or on Dask, with limits of time and memory.

Start with `worker.py`: a `Worker` runs batches of trials (`trial_batches.py`) and owns what it has open; `watchdog.py`
ends its process when a trial takes too long. `scheduling.py` hands batches to a pool, and
runs a trial that ended a worker again, alone. Pools are processes of this machine (`process_pool.py`) or workers of a
Dask scheduler (`dask_executor.py`, `local_dask_cluster.py`). Order and number of workers change no result.
"""
