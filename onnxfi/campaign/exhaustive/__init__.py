"""The class outcomes of every single-bit fault: proved where they can be, run where not, stored in columns.

Start with `class_run`; `class_table` is the file that it writes.
"""
