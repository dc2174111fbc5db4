"""Pipelines: several models, and host code between them, that give one answer for each sample.

Start with pipeline.py, the value; open_pipeline.py opens its stages and runs them in front of a stage, later_stages.py
after it.
"""
