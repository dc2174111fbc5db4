"""The run of a whole campaign: the golden run twice, the canary, then every trial without a result.

Start with `runner.py`. `adaptive_rounds.py` draws the rounds of an adaptive campaign from what its store holds,
`campaign_record.py` says what a store keeps of its campaign, `trial_limits.py` what a trial may take,
`golden_run_cache.py` keeps golden runs between campaigns.
"""
