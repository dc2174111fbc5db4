"""Post-training quantisation, compared with the float model.

Start with `quantize.py`.
"""
