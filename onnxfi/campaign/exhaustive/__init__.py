"""The class outcomes of every single-bit fault: proved where they can be, run where not, stored in columns.

Start with `exhaustive_run.py`; `outcome_table.py` is the file that it writes.
"""
