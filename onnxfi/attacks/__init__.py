"""Attack search: the few bit flips that harm a model most, as the worst case beside the average one.

Start reading at `attack.py`. `candidates.py` lists flips worth a run, `goals.py` says what an attacker wants,
`flip_trials.py` runs flips by the routes of campaigns, `search.py` chooses them one after the other, and
`random_flips.py` measures what random flips do to the same samples.
"""
