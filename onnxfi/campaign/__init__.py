"""Campaigns: many trials planned, executed, stored, reported and judged.

Read `spec/campaign.py` first: a campaign is a frozen value. From there it goes through the folders in this order:

- `spec/`: the fields of a campaign and its YAML file
- `plan/`: the model and data opened, the fault population, the strata, the fault list with every trial
- `execute/`: the golden run, the canary, one trial by its route
- `proved/`: classes proved without a run, for campaigns that judge classes alone
- `workers/`: trials in worker processes or on Dask
- `results/`: the store, one SQLite file
- `run/`: the whole campaign, from the golden run to the last trial
- `exhaustive/`: the class outcomes of every single-bit fault, in columns
- `report/`: rates with intervals, tables, figures, the HTML page
- `gate/`: a budget checked against a campaign, for CI
"""
