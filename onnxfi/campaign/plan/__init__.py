"""The plan of a campaign: every trial as lines of a fault list, with all random numbers drawn.

Start with `plan.py`. `open_model.py` opens the model and its data, `fault_targets.py` says which weights and
activations a fault can be injected into, `strata.py` divides them.
"""
