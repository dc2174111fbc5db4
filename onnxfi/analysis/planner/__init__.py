"""Plans of protections within a budget, from recorded trials; start with `plan_protection`.

`recorded_trials` reads a store and runs its trials again on protected versions, `options` finds what can be put where
and what it costs, `option_effects` what it does to each trial, `choice` picks, and `budget` reads the limits.
"""
