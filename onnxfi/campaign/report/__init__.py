"""The report of a campaign: rates with intervals as tables, figures, CSV files and an HTML page.

Start with `report.py`, which folds results by rate, layer and bit. The other modules print what it gives.
"""
