"""The learner: Ray Train workers with DeepSpeed. Imports nothing, so that ``job`` alone does not load PyTorch."""
