"""Faults: words, fault models, targets, sites, sampling and fault lists. Knows numbers and nothing of ONNX.

Start with `words.py` (how a number is stored) and `models.py` (what a fault does to it). A `Selector` leaves a
`FaultSpace` of sites (`space.py`), `trials.py` draws the faults of a trial from it with the random numbers of
`sampling.py`, and `faultlist.py` reads and writes them.
"""
