"""Class outcomes without a run: trials whose classes are proved, and runs of just the samples that need one.

Start with `class_executor`; `class_proofs` holds the proofs of a campaign, `unproved` runs what has none.
"""
