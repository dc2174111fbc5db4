"""Attack search: the few bit flips that harm a model most, as the worst case beside the average one.

Start reading at `attack.py`. `candidates.py` lists flips worth a run, `goals.py` says what an attacker wants,
`flip_trials.py` runs flips by the routes of campaigns, and `search.py` chooses them one after the other.
"""
