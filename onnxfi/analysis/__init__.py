"""Conclusions: what a model's words, and a campaign's results, say about where it is weak.

Start reading at `census.py`, which counts the effects of all single bit flips of a model without running it.
`vulnerability.py` reads from a store how vulnerable each part is, `fit.py` computes what that means in an environment,
and `assess.py` puts all of it together in a given time.
`manifest.py` finds damaged tensors by their hashes, `model_diff.py` the bits that differ between two files.
"""
