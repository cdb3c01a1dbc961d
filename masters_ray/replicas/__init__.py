"""Replicas: processes that hold a model and play roles. Plain classes; spawn.py alone makes Ray actors of them."""
