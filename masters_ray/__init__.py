"""Distil a large vision-language model into a small one on a Ray cluster by the Masters method (arXiv 2512.22238)."""

__version__ = "0.1.0"
