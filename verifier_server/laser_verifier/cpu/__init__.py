"""A forward for Llama-shaped models on processors, whose rows depend on nothing but their own sequence.

`forward.py` is the way in. Everything else of the package computes: it knows tensors and layouts, no requests.
"""
