"""Class outcomes without a run: trials whose classes are proved, and runs of just the samples that need one.

Start with `proof_executor.py`; `campaign_proofs.py` holds the proofs of a campaign, and `unproved_runs.py` runs the
faults that have none.
"""
