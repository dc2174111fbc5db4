"""The gate: a budget of rates, and the check that a model keeps it, for CI servers.

Start with `budget.py` (the file) and `check.py` (the verdict). `write_budget.py` proposes a budget from a measurement,
`ci_report.py` writes JUnit XML and Markdown.
"""
