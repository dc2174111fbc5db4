"""Decoders with a KV cache: greedy or sampled text, token by token, with faults in the cache at any step.

Start with `greedy_loop`, the loop over one prompt; `decoder_stages` finds the cache of a model, `cache_ports` the pairs
of outputs and inputs that carry it, and `generation_engine` makes a model with its loop look like any other session.
"""
